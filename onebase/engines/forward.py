"""Turns prompt trees into one number per completion token, or per completion.

A head runs only at the positions that predict a counted token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from onebase.engines.engine import engine_of
from onebase.engines.output_layer import head_logprobs
from onebase.models.base import OneBase
from onebase.objectives.masked import completion_mean
from onebase.records import TreeBatch


def token_logprobs(base: OneBase, batch: TreeBatch, *, role: str, temperature: float = 1.0) -> Tensor:
    """log p(token | prompt, earlier tokens of its completion) for every counted token: `[M]` float32.

    Args:
        temperature: divides the logits, as in sampling.
    """
    logprobs, _ = logprobs_and_entropy(base, batch, role=role, temperature=temperature, with_entropy=False)
    return logprobs


def logprobs_and_entropy(
    base: OneBase, batch: TreeBatch, *, role: str, temperature: float = 1.0, with_entropy: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probs of the counted tokens and entropies of the distributions that predicted them, `[M]` float32, in nats.

    Without `with_entropy` the entropies are zeros.
    """
    states = source_states(base, batch, role=role)
    return head_logprobs(base, states, batch, temperature=temperature, with_entropy=with_entropy)


def source_states(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """The hidden states that predict the counted tokens: `[M, H]`."""
    return engine_of(base, role).states(batch, batch.source, batch.completion_index)


def token_values(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """V(s_t) of the state before each counted token: `[M]` float32."""
    return base.scalar_role(role).head(source_states(base, batch, role=role))


def completion_scores(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """The reward role's score of each completion, read at its last token or averaged over its tokens: `[N]` float32."""
    scalar, engine = base.scalar_role(role), engine_of(base, role)
    if scalar.pooling == "last":
        every = torch.arange(batch.num_completions, device=batch.last.device)
        return scalar.head(engine.states(batch, batch.last, every))
    per_token = scalar.head(engine.states(batch, batch.token, batch.completion_index))
    return completion_mean(per_token, batch.completion_index, batch.num_completions)
