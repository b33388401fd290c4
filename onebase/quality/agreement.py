"""How far annotators agree: pairwise agreement, Krippendorff's alpha, Kendall's W, Cohen's and Fleiss' kappa.

Ratings are a table `[units, raters]` of numbers, NaN where a rater did not rate a unit. Every coefficient is a pure
function of such a table, and `with_interval` gives any of them a bootstrap interval over the units. A coefficient that
the table does not determine (no two raters share a unit, or there is one value only) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Literal

import numpy
from numpy.typing import NDArray

from onebase.reporting.intervals import Interval

Ratings = NDArray[numpy.float64]
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["none", "linear", "quadratic"]

RESAMPLES = 1000


def pairwise_agreement(ratings: Ratings) -> float:
    """The share of equal ratings among all pairs of ratings of one unit; a unit counts by its number of pairs."""
    same = pairs = 0
    for a, b in combinations(range(ratings.shape[1]), 2):
        both = _rated(ratings[:, [a, b]])
        same += int((both[:, 0] == both[:, 1]).sum())
        pairs += len(both)
    return same / pairs if pairs else float("nan")


def krippendorff_alpha(ratings: Ratings, level: Level = "nominal") -> float:
    """alpha = 1 - D_o / D_e for any number of raters, with missing ratings.

    Both disagreements are means of a squared difference delta^2(c, k) over pairs of values: D_o over the pairs within
    units, D_e over all pairs (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability"). The level of the
    values decides delta: equal or not (nominal), how many ratings lie between (ordinal), the difference (interval),
    or the difference over the sum (ratio).

    Raises:
        ValueError: ratings of level `ratio` are negative.
    """
    if level == "ratio" and (ratings < 0).any():
        raise ValueError("ratings of a ratio scale are 0 or more")
    given = ~numpy.isnan(ratings)
    units = given.sum(1) > 1  # a lone rating is paired with nothing
    ratings, given = ratings[units], given[units]
    values = numpy.unique(ratings[given])
    if len(values) < 2:
        return float("nan")
    counts = numpy.stack([(ratings == value).sum(1) for value in values], 1).astype(float)  # [units, values]
    each = counts.sum(1)
    # A unit of m ratings gives m (m - 1) ordered pairs, each weighted 1 / (m - 1).
    coincidences = (counts / (each - 1)[:, None]).T @ counts - numpy.diag((counts / (each - 1)[:, None]).sum(0))
    totals = coincidences.sum(1)
    difference = _squared_difference(values, totals, level)
    observed = (coincidences * difference).sum() / totals.sum()
    expected = (numpy.outer(totals, totals) * difference).sum() / (totals.sum() * (totals.sum() - 1))
    return float(1 - observed / expected)


def _squared_difference(values: Ratings, totals: Ratings, level: Level) -> Ratings:
    """delta^2(c, k) for all pairs of the values, in order: `[V, V]`."""
    c, k = values[:, None], values[None, :]
    if level == "nominal":
        return (c != k).astype(float)
    if level == "interval":
        return (c - k) ** 2
    if level == "ratio":
        both = c + k
        return numpy.divide(c - k, both, out=numpy.zeros_like(both), where=both > 0) ** 2
    # Ordinal: the ratings from c to k, those at either end counted half.
    middle = numpy.cumsum(totals) - totals / 2
    return (middle[:, None] - middle[None, :]) ** 2


def kendalls_w(ratings: Ratings) -> float:
    """Kendall's coefficient of concordance, corrected for ties: 1 if all raters rank the units alike, 0 if by chance.

    W = 12 S / (m^2 (n^3 - n) - m sum T),  T = t^3 - t for each group of t tied units of a rater,
    with m raters, n units and S the squared deviations of the units' rank sums (Kendall and Babington Smith 1939;
    Siegel 1956, eq. 9.16). Units that a rater left out are left out.
    """
    ratings = _rated(ratings)
    n, m = ratings.shape
    if n < 2 or m < 2:
        return float("nan")
    ranks = numpy.stack([_mean_ranks(column) for column in ratings.T], 1)
    sums = ranks.sum(1)
    ties = 0.0
    for column in ratings.T:
        sizes = numpy.unique(column, return_counts=True)[1].astype(float)
        ties += float((sizes**3 - sizes).sum())
    most = m**2 * (n**3 - n) - m * ties
    return float(12 * ((sums - sums.mean()) ** 2).sum() / most) if most > 0 else float("nan")


def _mean_ranks(values: Ratings) -> Ratings:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, sizes = numpy.unique(values, return_inverse=True, return_counts=True)
    ends = numpy.cumsum(sizes)
    return (ends - (sizes - 1) / 2)[place]


def cohens_kappa(ratings: Ratings, weights: Weights = "none") -> float:
    """kappa = 1 - D_o / D_e of two raters, each with its own distribution over the values (Cohen 1960; weighted 1968).

    Weights: every difference counts alike, by how many categories lie between, or by the square of that. The
    categories are the values that either rater used, in order.

    Raises:
        ValueError: there are not two raters.
    """
    if ratings.shape[1] != 2:
        raise ValueError(f"Cohen's kappa compares 2 raters, not {ratings.shape[1]}")
    ratings = _rated(ratings)
    values, codes = numpy.unique(ratings, return_inverse=True)
    if len(values) < 2:
        return float("nan")
    codes = codes.reshape(ratings.shape)
    table = numpy.zeros((len(values), len(values)))
    numpy.add.at(table, (codes[:, 0], codes[:, 1]), 1 / len(ratings))
    apart = numpy.abs(numpy.subtract.outer(numpy.arange(len(values)), numpy.arange(len(values)))).astype(float)
    cost = {"none": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]
    expected = (numpy.outer(table.sum(1), table.sum(0)) * cost).sum()
    return float(1 - (table * cost).sum() / expected)


def fleiss_kappa(ratings: Ratings) -> float:
    """kappa = (P - P_e) / (1 - P_e) of m raters of nominal values (Fleiss 1971); the raters need not be the same.

    P is the mean share of agreeing pairs of a unit, P_e what chance gives with the values' overall shares. All units
    need the same number of ratings: those with fewer than the most are left out.
    """
    given = (~numpy.isnan(ratings)).sum(1)
    m = int(given.max(initial=0))
    if m < 2:
        return float("nan")
    ratings = ratings[given == m]
    values = numpy.unique(ratings[~numpy.isnan(ratings)])
    counts = numpy.stack([(ratings == value).sum(1) for value in values], 1).astype(float)
    shares = counts.sum(0) / counts.sum()
    expected = float((shares**2).sum())
    observed = float(((counts**2).sum(1) - m).mean() / (m * (m - 1)))
    return (observed - expected) / (1 - expected) if expected < 1 else float("nan")


def with_interval(coefficient: Callable[[Ratings], float], ratings: Ratings, *, seed: int = 0) -> Interval:
    """The coefficient with its 95 % percentile bootstrap interval from 1,000 resamples of the units (Efron 1979).

    Resamples that do not determine the coefficient are left out; if that is every one, the interval is NaN.
    """
    generator = numpy.random.default_rng(seed)
    drawn = (coefficient(ratings[generator.integers(0, len(ratings), len(ratings))]) for _ in range(RESAMPLES))
    found = [value for value in drawn if not numpy.isnan(value)]
    low, high = numpy.percentile(found, [2.5, 97.5]) if found else (float("nan"), float("nan"))
    return Interval(coefficient(ratings), float(low), float(high))


def _rated(ratings: Ratings) -> Ratings:
    """The units that every rater rated."""
    return ratings[~numpy.isnan(ratings).any(1)]
