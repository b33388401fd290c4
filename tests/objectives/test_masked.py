"""Masked moments, whitening, and the way between flat and padded tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebase.objectives.masked import (
    completion_mean,
    completion_sum,
    flatten_completions,
    masked_mean,
    masked_variance,
    pad_completions,
    scale_to_unit_variance,
    whiten,
)

VALUES = torch.tensor([[1.0, 2.0, 9.0], [6.0, -7.0, 9.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
OVER_A_MASK: list[Callable[[Tensor, Tensor], Tensor]] = [masked_mean, masked_variance, whiten, scale_to_unit_variance]


def random_case() -> tuple[Tensor, Tensor]:
    mask = torch.rand(7, 11) < 0.6
    return 3 * torch.randn(7, 11, dtype=torch.float64) + 5, mask


def test_mean_and_variance_match_hand_computed_values() -> None:
    assert masked_mean(VALUES, MASK).item() == pytest.approx(3.0)
    assert masked_variance(VALUES, MASK).item() == pytest.approx((4 + 1 + 9) / 3)


def test_mean_and_variance_match_plain_python() -> None:
    values, mask = random_case()
    kept = [v for v, m in zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True) if m]
    mean = sum(kept) / len(kept)
    assert masked_mean(values, mask).item() == pytest.approx(mean)
    assert masked_variance(values, mask).item() == pytest.approx(sum((v - mean) ** 2 for v in kept) / len(kept))


def test_whiten_matches_hand_computed_values() -> None:
    spread = (14 / 3) ** 0.5
    expected = torch.tensor([[-2 / spread, -1 / spread, 0], [3 / spread, 0, 0]])
    torch.testing.assert_close(whiten(VALUES, MASK), expected)


def test_whiten_gives_mean_0_and_variance_1() -> None:
    values, mask = random_case()
    kept = whiten(values, mask)[mask]
    assert kept.mean().item() == pytest.approx(0, abs=1e-9)
    assert kept.var(correction=0).item() == pytest.approx(1, abs=1e-7)
    assert (whiten(values, mask)[~mask] == 0).all()


def test_whiten_gives_mean_0_when_the_mean_is_large_against_the_spread() -> None:
    kept = whiten(1e4 + torch.randn(1000))
    assert kept.mean().abs() < 1e-5
    assert kept.var(correction=0).item() == pytest.approx(1, abs=1e-3)


def test_whiten_ignores_shift_and_positive_scale() -> None:
    values, mask = random_case()
    torch.testing.assert_close(whiten(4 * values - 100, mask), whiten(values, mask), rtol=1e-6, atol=1e-6)


def test_scaling_gives_variance_1_and_keeps_the_mean() -> None:
    values, mask = random_case()
    scaled = scale_to_unit_variance(values, mask)
    assert scaled[mask].mean().item() == pytest.approx(values[mask].mean().item())
    assert scaled[mask].var(correction=0).item() == pytest.approx(1, abs=1e-7)
    assert (scaled[~mask] == 0).all()


@pytest.mark.parametrize("function", [whiten, scale_to_unit_variance])
def test_no_mask_counts_every_entry(function: Callable[..., Tensor]) -> None:
    assert torch.equal(function(VALUES), function(VALUES, torch.ones_like(MASK)))


def test_constant_values_whiten_to_0_and_keep_their_mean_when_scaled() -> None:
    assert torch.equal(whiten(torch.full((4,), 3.0)), torch.zeros(4))
    assert torch.equal(scale_to_unit_variance(torch.full((4,), 3.0)), torch.full((4,), 3.0))


@pytest.mark.parametrize("function", OVER_A_MASK)
@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_garbage_under_the_mask_changes_neither_value_nor_gradient(
    function: Callable[[Tensor, Tensor], Tensor], garbage: float
) -> None:
    values, mask = random_case()
    clean = values.masked_fill(~mask, 0).requires_grad_()
    dirty = values.masked_fill(~mask, garbage).requires_grad_()
    results = [function(clean, mask), function(dirty, mask)]
    weights = torch.randn_like(results[0])
    assert torch.equal(results[0], results[1])
    gradients = [torch.autograd.grad((r * weights).sum(), v)[0] for r, v in zip(results, (clean, dirty), strict=True)]
    assert torch.equal(gradients[0], gradients[1])
    assert (gradients[1][~mask] == 0).all()


@pytest.mark.parametrize("function", OVER_A_MASK)
def test_more_masked_columns_change_nothing(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    values, mask = random_case()
    wide = torch.cat([torch.randn(7, 3, dtype=torch.float64), values], dim=1)
    wide_mask = torch.cat([torch.zeros(7, 3, dtype=torch.bool), mask], dim=1)
    result, wide_result = function(values, mask), function(wide, wide_mask)
    torch.testing.assert_close(wide_result[..., 3:] if wide_result.dim() else wide_result, result)


@pytest.mark.parametrize("function", OVER_A_MASK)
def test_gradient_of_masked_functions_matches_finite_differences(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    values, mask = random_case()
    assert torch.autograd.gradcheck(lambda v: function(v, mask), values.requires_grad_())


@pytest.mark.parametrize("function", OVER_A_MASK)
def test_masked_functions_leave_their_inputs_alone(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    values, mask = random_case()
    before, mask_before = values.clone(), mask.clone()
    function(values, mask)
    assert torch.equal(values, before) and torch.equal(mask, mask_before)


@pytest.mark.parametrize("function", OVER_A_MASK)
def test_masked_functions_refuse_what_does_not_fit(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(ValueError, match=r"mask has shape \[3\], values has \[2, 3\]; they must be equal"):
        function(VALUES, MASK[0])
    with pytest.raises(ValueError, match=r"mask has dtype torch.int64; it must be torch.bool"):
        function(VALUES, MASK.long())
    with pytest.raises(ValueError, match=r"mask \[2, 3\] has no True entry; a mean over nothing is undefined"):
        function(VALUES, torch.zeros_like(MASK))


FLAT = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
INDEX = torch.tensor([1, 1, 2, 4, 4, 4])


def test_completion_sums_and_means_match_hand_computed_values() -> None:
    assert completion_sum(FLAT, INDEX, 6).tolist() == [0, 3, 3, 0, 15, 0]
    assert completion_mean(FLAT, INDEX, 6).tolist() == [0, 1.5, 3, 0, 5, 0]


def test_padding_matches_the_hand_laid_rows() -> None:
    padded, mask = pad_completions(FLAT, INDEX, 6)
    assert padded.tolist() == [[0, 0, 0], [1, 2, 0], [3, 0, 0], [0, 0, 0], [4, 5, 6], [0, 0, 0]]
    assert mask.sum(1).tolist() == [0, 2, 1, 0, 3, 0]
    assert torch.equal(padded[mask], FLAT)


@pytest.mark.parametrize("lengths", [[3, 1, 4], [0, 2, 0, 0, 5, 0], [1], [0, 0], []])
def test_flattening_undoes_padding_exactly(lengths: list[int]) -> None:
    index = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths, dtype=torch.int64))
    values = torch.randn(sum(lengths))
    padded, mask = pad_completions(values, index, len(lengths))
    assert padded.shape == mask.shape == (len(lengths), max(lengths, default=0))
    assert mask.sum(1).tolist() == lengths
    assert torch.equal(flatten_completions(padded, mask), values)
    torch.testing.assert_close(padded.sum(1), completion_sum(values, index, len(lengths)))


def test_padding_keeps_integers_and_bools() -> None:
    assert pad_completions(torch.tensor([7, 8, 9]), torch.tensor([0, 0, 1]), 2)[0].tolist() == [[7, 8], [9, 0]]
    assert pad_completions(torch.tensor([True, True]), torch.tensor([0, 1]), 2)[0].dtype == torch.bool


def test_gradient_flows_through_layout_functions() -> None:
    values = torch.randn(6, dtype=torch.float64, requires_grad=True)
    _, mask = pad_completions(values, INDEX, 6)
    assert torch.autograd.gradcheck(lambda v: pad_completions(v, INDEX, 6)[0], values)
    assert torch.autograd.gradcheck(lambda v: flatten_completions(pad_completions(v, INDEX, 6)[0], mask), values)
    assert torch.autograd.gradcheck(lambda v: completion_sum(v, INDEX, 6), values)
    assert torch.autograd.gradcheck(lambda v: completion_mean(v, INDEX, 6), values)


@pytest.mark.parametrize("function", [completion_sum, completion_mean, pad_completions])
def test_completion_functions_refuse_what_does_not_fit(function: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match=r"values has shape \[1, 6\]; it must have 1 dimension"):
        function(FLAT[None], INDEX, 6)
    with pytest.raises(ValueError, match=r"completion_index has shape \[5\], values has \[6\]; they must be equal"):
        function(FLAT, INDEX[1:], 6)


def test_padding_refuses_an_index_out_of_order_or_range() -> None:
    with pytest.raises(ValueError, match=r"completion_index decreases; completions must be laid end to end in order"):
        pad_completions(FLAT, INDEX.flip(0), 6)
    with pytest.raises(ValueError, match=r"completion_index holds 4; it must lie in 0\.\.3"):
        pad_completions(FLAT, INDEX, 4)
    with pytest.raises(ValueError, match=r"completion_index holds -1; it must lie in 0\.\.5"):
        pad_completions(FLAT, INDEX - 2, 6)


def test_flattening_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"padded has shape \[3\]; it must have 2 dimension"):
        flatten_completions(VALUES[0], MASK)
    with pytest.raises(ValueError, match=r"mask has shape \[1, 3\], padded has \[2, 3\]"):
        flatten_completions(VALUES, MASK[:1])
    with pytest.raises(ValueError, match=r"mask has dtype torch.int64"):
        flatten_completions(VALUES, MASK.long())
