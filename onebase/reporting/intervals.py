"""Bootstrap intervals: how much a mean depends on the choice of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return self.text(3)

    def times(self, factor: float) -> Interval:
        """The interval in another unit."""
        return Interval(self.mean * factor, self.low * factor, self.high * factor)

    def text(self, digits: int, between: str = " ") -> str:
        """Formats the mean with its interval in brackets, without a negative zero."""
        mean, low, high = (round(value, digits) + 0.0 for value in (self.mean, self.low, self.high))
        return f"{mean:.{digits}f}{between}[{low:.{digits}f}, {high:.{digits}f}]"


def bootstrap_mean(values: Sequence[float], *, seed: int = 0) -> Interval:
    """Returns the mean with its percentile bootstrap interval (Efron 1979), from 2,000 resamples.

    Values must be independent: average the samples of a prompt first.
    """
    array = numpy.asarray(values, dtype=numpy.float64)
    if array.size == 0:
        raise ValueError("an interval needs at least one value")
    generator = numpy.random.default_rng(seed)
    # One resample at a time; all at once would take 2,000 times the memory of the values.
    means = [array[generator.integers(0, array.size, size=array.size)].mean() for _ in range(RESAMPLES)]
    low, high = numpy.percentile(means, [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


def paired_bootstrap(before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Interval:
    """Returns the mean difference `after - before` on the same prompts, with its interval."""
    if len(before) != len(after):
        raise ValueError(f"a paired interval needs as many values before ({len(before)}) as after ({len(after)})")
    return bootstrap_mean([b - a for a, b in zip(before, after, strict=True)], seed=seed)
