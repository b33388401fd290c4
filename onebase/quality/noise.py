"""Preferences and labels that are probably wrong: heads trained on the other folds of the data disbelieve them.

The head is a logistic regression on hashed runs of characters and on length: no model, no GPU, seconds for thousands of
rows. It knows words, not meaning. So it finds labels that were flipped, mixed up or filled in at random where wording
tells good from bad, and nothing where it does not: then it gives every row a probability near one half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from onebase.quality.texts import digest, distinct, normalised, prompt_of, runs_of
from onebase.records import Row

SIZE = 1 << 16
"""Numbers that runs are hashed to: as many as 16 bits hold."""
_RUNS = ((5, 2), (3, 1))
"""Characters of the runs that are features; the second number of each for Chinese, Japanese and Korean."""
_EPOCHS, _BATCH, _RATE, _DECAY = 4, 32, 0.2, 1e-4

Floats = NDArray[numpy.float64]


@dataclass(frozen=True, slots=True)
class Claim:
    """One row's verdict as features: a head that agrees gives them a positive sum."""

    runs: NDArray[numpy.uint16]
    """Hashed runs of the better text, then of the worse one; a labelled text is one or the other."""
    better: int
    """How many of them are of the better text."""
    extra: tuple[float, float]
    """How much longer the better text is, in logarithms; 1 for a good label, -1 for a bad one, 0 for two answers."""
    group: bytes
    """Claims with one prompt share it, and so a fold."""


def claim_of(row: Row) -> Claim | None:
    """The row's best answer against its worst one, or its answer with its label; None if it says neither."""
    label = row.grades[0] if row.grades and len(row.answers) == 1 else row.columns.get("label")
    group = digest(normalised(prompt_of(row)))
    if row.grades is not None and len(row.answers) > 1 and len(set(row.grades)) > 1:
        best, worst = (row.answers[row.grades.index(which(row.grades))] for which in (max, min))
        (better, long), (worse, short) = _features(best), _features(worst)
        return Claim(numpy.concatenate([better, worse]), len(better), (long - short, 0.0), group)
    if len(row.answers) == 1 and isinstance(label, bool | int | float) and label in (0, 1):
        runs, length = _features(row.answers[0])
        return Claim(runs, len(runs) if label else 0, (length, 1.0) if label else (-length, -1.0), group)
    return None


def _features(text: str) -> tuple[NDArray[numpy.uint16], float]:
    """The hashed runs of a text, and the logarithm of its length in tens."""
    text = normalised(text)
    runs = numpy.concatenate([distinct(runs_of(text, *lengths)) for lengths in _RUNS])
    return (runs % numpy.uint64(SIZE)).astype(numpy.uint16), math.log1p(len(text)) / 10


def probabilities(claims: Sequence[Claim], *, folds: int, seed: int) -> Floats:
    """P(the claim is right) for each, by a head trained on the folds without its prompt: `[N]`."""
    return believed(held_out_sums(claims, folds=folds, seed=seed))


def held_out_sums(claims: Sequence[Claim], *, folds: int, seed: int) -> Floats:
    """How far a head that has not seen the claim's prompt agrees with it: `[N]`, positive if it does."""
    order = {group: n for n, group in enumerate(sorted({claim.group for claim in claims}))}
    numbers = numpy.random.default_rng(seed).permutation(len(order)) % folds
    fold = numpy.array([numbers[order[claim.group]] for claim in claims], dtype=int)
    sums = numpy.zeros(len(claims))
    for held_out in range(folds):
        inside = numpy.flatnonzero(fold == held_out).tolist()
        if inside and len(inside) < len(claims):
            weights = _head([claims[i] for i in numpy.flatnonzero(fold != held_out).tolist()], seed)
            for start in range(0, len(inside), _BATCH):
                batch = inside[start : start + _BATCH]
                sums[batch] = _Batch([claims[i] for i in batch]).sums(weights)
    return sums


def believed(sums: Floats) -> Floats:
    """P(a claim is right) from how far held-out heads agree with it, `[N]`.

    All sums are scaled by the one factor that makes their likelihood largest (Platt 1999, without an offset, as a claim
    has no other side). Heads that learned nothing give one half. Wrong claims count against the likelihood, so none is
    believed less than about the share of wrong ones.
    """
    low, high = 0.0, 1.0 / (float(numpy.abs(sums).mean()) or 1.0)
    while _slope(sums, high) > 0 and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(sums, middle) > 0 else (low, middle)
    return _sigmoid(low * sums)


def _slope(sums: Floats, factor: float) -> float:
    """The slope of the log-likelihood of the claims, over the factor."""
    return float((sums * (1 - _sigmoid(factor * sums))).sum())


def losses(probabilities_right: Floats) -> Floats:
    """-log P: what small-loss selection sorts by (Han et al. 2018, co-teaching)."""
    return -numpy.log(numpy.clip(probabilities_right, 1e-12, None))


class _Batch:
    """Some claims end to end: of each text the runs together have length 1."""

    def __init__(self, claims: Sequence[Claim]) -> None:
        sizes = numpy.array([(claim.better, len(claim.runs) - claim.better) for claim in claims])
        signs = numpy.array([1.0, -1.0]) / numpy.sqrt(numpy.maximum(sizes, 1))
        self.sizes = sizes.sum(1)
        self.index = numpy.concatenate([claim.runs for claim in claims]).astype(numpy.int64)
        self.value = numpy.repeat(signs.ravel(), sizes.ravel())
        self.starts = numpy.cumsum(self.sizes) - self.sizes
        self.extra = numpy.array([claim.extra for claim in claims])

    def sums(self, weights: Floats) -> Floats:
        return numpy.add.reduceat(weights[self.index] * self.value, self.starts) + self.extra @ weights[SIZE:]

    def gradient(self, pull: Floats) -> Floats:
        of_runs = numpy.bincount(self.index, numpy.repeat(pull, self.sizes) * self.value, minlength=SIZE)
        return numpy.concatenate([of_runs, pull @ self.extra]) / len(pull)


def _head(claims: Sequence[Claim], seed: int) -> Floats:
    """Weights that agree with the claims: logistic regression by AdaGrad (Duchi et al. 2011) with weight decay.

    One weight per hashed run, one for length, one for how frequent good labels are.
    """
    weights, squares = numpy.zeros(SIZE + 2), numpy.full(SIZE + 2, 1e-8)
    generator = numpy.random.default_rng(seed)
    for _ in range(_EPOCHS):
        order = generator.permutation(len(claims)).tolist()
        for start in range(0, len(order), _BATCH):
            batch = _Batch([claims[i] for i in order[start : start + _BATCH]])
            gradient = batch.gradient(1 - _sigmoid(batch.sums(weights))) - _DECAY * weights
            squares += gradient**2
            weights += _RATE * gradient / numpy.sqrt(squares)
    return weights


def _sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + numpy.tanh(x / 2))
