"""The fitted power law against scipy and against curves that are known."""

from __future__ import annotations

import numpy
import pytest

from onebase.active_learning.power_law import RATES, fit_power_laws

SIZES = numpy.array([25.0, 50, 100, 200, 400, 800])


def test_a_curve_without_noise_is_found_again() -> None:
    rate = float(RATES[230])
    laws = fit_power_laws(SIZES, (0.85 - 1.2 * SIZES**-rate)[None, :])
    assert (laws.limit[0], laws.gap[0], laws.rate[0]) == pytest.approx((0.85, 1.2, rate), rel=1e-6)
    assert laws.at(1600)[0] == pytest.approx(0.85 - 1.2 * 1600**-rate)


def test_the_fit_is_scipys_least_squares() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    generator = numpy.random.default_rng(0)
    noisy = 0.8 - 0.9 * SIZES**-0.6 + generator.normal(scale=0.004, size=(5, len(SIZES)))
    laws = fit_power_laws(SIZES, noisy)
    for line, own in enumerate(noisy):

        def curve(n, a, b, c):  # type: ignore[no-untyped-def]
            return a - b * n**-c

        bounds = ([0, 0, RATES[0]], [1, numpy.inf, RATES[-1]])
        (a, b, c), _ = optimize.curve_fit(curve, SIZES, own, p0=(0.8, 1, 0.5), bounds=bounds)
        ours = ((laws.limit[line] - laws.gap[line] * SIZES ** -laws.rate[line] - own) ** 2).sum()
        theirs = ((curve(SIZES, a, b, c) - own) ** 2).sum()
        assert ours == pytest.approx(theirs, rel=0.01, abs=1e-9)
        assert laws.at(1000)[line] == pytest.approx(curve(1000, a, b, c), abs=5e-4)


def test_the_curve_neither_falls_nor_passes_one() -> None:
    falling, steep = 0.7 + 0.5 * SIZES**-0.5, numpy.minimum(0.5 + 0.001 * SIZES, 0.99)
    laws = fit_power_laws(SIZES, numpy.stack([falling, steep]))
    assert laws.gap[0] == 0 and laws.limit[0] == pytest.approx(falling.mean())
    assert laws.limit[1] <= 1 and laws.at(10_000)[1] <= 1 and laws.at(10_000)[1] > laws.at(800)[1]


def test_one_size_is_no_curve() -> None:
    with pytest.raises(ValueError, match="a curve needs at least two sizes"):
        fit_power_laws(numpy.array([50.0, 50.0]), numpy.array([[0.6, 0.7]]))
