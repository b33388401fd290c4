"""The language-model loss for pretraining and SFT: one optimizer step, and the held-out mean."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs
from onebase.engines.passes import num_counted, per_token
from onebase.models.base import OneBase
from onebase.records import Example, TreeBatch
from onebase.training.averages import Averages, require_finite
from onebase.training.update import Update


def language_step(base: OneBase, examples: Sequence[Example], update: Update) -> dict[str, float]:
    """Takes one optimizer step on the policy's mean negative log-likelihood of the counted tokens.

    L = -(1 / M) sum log p(token | prompt, earlier tokens),   M over the whole minibatch, however it is split
    """
    total = num_counted(examples)

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        return -token_logprobs(base, batch, role="policy").sum() / total

    return {**update.step((examples, loss)), "num_tokens": float(total)}


def mean_nll(base: OneBase, examples: Sequence[Example], *, budget: TokenBudget, trained: bool = True) -> float:
    """Returns the mean negative log-likelihood of the counted tokens in nats; NaN without examples.

    Raises:
        NonFiniteError: training diverged or, if nothing is `trained` yet, the base is damaged.
    """
    if not examples:
        return float("nan")
    found = per_token(
        base, examples, lambda batch: {"logprobs": token_logprobs(base, batch, role="policy")}, budget=budget
    )
    return require_finite(-float(torch.cat(found["logprobs"]).mean()), "the held-out loss", trained=trained)
