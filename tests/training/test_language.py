"""The language-model loss against a loop over tokens."""

from __future__ import annotations

import math

import pytest
import torch

from onebase.engines.budget import TokenBudget
from onebase.errors import NonFiniteError
from onebase.models.base import OneBase
from onebase.records import Example
from onebase.training.language import language_step, mean_nll
from onebase.training.update import ParameterGroup, Update
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

EXAMPLES = [
    Example(
        random_ids(5, seed=1), [random_ids(4, seed=2), random_ids(2, seed=3)], [[True, False, True, True], [True] * 2]
    ),
    Example(random_ids(2, seed=4), [random_ids(6, seed=5)]),
]


def base_with_policy() -> OneBase:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    return base


def literal(base: OneBase) -> float:
    losses = []
    for example in EXAMPLES:
        for k, completion in enumerate(example.completions):
            ids = [*example.prompt_ids, *completion]
            with torch.no_grad(), base.role("policy"):
                table = base.model(torch.tensor([ids])).logits[0].log_softmax(-1)
            for c, token in enumerate(completion):
                if example.counted is None or example.counted[k][c]:
                    losses.append(-float(table[len(example.prompt_ids) + c - 1, token]))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("token_budget", [1, 4096])
def test_the_loss_is_the_mean_over_the_counted_tokens_of_the_minibatch(token_budget: int) -> None:
    base = base_with_policy()
    expected = literal(base)
    assert mean_nll(base, EXAMPLES, budget=TokenBudget(token_budget)) == pytest.approx(expected, abs=1e-5)
    update = Update(
        base,
        [ParameterGroup(base.parameters("policy"), 1e-2)],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        total_steps=5,
        max_grad_norm=1.0,
        budget=TokenBudget(token_budget),
    )
    metrics = language_step(base, EXAMPLES, update)
    assert metrics["loss"] == pytest.approx(expected, abs=1e-5) and metrics["num_tokens"] == 11
    assert mean_nll(base, EXAMPLES, budget=TokenBudget(token_budget)) < expected


def test_without_examples_there_is_no_mean() -> None:
    assert math.isnan(mean_nll(base_with_policy(), [], budget=TokenBudget(64)))


def test_a_policy_that_went_astray_is_an_error() -> None:
    base = base_with_policy()
    with torch.no_grad():
        base.parameters("policy")[0].fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"the held-out loss is not finite \(nan\), nothing was saved"):
        mean_nll(base, EXAMPLES, budget=TokenBudget(64))
