"""How far annotators agree: pairwise agreement, Krippendorff's alpha, Kendall's W, Cohen's and Fleiss' kappa.

Ratings are a table `[units, raters]` of numbers, NaN where a rater did not rate a unit. Every coefficient is a pure
function of such a table, and `with_interval` gives any of them a bootstrap interval over the units. A coefficient that
the table does not determine (no two raters share a unit, or there is one value only) is NaN.

Most coefficients depend on a table only through sums over its units: `of_agreement`, `of_alpha`, `of_kappa` and
`of_fleiss` work on such sums, for many resamples at once, which makes `sums_interval` hundreds of times as fast as
`with_interval`. Units that depend on each other are added up first (`group_sums`) and drawn together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy
from numpy.typing import NDArray

from onebase.reporting.intervals import Interval

Ratings = NDArray[numpy.float64]
Sums = NDArray[numpy.float64]
Whole = NDArray[numpy.int64]
Level = Literal["nominal", "ordinal", "interval", "ratio"]
Weights = Literal["none", "linear", "quadratic"]

RESAMPLES = 1000


def pairwise_agreement(ratings: Ratings) -> float:
    """The share of equal ratings among all pairs of ratings of one unit; a unit counts by its number of pairs."""
    return float(of_agreement(agreement_sums(ratings).sum(0)))


def agreement_sums(ratings: Ratings) -> Sums:
    """Each unit's number of pairs of ratings, and of those that are equal: `[U, 2]`."""
    counts = counted(ratings, _values(ratings))
    each = counts.sum(1)
    return numpy.stack([each * (each - 1), (counts * (counts - 1)).sum(1)], 1) / 2


def of_agreement(sums: Sums) -> Sums:
    """The share of equal ratings, from sums `[..., 2]` of pairs and of equal ones."""
    return _ratio(sums[..., 1], sums[..., 0])


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
    values = _values(ratings[(~numpy.isnan(ratings)).sum(1) > 1])  # a lone rating is paired with nothing
    return float(of_alpha(coincidences(ratings, values).sum(0), values, level))


def coincidences(ratings: Ratings, values: Ratings) -> Sums:
    """Each unit's ordered pairs of ratings, by their values: `[U, V, V]`.

    A unit of m ratings gives m (m - 1) ordered pairs, each weighted 1 / (m - 1).
    """
    counts = counted(ratings, values)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * numpy.eye(len(values))
    return pairs / numpy.maximum(counts.sum(1) - 1, 1)[:, None, None]


def of_alpha(sums: Sums, values: Ratings, level: Level = "nominal") -> Sums:
    """Krippendorff's alpha from the sums `[..., V, V]` of coincidences; NaN where one value is left."""
    totals = sums.sum(-1)
    difference = _squared_difference(values, totals, level)
    number = totals.sum(-1)
    observed = _ratio((sums * difference).sum((-1, -2)), number)
    expected = (totals[..., :, None] * totals[..., None, :] * difference).sum((-1, -2))
    return 1 - _ratio(observed, _ratio(expected, number * (number - 1)))


def _squared_difference(values: Ratings, totals: Sums, level: Level) -> Sums:
    """delta^2(c, k) for all pairs of the values, in order: `[V, V]`, or `[..., V, V]` if it depends on the totals."""
    c, k = values[:, None], values[None, :]
    if level == "nominal":
        return (c != k).astype(float)
    if level == "interval":
        return (c - k) ** 2
    if level == "ratio":
        both = c + k
        return numpy.divide(c - k, both, out=numpy.zeros_like(both), where=both > 0) ** 2
    # Ordinal: the ratings from c to k, those at either end counted half.
    middle = numpy.cumsum(totals, -1) - totals / 2
    return (middle[..., :, None] - middle[..., None, :]) ** 2


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
    return float(of_ranks(numpy.stack([_mean_ranks(column) for column in ratings.T])))


