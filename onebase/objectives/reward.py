"""The ranking loss of a reward model over the comparisons of K graded answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from onebase.objectives._shapes import check_mask, check_rank, check_same_shape


class Comparison(NamedTuple):
    """Two answers of one prompt, by their place in its list of answers."""

    better: int
    worse: int
    tie: bool
    """True if both have the same grade; `better` is then just the earlier one."""


def ranking_pairs(grades: Sequence[float], max_pairs: int | None, generator: torch.Generator) -> list[Comparison]:
    """All K (K - 1) / 2 comparisons of K graded answers, or a uniform sample of them.

    Args:
        grades: K numbers, higher is better, equal is a tie.
        max_pairs: most comparisons to return, at least 1; None for all.
        generator: on CPU; used only if there are more than `max_pairs`, to draw without replacement.

    Returns:
        Comparisons ordered by their two places; none for fewer than two answers.

    Raises:
        ValueError: if a grade is NaN or `max_pairs` is below 1.
    """
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs {max_pairs} must be at least 1, or None for all comparisons")
    for place, grade in enumerate(grades):
        if math.isnan(grade):
            raise ValueError(f"grade {place} is NaN; every answer needs a number to be ranked by")
    comparisons = [
        Comparison(j, i, False) if grades[j] > grades[i] else Comparison(i, j, grades[i] == grades[j])
        for i, j in combinations(range(len(grades)), 2)
    ]
    if max_pairs is None or len(comparisons) <= max_pairs:
        return comparisons
    drawn = torch.randperm(len(comparisons), generator=generator)[:max_pairs]
    return [comparisons[place] for place in sorted(drawn.tolist())]


def comparison_weights(comparisons: Sequence[Comparison]) -> list[float]:
    """The weight of each comparison of one prompt, so that every prompt counts the same.

    1 / P for P comparisons: 1 / (K choose 2) when all are used     (Ouyang et al. 2022, eq. 1)

    Args:
        comparisons: the P comparisons of one prompt.

    Returns:
        P numbers that sum to 1; none for no comparison.
    """
    return [1 / len(comparisons) for _ in comparisons]


def ranking_loss(
    scores: Tensor,
    better: Tensor,
    worse: Tensor,
    *,
    weight: Tensor,
    tie: Tensor | None = None,
    margin: Tensor | None = None,
) -> Tensor:
    """The weighted Bradley-Terry loss of each comparison.

    With d = scores[better] - scores[worse]:

        L = -weight log sigmoid(d - margin)     (Ouyang et al. 2022, eq. 1; Touvron et al. 2023, Llama 2, eq. 2 for
                                                the margin)
        L = -weight (log sigmoid(d) + log sigmoid(-d)) / 2     for a tie, which is smallest at d = 0

    The loss of a tie is the mean over both orders, as if half of the labelers had preferred each answer; the papers
    drop ties. A margin does not apply to it.

    Not done: no sum over the comparisons; with the weights of `comparison_weights` the sum over a batch, divided by
    its number of prompts, is the paper's loss.

    Args:
        scores: `[N]`, one per completion; gradients flow through it.
        better: `[P]` int64, places in `scores`.
        worse: `[P]` int64, places in `scores`.
        weight: `[P]`.
        tie: `[P]` bool, True on ties; None for no ties.
        margin: `[P]`, by how much the better score should lead; None for 0.

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or `tie` is not bool.
    """
    difference = _score_difference(scores, better, worse, tie)
    check_same_shape(better=better, weight=weight, margin=margin)
    led = difference if margin is None else difference - margin
    if tie is None:
        return -weight * F.logsigmoid(led)
    # The margin of a tie is taken out before the loss: a NaN there would reach the gradient through the second where.
    led = torch.where(tie, difference, led)
    ranked = F.logsigmoid(led)
    return -weight * torch.where(tie, 0.5 * (ranked + F.logsigmoid(-led)), ranked)


def centering_loss(scores: Tensor) -> Tensor:
    """Squared score of each completion: as an auxiliary loss, it pulls the scores of a reward model towards 0.

    L = score^2     (after Eisenstein et al. 2023, who penalise (score_1 + score_2)^2 per comparison)

    The ranking loss leaves the offset of the scores free; this fixes it. Unlike the paper's form it also shrinks the
    difference of the two, since s1^2 + s2^2 = ((s1 + s2)^2 + (s1 - s2)^2) / 2; but it needs no pairs and works for
    lists of any length. Keep its coefficient small (about 0.01).

    Args:
        scores: `[N]` (or any shape); gradients flow through it.

    Returns:
        Same shape, unreduced.
    """
    return scores.square()


@torch.no_grad()
def ranking_accuracy(scores: Tensor, better: Tensor, worse: Tensor, tie: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which comparisons the scores order rightly, and which of them count.

    Args:
        scores: `[N]`, one per completion.
        better: `[P]` int64, places in `scores`.
        worse: `[P]` int64, places in `scores`.
        tie: `[P]` bool, True on ties, which have no right order; None for no ties.

    Returns:
        correct `[P]` bool, True where a comparison that counts has the better score strictly above the worse (equal
        scores are wrong), and counted `[P]` bool, False on ties. The accuracy is correct.sum() / counted.sum().

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or `tie` is not bool.
    """
    difference = _score_difference(scores, better, worse, tie)
    counted = torch.ones_like(difference, dtype=torch.bool) if tie is None else ~tie
    return (difference > 0) & counted, counted


def _score_difference(scores: Tensor, better: Tensor, worse: Tensor, tie: Tensor | None) -> Tensor:
    check_rank(1, scores=scores, better=better, worse=worse)
    check_same_shape(better=better, worse=worse, tie=tie)
    check_mask(tie=tie)
    return scores[better] - scores[worse]
