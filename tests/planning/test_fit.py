"""Laws fitted to runs: known ones come back, intervals hold what they should."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from matplotlib import image

from onebase.planning.fit import Run, by_compute, fit, profiles
from onebase.planning.laws import BESIROGLU
from onebase.planning.picture import draw_law


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


def test_constants_that_the_runs_leave_open_are_named() -> None:
    assert fit(made(0.0)).undecided == ()
    fed = [Run(n, d, 30 * d**-0.2) for n in (1e5, 2e5, 4e5) for d in (1e5, 3e5, 1e6)]  # size brings nothing
    assert "E" in fit(fed).undecided or "alpha" in fit(fed).undecided


def test_too_few_runs_or_runs_of_one_size_are_refused() -> None:
    with pytest.raises(ValueError, match="4 runs are too few for a law with 5 parameters; at least 6 are needed"):
        fit(made(0.0)[:4])
    with pytest.raises(ValueError, match="fewer than 3 different numbers of parameters; the law needs both to vary"):
        fit([Run(1e8, d, BESIROGLU.loss(1e8, d)) for d in (1e9, 2e9, 4e9, 8e9, 2e10, 4e10)])


def equal_compute(flop: float, sizes: Sequence[float]) -> list[Run]:
    return [Run(n, flop / (6 * n), BESIROGLU.loss(n, flop / (6 * n))) for n in sizes]


def test_the_vertex_of_equal_compute_is_near_the_best_split() -> None:
    flop = 1e20
    best = BESIROGLU.best_split(flop)[0]
    runs = equal_compute(flop, best * numpy.logspace(-0.5, 0.5, 7))
    (profile,) = profiles(runs)
    assert profile.best is not None
    assert profile.compute == pytest.approx(flop) and profile.best[0] == pytest.approx(best, rel=0.05)
    assert profile.best[1] == pytest.approx(BESIROGLU.best_loss(flop), rel=1e-3)
    (outside,) = profiles([run for run in runs if run.parameters < 0.8 * best])
    assert outside.best is None


def test_runs_share_their_compute_to_a_tenth_wherever_it_lies() -> None:
    for flop in (0.97e20, 1.0e20, 1.03e20, 1.07e20):
        runs = [
            *equal_compute(flop, (1e8, 2e8)),
            *equal_compute(1.08 * flop, (4e8,)),
            *equal_compute(1.16 * flop, (4e8,)),  # a tenth from the one before, more from the first
            *equal_compute(1.3 * flop, (1e8,)),
        ]
        assert [len(group) for group in by_compute(runs)] == [3, 1, 1]
    assert profiles(runs[:2]) == []


def test_a_picture_shows_equal_compute_and_what_was_held_back(tmp_path: Path) -> None:
    runs = [run for flop in (1e19, 4e19) for run in equal_compute(flop, (1e8, 3e8, 9e8))]
    fitted = fit(runs)
    draw_law(fitted, tmp_path / "law.png", held_back=(Run(2e9, 1e10, 2.5),))
    apart = [Run(n, d, BESIROGLU.loss(n, d)) for n in (1e8, 3e8, 9e8) for d in (2e9, 1.4e10, 9.8e10)]
    draw_law(fit(apart), tmp_path / "plain.png")
    wide, plain = (image.imread(tmp_path / name) for name in ("law.png", "plain.png"))
    assert wide.shape[1] > 1.5 * plain.shape[1]
