"""A machine's rates fitted to timed passes."""

from __future__ import annotations

import pytest

from onebase.planning.rates import Rate, Rates, Timed, fit_rate, known_kinds
from onebase.planning.work import KINDS, Work

WORK = [
    Work(passes=1, layers=2, operations=1e6, moved=1e5),
    Work(passes=1, layers=8, operations=4e6, moved=1e6),
    Work(passes=3, layers=12, operations=1e9, moved=1e6),
    Work(passes=1, layers=4, operations=1e10, moved=5e8),
    Work(passes=12, layers=24, operations=1e8, moved=3e9),
    Work(passes=1, layers=1, operations=1e3, moved=1e3),
]
TRUE = Rate(of_pass=2e-3, of_layer=5e-4, of_operation=2e-11, of_byte=1e-10)


def test_rates_that_made_the_timings_are_found_again() -> None:
    fitted, spread = fit_rate([Timed(work, (TRUE.seconds(work),)) for work in WORK])
    for part in ("of_pass", "of_layer", "of_operation", "of_byte"):
        assert getattr(fitted, part) == pytest.approx(getattr(TRUE, part), rel=1e-6)
    assert spread.misfit < 1e-6 and spread.repeats == 0


def test_no_part_of_a_rate_is_negative_whatever_the_timings() -> None:
    odd = [Timed(work, (1.0 / (1 + work.operations / 1e9),)) for work in WORK]
    fitted, spread = fit_rate(odd)
    assert min(fitted.of_pass, fitted.of_layer, fitted.of_operation, fitted.of_byte) >= 0
    assert spread.misfit > 0.1


def test_no_operation_is_faster_than_in_the_best_matrix_product() -> None:
    small = [Timed(work, (0.01,)) for work in WORK[:2]]
    assert fit_rate(small)[0].of_operation == 0
    fitted, _ = fit_rate(small, best=5e10)
    assert fitted.of_operation >= 1 / 5e10
    whole, spread = fit_rate([Timed(work, (TRUE.seconds(work),)) for work in WORK], best=1e12)
    assert whole.of_operation == pytest.approx(TRUE.of_operation, rel=1e-6) and spread.misfit < 1e-6


def test_fewer_passes_than_parts_still_give_a_rate() -> None:
    fitted, spread = fit_rate([Timed(WORK[2], (0.4, 0.5, 0.6))])
    assert fitted.seconds(WORK[2]) == pytest.approx(0.5) and spread.repeats == pytest.approx(0.5)


def test_the_middle_of_repeats_is_their_median() -> None:
    assert Timed(WORK[0], (3.0, 1.0, 2.0)).middle == 2.0
    assert Timed(WORK[0], (4.0, 1.0)).middle == 2.5


def test_without_a_timing_there_is_no_rate() -> None:
    with pytest.raises(ValueError, match="no pass was timed"):
        fit_rate([])


def test_another_number_format_is_as_much_faster_as_its_matrix_products() -> None:
    products = {"float32": 1e11, "bfloat16": 4e11}
    rates = Rates("a machine", 1.0, {"train": TRUE}, dtype="float32", products=products)
    assert rates.of("train", "float32") == TRUE
    assert rates.of("train", "bfloat16").of_operation == TRUE.of_operation / 4
    assert rates.of("train", "bfloat16").of_byte == TRUE.of_byte
    assert Rates("a machine", 1.0, {"train": TRUE}).of("train", "bfloat16") == TRUE
    assert not known_kinds(rates.rates) and known_kinds(dict.fromkeys(KINDS, TRUE))
