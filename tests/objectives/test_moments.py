"""Running moments against torch on everything at once."""

from __future__ import annotations

import math

import pytest
import torch

from onebase.objectives.moments import RunningMoments


@pytest.mark.parametrize("sizes", [[10], [1, 1, 1], [3, 0, 7, 100, 1]])
def test_moments_match_those_of_the_concatenation(sizes: list[int]) -> None:
    moments = RunningMoments()
    batches = [5 + 2 * torch.randn(size) for size in sizes]
    for batch in batches:
        moments.update(batch)
    values = torch.cat(batches).double()
    assert moments.count == len(values)
    assert moments.mean == pytest.approx(values.mean().item(), abs=1e-12)
    assert moments.std == pytest.approx(values.var(correction=0).sqrt().item(), abs=1e-12)


def test_moments_match_hand_computed_values() -> None:
    moments = RunningMoments()
    moments.update(torch.tensor([[1.0, 2.0]]))
    moments.update(torch.tensor(6.0))
    assert (moments.count, moments.mean) == (3, 3.0)
    assert moments.std == pytest.approx(math.sqrt(14 / 3))


def test_moments_keep_their_precision_far_from_0() -> None:
    moments = RunningMoments()
    for batch in (1e9 + torch.randn(1000, dtype=torch.float64)).split(10):
        moments.update(batch)
    assert moments.std == pytest.approx(1, abs=0.1)


def test_one_value_has_no_spread() -> None:
    moments = RunningMoments()
    moments.update(torch.tensor([4.0], requires_grad=True))
    assert (moments.count, moments.mean, moments.std) == (1, 4.0, 0.0)


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([1.0] * 8, 1.0),
        ([7.0], 1.0),
        ([0.0, 0.0], 1.0),
        ([-1000.0, -1000.001], 1.0),
        ([10.0, 10.2], 0.1),
        ([0.0, 2e-9], 1e-9),
    ],
)
def test_values_as_good_as_equal_are_divided_by_one_and_others_by_their_deviation(
    values: list[float], scale: float
) -> None:
    moments = RunningMoments()
    moments.update(torch.tensor(values, dtype=torch.float64))
    assert moments.scale == pytest.approx(scale)


def test_moments_go_on_from_their_state() -> None:
    first, second = torch.randn(2, 20)
    moments, resumed = RunningMoments(), RunningMoments()
    moments.update(first)
    resumed.load_state_dict(moments.state_dict())
    moments.update(second)
    resumed.update(second)
    assert resumed.state_dict() == moments.state_dict()
    assert isinstance(resumed.count, int)


def test_moments_refuse_values_that_are_not_finite_and_stay_as_they_were() -> None:
    moments = RunningMoments()
    moments.update(torch.ones(2))
    before = moments.state_dict()
    with pytest.raises(ValueError, match=r"value 1 of 3 is nan; moments need finite values"):
        moments.update(torch.tensor([0.0, math.nan, math.inf]))
    assert moments.state_dict() == before


def test_moments_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no value was seen yet; update the moments before reading them"):
        _ = RunningMoments().mean
    with pytest.raises(ValueError, match=r"no value was seen yet; update the moments before reading them"):
        _ = RunningMoments().std


def test_moments_refuse_another_state() -> None:
    with pytest.raises(ValueError, match=r"moments state has keys \['mean'\]; expected \['count', 'mean', 'squared_"):
        RunningMoments().load_state_dict({"mean": 0.0})
