"""How accuracy grows with the number of rankings: acc(n) = a - b n^-c, its limit a, and what more rankings would buy.

Learning curves follow such a power law over the range that matters (Cortes et al. 1994, "Learning curves: asymptotic
values and rate of convergence"; Figueroa et al. 2012 for predicting sample sizes).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy

from onebase.active_learning.heads import Floats

RATES = numpy.geomspace(0.05, 2.0, 400)
"""The exponents that are tried: a slower curve could not be told from a logarithm, a faster one from a constant."""


@dataclass(frozen=True, slots=True)
class PowerLaws:
    """B fitted curves a - b n^-c, with 0 <= a <= 1 and b >= 0."""

    limit: Floats
    """a: `[B]`."""
    gap: Floats
    """b: `[B]`."""
    rate: Floats
    """c: `[B]`."""

    def at(self, rankings: float) -> Floats:
        """The accuracy at so many rankings: `[B]`."""
        return self.limit - self.gap * rankings**-self.rate


def fit_power_laws(sizes: Floats, accuracies: Floats) -> PowerLaws:
    """The least-squares curve through each line of accuracies.

    For a given c the problem is linear in a and b (variable projection, Golub and Pereyra 1973), so c is searched on a
    grid and the other two are solved for, at the bound where they would leave their range.

    Args:
        sizes: `[S]` numbers of rankings, above 0, at least two of them different.
        accuracies: `[B, S]`, each from 0 to 1.

    Raises:
        ValueError: there are fewer than two sizes.
    """
    if len(numpy.unique(sizes)) < 2:
        raise ValueError("a curve needs at least two sizes")
    unit = sizes.max()  # n^-c of large n would lose digits
    powers = (sizes / unit)[None, :] ** -RATES[:, None]  # [C, S]
    apart = powers - powers.mean(1, keepdims=True)
    mean = accuracies.mean(1)
    gap = -(accuracies @ apart.T) / (apart**2).sum(1)  # [B, C]
    gap = numpy.maximum(gap, 0.0)
    limit = mean[:, None] + gap * powers.mean(1)
    over = limit > 1
    through_one = ((1 - accuracies) @ powers.T) / (powers**2).sum(1)
    gap, limit = numpy.where(over, numpy.maximum(through_one, 0.0), gap), numpy.where(over, 1.0, limit)
    error = ((limit[:, :, None] - gap[:, :, None] * powers[None] - accuracies[:, None, :]) ** 2).sum(2)
    best = error.argmin(1)
    line = numpy.arange(len(best))
    rate = RATES[best]
    return PowerLaws(limit[line, best], gap[line, best] * unit**rate, rate)
