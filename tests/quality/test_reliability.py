"""Dawid-Skene against the paper's own example, Bradley-Terry against a logit; simulated annotators are recovered."""

from __future__ import annotations

from itertools import combinations

import numpy
import pytest

from onebase.quality.reliability import bradley_terry, dawid_skene, scores

# Dawid and Skene 1979, table 1: five anaesthetists judged 45 patients; the first judged each of them three times.
FIRST = """
111 333 112 222 222 222 122 333 222 232 444 222 111 222 121 111 111 111 222 222 222 222 222
221 111 111 232 111 111 112 111 333 111 222 222 433 221 232 333 111 111 121 232 121 222
"""
OTHERS = """
1111 4334 2122 3121 3222 3322 2111 3433 2223 2223 4444 3343 1111 3212 1111 2111 1111 1111 2221 1322 2222 2221 3222
2222 1111 1111 2222 1111 1111 1121 1111 3233 1111 2222 3232 4343 2232 3233 3432 1111 1111 2111 2222 1111 2222
"""


def anaesthetists() -> numpy.ndarray:
    counts = numpy.zeros((45, 5, 4))
    for patient, (first, others) in enumerate(zip(FIRST.split(), OTHERS.split(), strict=True)):
        for answer in first:
            counts[patient, 0, int(answer) - 1] += 1
        for observer, answer in enumerate(others, start=1):
            counts[patient, observer, int(answer) - 1] += 1
    return counts


def test_dawid_skene_finds_what_the_paper_found() -> None:
    found = dawid_skene(anaesthetists(), prior=0)
    assert found.shares.round(2).tolist() == [0.40, 0.42, 0.11, 0.07]
    # Table 2, the error rates of the first observer.
    published = [[0.89, 0.11, 0, 0], [0.07, 0.88, 0.05, 0], [0, 0.34, 0.66, 0], [0, 0, 0.56, 0.44]]
    assert numpy.abs(found.confusion[0] - published).max() < 0.006
    assert found.truth[10].argmax() == 3 and found.truth[0].argmax() == 0
    assert all(numpy.isnan(interval.low) for interval in found.accuracy)


def test_em_ends_where_the_likelihood_is_flat() -> None:
    counts = anaesthetists()
    found = dawid_skene(counts, prior=0)

    def likelihood(shares: numpy.ndarray, confusion: numpy.ndarray) -> float:
        chances = shares * numpy.prod(confusion[None] ** counts[:, :, None, :], axis=(1, 3))
        return float(numpy.log(chances.sum(1)).sum())

    best = likelihood(found.shares, found.confusion)
    generator = numpy.random.default_rng(0)
    for _ in range(20):
        shares = found.shares * numpy.exp(generator.normal(0, 0.05, 4))
        confusion = found.confusion * numpy.exp(generator.normal(0, 0.05, (5, 4, 4)))
        assert likelihood(shares / shares.sum(), confusion / confusion.sum(2, keepdims=True)) < best


def coins(seed: int, units: int, right: list[float]) -> numpy.ndarray:
    """Answers of annotators who name the true one of three classes with these chances, else another: `[U, R, 3]`."""
    generator = numpy.random.default_rng(seed)
    truth = generator.choice(3, units, p=[0.45, 0.1, 0.45])[:, None]
    wrong = (truth + generator.integers(1, 3, (units, len(right)))) % 3
    said = numpy.where(generator.random((units, len(right))) < right, truth, wrong)
    return numpy.eye(3)[said]


def test_intervals_of_dawid_skene_hold_the_truth_about_as_often_as_they_say() -> None:
    right = [0.95, 0.85, 0.75, 0.6, 0.4]
    held = numpy.zeros(5)
    for seed in range(40):
        found = dawid_skene(coins(seed, 300, right))
        held += [interval.low <= true <= interval.high for interval, true in zip(found.accuracy, right, strict=True)]
    assert held.sum() >= 0.90 * 200, held
    assert (held >= 32).all(), held


def test_not_knowing_the_truth_widens_an_interval_by_a_little_and_not_by_a_lot() -> None:
    generator = numpy.random.default_rng(0)
    truth = generator.integers(0, 2, 400)[:, None]
    right = generator.random((400, 3)) < 0.75
    found = dawid_skene(numpy.eye(2)[numpy.where(right, truth, 1 - truth)]).accuracy
    share = right.mean(0)
    known = 2 * 1.96 * (share * (1 - share) / 400) ** 0.5  # a share of right answers, if the truth were known
    widths = numpy.array([interval.high - interval.low for interval in found]) / known
    assert (widths > 1.2).all() and (widths < 3).all(), widths


def compared(seed: int, tasks: int, gamma: list[float], num_answers: int = 4) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Rankings by gamma times scores plus Gumbel noise, as outcomes of pairs `[U, R]`, and each pair's task."""
    generator = numpy.random.default_rng(seed)
    true = generator.normal(size=(tasks, num_answers)) / 2**0.5  # a difference has variance 1
    pairs = list(combinations(range(num_answers), 2))
    outcomes = numpy.zeros((tasks, len(pairs), len(gamma)))
    for r, sharpness in enumerate(gamma):
        noisy = sharpness * true + generator.gumbel(size=true.shape)
        for n, (i, k) in enumerate(pairs):
            outcomes[:, n, r] = noisy[:, i] > noisy[:, k]
    return outcomes.reshape(-1, len(gamma)), numpy.repeat(numpy.arange(tasks), len(pairs))


