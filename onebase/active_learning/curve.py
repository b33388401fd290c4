"""The learning curve of linear heads: held-out accuracy after every round and over subsets of the rankings.

Accuracy is how often a head prefers the answer that a person preferred, on prompts it was not trained on. It is held
out from tasks that no model chose, so it is the accuracy on such tasks in general: tasks chosen for being hard would
make every head look bad.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from onebase.active_learning.heads import Floats, evident_ridge, pair_accuracy, rankings_of
from onebase.active_learning.power_law import PowerLaws, fit_power_laws
from onebase.reporting.intervals import Interval, bootstrap_mean

FOLDS = 5
REPEATS = 4
"""Random subsets of each size, per fold."""
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
"""Sizes of the subsets, as shares of a fold's training rankings."""
FEWEST = 8
"""Rankings in the smallest subset."""
RESAMPLES = 1000
AHEAD = (2, 4)
WORTH = 0.01
"""Accuracy: if more rankings buy less, they are not worth a person's time."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """One person's ranking of one task."""

    features: Floats
    """`[K, F]`."""
    grades: tuple[float, ...]
    prompt: str
    """Rankings with the same prompt are held out together."""
    round: int
    random: bool
    """Whether no model chose the task, so that accuracy may be measured on it."""


@dataclass(frozen=True, slots=True)
class Point:
    """Held-out accuracy after some rankings."""

    rankings: int
    """Trained on, the mean over the folds."""
    accuracy: Interval


@dataclass(frozen=True, slots=True)
class Curve:
    """What has been learned, and what more rankings would buy."""

    rankings: int
    prompts: int
    """Prompts on which accuracy was measured."""
    points: tuple[Point, ...]
    limit: Interval
    """a of acc(n) = a - b n^-c: the accuracy with any number of rankings."""
    gap: float
    rate: float
    another: int
    gain: Interval
    """In accuracy, from this many more rankings."""
    ahead: tuple[Point, ...] = ()
    """What the law says of two and four times the rankings so far: further than anything that was measured."""


class Folds:
    """Rankings split by prompt; a head is tested on the random rankings of the fold that it was not trained on."""

    def __init__(self, ranked: Sequence[Ranked], *, seed: int) -> None:
        self.ranked, self.seed = ranked, seed
        prompts = sorted({one.prompt for one in ranked if one.random})
        number = numpy.random.default_rng(seed).permutation(len(prompts)) % FOLDS
        self.fold_of = {prompt: int(n) for prompt, n in zip(prompts, number, strict=True)}
        self.prompts = prompts
        self._ridge = 10.0

    def train_on(self, fold: int, *, until_round: int | None = None) -> list[int]:
        """The rankings outside a fold, of all rounds or those up to one."""
        return [
            n
            for n, one in enumerate(self.ranked)
            if self.fold_of.get(one.prompt) != fold and (until_round is None or one.round <= until_round)
        ]

    def accuracy(self, fold: int, train: Sequence[int]) -> dict[str, float]:
        """The mean accuracy on each prompt of the fold, of a head trained on these rankings."""
        own = [self.ranked[n] for n in train]
        self._ridge, weights = evident_ridge(
            rankings_of([(one.features, one.grades) for one in own]), start=self._ridge
        )
        test = [one for one in self.ranked if one.random and self.fold_of[one.prompt] == fold]
        rights = pair_accuracy([one.features @ weights for one in test], [one.grades for one in test])
        found: dict[str, list[float]] = {}
        for one, right in zip(test, rights, strict=True):
            if not numpy.isnan(right):
                found.setdefault(one.prompt, []).append(float(right))
        return {prompt: float(numpy.mean(values)) for prompt, values in found.items()}


