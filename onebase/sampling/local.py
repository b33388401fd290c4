"""Decodes in this process: K samples per prompt from one prefill; finished rows leave, waiting prompts enter.

Each sample has its own seed, which gives its random numbers, one per token. What else is in the batch, and when the
sample entered it, therefore never changes the sample (beyond the last bits of the logits, which matter only where a
random number falls that close to the border between two tokens).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebase.engines.engine import Decoding, Engine, engine_of
from onebase.engines.output_layer import adjust_logits, final_logits
from onebase.errors import DoesNotFitError, PromptTooLongError
from onebase.models.base import OneBase
from onebase.models.hardware import free_memory
from onebase.sampling.sampler import Sample, Sampling
from onebase.transfer import to_device

MOST_ROWS = 256
"""Maximum number of completions decoded at once; with more, a step takes proportionally longer."""
PREFILL_TOKENS = 16384
"""Maximum number of prompt tokens run at once."""
SHARE_OF_FREE_MEMORY = 0.4
"""Share of the free memory used for keys and values."""

STEPS_AT_ONCE = {"cuda": 8}
"""Tokens drawn before the host looks at them: reading them makes a GPU wait, and a CPU is never ahead."""

OnToken = Callable[[Sample], None]


@dataclass(frozen=True, slots=True)
class LocalSampler:
    """Draws completions with a base's role in this process (implements `sampler.Sampler`)."""

    base: OneBase
    role: str

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        *,
        seeds: Sequence[int],
        samples_per_prompt: int = 1,
    ) -> list[Sample]:
        """Draws K completions of every prompt; see `generate`."""
        return generate(
            self.base,
            prompts,
            role=self.role,
            sampling=sampling,
            seeds=seeds,
            samples_per_prompt=samples_per_prompt,
        )


def stop_ids(base: OneBase, extra: Sequence[int] = ()) -> tuple[int, ...]:
    """The end tokens from the tokenizer and the model's generation settings, plus `extra`."""
    configured = getattr(base.model.generation_config, "eos_token_id", None)
    ids = list(configured) if isinstance(configured, list) else [configured]
    return tuple(sorted({i for i in [*ids, base.tokenizer.eos_token_id, *extra] if i is not None}))


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
    on_token: OnToken | None = None,
) -> list[Sample]:
    """Draws K completions of every prompt with the base run as `role`.

    Args:
        prompts: token ids, at least one each.
        seeds: one per sample, prompt by prompt (`sample_seeds`).
        max_rows: completions decoded at once; the others wait. None: as many as a share of the free memory holds.
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
                f"of {base.context_length}",
                remedy="context-exceeded",
            )
    mine = base.group.share([len(prompt) for prompt in prompts])
    places = [p * samples_per_prompt + k for p in mine for k in range(samples_per_prompt)]
    version = base.roles[role].version
    samples = [Sample(prompt=place // samples_per_prompt, version=version) for place in places]
    if mine:
        randoms = random_numbers([seeds[place] for place in places], sampling.max_new_tokens)
        randoms = to_device(randoms, base.device)
        own = [prompts[p] for p in mine]
        with base.role(role):
            slots = max_rows if max_rows is not None else slots_that_fit(base, role, own, sampling, samples_per_prompt)
            _Decode(base, role, samples, randoms, sampling, on_token).run(own, samples_per_prompt, slots)
    return base.group.gather_items(samples, places, len(prompts) * samples_per_prompt)


def slots_that_fit(
    base: OneBase, role: str, prompts: Sequence[Sequence[int]], sampling: Sampling, samples_per_prompt: int
) -> int:
    """Completions to decode at once: fewer if their keys and values would exceed a share of the free memory.

    Raises:
        DoesNotFitError: one prompt's completions do not fit.
    """
    wanted = min(len(prompts) * samples_per_prompt, MOST_ROWS)
    longest, new_tokens = max(map(len, prompts)), sampling.max_new_tokens
    kept = engine_of(base, role).slot_bytes(longest, new_tokens, copies=samples_per_prompt)
    if not kept:
        return max(samples_per_prompt, wanted)
    # Plus a row's logits, their log-probs in float32, and the distribution in float64.
    row = kept + 32 * base.model.config.get_text_config().vocab_size
    free = free_memory(base.device)
    if row * samples_per_prompt > free:
        raise DoesNotFitError(
            f"the keys and values of {samples_per_prompt} completions of {longest + new_tokens} tokens need "
            f"{row * samples_per_prompt / 2**20:.0f} MiB, but only {free / 2**20:.0f} MiB are free",
            remedy="completions-do-not-fit",
        )
    return max(samples_per_prompt, min(wanted, int(free * SHARE_OF_FREE_MEMORY / row)))


def draw(logits: Tensor, randoms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Draws one token per row by inverting the cumulative distribution at a given random number.

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
        wide = widest(logits.device)
        weights = _truncate(logprobs, sampling).to(wide).exp()
        cumulative = weights.cumsum(-1)
        # right=True: a random number on a border belongs to the next token, so a token of weight 0 is never drawn.
        thresholds = randoms.to(wide)[:, None] * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, thresholds, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return ids, logprobs.gather(-1, ids[:, None]).squeeze(-1)


def widest(device: torch.device) -> torch.dtype:
    """float64, which a long cumulative sum needs; float32 on Apple's GPUs, which have nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def _truncate(logprobs: Tensor, sampling: Sampling) -> Tensor:
    if sampling.top_k and sampling.top_k < logprobs.shape[-1]:
        least = logprobs.topk(sampling.top_k, dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < least, -torch.inf)
    if sampling.top_p < 1.0:
        ordered, order = logprobs.log_softmax(-1).sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # mass of more probable tokens; the first is always kept
        drop = (before >= sampling.top_p).scatter(-1, order, before >= sampling.top_p)
        logprobs = logprobs.masked_fill(drop, -torch.inf)
    return logprobs


