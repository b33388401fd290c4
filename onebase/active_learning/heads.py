"""Linear heads on frozen features, trained on rankings by Newton's method: the small models that say what is unsure.

A ranking of K answers with features x_1 .. x_K is a sequence of choices (Plackett 1975; Luce 1959): every answer is
chosen first among itself and those graded no higher, with probability exp(w.x_k) / sum_j exp(w.x_j). For two answers
this is the Bradley-Terry model (1952). Equal grades are chosen among each other both ways (Breslow 1974), so that a tie
pulls the margin to 0. The loss is convex in w; a ridge |w|^2 keeps it finite where answers are separable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]

MOST_STEPS = 50
"""Newton steps; ten are usually enough."""
_RIDGES = (1e-4, 1e6)


@dataclass(frozen=True, slots=True)
class Rankings:
    """R rankings of up to K answers, padded to K."""

    features: Floats
    """`[R, K, F]`; zeros where there is no answer."""
    grades: Floats
    """`[R, K]`, higher is better; NaN where there is no answer."""

    def __len__(self) -> int:
        return len(self.grades)

    def only(self, chosen: Sequence[int] | NDArray[numpy.int64]) -> Rankings:
        """These rankings, in this order."""
        index = numpy.asarray(chosen, dtype=numpy.int64)
        return Rankings(self.features[index], self.grades[index])


def rankings_of(ranked: Sequence[tuple[Floats, Sequence[float]]]) -> Rankings:
    """The rankings as one padded table.

    Args:
        ranked: for each ranking the features of its answers `[K, F]` and their grades.
    """
    most = max((len(grades) for _, grades in ranked), default=2)
    size = ranked[0][0].shape[1] if ranked else 1
    features = numpy.zeros((len(ranked), most, size))
    grades = numpy.full((len(ranked), most), numpy.nan)
    for r, (own, given) in enumerate(ranked):
        features[r, : len(given)], grades[r, : len(given)] = own, given
    return Rankings(features, grades)


def fit_head(rankings: Rankings, ridge: float, *, counts: Floats | None = None, start: Floats | None = None) -> Floats:
    """The weights `[F]` that minimise the rankings' negative log-likelihood + ridge / 2 |w|^2.

    Args:
        counts: how often each ranking counts, `[R]`; by default once.
        start: weights to begin at; the result does not depend on them.
    """
    weights = numpy.zeros(rankings.features.shape[2]) if start is None else start.copy()
    loss, gradient, hessian = _derivatives(rankings, weights, ridge, counts)
    for _ in range(MOST_STEPS):
        step = numpy.linalg.solve(hessian, gradient)
        decrease = float(gradient @ step)
        if decrease < 1e-12 * (1 + abs(loss)):
            break
        size = 1.0
        # Armijo's rule: the first step may overshoot where all answers are told apart easily.
        while size > 1e-6:
            tried = weights - size * step
            if _loss(rankings, tried, ridge, counts) <= loss - 1e-4 * size * decrease:
                break
            size /= 2
        weights = tried
        loss, gradient, hessian = _derivatives(rankings, weights, ridge, counts)
    return weights


def information(rankings: Rankings, weights: Floats, *, counts: Floats | None = None) -> Floats:
    """The second derivative of the negative log-likelihood at these weights, `[F, F]`: what the rankings tell of w."""
    return _derivatives(rankings, weights, 0.0, counts)[2]


def evident_ridge(rankings: Rankings, *, start: float = 10.0) -> tuple[float, Floats]:
    """The ridge under which the rankings are most probable, and the head fitted with it.

    Repeats ridge = gamma / |w|^2 with gamma = F - ridge tr(H^-1), the number of weights that the data decide, until it
    no longer moves (MacKay 1992, "The evidence framework applied to classification networks", eq. 10).
    """
    ridge, weights = start, None
    for _ in range(MOST_STEPS):
        weights = fit_head(rankings, ridge, start=weights)
        hessian = information(rankings, weights) + ridge * numpy.eye(len(weights))
        decided = len(weights) - ridge * float(numpy.trace(numpy.linalg.inv(hessian)))
        found = float(numpy.clip(decided / max(float(weights @ weights), 1e-12), *_RIDGES))
        if abs(numpy.log(found / ridge)) < 0.05:
            break
        ridge = found
    assert weights is not None
    return ridge, weights


def bootstrap_heads(rankings: Rankings, ridge: float, *, num_heads: int, seed: int, start: Floats) -> Floats:
    """Heads fitted on as many rankings drawn with replacement (Efron 1979): `[M, F]`. Where they disagree, the rankings
    leave a question open."""
    generator = numpy.random.default_rng(seed)
    drawn = generator.multinomial(len(rankings), numpy.full(len(rankings), 1 / len(rankings)), size=num_heads)
    return numpy.stack([fit_head(rankings, ridge, counts=own.astype(float), start=start) for own in drawn])


def pair_accuracy(scores: Sequence[Floats], grades: Sequence[Sequence[float]]) -> Floats:
    """For each ranking the share of its pairs of unequal grades whose better answer scores higher, `[R]`; NaN if it has
    no such pair. Equal scores count half."""
    found = []
    for own, given in zip(scores, grades, strict=True):
        better = numpy.subtract.outer(numpy.asarray(given), numpy.asarray(given)) > 0
        apart = numpy.subtract.outer(own, own)[better]
        found.append(float(((apart > 0) + 0.5 * (apart == 0)).mean()) if apart.size else float("nan"))
    return numpy.array(found)


def _chances(rankings: Rankings, weights: Floats) -> tuple[Floats, Floats]:
    """For each choice (one per answer) the probability of every answer `[R, K, K]`, and its logarithm's normaliser."""
    scores = rankings.features @ weights
    with numpy.errstate(invalid="ignore"):
        risk = rankings.grades[:, None, :] <= rankings.grades[:, :, None]  # False where either is no answer
    among = numpy.where(risk, scores[:, None, :], -numpy.inf)
    top = numpy.where(risk.any(2), among.max(2, initial=-numpy.inf), 0.0)
    raised = numpy.exp(among - top[:, :, None])
    total = raised.sum(2)
    normaliser = top + numpy.log(numpy.where(total > 0, total, 1.0))
    return raised / numpy.where(total > 0, total, 1.0)[:, :, None], normaliser