def accuracy_by_round(folds: Folds) -> dict[int, Point]:
    """Held-out accuracy of heads trained on everything up to each round."""
    found: dict[int, Point] = {}
    for last in sorted({one.round for one in folds.ranked}):
        trained = [folds.train_on(fold, until_round=last) for fold in range(FOLDS)]
        if min(map(len, trained)) < 1:
            continue
        rights: dict[str, float] = {}
        for fold, train in enumerate(trained):
            rights |= folds.accuracy(fold, train)
        count = round(float(numpy.mean([len(train) for train in trained])))
        found[last] = Point(count, bootstrap_mean(list(rights.values()), seed=folds.seed))
    return found


def learning_curve(folds: Folds, *, another: int) -> Curve:
    """The curve over random subsets of the rankings, its power law, and what `another` rankings would buy.

    Intervals are from 1,000 resamples of the prompts and of the subsets together, the law fitted anew to each (Efron
    1979). They leave out that the law itself may be wrong, so a forecast far beyond the rankings so far is a guess.
    """
    generator = numpy.random.default_rng(folds.seed)
    trained = [folds.train_on(fold) for fold in range(FOLDS)]
    shares = [share for share in SHARES if share * min(map(len, trained)) >= FEWEST]
    sizes = numpy.array([float(numpy.mean([round(share * len(train)) for train in trained])) for share in shares])
    place = {prompt: n for n, prompt in enumerate(folds.prompts)}
    rights = numpy.full((len(shares), REPEATS, len(place)), numpy.nan)
    for fold, train in enumerate(trained):
        for s, share in enumerate(shares):
            for repeat in range(REPEATS if share < 1 else 1):
                subset = generator.permutation(train)[: round(share * len(train))].tolist()
                for prompt, right in folds.accuracy(fold, subset).items():
                    rights[s, repeat : repeat + 1 if share < 1 else REPEATS, place[prompt]] = right
    return curve_through(sizes, rights, count=len(folds.ranked), another=another, generator=generator)


def curve_through(
    sizes: Floats, rights: Floats, *, count: int, another: int, generator: numpy.random.Generator
) -> Curve:
    """The curve and its power law through measured accuracies, and what `another` rankings beside `count` would buy.

    Args:
        sizes: `[S]` rankings trained on.
        rights: `[S, R, P]` accuracy with each subset of a size on each prompt; prompts with a NaN are left out.
    """
    measured = rights[:, :, ~numpy.isnan(rights).any((0, 1))]
    drawn = _resampled(measured, generator)
    whole, laws = fit_power_laws(sizes, measured.mean((1, 2))[None, :]), fit_power_laws(sizes, drawn)
    intervals = [_interval(float(m), own) for m, own in zip(measured.mean((1, 2)), drawn.T, strict=True)]
    return Curve(
        rankings=count,
        prompts=measured.shape[2],
        points=tuple(Point(round(size), own) for size, own in zip(sizes.tolist(), intervals, strict=True)),
        limit=_interval(float(whole.limit[0]), laws.limit),
        gap=float(whole.gap[0]),
        rate=float(whole.rate[0]),
        another=another,
        gain=_interval(float(_gain(whole, count, another)[0]), _gain(laws, count, another)),
        ahead=tuple(
            Point(more * count, _interval(float(whole.at(more * count)[0]), laws.at(more * count))) for more in AHEAD
        ),
    )


def _gain(laws: PowerLaws, count: int, another: int) -> Floats:
    return laws.at(count + another) - laws.at(count)


def _resampled(rights: Floats, generator: numpy.random.Generator) -> Floats:
    """The mean accuracy at each size over prompts and subsets drawn with replacement: `[B, S]`."""
    sizes, repeats, prompts = rights.shape
    counts = generator.multinomial(prompts, numpy.full(prompts, 1 / prompts), size=RESAMPLES) / prompts
    means = numpy.einsum("bp,srp->bsr", counts, rights)
    chosen: NDArray[numpy.int64] = generator.integers(0, repeats, size=(RESAMPLES, sizes, repeats))
    return numpy.asarray(numpy.take_along_axis(means, chosen, 2).mean(2))


def _interval(mean: float, drawn: Floats) -> Interval:
    low, high = numpy.percentile(drawn, [2.5, 97.5])
    return Interval(mean, float(low), float(high))