def random_numbers(seeds: Sequence[int], count: int) -> Tensor:
    """Random numbers `[num samples, count]` in [0, 1): one row per seed, independent of the other seeds."""
    generator = torch.Generator()
    rows = [torch.rand(count, generator=generator.manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.zeros(0, count)


class _Decode:
    """The decode loop over some prompts' samples."""

    def __init__(
        self,
        base: OneBase,
        role: str,
        samples: list[Sample],
        randoms: Tensor,
        sampling: Sampling,
        on_token: OnToken | None,
    ) -> None:
        self._engine: Engine = engine_of(base, role)
        self._head, self._final = base.model.get_output_embeddings(), final_logits(base.model)
        self._samples, self._randoms, self._sampling, self._on_token = samples, randoms, sampling, on_token
        self._stops = frozenset(sampling.stop_ids)

    def run(self, prompts: Sequence[Sequence[int]], num_samples: int, max_slots: int) -> None:
        """Fills the samples, decoding `max_slots` at once, but never fewer than one prompt's samples."""
        max_slots, device = max(num_samples, max_slots), self._randoms.device
        # Long prompts first, so that neighbouring rows have about the same length.
        waiting = sorted(range(len(prompts)), key=lambda p: (-len(prompts[p]), p))
        longest = max(map(len, prompts)) + self._sampling.max_new_tokens
        decoding = self._engine.decode(max_slots=max_slots, max_length=longest)
        at_once = 1 if self._on_token is not None else STEPS_AT_ONCE.get(device.type, 1)
        rows: list[int] = []  # the sample in each slot
        ids = torch.zeros(0, dtype=torch.long, device=device)

        while rows or waiting:
            room = (max_slots - len(rows)) // num_samples
            # A prefill interrupts all rows: wait until a quarter of the slots is free, unless no row is decoding.
            if waiting and room and (not rows or room * num_samples * 4 >= max_slots or room >= len(waiting)):
                # A few prompts at a time: all their activations at once could take more than their keys and values.
                count = min(room, max(1, PREFILL_TOKENS // len(prompts[waiting[0]])))
                entering, waiting = waiting[:count], waiting[count:]
                new_rows = [p * num_samples + k for p in entering for k in range(num_samples)]
                hidden = decoding.prefill([prompts[p] for p in entering], num_samples)
                new_ids, new_logprobs = self._draw(hidden, self._randoms_of(new_rows)[:, 0])
                self._note(new_rows, [new_ids], [new_logprobs])
                rows, ids = rows + new_rows, torch.cat([ids, new_ids])
            else:
                ids = self._decode(decoding, rows, ids, at_once)
            keep = [slot for slot, row in enumerate(rows) if not self._is_over(row)]
            if len(keep) < len(rows):
                rows = [rows[slot] for slot in keep]
                ids = ids[to_device(torch.tensor(keep, dtype=torch.long), device)]
                decoding.keep(keep)

    def _decode(self, decoding: Decoding, rows: list[int], ids: Tensor, at_once: int) -> Tensor:
        """Draws up to `at_once` tokens for every row, then notes them; returns the last ones, `[B]`.

        A row that ends on the way draws on, and what it draws is dropped: that costs less than waiting for the device
        after every token.
        """
        numbers = self._randoms_of(rows)
        taken = [len(self._samples[row].ids) for row in rows]
        column = to_device(torch.tensor(taken), ids.device)[:, None]
        drawn: list[Tensor] = []
        logprobs: list[Tensor] = []
        for _ in range(min(at_once, self._sampling.max_new_tokens - max(taken))):
            ids, of_ids = self._draw(decoding.step(ids), numbers.gather(1, column).squeeze(1))
            column = column + 1
            drawn.append(ids)
            logprobs.append(of_ids)
        self._note(rows, drawn, logprobs)
        return ids

    def _randoms_of(self, rows: list[int]) -> Tensor:
        """These samples' random numbers, `[B, max new tokens]`."""
        return self._randoms[to_device(torch.tensor(rows), self._randoms.device)]

    def _draw(self, hidden: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one token from each of the states `[B, H]`: ids and log-probs `[B]`."""
        logits = adjust_logits(self._head(hidden).float(), self._final)
        return draw(logits, numbers, self._sampling)

    def _note(self, rows: list[int], drawn: list[Tensor], logprobs: list[Tensor]) -> None:
        """Appends the tokens drawn for these samples, step by step, up to the end of each. Waits for the device."""
        for ids, of_ids in zip(torch.stack(drawn).cpu().tolist(), torch.stack(logprobs).cpu().tolist(), strict=True):
            for row, token, logprob in zip(rows, ids, of_ids, strict=True):
                if self._is_over(row):
                    continue
                sample = self._samples[row]
                sample.ids.append(token)
                sample.logprobs.append(logprob)
                sample.ended = token in self._stops
                if self._on_token is not None:
                    self._on_token(sample)

    def _is_over(self, row: int) -> bool:
        sample = self._samples[row]
        return sample.ended or len(sample.ids) >= self._sampling.max_new_tokens
