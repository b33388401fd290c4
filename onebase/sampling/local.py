"""Decodes in this process: K samples per prompt from one prefill; finished rows leave, waiting prompts enter.

Each sample has its own seed, which gives its random numbers, one per token (`running.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from onebase.engines.engine import engine_of
from onebase.errors import DoesNotFitError, PromptTooLongError
from onebase.models.base import OneBase
from onebase.models.hardware import free_memory
from onebase.sampling.drawing import random_numbers
from onebase.sampling.running import SHARE_OF_FREE_MEMORY, Entrant, RunningBatch, bytes_beside_keys
from onebase.sampling.sampler import Sample, Sampling
from onebase.shown import number_of

MOST_ROWS = 256
"""Maximum number of completions decoded at once; with more, a step takes proportionally longer."""
PREFILL_TOKENS = 16384
"""Maximum number of prompt tokens run at once."""

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
                f"prompt {i}: {number_of(len(prompt), 'token')} and {sampling.max_new_tokens} new ones exceed the "
                "model's context "
                f"of {base.context_length}",
                remedy="context-exceeded",
            )
    mine = base.group.share([len(prompt) for prompt in prompts])
    places = [p * samples_per_prompt + k for p in mine for k in range(samples_per_prompt)]
    version = base.roles[role].version
    samples = [Sample(prompt=place // samples_per_prompt, version=version) for place in places]
    with base.in_step():
        if mine:
            randoms = random_numbers([seeds[place] for place in places], sampling.max_new_tokens)
            own = [prompts[p] for p in mine]
            rows = [slice(i * samples_per_prompt, (i + 1) * samples_per_prompt) for i in range(len(own))]
            entrants = [
                Entrant(prompt, samples[some], randoms[some], sampling) for prompt, some in zip(own, rows, strict=True)
            ]
            slots = max_rows if max_rows is not None else slots_that_fit(base, role, own, sampling, samples_per_prompt)
            with base.role(role):
                _run(base, role, entrants, max(samples_per_prompt, slots), on_token)
    return base.group.gather_items(samples, places, len(prompts) * samples_per_prompt)


def _run(base: OneBase, role: str, entrants: Sequence[Entrant], max_rows: int, on_token: OnToken | None) -> None:
    """Fills the entrants' samples, decoding up to `max_rows` at once."""
    # Long prompts first, so that neighbouring rows have about the same length.
    waiting = sorted(entrants, key=lambda entrant: -len(entrant.prompt))
    num_samples = len(waiting[0].samples)
    longest = len(waiting[0].prompt) + waiting[0].sampling.max_new_tokens
    batch = RunningBatch(base, role, max_rows=max_rows, max_length=longest)
    while batch.rows or waiting:
        room = (max_rows - len(batch.rows)) // num_samples
        # A prefill interrupts all rows: wait until a quarter of the places is free, unless no row is decoding.
        if waiting and room and (not batch.rows or room * num_samples * 4 >= max_rows or room >= len(waiting)):
            # A few prompts at a time: all their activations at once could take more than their keys and values.
            count = min(room, max(1, PREFILL_TOKENS // len(waiting[0].prompt)))
            entering, waiting = waiting[:count], waiting[count:]
            drew = batch.admit(entering)
        else:
            drew = batch.step(None if on_token is None else 1)
        if on_token is not None:
            for row in drew:
                on_token(row.sample)


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
    row = kept + bytes_beside_keys(base)
    free = free_memory(base.device)
    if row * samples_per_prompt > free:
        raise DoesNotFitError(
            f"the keys and values of {number_of(samples_per_prompt, 'completion')} of {longest + new_tokens} "
            "tokens need "
            f"{row * samples_per_prompt / 2**20:.0f} MiB, but only {free / 2**20:.0f} MiB are free",
            remedy="completions-do-not-fit",
        )
    return rows_that_fit(free, row, wanted=wanted, samples_per_prompt=samples_per_prompt)


def rows_that_fit(free: float, row_bytes: float, *, wanted: int, samples_per_prompt: int) -> int:
    """Completions to decode at once: `wanted`, or as many as a share of `free` bytes holds; at least one prompt's."""
    return max(samples_per_prompt, min(wanted, int(free * SHARE_OF_FREE_MEMORY / row_bytes)))
