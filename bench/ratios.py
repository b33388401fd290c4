"""Compares two sides that ran in turn: the ratio of their medians, and its spread over pairs of runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over the peer's, dimensionless."""

    median: float
    """The median of ours over the median of the peer's."""
    low: float
    """The lowest ratio of two neighbouring runs."""
    high: float

    def __str__(self) -> str:
        return f"{shown(self.median)} [{shown(self.low)}, {shown(self.high)}]"


def ratio_in_turn(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """Returns the ratio of two sides that ran in the order ours, peer, ours, peer, ...

    Each run but the first and last has two neighbours from the other side and is compared with both, so that a machine
    that slows down over the sitting shows as spread on both sides of the median.

    Raises:
        ValueError: no runs, or unequal numbers of runs.
    """
    if not ours or len(ours) != len(peer):
        raise ValueError(f"{len(ours)} runs of ours and {len(peer)} of the peer's: expected as many of each")
    adjacent = [*zip(ours, peer, strict=True), *zip(ours[1:], peer[:-1], strict=True)]
    singles = [base / other for base, other in adjacent]
    return Ratio(median(ours) / median(peer), min(singles), max(singles))


def shown(number: float) -> str:
    """Formats a number with at most three significant digits, without exponent."""
    if abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
