"""Draws tokens from logits, each by one random number of its sample."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onebase.sampling.sampler import Sampling


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
