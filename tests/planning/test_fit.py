"""Laws fitted to runs: known ones come back, intervals hold what they should."""

from __future__ import annotations

import math

import numpy
import pytest

from onebase.planning.fit import Run, best_sizes, fit
from onebase.planning.laws import BESIROGLU
from onebase.planning.overoptimization import gain, peak


def made(noise: float, seed: int = 0) -> list[Run]:
    generator = numpy.random.default_rng(seed)
    return [
        Run(n, d, BESIROGLU.loss(n, d) * math.exp(noise * generator.standard_normal()))
        for n in (1e8, 4e8, 2e9, 1e10)
        for d in (2e9, 1e10, 5e10, 2e11)
    ]


def test_a_law_comes_back_from_runs_that_follow_it() -> None:
    law = fit(made(0.0)).law
    assert (law.alpha, law.beta, law.e) == pytest.approx((BESIROGLU.alpha, BESIROGLU.beta, BESIROGLU.e), rel=0.01)
    assert law.loss(3e10, 6e11) == pytest.approx(BESIROGLU.loss(3e10, 6e11), rel=1e-3)


@pytest.mark.slow
def test_a_new_run_falls_into_its_interval_about_as_often_as_said() -> None:
    inside = 0
    for seed in range(10):
        fitted = fit(made(0.004, seed), seed=seed)
        _, low, high = fitted.loss(2e10, 4e11)
        new = BESIROGLU.loss(2e10, 4e11) * math.exp(0.004 * numpy.random.default_rng(1000 + seed).standard_normal())
        inside += low <= new <= high
    assert inside >= 8


def test_a_question_outside_the_runs_is_said_to_be() -> None:
    fitted = fit(made(0.0))
    assert fitted.extrapolates(1e9, 1e10) == ""
    assert (
        fitted.extrapolates(1e11, 1e9)
        == "10 times the most parameters of any run and 2 times fewer tokens than any run"
    )


def test_too_few_runs_or_runs_of_one_size_are_refused() -> None:
    with pytest.raises(ValueError, match="4 runs are too few for a law with 5 parameters; at least 6 are needed"):
        fit(made(0.0)[:4])
    with pytest.raises(ValueError, match="fewer than 3 different numbers of parameters; the law needs both to vary"):
        fit([Run(1e8, d, BESIROGLU.loss(1e8, d)) for d in (1e9, 2e9, 4e9, 8e9, 2e10, 4e10)])


def test_the_vertex_of_equal_compute_is_near_the_best_split() -> None:
    flop = 1e20
    best = BESIROGLU.best_split(flop)[0]
    runs = [Run(n, flop / (6 * n), BESIROGLU.loss(n, flop / (6 * n))) for n in best * numpy.logspace(-0.5, 0.5, 7)]
    ((compute, size, loss),) = best_sizes(runs)
    assert compute == pytest.approx(flop) and size == pytest.approx(best, rel=0.05)
    assert loss == pytest.approx(BESIROGLU.best_loss(flop), rel=1e-3)
    assert best_sizes([run for run in runs if run.parameters < 0.8 * best]) == []


@pytest.mark.parametrize(("method", "at"), [("rl", math.exp(2 * (2.0 / 0.8 - 1))), ("best-of", (2.0 / 1.6) ** 2)])
def test_the_peak_of_true_reward_comes_back(method: str, at: float) -> None:
    measured = [(kl, gain(kl, 2.0, 0.8, method)) for kl in (0.0, 0.2, 1.0, 4.0, 9.0, 16.0, 25.0)]  # type: ignore[arg-type]
    found = peak(measured, method)  # type: ignore[arg-type]
    assert (found.alpha, found.beta) == pytest.approx((2.0, 0.8))
    assert found.kl == pytest.approx(at) and found.low == pytest.approx(at) and found.high == pytest.approx(at)
    nearby = [gain(found.kl * f, 2.0, 0.8, method) for f in (0.9, 1.1)]  # type: ignore[arg-type]
    assert found.reward > max(nearby)


def test_a_score_that_only_rises_has_no_peak_yet() -> None:
    assert peak([(kl, math.sqrt(kl)) for kl in (1.0, 2.0, 3.0, 4.0)], "best-of").kl > 1e6


def test_two_measurements_are_too_few() -> None:
    with pytest.raises(ValueError, match="2 measurements with a KL above 0 are too few to fit; at least 3 are needed"):
        peak([(0.0, 0.0), (1.0, 1.0), (2.0, 1.2)], "rl")
