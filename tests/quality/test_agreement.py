"""Coefficients of agreement against published worked examples, and literal transcriptions of their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import combinations, permutations

import numpy
import pytest

from onebase.quality.agreement import (
    Level,
    Weights,
    agreement_sums,
    cohens_kappa,
    coincidences,
    confusions,
    fleiss_kappa,
    fleiss_sums,
    group_sums,
    kendalls_w,
    krippendorff_alpha,
    mid_ranks,
    of_agreement,
    of_alpha,
    of_fleiss,
    of_kappa,
    of_ranks,
    pairwise_agreement,
    sums_interval,
    with_interval,
)

NAN = float("nan")


def table(*raters: str) -> numpy.ndarray:
    """`[units, raters]` from a line of values per rater; a dot is a missing rating."""
    return numpy.array([[NAN if v == "." else float(v) for v in rater.split()] for rater in raters]).T


# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": examples A (two observers, binary), B (nominal) and
# C (four observers, missing data).
BINARY = table("0 1 0 0 0 0 0 0 1 0", "1 1 1 0 0 1 0 0 0 0")
LETTERS = table("1 1 2 2 4 3 3 3 5 4 4 1", "2 1 2 2 2 3 3 3 5 4 4 4")
FOUR = table(
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)

# Fleiss 1971, table 1: six of many psychiatrists diagnosed each of 30 patients with one of five conditions.
DIAGNOSES = """
444444 222555 233335 555555 222444 113333 333355 113334 114444 555555 144444 124444 222333 144444 224445
333335 111455 111112 224444 133555 555555 244444 224555 114444 144445 222224 111155 224444 133333 555555
"""

# Siegel 1956, p. 234, from Kendall 1948: ten objects ranked by three judges, with ties.
JUDGES = table(
    "1 4.5 2 4.5 3 7.5 6 9 7.5 10",
    "2.5 1 2.5 4.5 4.5 8 9 6.5 10 6.5",
    "2 1 4.5 4.5 4.5 4.5 8 8 8 10",
)

# The data set `anxiety` of R's package irr: 20 subjects rated from 1 to 6 by three raters.
ANXIETY = table(
    "3 3 3 4 5 5 2 3 5 2 2 6 1 5 2 2 1 2 4 3",
    "3 6 4 6 2 4 2 4 3 3 2 3 3 3 2 2 1 3 3 4",
    "2 1 4 4 3 2 1 6 1 1 1 2 3 3 1 1 3 3 2 2",
)


@pytest.mark.parametrize(
    ("ratings", "level", "published"),
    [
        (BINARY, "nominal", 0.095),
        (LETTERS, "nominal", 0.692),
        (FOUR, "nominal", 0.743),
        (FOUR, "ordinal", 0.815),
        (FOUR, "interval", 0.849),
        (FOUR, "ratio", 0.797),
    ],
)
def test_alpha_equals_krippendorffs_examples(ratings: numpy.ndarray, level: Level, published: float) -> None:
    assert krippendorff_alpha(ratings, level) == pytest.approx(published, abs=5e-4)


def test_fleiss_kappa_equals_fleiss_own_example() -> None:
    ratings = numpy.array([[float(value) for value in patient] for patient in DIAGNOSES.split()])
    assert ratings.shape == (30, 6)
    assert fleiss_kappa(ratings) == pytest.approx(0.4302445, abs=5e-8)


def test_w_equals_siegels_example_with_ties() -> None:
    assert kendalls_w(JUDGES) == pytest.approx(591 / 714)  # 0.828


@pytest.mark.parametrize(
    ("weights", "published"), [("none", -0.006289308), ("linear", 0.1459075), ("quadratic", 0.2520325)]
)
def test_cohens_kappa_equals_r(weights: Weights, published: float) -> None:
    # irr's kappa2(anxiety[,2:3], ...): the categories are the five values used.
    assert cohens_kappa(ANXIETY[:, 1:], weights) == pytest.approx(published, abs=5e-8)


def test_cohens_kappa_equals_cohens_own_example() -> None:
    counts = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]  # Cohen 1960: 200 patients, kappa 0.492
    pairs = [(a, b) for a, row in enumerate(counts) for b, count in enumerate(row) for _ in range(count)]
    assert cohens_kappa(numpy.array(pairs, dtype=float)) == pytest.approx(0.492, abs=5e-4)


def test_pairwise_agreement_counts_pairs() -> None:
    assert pairwise_agreement(table("1 1 2 .", "1 2 2 1", "1 2 . .")) == pytest.approx((3 + 1 + 1) / (3 + 3 + 1))


def random_ratings(seed: int) -> numpy.ndarray:
    generator = numpy.random.default_rng(seed)
    ratings = generator.integers(1, 5, size=(12, 4)).astype(float)
    ratings[generator.random(ratings.shape) < 0.25] = NAN
    return ratings


@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_one_minus_the_ratio_of_two_means_over_pairs(seed: int) -> None:
    ratings = random_ratings(seed)
    units = [[v for v in unit if not math.isnan(v)] for unit in ratings]
    units = [unit for unit in units if len(unit) > 1]
    every = [value for unit in units for value in unit]

    def between(c: float, k: float) -> float:
        c, k = min(c, k), max(c, k)
        return sum(c <= v <= k for v in every) - (every.count(c) + every.count(k)) / 2

    deltas: dict[Level, Callable[[float, float], float]] = {
        "nominal": lambda c, k: float(c != k),
        "ordinal": lambda c, k: between(c, k) ** 2,
        "interval": lambda c, k: (c - k) ** 2,
        "ratio": lambda c, k: ((c - k) / (c + k)) ** 2,
    }
    for level, delta in deltas.items():
        within = sum(sum(delta(c, k) for c, k in permutations(unit, 2)) / (len(unit) - 1) for unit in units)
        overall = sum(delta(c, k) for c, k in permutations(every, 2)) / (len(every) - 1)
        assert krippendorff_alpha(ratings, level) == pytest.approx(1 - within / overall)


@pytest.mark.parametrize("seed", range(5))
def test_w_without_ties_follows_from_the_mean_spearman_correlation(seed: int) -> None:
    generator = numpy.random.default_rng(seed)
    ratings = numpy.stack([generator.permutation(8) for _ in range(4)], 1).astype(float)
    rho = [numpy.corrcoef(ratings[:, a], ratings[:, b])[0, 1] for a, b in combinations(range(4), 2)]
    assert kendalls_w(ratings) == pytest.approx((1 + 3 * float(numpy.mean(rho))) / 4)


def test_agreeing_raters_have_one_and_rating_everything_alike_says_nothing() -> None:
    alike = table("1 2 3 4 1", "1 2 3 4 1")
    for coefficient in (pairwise_agreement, krippendorff_alpha, kendalls_w, cohens_kappa, fleiss_kappa):
        assert coefficient(alike) == pytest.approx(1)
    constant = table("2 2 2", "2 2 2")
    for coefficient in (krippendorff_alpha, kendalls_w, cohens_kappa, fleiss_kappa):
        assert math.isnan(coefficient(constant))
    assert math.isnan(pairwise_agreement(table("1 .", ". 2")))


def test_two_raters_with_one_distribution_have_the_same_kappa_by_both_definitions() -> None:
    ratings = table("1 2 1 2 3 3", "2 1 1 2 3 3")
    assert fleiss_kappa(ratings) == pytest.approx(cohens_kappa(ratings))


def test_a_bootstrap_interval_is_deterministic_holds_the_value_and_narrows_with_more_units() -> None:
    few, many = FOUR, numpy.tile(FOUR, (10, 1))
    interval = with_interval(krippendorff_alpha, few, seed=1)
    assert interval == with_interval(krippendorff_alpha, few, seed=1)
    assert interval.low < interval.mean == krippendorff_alpha(few) < interval.high
    wide, narrow = (found.high - found.low for found in (interval, with_interval(krippendorff_alpha, many, seed=1)))
    assert narrow < wide / 2


def test_what_cannot_be_computed_is_refused() -> None:
    with pytest.raises(ValueError, match="Cohen's kappa compares 2 raters, not 4"):
        cohens_kappa(FOUR)
    with pytest.raises(ValueError, match="ratings of a ratio scale are 0 or more"):
        krippendorff_alpha(table("-1 2", "1 2"), "ratio")


def test_w_equals_r_on_ratings_with_many_ties() -> None:
    # irr's kendall(anxiety, correct = TRUE): W = 0.54, chi-squared 30.8 = m (n - 1) W.
    assert 3 * 19 * kendalls_w(ANXIETY) == pytest.approx(30.8, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_kappas_equal_statsmodels(seed: int) -> None:
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    ratings = numpy.random.default_rng(seed).integers(0, 4, size=(40, 5)).astype(float)
    counts, _ = inter_rater.aggregate_raters(ratings.astype(int))
    assert fleiss_kappa(ratings) == pytest.approx(inter_rater.fleiss_kappa(counts))
    crossed = numpy.zeros((4, 4))
    numpy.add.at(crossed, tuple(ratings[:, :2].astype(int).T), 1)
    for ours, theirs in (("none", None), ("linear", "linear"), ("quadratic", "quadratic")):
        expected = inter_rater.cohens_kappa(crossed, wt=theirs, return_results=False)
        assert cohens_kappa(ratings[:, :2], ours) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", ["none", "linear", "quadratic"])
def test_cohens_kappa_equals_scikit_learn(weights: Weights) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    ratings = numpy.random.default_rng(3).integers(1, 6, size=(50, 2)).astype(float)
    expected = metrics.cohen_kappa_score(*ratings.T, weights=None if weights == "none" else weights)
    assert cohens_kappa(ratings, weights) == pytest.approx(expected)


def test_intervals_from_sums_are_those_from_the_ratings() -> None:
    ratings = random_ratings(1)
    values = numpy.arange(1.0, 5.0)
    pairs = ratings[:, :2]
    cases = [
        (pairwise_agreement, of_agreement, agreement_sums(ratings), ratings),
        (krippendorff_alpha, partial(of_alpha, values=values), coincidences(ratings, values), ratings),
        (
            partial(krippendorff_alpha, level="ordinal"),
            partial(of_alpha, values=values, level="ordinal"),
            coincidences(ratings, values),
            ratings,
        ),
        (cohens_kappa, of_kappa, confusions(pairs, values), pairs),
        (fleiss_kappa, of_fleiss, fleiss_sums(numpy.nan_to_num(ratings, nan=1)), numpy.nan_to_num(ratings, nan=1)),
    ]
    for slow, fast, sums, table in cases:
        one, other = with_interval(slow, table, seed=5), sums_interval(fast, sums, seed=5)
        assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))


def test_w_of_many_rankings_at_once_is_that_of_each() -> None:
    generator = numpy.random.default_rng(2)
    grades = generator.integers(1, 4, size=(30, 5, 4)).astype(float)
    grades[generator.random((30, 5)) < 0.4] = NAN
    together = of_ranks(mid_ranks(grades))
    for found, one in zip(together, grades, strict=True):
        alone = kendalls_w(one[~numpy.isnan(one[:, 0])].T)
        assert found == pytest.approx(alone, nan_ok=True)


def test_sums_of_groups_are_in_the_order_of_their_numbers() -> None:
    sums = group_sums(numpy.array([[1.0, 2], [3, 4], [5, 6]]), numpy.array([9, 2, 9]))
    assert sums.tolist() == [[3, 4], [6, 8]]
    assert group_sums(numpy.zeros((0, 2, 2)), numpy.zeros(0, dtype=int)).shape == (0, 2, 2)
