from __future__ import annotations

import math

import numpy
import pytest

from onebase.reporting.intervals import Interval, bootstrap_mean, paired_bootstrap


def test_intervals_of_normal_data_hold_the_true_mean_about_95_times_in_100() -> None:
    generator = numpy.random.default_rng(1)
    drawn = generator.normal(loc=3.0, scale=2.0, size=(200, 60))
    intervals = [bootstrap_mean(values.tolist()) for values in drawn]
    inside = sum(interval.low <= 3.0 <= interval.high for interval in intervals)
    # The percentile bootstrap covers 94 % with 60 values; allow 4 standard deviations of 200 tries around it.
    assert 0.87 <= inside / 200 <= 0.995
    width = float(numpy.mean([interval.high - interval.low for interval in intervals]))
    assert width == pytest.approx(2 * 1.96 * 2.0 / math.sqrt(60), rel=0.05)


def test_the_mean_is_the_plain_mean_and_lies_inside() -> None:
    interval = bootstrap_mean([1, 2, 6])
    assert interval.mean == 3.0 and 1.0 <= interval.low < 3.0 < interval.high <= 6.0


@pytest.mark.parametrize("values", [[0.1], [0.1] * 7, [1 / 3] * 100])
def test_values_that_are_all_equal_have_no_width(values: list[float]) -> None:
    interval = bootstrap_mean(values)
    assert interval.low == pytest.approx(interval.mean) == pytest.approx(interval.high)
    assert interval.low <= interval.mean <= interval.high  # rounding must not make an error bar negative


def test_the_same_seed_gives_the_same_interval() -> None:
    values = numpy.random.default_rng(0).normal(size=50).tolist()
    assert bootstrap_mean(values) == bootstrap_mean(values)
    other = bootstrap_mean(values, seed=1)
    assert other != bootstrap_mean(values) and other.mean == bootstrap_mean(values).mean


def test_two_values_by_hand() -> None:
    # The mean of two draws from {0, 1} is 0, 1/2 or 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_mean([0.0, 1.0]) == Interval(0.5, 0.0, 1.0)


def test_pairs_are_compared_prompt_by_prompt() -> None:
    before = [10.0, -5.0, 100.0, 0.0]
    assert paired_bootstrap(before, [b + 0.5 for b in before]) == Interval(0.5, 0.5, 0.5)
    assert paired_bootstrap([0.0, 0.0], [0.0, 1.0]) == Interval(0.5, 0.0, 1.0)
    assert paired_bootstrap([0.0, 1.0], [0.0, 0.0]) == Interval(-0.5, -1.0, 0.0)


def test_pairing_is_far_narrower_than_two_intervals_where_prompts_differ() -> None:
    generator = numpy.random.default_rng(2)
    before = generator.normal(scale=10, size=80)
    after = before + generator.normal(loc=0.3, scale=0.2, size=80)
    rise = paired_bootstrap(before.tolist(), after.tolist())
    assert 0 < rise.low < rise.high < 0.4 < bootstrap_mean(before.tolist()).high - bootstrap_mean(before.tolist()).low


def test_no_values_and_unequal_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="an interval needs at least one value"):
        bootstrap_mean([])
    with pytest.raises(ValueError, match=r"as many values before \(2\) as after \(1\)"):
        paired_bootstrap([1.0, 2.0], [1.0])


def test_an_interval_reads_as_mean_and_bounds() -> None:
    assert str(Interval(0.12345, -0.5, 2)) == "0.123 [-0.500, 2.000]"