def test_intervals_of_bradley_terry_hold_the_truth_about_as_often_as_they_say() -> None:
    gamma = [5.0, 3.0, 2.0, 1.0, 0.0]
    held = numpy.zeros(5)
    for seed in range(40):
        outcomes, groups = compared(seed, 150, gamma)
        found = bradley_terry(outcomes, groups=groups)
        held += [interval.low <= true <= interval.high for interval, true in zip(found.gamma, gamma, strict=True)]
    assert held.sum() >= 0.90 * 200, held
    assert (held >= 32).all(), held


def test_who_contradicts_everybody_has_a_gamma_below_zero() -> None:
    outcomes, groups = compared(1, 200, [3.0, 3.0, 3.0, -3.0])
    found = bradley_terry(outcomes, groups=groups)
    assert found.gamma[3].high < 0 < found.gamma[0].low
    assert found.accuracy[3].high < 0.5 < found.accuracy[0].low


def test_the_likelihood_of_bradley_terry_has_the_derivatives_it_says() -> None:
    from onebase.quality import reliability

    generator = numpy.random.default_rng(0)
    judged = (generator.random((30, 3)) < 0.8).astype(float)
    leans = generator.choice([-0.5, 0, 0.5], (30, 3)) * judged
    times = generator.integers(1, 4, 30)
    gamma = numpy.array([0.5, 2.0, -1.0])
    _, by_pair, hessian, _ = reliability._marginal(gamma, leans, judged, times)
    for r in range(3):
        step = 1e-4 * numpy.eye(3)[r]
        above, below = (reliability._marginal(gamma + sign * step, leans, judged, times) for sign in (1, -1))
        prior = (reliability.GAMMA_MEAN - gamma[r]) / reliability.GAMMA_SD**2
        assert times @ by_pair[:, r] + prior == pytest.approx((above[0] - below[0]) / 2e-4, abs=1e-5)
        slopes = (times @ above[1] - times @ below[1]) / 2e-4 - numpy.eye(3)[r] / reliability.GAMMA_SD**2
        numpy.testing.assert_allclose(hessian[r], slopes, atol=1e-5)


def test_few_judgements_and_unanimous_ones_converge() -> None:
    for outcomes in (numpy.array([[1.0, 1.0, 1.0]]), numpy.ones((50, 3)), numpy.full((20, 3), 0.5)):
        found = bradley_terry(outcomes)
        assert all(numpy.isfinite([one.mean, one.low, one.high]).all() for one in found.accuracy)
        answers = outcomes[:, :, None] == numpy.array([0, 0.5, 1])
        truth = dawid_skene(answers.astype(float))
        assert all(0 < one.low <= one.mean <= one.high < 1 for one in truth.accuracy)


def test_a_group_counts_once_however_many_copies_it_has() -> None:
    outcomes, groups = compared(3, 100, [3.0, 2.0, 1.0])
    copies = [numpy.concatenate([values, values]) for values in (outcomes, groups)]
    once = bradley_terry(outcomes, groups=groups)
    twice = bradley_terry(copies[0], groups=copies[1])
    alone = bradley_terry(copies[0])
    width, same, narrow = (found.accuracy[0].high - found.accuracy[0].low for found in (once, twice, alone))
    assert same == pytest.approx(width, rel=0.05) and narrow < 0.8 * width


def test_scores_are_those_of_a_logit() -> None:
    models = pytest.importorskip("statsmodels.discrete.discrete_model")
    generator = numpy.random.default_rng(0)
    true = numpy.array([1.0, 0.3, -0.4, -0.9])
    first, second = generator.permuted(numpy.tile(numpy.arange(4), (400, 1)), axis=1)[:, :2].T
    won = (generator.random(400) < 1 / (1 + numpy.exp(true[second] - true[first]))).astype(float)
    design = numpy.eye(4)[first] - numpy.eye(4)[second]
    reference = models.Logit(won, design[:, 1:]).fit(disp=0)
    expected = numpy.concatenate([[0], reference.params])
    found = scores(first, second, won, numpy.ones(400), sd=1e6)
    numpy.testing.assert_allclose(found, expected - expected.mean(), atol=1e-5)


def test_a_sharp_annotator_outweighs_two_dull_ones() -> None:
    first, second = numpy.zeros(3, dtype=int), numpy.ones(3, dtype=int)
    found = scores(first, second, numpy.array([1.0, 0.0, 0.0]), numpy.array([4.0, 0.5, 0.5]))
    assert found[0] > 0 > found[1]
    assert scores(first, second, numpy.array([0.5, 0.5, 0.5]), numpy.ones(3)).tolist() == [0, 0]


def test_a_unit_without_an_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="every unit needs at least one answer"):
        dawid_skene(numpy.zeros((2, 3, 3)))
