"""Decoding: K samples of a prompt from one prefill, finished rows dropped, waiting prompts let in.

Every sample has a seed of its own, from which its random numbers come, one per token. What stands beside it in the
batch, and when it was let in, therefore never changes a sample (beyond the last bits of the logits, which matter only
where a random number falls within them of the border between two tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import DynamicCache

from onebase import processes
from onebase.errors import DoesNotFitError, PromptTooLongError
from onebase.models.decode_cache import SlotCache, keys_and_values
from onebase.models.decoder import Decoder, Layer
from onebase.models.forward import adjust_logits, final_logits, mask_argument, sliding_window
from onebase.models.hardware import free_memory
from onebase.models.one_base import OneBase

MOST_ROWS = 256
"""Rows decoded at once, at most: beyond them a step takes longer in proportion."""
PREFILL_TOKENS = 16384
"""Prompt tokens run at once, at most."""
SHARE_OF_FREE_MEMORY = 0.4
"""Of what is free, for keys and values."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn.

    With `top_k` or `top_p` in use the samples come from a truncated distribution; `Sample.logprobs` are those of the
    full one at this temperature.
    """

    max_new_tokens: int
    temperature: float = 1.0
    """0: the most probable token."""
    top_k: int = 0
    """Keep the k most probable tokens; 0: all."""
    top_p: float = 1.0
    """Keep the most probable tokens that together reach this probability; 1: all."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a completion, and stay as its last token."""


@dataclass(slots=True)
class Sample:
    """One completion as it was drawn."""

    prompt: int
    """Which of the prompts given."""
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """log p of each token at the sampling temperature, in nats."""
    ended: bool = False
    """Whether it stopped by itself, with a stop token; False where the length limit cut it."""