def _mean_ranks(values: Ratings) -> Ratings:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, place, sizes = numpy.unique(values, return_inverse=True, return_counts=True)
    ends = numpy.cumsum(sizes)
    return (ends - (sizes - 1) / 2)[place]


def of_ranks(ranks: Ratings) -> Sums:
    """Kendall's W of rankings `[..., m, n]`, rows of NaN for raters who did not rank; NaN for fewer than two.

    As a rater's squared deviations are (n^3 - n - T) / 12, W is S over m times their sum.
    """
    centred = ranks - ranks.mean(-1, keepdims=True)
    m = (~numpy.isnan(centred[..., 0])).sum(-1)
    centred = numpy.nan_to_num(centred)
    most = m * (centred**2).sum((-1, -2))
    return _ratio((centred.sum(-2) ** 2).sum(-1), numpy.where(m > 1, most, 0))


def mid_ranks(values: Ratings) -> Ratings:
    """Ranks from 1 along a short last axis; equal values share the mean of their ranks, NaN keeps its place."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    same = (values[..., None, :] == values[..., :, None]).sum(-1)
    return numpy.where(numpy.isnan(values), values, below + (same + 1) / 2)


def cohens_kappa(ratings: Ratings, weights: Weights = "none") -> float:
    """kappa = 1 - D_o / D_e of two raters, each with its own distribution over the values (Cohen 1960; weighted 1968).

    Weights: every difference counts alike, by how many categories lie between, or by the square of that. The
    categories are the values that either rater used, in order.

    Raises:
        ValueError: there are not two raters.
    """
    if ratings.shape[1] != 2:
        raise ValueError(f"Cohen's kappa compares 2 raters, not {ratings.shape[1]}")
    values = _values(_rated(ratings))
    return float(of_kappa(confusions(ratings, values).sum(0), weights))


def confusions(ratings: Ratings, values: Ratings) -> Sums:
    """For each unit, the cell of the table of two raters' values that it adds to: `[U, V, V]`; zeros if not both."""
    given = ratings[:, :, None] == values  # [U, 2, V]
    return (given[:, 0, :, None] & given[:, 1, None, :]).astype(float)


def of_kappa(sums: Sums, weights: Weights = "none") -> Sums:
    """Cohen's kappa from tables `[..., V, V]` of two raters' values; NaN where one value is left."""
    number = numpy.arange(sums.shape[-1])
    apart = numpy.abs(numpy.subtract.outer(number, number)).astype(float)
    cost = {"none": (apart > 0).astype(float), "linear": apart, "quadratic": apart**2}[weights]
    size = sums.sum((-1, -2))
    expected = (sums.sum(-1)[..., :, None] * sums.sum(-2)[..., None, :] * cost).sum((-1, -2))
    return 1 - _ratio((sums * cost).sum((-1, -2)) * size, expected)


def fleiss_kappa(ratings: Ratings) -> float:
    """kappa = (P - P_e) / (1 - P_e) of m raters of nominal values (Fleiss 1971); the raters need not be the same.

    P is the mean share of agreeing pairs of a unit, P_e what chance gives with the values' overall shares. All units
    need the same number of ratings: those with fewer than the most are left out.
    """
    return float(of_fleiss(fleiss_sums(ratings).sum(0)))


def fleiss_sums(ratings: Ratings) -> Sums:
    """For each unit with the most ratings: 1, its share of agreeing pairs, the count of each value: `[U, 2 + V]`.

    Zeros for the other units, and where nobody shares a unit.
    """
    given = (~numpy.isnan(ratings)).sum(1)
    m = int(given.max(initial=0))
    counts = counted(ratings, _values(ratings))
    agreeing = ((counts**2).sum(1) - m) / max(m * (m - 1), 1)
    sums = numpy.concatenate([numpy.ones((len(ratings), 1)), agreeing[:, None], counts], 1)
    return sums * (given == m)[:, None] * (m > 1)