def _loss(rankings: Rankings, weights: Floats, ridge: float, counts: Floats | None) -> float:
    _, normaliser = _chances(rankings, weights)
    per_ranking = numpy.where(numpy.isnan(rankings.grades), 0.0, normaliser - rankings.features @ weights).sum(1)
    return float(per_ranking @ _or_ones(counts, rankings)) + ridge / 2 * float(weights @ weights)


def _derivatives(
    rankings: Rankings, weights: Floats, ridge: float, counts: Floats | None
) -> tuple[float, Floats, Floats]:
    """Loss, gradient `[F]` and Hessian `[F, F]`."""
    chances, normaliser = _chances(rankings, weights)
    each, there = _or_ones(counts, rankings), ~numpy.isnan(rankings.grades)
    size = rankings.features.shape[2]
    per_ranking = numpy.where(there, normaliser - rankings.features @ weights, 0.0).sum(1)
    pull = (chances.sum(1) - there) * each[:, None]  # of the loss, over each answer's score
    curve = (
        numpy.einsum("rk,kj->rkj", chances.sum(1), numpy.eye(chances.shape[2]))
        - numpy.swapaxes(chances, 1, 2) @ chances
    )
    flat = rankings.features.reshape(-1, size)
    bent = ((curve * each[:, None, None]) @ rankings.features).reshape(-1, size)
    loss = float(per_ranking @ each) + ridge / 2 * float(weights @ weights)
    return loss, flat.T @ pull.ravel() + ridge * weights, flat.T @ bent + ridge * numpy.eye(size)


def _or_ones(counts: Floats | None, rankings: Rankings) -> Floats:
    return numpy.ones(len(rankings)) if counts is None else counts