def stop_ids(base: OneBase, extra: Sequence[int] = ()) -> tuple[int, ...]:
    """The end tokens of the tokenizer and of the model's generation settings, and `extra`."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, base.tokenizer.eos_token_id, *extra] if i is not None}))


def sample_seeds(seed: int, *, num_prompts: int, samples_per_prompt: int, stream: str = "") -> list[int]:
    """A seed for every sample, prompt by prompt: a pure function of `(seed, stream, prompt, sample)`."""
    return [
        int.from_bytes(hashlib.sha256(f"{seed}/{stream}/{p}/{k}".encode()).digest()[:7], "big")
        for p in range(num_prompts)
        for k in range(samples_per_prompt)
    ]


@torch.no_grad()
def generate(
    base: OneBase,
    prompts: Sequence[Sequence[int]],
    *,
    role: str,
    sampling: Sampling,
    seeds: Sequence[int],
    samples_per_prompt: int = 1,
    max_rows: int | None = None,
    on_token: Callable[[Sample], None] | None = None,
) -> list[Sample]:
    """Draws K completions of every prompt with the base run as `role`.

    Args:
        prompts: token ids, at least one each.
        seeds: one per sample, prompt by prompt (`sample_seeds`).
        max_rows: completions decoded at once; the others wait their turn. None: what a part of the free memory holds.
        on_token: called with a sample after each of its tokens.

    Returns:
        The samples prompt by prompt: K of the first, K of the second, ...

    Raises:
        PromptTooLongError: a prompt and `max_new_tokens` exceed the model's context.
        DoesNotFitError: the keys and values of one prompt's samples do not fit the free memory.
    """
    for i, prompt in enumerate(prompts):
        if len(prompt) + sampling.max_new_tokens > base.context_length:
            raise PromptTooLongError(
                f"prompt {i}: {len(prompt)} tokens and {sampling.max_new_tokens} new ones exceed the model's context "
                f"of {base.context_length}; lower generation.max_new_tokens or data.max_prompt_tokens"
            )
    mine = processes.share([len(prompt) for prompt in prompts])  # all of them, where there is one process
    places = [p * samples_per_prompt + k for p in mine for k in range(samples_per_prompt)]
    own = _generate(
        base,
        [prompts[p] for p in mine],
        role,
        sampling,
        [seeds[place] for place in places],
        samples_per_prompt,
        max_rows,
        on_token,
    )
    for place, sample in zip(places, own, strict=True):
        sample.prompt = place // samples_per_prompt
    return processes.gather_items(own, places, len(prompts) * samples_per_prompt)


def _generate(
    base: OneBase,
    prompts: Sequence[Sequence[int]],
    role: str,
    sampling: Sampling,
    seeds: Sequence[int],
    samples_per_prompt: int,
    max_rows: int | None,
    on_token: Callable[[Sample], None] | None,
) -> list[Sample]:
    if not prompts:
        return []
    samples = [Sample(prompt=p) for p in range(len(prompts)) for _ in range(samples_per_prompt)]
    randoms = _random_numbers(seeds, sampling.max_new_tokens).to(base.device)  # [num samples, max_new_tokens]
    decode = _decode_in_slots if base.layout == "tree" else _decode_by_prompt
    with base.role(role):
        longest = max((len(prompt) for prompt in prompts), default=0) + sampling.max_new_tokens
        wanted = min(len(samples), MOST_ROWS if max_rows is None else max_rows)
        num_slots = max(samples_per_prompt, wanted)
        if max_rows is None and base.layout == "tree":
            num_slots = _rows_that_fit(base, num_slots, samples_per_prompt, longest)
        decode(base, prompts, samples, randoms, sampling, samples_per_prompt, num_slots, on_token)
    return samples


def _rows_that_fit(base: OneBase, wanted: int, samples_per_prompt: int, length: int) -> int:
    """At most `wanted` rows, fewer where their keys and values would take more than a part of the free memory."""
    config = base.model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    row = 2 * config.num_hidden_layers * heads * head_size * base.model.dtype.itemsize * length
    row += 32 * config.vocab_size  # a row's logits, their log-probs in float32, and the distribution in float64
    free = free_memory(base.device)
    if row * samples_per_prompt > free:
        raise DoesNotFitError(
            f"the keys and values of {samples_per_prompt} completions of {length} tokens need "
            f"{row * samples_per_prompt / 2**20:.0f} MiB, but only {free / 2**20:.0f} MiB are free; lower "
            "generation.samples_per_prompt, generation.max_new_tokens or data.max_prompt_tokens"
        )
    return max(samples_per_prompt, min(wanted, int(free * SHARE_OF_FREE_MEMORY / row)))


def draw(logits: Tensor, randoms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution at a given random number.

    Args:
        logits: `[B, V]`. randoms: `[B]` in [0, 1).

    Returns:
        ids `[B]` int64 and their log-probabilities `[B]` under the full distribution at the temperature.
    """
    logits = logits.float() / (sampling.temperature or 1.0)
    logprobs = logits.log_softmax(-1)
    if sampling.temperature == 0:
        ids = logits.argmax(-1)
    else:
        weights = _truncate(logprobs, sampling).double().exp()
        cumulative = weights.cumsum(-1)
        # right=True: a random number equal to a border belongs to the next token, so weight 0 is never drawn.
        thresholds = randoms.double()[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return ids, logprobs.gather(-1, ids[:, None]).squeeze(-1)


def _truncate(logprobs: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k and sampling.top_k < logprobs.shape[-1]:
        least = logprobs.topk(sampling.top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logprobs.log_softmax(-1).sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of the more probable tokens: the first is kept always
        drop = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logprobs = logprobs.masked_fill(drop, -torch.inf)
    return logprobs


def _random_numbers(seeds: Sequence[int], count: int) -> Tensor:
    generator = torch.Generator()
    rows = [torch.rand(count, generator=generator.manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, count)


def _decode_in_slots(
    base: OneBase,
    prompts: Sequence[Sequence[int]],
    samples: list[Sample],
    randoms: Tensor,
    sampling: Sampling,
    num_samples: int,
    max_rows: int,
    on_token: Callable[[Sample], None] | None,
) -> None:
    # Long prompts first: rows that stand side by side then have about the same length.
    waiting = sorted(range(len(prompts)), key=lambda p: (-len(prompts[p]), p))
    longest = max((len(p) for p in prompts), default=0) + sampling.max_new_tokens
    stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=base.device)
    cache: SlotCache | None = None
    decoder = base.decoder
    layers = decoder.layers() if decoder is not None else []
    rows: list[int] = []  # the sample in each slot
    ids = torch.zeros(0, dtype=torch.long, device=base.device)
    taken = torch.zeros(0, dtype=torch.long, device=base.device)  # tokens drawn so far, per slot

    while rows or waiting:
        room = (max_rows - len(rows)) // num_samples
        # A prefill interrupts everybody: wait until a quarter of the rows is free, unless nobody is decoding.
        if waiting and room and (not rows or room * num_samples * 4 >= max_rows or room >= len(waiting)):
            # In parts: the activations of all prompts at once could be more than their keys and values.
            count = min(room, max(1, PREFILL_TOKENS // len(prompts[waiting[0]])))
            entering, waiting = waiting[:count], waiting[count:]
            new_rows = [p * num_samples + k for p in entering for k in range(num_samples)]
            texts = [prompts[p] for p in entering]
            hidden, cache = _prefill(base, decoder, texts, cache, num_samples, max_rows, longest)
            none_taken = torch.zeros(len(new_rows), dtype=torch.long, device=base.device)
            new_ids = _step(base, hidden, samples, new_rows, randoms, none_taken, sampling, on_token)
            rows, ids = rows + new_rows, torch.cat([ids, new_ids])
            taken = torch.cat([taken, torch.ones_like(new_ids)])
        else:
            assert cache is not None
            hidden = _decode_step(base, decoder, layers, ids, cache)
            ids = _step(base, hidden, samples, rows, randoms, taken, sampling, on_token)
            taken = taken + 1
        ended = torch.isin(ids, stops)
        over = ended | (taken >= sampling.max_new_tokens)
        if bool(over.any()):
            keep = (~over).nonzero().squeeze(-1)
            _finish(samples, rows, over, ended)
            rows = [rows[i] for i in keep.tolist()]
            ids, taken = ids[keep], taken[keep]
            assert cache is not None
            cache.keep(keep)


def _prefill(
    base: OneBase,
    decoder: Decoder | None,
    prompts: list[Sequence[int]],
    cache: SlotCache | None,
    num_samples: int,
    max_rows: int,
    max_length: int,
) -> tuple[Tensor, SlotCache]:
    """Runs the prompts once each and copies their keys and values into K slots: `[B, H]` at each prompt's end."""
    lengths = torch.tensor([len(p) for p in prompts], device=base.device)
    if decoder is not None:
        last, filled = decoder.prefill(torch.tensor([token for prompt in prompts for token in prompt]), lengths)
        if cache is None:
            cache = SlotCache(filled, max_rows=max_rows, max_length=max_length)
        cache.admit(filled, lengths, copies=num_samples)
        return last.repeat_interleave(num_samples, dim=0), cache
    input_ids = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.long, device=base.device)
    for row, prompt in zip(input_ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt, device=base.device)
    # Padding stands on the right, where the causal mask hides it from every real token.
    window = sliding_window(base.model)
    mask = None
    if window is not None and input_ids.shape[1] > window:
        order = torch.arange(input_ids.shape[1], device=base.device)
        causal = (order[:, None] >= order[None, :]).expand(len(prompts), 1, -1, -1)
        mask = mask_argument(base.model, causal, causal & (order[:, None] - order[None, :] < window))
    stored = DynamicCache()  # built without the model's configuration, it keeps all tokens of sliding layers too
    output = base.model.base_model(input_ids=input_ids, attention_mask=mask, past_key_values=stored, use_cache=True)
    filled = keys_and_values(stored, lengths)
    if cache is None:
        cache = SlotCache(filled, max_rows=max_rows, max_length=max_length)
    cache.admit(filled, lengths, copies=num_samples)
    last = output.last_hidden_state[torch.arange(len(prompts), device=base.device), lengths - 1]
    return last.repeat_interleave(num_samples, dim=0), cache


def _decode_step(
    base: OneBase, decoder: Decoder | None, layers: Sequence[Layer], ids: Tensor, cache: SlotCache
) -> Tensor:
    """One token for every slot in use: `[B, H]`."""
    positions = cache.lengths[:, None]
    window = sliding_window(base.model)
    visible = cache.begin_step()  # [B, 1, 1, L]
    if decoder is not None:
        hidden = decoder.step(layers, ids, cache, visible)
        cache.end_step()
        return hidden
    near = None
    if window is not None and visible.shape[-1] > window:
        order = torch.arange(visible.shape[-1], device=base.device)
        near = visible & (positions - order[None, :] < window)[:, None, None, :]
    output = base.model.base_model(
        input_ids=ids[:, None],
        position_ids=positions,
        attention_mask=mask_argument(base.model, visible, near),
        past_key_values=cache,
        use_cache=True,
    )
    cache.end_step()
    return output.last_hidden_state[:, -1]


def _step(
    base: OneBase,
    hidden: Tensor,
    samples: list[Sample],
    rows: list[int],
    randoms: Tensor,
    taken: Tensor,
    sampling: Sampling,
    on_token: Callable[[Sample], None] | None,
) -> Tensor:
    logits = adjust_logits(base.model.get_output_embeddings()(hidden).float(), final_logits(base.model))
    numbers = randoms[torch.tensor(rows, device=randoms.device), taken]
    ids, logprobs = draw(logits, numbers, sampling)
    for row, token, logprob in zip(rows, ids.tolist(), logprobs.tolist(), strict=True):
        samples[row].ids.append(token)
        samples[row].logprobs.append(logprob)
        if on_token is not None:
            on_token(samples[row])
    return ids


def _finish(samples: list[Sample], rows: list[int], over: Tensor, ended: Tensor) -> None:
    for row, is_over, has_ended in zip(rows, over.tolist(), ended.tolist(), strict=True):
        if is_over:
            samples[row].ended = has_ended


def _decode_by_prompt(
    base: OneBase,
    prompts: Sequence[Sequence[int]],
    samples: list[Sample],
    randoms: Tensor,
    sampling: Sampling,
    num_samples: int,
    max_rows: int,
    on_token: Callable[[Sample], None] | None,
) -> None:
    """For models a tree does not fit (ALiBi, state-space): the K rows of one prompt, read again for every token.

    Such a model has its own idea of a cache or of positions; rows of equal length need neither mask nor cache. Exact,
    and slow: cost grows with the square of the length.
    """
    stops = torch.tensor(sampling.stop_ids, dtype=torch.long, device=base.device)
    for p, prompt in enumerate(prompts):
        rows = list(range(p * num_samples, (p + 1) * num_samples))
        ids = torch.tensor([list(prompt)] * num_samples, device=base.device)
        for step in range(sampling.max_new_tokens):
            hidden = base.model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1]
            taken = torch.full((len(rows),), step, device=base.device)
            new_ids = _step(base, hidden, samples, rows, randoms, taken, sampling, on_token)
            ids = torch.cat([ids, new_ids[:, None]], dim=1)
            ended = torch.isin(new_ids, stops)
            over = ended | (taken + 1 >= sampling.max_new_tokens)
            _finish(samples, rows, over, ended)
            keep = (~over).nonzero().squeeze(-1)
            rows, ids = [rows[i] for i in keep.tolist()], ids[keep]
            if not rows:
                break