def of_fleiss(sums: Sums) -> Sums:
    """Fleiss' kappa from the sums of `fleiss_sums`, `[..., 2 + V]`."""
    counts = sums[..., 2:]
    expected = _ratio((counts**2).sum(-1), counts.sum(-1) ** 2)
    observed = _ratio(sums[..., 1], sums[..., 0])
    return _ratio(observed - expected, numpy.where(expected > 1 - 1e-12, 0, 1 - expected))


def with_interval(coefficient: Callable[[Ratings], float], ratings: Ratings, *, seed: int = 0) -> Interval:
    """The coefficient with its 95 % percentile bootstrap interval from 1,000 resamples of the units (Efron 1979).

    Resamples that do not determine the coefficient are left out; if that is every one, the interval is NaN.
    """
    generator = numpy.random.default_rng(seed)
    drawn = (coefficient(ratings[generator.integers(0, len(ratings), len(ratings))]) for _ in range(RESAMPLES))
    found = [value for value in drawn if not numpy.isnan(value)]
    low, high = numpy.percentile(found, [2.5, 97.5]) if found else (float("nan"), float("nan"))
    return Interval(coefficient(ratings), float(low), float(high))


def sums_interval(value: Callable[[Sums], Sums], sums: Sums, *, seed: int = 0) -> Interval:
    """A coefficient of sums over units with its 95 % interval, the same one that `with_interval` gives.

    Args:
        value: the coefficient from sums `[..., *S]`; NaN where they do not determine it.
        sums: what each unit adds: `[U, *S]`.
    """
    return drawn_interval(value, sums, draws(len(sums), seed=seed))


def draws(number: int, *, seed: int = 0) -> Sums:
    """How often each of so many units, or groups of them, is in each of 1,000 resamples: `[1000, number]`."""
    drawn = numpy.random.default_rng(seed).integers(0, max(number, 1), (RESAMPLES, number))
    return numpy.stack([numpy.bincount(one, minlength=number) for one in drawn]).astype(float)


def drawn_interval(value: Callable[[Sums], Sums], sums: Sums, times: Sums) -> Interval:
    """A coefficient of sums `[U, *S]` with its 95 % percentile interval from resamples drawn beforehand by `draws`."""
    found = value((times @ sums.reshape(len(sums), -1)).reshape(len(times), *sums.shape[1:]))
    found = found[~numpy.isnan(found)]
    low, high = numpy.percentile(found, [2.5, 97.5]) if len(found) else (float("nan"), float("nan"))
    return Interval(float(value(sums.sum(0))), float(low), float(high))


def group_sums(sums: Sums, groups: Whole) -> Sums:
    """The sums over each group, in the order of the groups' numbers: `[G, *S]`."""
    _, group = numpy.unique(groups, return_inverse=True)
    size = int(group.max(initial=-1)) + 1
    found = numpy.zeros((size, int(numpy.prod(sums.shape[1:]))))
    for n, column in enumerate(sums.reshape(len(sums), found.shape[1]).T):
        found[:, n] = numpy.bincount(group, column, size)
    return found.reshape(size, *sums.shape[1:])


def of_mean(sums: Sums) -> Sums:
    """The mean of values, from sums `[..., 2]` of the values and of their number."""
    return _ratio(sums[..., 0], sums[..., 1])


def counted(ratings: Ratings, values: Ratings) -> Sums:
    """How often each unit got each value: `[U, V]`."""
    return (ratings[:, :, None] == values).sum(1).astype(float)


def _values(ratings: Ratings) -> Ratings:
    return numpy.unique(ratings[~numpy.isnan(ratings)])


def _ratio(part: Sums, whole: Sums) -> Sums:
    """part / whole, NaN where the whole is 0."""
    part, whole = numpy.asarray(part, dtype=float), numpy.asarray(whole, dtype=float)
    return numpy.divide(part, whole, out=numpy.full(numpy.broadcast(part, whole).shape, numpy.nan), where=whole != 0)


def _rated(ratings: Ratings) -> Ratings:
    """The units that every rater rated."""
    return ratings[~numpy.isnan(ratings).any(1)]
