"""Ratios of two sides that ran in turn."""

from __future__ import annotations

import pytest

from bench.ratios import ratio_in_turn, shown


def test_the_ratio_is_that_of_the_medians() -> None:
    assert ratio_in_turn([6.0, 8.0, 10.0], [2.0, 4.0, 1.0]).median == 8.0 / 2.0


def test_the_spread_is_over_runs_that_stood_side_by_side() -> None:
    # In the order 6 2 8 4 the neighbours are 6/2, 8/2 and 8/4, but not 6/4.
    found = ratio_in_turn([6.0, 8.0], [2.0, 4.0])
    assert (found.low, found.high) == (2.0, 4.0)
    assert str(found) == "2.33 [2.00, 4.00]"


def test_one_round_has_no_spread() -> None:
    found = ratio_in_turn([3.0], [2.0])
    assert (found.median, found.low, found.high) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(("ours", "peer"), [([], []), ([1.0], [1.0, 2.0])])
def test_runs_have_to_come_in_pairs(ours: list[float], peer: list[float]) -> None:
    with pytest.raises(ValueError, match=f"{len(ours)} runs of ours and {len(peer)} of the peer's"):
        ratio_in_turn(ours, peer)


def test_numbers_are_shown_with_three_digits() -> None:
    assert [shown(number) for number in (0.4567, 12.34, 1234.5)] == ["0.46", "12.3", "1,234"]
