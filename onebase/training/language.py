"""The language-model loss of pretraining and SFT: one optimizer step, and the held-out mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from onebase.models.forward import token_logprobs
from onebase.models.one_base import OneBase
from onebase.models.passes import num_counted, per_example
from onebase.records import Example, TreeBatch
from onebase.training.averages import Averages, require_finite
from onebase.training.update import Update


def language_step(base: OneBase, examples: Sequence[Example], update: Update) -> dict[str, float]:
    """One optimizer step of the policy on the mean negative log-likelihood of the counted tokens.

    L = -(1 / M) sum log p(token | prompt, earlier tokens),   M over the whole minibatch, however it is split
    """
    total = num_counted(examples)

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Iterator[Tensor]:
        yield -token_logprobs(base, batch, role="policy").sum() / total

    return {**update.step((examples, loss)), "num_tokens": float(total)}


def mean_nll(base: OneBase, examples: Sequence[Example], *, token_budget: int, trained: bool = True) -> float:
    """Mean negative log-likelihood of the counted tokens, in nats; NaN where there are no examples.

    Raises:
        NonFiniteError: training went astray, or, where nothing is `trained` yet, the base is damaged.
    """
    if not examples:
        return float("nan")
    logprobs = per_example(
        base, examples, lambda batch: token_logprobs(base, batch, role="policy"), token_budget=token_budget
    )
    return require_finite(-float(torch.cat(logprobs).mean()), "the held-out loss", trained=trained)
