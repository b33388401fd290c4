"""Comparisons of graded answers, and the ranking loss against the published sum over pairs."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.objectives.reward import (
    Comparison,
    centering_loss,
    comparison_weights,
    ranking_accuracy,
    ranking_loss,
    ranking_pairs,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_tensors(comparisons: list[Comparison]) -> dict[str, Tensor]:
    return {
        "better": torch.tensor([c.better for c in comparisons]),
        "worse": torch.tensor([c.worse for c in comparisons]),
        "tie": torch.tensor([c.tie for c in comparisons]),
        "weight": torch.tensor(comparison_weights(comparisons), dtype=torch.float64),
    }


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def test_pairs_of_three_answers_are_the_ones_written_by_hand() -> None:
    assert ranking_pairs([1.0, 3.0, 1.0], None, generator()) == [
        Comparison(better=1, worse=0, tie=False),
        Comparison(better=0, worse=2, tie=True),
        Comparison(better=1, worse=2, tie=False),
    ]


@pytest.mark.parametrize("num_answers", range(7))
def test_all_pairs_are_every_pair_once_in_the_right_order(num_answers: int) -> None:
    grades = [float(g) for g in torch.randint(0, 3, (num_answers,)).tolist()]
    comparisons = ranking_pairs(grades, None, generator())
    assert len(comparisons) == math.comb(num_answers, 2)
    assert len({frozenset((c.better, c.worse)) for c in comparisons}) == len(comparisons)
    for better, worse, tie in comparisons:
        assert grades[better] == grades[worse] if tie else grades[better] > grades[worse]


def test_sample_is_without_replacement_repeatable_and_part_of_all_pairs() -> None:
    grades = [0.0, 1.0, 2.0, 3.0, 4.0]
    sample = ranking_pairs(grades, 4, generator(3))
    assert len(set(sample)) == 4 and set(sample) <= set(ranking_pairs(grades, None, generator()))
    assert sample == ranking_pairs(grades, 4, generator(3))


def test_sample_is_uniform() -> None:
    drawing = generator(1)
    counts = Counter(c for _ in range(3000) for c in ranking_pairs([0.0, 1.0, 2.0, 3.0], 2, drawing))
    assert len(counts) == 6
    assert all(abs(count - 1000) < 130 for count in counts.values())  # 5 standard deviations


def test_generator_is_left_alone_where_nothing_is_drawn() -> None:
    untouched = generator(5)
    ranking_pairs([0.0, 1.0, 2.0], 3, untouched)
    assert torch.equal(untouched.get_state(), generator(5).get_state())


def test_pairs_refuse_what_cannot_be_ranked() -> None:
    with pytest.raises(ValueError, match=r"max_pairs 0 must be at least 1, or None for all comparisons"):
        ranking_pairs([0.0, 1.0], 0, generator())
    with pytest.raises(ValueError, match=r"grade 1 is NaN; every answer needs a number to be ranked by"):
        ranking_pairs([0.0, math.nan], None, generator())


def test_weights_of_a_prompt_sum_to_1() -> None:
    assert comparison_weights(ranking_pairs([3.0, 2.0, 1.0, 0.0], None, generator())) == [1 / 6] * 6
    assert comparison_weights(ranking_pairs([3.0, 2.0, 1.0, 0.0], 4, generator())) == [1 / 4] * 4
    assert comparison_weights([]) == []


@pytest.mark.parametrize("num_answers", range(2, 7))
def test_ranking_loss_of_a_list_is_the_instructgpt_sum_over_its_pairs(num_answers: int) -> None:
    scores = torch.randn(num_answers, dtype=torch.float64)
    grades = [float(g) for g in torch.randperm(num_answers).tolist()]
    loss = ranking_loss(scores, **as_tensors(ranking_pairs(grades, None, generator())))
    s = scores.tolist()
    total = 0.0
    for w in range(num_answers):
        for l in range(num_answers):  # noqa: E741
            if grades[w] > grades[l]:
                total += math.log(1 / (1 + math.exp(-(s[w] - s[l]))))
    assert loss.shape == (math.comb(num_answers, 2),)
    assert loss.sum().item() == pytest.approx(-total / math.comb(num_answers, 2))


def test_ranking_loss_with_ties_margins_and_weights_matches_a_loop() -> None:
    scores = torch.randn(8, dtype=torch.float64)
    better, worse = torch.randint(0, 8, (2, 40))
    tie, weight = torch.rand(40) < 0.3, torch.rand(40, dtype=torch.float64)
    margin = 2 * torch.rand(40, dtype=torch.float64)
    loss = ranking_loss(scores, better, worse, weight=weight, tie=tie, margin=margin)
    for p in range(40):
        d = scores[better[p]].item() - scores[worse[p]].item()
        expected = -log_sigmoid(d - margin[p].item())
        if tie[p]:
            expected = -(log_sigmoid(d) + log_sigmoid(-d)) / 2
        assert loss[p].item() == pytest.approx(weight[p].item() * expected)


def test_ranking_loss_matches_hand_computed_values() -> None:
    scores = torch.tensor([0.0, 0.0, math.log(3)])
    pair = {"better": torch.tensor([0, 2]), "worse": torch.tensor([1, 0]), "weight": torch.ones(2)}
    assert ranking_loss(scores, **pair).tolist() == pytest.approx([math.log(2), math.log(4 / 3)])
    shifted = ranking_loss(scores, **pair, margin=torch.tensor([0.0, math.log(3)]))
    assert shifted.tolist() == pytest.approx([math.log(2), math.log(2)])


def test_loss_of_a_tie_is_the_same_in_both_orders_and_smallest_at_equal_scores() -> None:
    tie, weight = torch.tensor([True]), torch.ones(1)
    first, second = torch.tensor([0]), torch.tensor([1])
    scores = torch.tensor([0.3, 1.9], requires_grad=True)
    loss = ranking_loss(scores, first, second, weight=weight, tie=tie)
    torch.testing.assert_close(loss, ranking_loss(scores, second, first, weight=weight, tie=tie))
    assert loss.item() > ranking_loss(torch.zeros(2), first, second, weight=weight, tie=tie).item()
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert gradient[0] < 0 < gradient[1]


def test_no_ties_given_is_the_same_as_none_true() -> None:
    scores, better, worse = torch.randn(4), torch.tensor([0, 1]), torch.tensor([2, 3])
    without = ranking_loss(scores, better, worse, weight=torch.ones(2))
    assert torch.equal(without, ranking_loss(scores, better, worse, weight=torch.ones(2), tie=torch.zeros(2).bool()))


def test_missing_margin_of_a_tie_reaches_neither_loss_nor_gradient() -> None:
    scores = torch.randn(3, requires_grad=True)
    places: dict[str, Any] = {"better": torch.tensor([0, 1]), "worse": torch.tensor([1, 2]), "weight": torch.ones(2)}
    tie = torch.tensor([True, False])
    loss = ranking_loss(scores, **places, tie=tie, margin=torch.tensor([math.nan, 0.5]))
    clean = ranking_loss(scores, **places, tie=tie, margin=torch.tensor([0.0, 0.5]))
    assert torch.equal(loss, clean)
    assert torch.equal(*(torch.autograd.grad(result.sum(), scores)[0] for result in (loss, clean)))


def test_ranking_loss_stays_finite_at_extreme_scores() -> None:
    scores = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = ranking_loss(scores, torch.tensor([0]), torch.tensor([1]), weight=torch.ones(1))
    assert loss.item() == pytest.approx(2e4)
    assert torch.autograd.grad(loss.sum(), scores)[0].tolist() == [-1.0, 1.0]


def test_gradient_of_reward_losses_matches_finite_differences() -> None:
    scores = torch.randn(5, dtype=torch.float64, requires_grad=True)
    comparisons = as_tensors(ranking_pairs([1.0, 2.0, 2.0, 0.0, 3.0], None, generator()))
    margin = torch.rand(10, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: ranking_loss(s, **comparisons, margin=margin), scores)
    assert torch.autograd.gradcheck(centering_loss, scores)


def test_a_shift_of_all_scores_changes_the_centering_loss_alone() -> None:
    scores = torch.randn(5, dtype=torch.float64)
    comparisons = as_tensors(ranking_pairs([1.0, 2.0, 2.0, 0.0, 3.0], None, generator()))
    torch.testing.assert_close(ranking_loss(scores + 7, **comparisons), ranking_loss(scores, **comparisons))
    assert centering_loss(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [4.0, 0.0, 9.0]


def test_accuracy_leaves_ties_out_and_counts_equal_scores_as_wrong() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0])
    better, worse = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 0, 1, 2])
    correct, counted = ranking_accuracy(scores, better, worse, torch.tensor([False, False, False, True]))
    assert correct.tolist() == [True, False, False, False]
    assert counted.tolist() == [True, True, True, False]
    correct, counted = ranking_accuracy(scores, better, worse)
    assert correct.tolist() == [True, False, False, True] and counted.all()


def test_reward_functions_refuse_what_does_not_fit() -> None:
    scores, places, weight = torch.randn(3), torch.tensor([0, 1]), torch.ones(2)
    with pytest.raises(ValueError, match=r"worse has shape \[1\], better has \[2\]; they must be equal"):
        ranking_loss(scores, places, places[:1], weight=weight)
    with pytest.raises(ValueError, match=r"weight has shape \[1\], better has \[2\]"):
        ranking_loss(scores, places, places, weight=weight[:1])
    with pytest.raises(ValueError, match=r"margin has shape \[3\], better has \[2\]"):
        ranking_loss(scores, places, places, weight=weight, margin=scores)
    with pytest.raises(ValueError, match=r"scores has shape \[3, 1\]; it must have 1 dimension"):
        ranking_loss(scores[:, None], places, places, weight=weight)
    with pytest.raises(ValueError, match=r"tie has dtype torch.int64; it must be torch.bool"):
        ranking_loss(scores, places, places, weight=weight, tie=places)
    with pytest.raises(ValueError, match=r"tie has shape \[1\], better has \[2\]"):
        ranking_accuracy(scores, places, places, torch.tensor([True]))
