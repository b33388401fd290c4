"""The law of a true score over KL: planted ones come back, and their peaks with honest intervals."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy
import pytest

from onebase.planning.overoptimization import best_of_kl, best_of_scores, gain, peak

METHODS: list[Literal["rl", "best-of"]] = ["rl", "best-of"]
KLS = (0.0, 0.2, 1.0, 2.0, 4.0, 6.0, 9.0, 12.0, 16.0, 25.0)
PEAKS = {"rl": math.exp(2 * (2.0 / 0.8 - 1)), "best-of": (2.0 / 1.6) ** 2}


def planted(method: Literal["rl", "best-of"], noise: float = 0.0, seed: int = 0) -> list[tuple[float, float]]:
    generator = numpy.random.default_rng(seed)
    return [(kl, 0.5 + gain(kl, 2.0, 0.8, method) + noise * generator.standard_normal()) for kl in KLS]


@pytest.mark.parametrize("method", METHODS)
def test_the_peak_of_the_true_score_comes_back(method: Literal["rl", "best-of"]) -> None:
    found = peak(planted(method), method)
    assert (found.start, found.alpha, found.beta) == pytest.approx((0.5, 2.0, 0.8))
    assert [found.kl, found.low, found.high] == pytest.approx([PEAKS[method]] * 3)
    assert found.score(found.kl) == pytest.approx(0.5 + found.reward)
    assert found.reward > max(gain(found.kl * factor, 2.0, 0.8, method) for factor in (0.9, 1.1))
    assert found.seen == 25.0


@pytest.mark.parametrize("method", METHODS)
def test_the_interval_holds_the_peak_about_as_often_as_said(method: Literal["rl", "best-of"]) -> None:
    inside = 0
    for seed in range(20):
        found = peak(planted(method, 0.1, seed), method, seed=seed)
        inside += found.low <= PEAKS[method] <= found.high
    assert inside >= 15


def test_a_score_that_only_rises_has_no_peak_yet() -> None:
    rising = [(kl, math.sqrt(kl)) for kl in (0.0, 1.0, 2.0, 3.0, 4.0)]
    for method in METHODS:
        assert peak(rising, method).kl > 1e6
    assert math.isinf(peak([(kl, kl) for kl in (0.0, 1.0, 2.0, 3.0, 4.0)], "rl").reward)


def test_a_score_that_only_falls_peaks_at_the_start() -> None:
    falling = [(kl, -kl) for kl in (0.0, 1.0, 2.0, 3.0, 4.0)]
    assert peak(falling, "best-of").kl == pytest.approx(0.0, abs=1e-6)


def test_a_kl_estimated_below_0_counts_as_0() -> None:
    below = [(-0.01, 0.5), *planted("rl")[1:]]
    assert peak(below, "rl").kl == pytest.approx(PEAKS["rl"])


def test_too_few_measurements_are_refused() -> None:
    with pytest.raises(
        ValueError, match="3 measurements, 2 of them with a KL of their own above 0, are too few to fit"
    ):
        peak([(0.0, 0.0), (1.0, 1.0), (2.0, 1.2)], "rl")
    with pytest.raises(ValueError, match="4 measurements, 1 of them with a KL of their own above 0"):
        peak([(1.0, 1.0)] * 4, "rl")
    with pytest.raises(ValueError, match="0 measurements"):
        peak([], "rl")


def test_the_best_of_n_is_the_mean_over_all_subsets() -> None:
    generator = numpy.random.default_rng(3)
    scores, others = generator.normal(size=(2, 4, 5))
    found = best_of_scores(scores, others)
    for n in range(1, 6):
        for prompt in range(4):
            chosen = [max(subset, key=lambda i: scores[prompt, i]) for subset in itertools.combinations(range(5), n)]
            assert found[prompt, n - 1] == pytest.approx(numpy.mean([others[prompt, i] for i in chosen]))


def test_the_best_of_n_is_log_n_less_a_little_from_its_policy() -> None:
    """Against the definition: the best of n answers out of M equally likely ones has density n u^(n-1)."""
    assert best_of_kl(1) == 0.0
    grid = (numpy.arange(200_000) + 0.5) / 200_000
    for n in (2, 8, 64):
        log_density = math.log(n) + (n - 1) * numpy.log(grid)
        assert best_of_kl(n) == pytest.approx(float(numpy.mean(numpy.exp(log_density) * log_density)), abs=1e-3)


def test_scores_redrawn_over_prompts_give_the_interval() -> None:
    points = planted("best-of")
    scores = numpy.array([score for _, score in points])
    shifted = scores + numpy.array([[0.0], [1.0], [-1.0]])  # prompts move all points together, and not the peak
    found = peak(points, "best-of", redrawn=shifted)
    assert (found.low, found.high) == pytest.approx((PEAKS["best-of"],) * 2)
