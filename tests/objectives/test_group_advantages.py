"""Advantages that compare completions: against closed forms and exact fractions, and exactly 0 for equal scores."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from statistics import fmean, stdev

import pytest
import torch
from torch import Tensor

from onebase.objectives.advantages import (
    DEVIATION_OFFSET,
    global_baseline_advantages,
    group_advantages,
    leave_one_out_advantages,
)

SCORES = torch.tensor([1.0, 0.1, 0.0, 0.1, 1.0, 1.0, 0.25, 0.5])


def groups_of(scores: Tensor, k: int) -> list[list[float]]:
    return [scores[start : start + k].tolist() for start in range(0, len(scores), k)]


@pytest.mark.parametrize("k", [2, 4, 8])
def test_a_group_is_centred_and_divided_by_its_own_deviation(k: int) -> None:
    expected = [(r - fmean(g)) / (stdev(g) + DEVIATION_OFFSET) for g in groups_of(SCORES, k) for r in g]
    assert group_advantages(SCORES, k).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("k", [2, 4])
def test_the_deviation_of_the_rollout_is_that_of_all_scores_and_none_divides_nothing(k: int) -> None:
    centred = [r - fmean(g) for g in groups_of(SCORES, k) for r in g]
    whole = stdev(SCORES.tolist()) + DEVIATION_OFFSET
    assert group_advantages(SCORES, k, deviation="rollout").tolist() == pytest.approx([c / whole for c in centred])
    assert group_advantages(SCORES, k, deviation="none").tolist() == pytest.approx(centred, abs=1e-7)


@pytest.mark.parametrize("k", [2, 4, 8])
def test_leaving_one_out_subtracts_the_mean_of_the_others(k: int) -> None:
    expected = []
    for group in groups_of(SCORES, k):
        exact = [Fraction(score) for score in group]
        expected += [float(r - (sum(exact) - r) / (k - 1)) for r in exact]
    assert leave_one_out_advantages(SCORES, k).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-8)
    centred = group_advantages(SCORES, k, deviation="none") * k / (k - 1)
    torch.testing.assert_close(leave_one_out_advantages(SCORES, k), centred)


@pytest.mark.parametrize("score", [0.1, 1 / 3, 1.0, -7.3, 0.0, 1e-30, 123456.789])
@pytest.mark.parametrize("k", [2, 3, 5, 7, 16])
def test_equal_scores_give_exactly_zero(score: float, k: int) -> None:
    scores = torch.full((3 * k,), score)
    for deviation in ("group", "rollout", "none"):
        assert group_advantages(scores, k, deviation=deviation).count_nonzero() == 0  # type: ignore[arg-type]
    assert leave_one_out_advantages(scores, k).count_nonzero() == 0


def test_one_group_of_equal_scores_is_zero_beside_others() -> None:
    scores = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0, 0.1])
    assert group_advantages(scores, 3)[:3].tolist() == [0.0, 0.0, 0.0]
    assert group_advantages(scores, 3)[3:].abs().min() > 0.1


def test_leaving_one_out_is_unbiased_where_the_groups_mean_is_not() -> None:
    """A policy of two answers: E[sum_i A_i grad log pi(y_i)] / K is the gradient of the expected score."""
    p, rewards, k = 0.3, (1.0, 0.2), 3
    slope = (rewards[0] - rewards[1]) * p * (1 - p)  # d/d(logit) of p r_0 + (1 - p) r_1
    found = {"rloo": 0.0, "mean": 0.0}
    for answers in product((0, 1), repeat=k):
        chance = 1.0
        for answer in answers:
            chance *= p if answer == 0 else 1 - p
        scores = torch.tensor([rewards[answer] for answer in answers], dtype=torch.float64)
        score_functions = torch.tensor([1 - p if answer == 0 else -p for answer in answers], dtype=torch.float64)
        for name, advantages in (
            ("rloo", leave_one_out_advantages(scores, k)),
            ("mean", group_advantages(scores, k, deviation="none")),
        ):
            found[name] += chance * float((advantages * score_functions).mean())
    assert found["rloo"] == pytest.approx(slope, rel=1e-9)
    assert found["mean"] == pytest.approx(slope * (k - 1) / k, rel=1e-9)


def test_the_global_baseline_whitens_the_return_of_every_token() -> None:
    rewards = torch.tensor([[-0.1, -0.2, 1.0], [0.3, 0.0, 0.0], [-0.5, 0.4, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    returns = [0.7, 0.8, 1.0, 0.3, -0.1, 0.4]
    mean, variance = fmean(returns), fmean([(r - fmean(returns)) ** 2 for r in returns])
    found = global_baseline_advantages(rewards, mask)
    assert found[mask].tolist() == pytest.approx([(r - mean) / (variance + 1e-8) ** 0.5 for r in returns], rel=1e-5)
    assert found[~mask].count_nonzero() == 0
    discounted = global_baseline_advantages(rewards[:1], mask[:1], gamma=0.5)
    returns = [-0.1 + 0.5 * (-0.2 + 0.5 * 1.0), -0.2 + 0.5 * 1.0, 1.0]
    mean, variance = fmean(returns), fmean([(r - fmean(returns)) ** 2 for r in returns])
    assert discounted[0].tolist() == pytest.approx([(r - mean) / variance**0.5 for r in returns], rel=1e-4)


@pytest.mark.parametrize("k", [1, 0, 3])
def test_groups_of_one_or_of_unequal_size_are_refused(k: int) -> None:
    for function in (group_advantages, leave_one_out_advantages):
        with pytest.raises(ValueError, match=f"8 scores in groups of {k}; a group needs 2 or more, and all are of one"):
            function(SCORES, k)
    with pytest.raises(ValueError, match="scores"):
        group_advantages(SCORES.view(2, 4), 4)
