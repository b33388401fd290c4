"""The two clipped losses against literal loops, and what is logged of them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.objectives.policy import clipped_policy_loss, clipped_value_loss, policy_statistics, value_clipped

CLIPS = [(0.2, 0.2, None), (0.2, 0.28, None), (0.2, 0.28, 3.0), (0.0, 0.0, 1.5)]


def literal_policy_loss(
    logprob: float, old_logprob: float, advantage: float, low: float, high: float, dual: float | None
) -> float:
    ratio = math.exp(logprob) / math.exp(old_logprob)
    objective = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        objective = max(objective, dual * advantage)
    return -objective


def literal_value_loss(value: float, old_value: float, target: float, clip_range: float | None) -> float:
    if clip_range is None:
        return (value - target) ** 2 / 2
    clipped = min(max(value, old_value - clip_range), old_value + clip_range)
    return max((value - target) ** 2, (clipped - target) ** 2) / 2


def random_tokens(spread: float = 0.8) -> tuple[Tensor, Tensor, Tensor]:
    old = -3 * torch.rand(200, dtype=torch.float64)
    return old + spread * torch.randn_like(old), old, torch.randn_like(old)


def loss_at_ratio(ratio: float, advantage: float, **clips: Any) -> float:
    settings = {"clip_low": 0.2, "clip_high": 0.3, "dual_clip": None} | clips
    return clipped_policy_loss(
        torch.tensor([math.log(ratio)]), torch.zeros(1), torch.tensor([advantage]), **settings
    ).item()


def test_policy_loss_matches_hand_computed_values() -> None:
    assert loss_at_ratio(1.0, 2.0) == pytest.approx(-2.0)
    assert loss_at_ratio(1.5, 2.0) == pytest.approx(-2.6)  # clipped at 1.3
    assert loss_at_ratio(0.5, 2.0) == pytest.approx(-1.0)  # below the range, A > 0: not clipped
    assert loss_at_ratio(0.5, -2.0) == pytest.approx(1.6)  # clipped at 0.8
    assert loss_at_ratio(5.0, -2.0) == pytest.approx(10.0)  # above the range, A < 0: not clipped


def test_dual_clip_bounds_the_loss_of_negative_advantages_alone() -> None:
    assert loss_at_ratio(5.0, -2.0, dual_clip=3.0) == pytest.approx(6.0)  # c |A|
    assert loss_at_ratio(2.0, -2.0, dual_clip=3.0) == pytest.approx(4.0)
    assert loss_at_ratio(5.0, 2.0, dual_clip=3.0) == pytest.approx(-2.6)


@pytest.mark.parametrize(("low", "high", "dual"), CLIPS)
def test_policy_loss_matches_the_literal_formula(low: float, high: float, dual: float | None) -> None:
    tokens = random_tokens()
    loss = clipped_policy_loss(*tokens, clip_low=low, clip_high=high, dual_clip=dual)
    expected = [
        literal_policy_loss(p, q, a, low, high, dual) for p, q, a in zip(*(t.tolist() for t in tokens), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("low", "high", "dual"), CLIPS[:3])
def test_gradient_of_policy_loss_matches_finite_differences(low: float, high: float, dual: float | None) -> None:
    logprobs, old, advantages = random_tokens()
    assert torch.autograd.gradcheck(
        lambda p: clipped_policy_loss(p, old, advantages, clip_low=low, clip_high=high, dual_clip=dual),
        logprobs.requires_grad_(),
    )


def test_gradient_at_ratio_1_is_that_of_the_policy_gradient() -> None:
    logprobs = torch.randn(6, requires_grad=True)
    advantages = torch.randn(6)
    loss = clipped_policy_loss(logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    torch.testing.assert_close(gradient, -advantages)


def test_gradient_flows_through_the_new_logprobs_alone() -> None:
    logprobs, old, advantages = (t.requires_grad_() for t in random_tokens())
    loss = clipped_policy_loss(logprobs, old, advantages, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    gradients = torch.autograd.grad(loss.sum(), (logprobs, old, advantages), allow_unused=True)
    assert gradients[0] is not None and gradients[1] is None and gradients[2] is None


def test_statistics_match_the_literal_formulas() -> None:
    logprobs, old, advantages = random_tokens()
    statistics = policy_statistics(logprobs, old, clip_low=0.2, clip_high=0.3, advantages=advantages)
    assert list(statistics) == ["policy/approxkl", "policy/clipfrac", "policy/ratio"]
    for m, (p, q, a) in enumerate(zip(logprobs.tolist(), old.tolist(), advantages.tolist(), strict=True)):
        ratio = math.exp(p - q)
        assert statistics["policy/ratio"][m].item() == pytest.approx(ratio)
        assert statistics["policy/approxkl"][m].item() == pytest.approx((p - q) ** 2 / 2)
        assert statistics["policy/clipfrac"][m].item() == float((a > 0 and ratio > 1.3) or (a < 0 and ratio < 0.8))


def test_clip_fraction_counts_exactly_the_tokens_without_gradient() -> None:
    logprobs, old, advantages = random_tokens()
    loss = clipped_policy_loss(logprobs.requires_grad_(), old, advantages, clip_low=0.2, clip_high=0.3, dual_clip=None)
    (gradient,) = torch.autograd.grad(loss.sum(), logprobs)
    statistics = policy_statistics(logprobs, old, clip_low=0.2, clip_high=0.3, advantages=advantages)
    assert 0 < statistics["policy/clipfrac"].mean() < 1
    assert torch.equal(statistics["policy/clipfrac"] == 1, gradient == 0)
    assert not any(tensor.requires_grad for tensor in statistics.values())


@pytest.mark.parametrize("clip_range", [None, 0.2, 5.0])
def test_value_loss_matches_the_literal_formula(clip_range: float | None) -> None:
    values, old, returns = torch.randn(3, 200, dtype=torch.float64)
    loss = clipped_value_loss(values, old, returns, clip_range=clip_range)
    expected = [
        literal_value_loss(v, o, r, clip_range)
        for v, o, r in zip(values.tolist(), old.tolist(), returns.tolist(), strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_value_loss_matches_hand_computed_values() -> None:
    values, old, returns = torch.tensor([1.0, 1.0]), torch.tensor([0.0, 0.0]), torch.tensor([2.0, -1.0])
    loss = clipped_value_loss(values, old, returns, clip_range=0.5)
    assert loss.tolist() == [1.125, 2.0]  # (0.5 - 2)^2 / 2 is larger; (1 + 1)^2 / 2 is larger
    assert value_clipped(values, old, returns, clip_range=0.5).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_gradient_of_value_loss_matches_finite_differences(clip_range: float | None) -> None:
    values, old, returns = torch.randn(3, 50, dtype=torch.float64)
    values = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: clipped_value_loss(v, old, returns, clip_range=clip_range), values)


def test_value_gradient_flows_through_the_new_values_alone() -> None:
    values, old, returns = (torch.randn(50, requires_grad=True) for _ in range(3))
    loss = clipped_value_loss(values, old, returns, clip_range=0.2)
    gradients = torch.autograd.grad(loss.sum(), (values, old, returns), allow_unused=True)
    assert gradients[0] is not None and gradients[1] is None and gradients[2] is None


def test_value_clip_fraction_counts_exactly_the_values_without_gradient() -> None:
    values, old, returns = torch.randn(3, 200, dtype=torch.float64)
    values = values.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(clipped_value_loss(values, old, returns, clip_range=0.2).sum(), values)
    clipped = value_clipped(values, old, returns, clip_range=0.2)
    assert 0 < clipped.mean() < 1 and not clipped.requires_grad
    assert torch.equal(clipped == 1, gradient == 0)
    assert value_clipped(values, old, returns, clip_range=None).sum() == 0


def test_losses_leave_their_inputs_alone() -> None:
    tokens = random_tokens()
    before = [t.clone() for t in tokens]
    clipped_policy_loss(*tokens, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
    clipped_value_loss(*tokens, clip_range=0.2)
    assert all(torch.equal(a, b) for a, b in zip(before, tokens, strict=True))


def test_policy_functions_refuse_what_does_not_fit() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"advantages has shape \[2\], logprobs has \[3\]; they must be equal"):
        clipped_policy_loss(three, three, two, clip_low=0.2, clip_high=0.2, dual_clip=None)
    with pytest.raises(ValueError, match=r"old_logprobs has shape \[2\], logprobs has \[3\]"):
        policy_statistics(three, two, clip_low=0.2, clip_high=0.2, advantages=three)
    for low in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"clip_low {low} must lie in \[0, 1\)"):
            clipped_policy_loss(three, three, three, clip_low=low, clip_high=0.2, dual_clip=None)
    with pytest.raises(ValueError, match=r"clip_high -0.2 must be 0 or more"):
        policy_statistics(three, three, clip_low=0.2, clip_high=-0.2, advantages=three)
    with pytest.raises(ValueError, match=r"dual_clip 1.0 must be above 1, or None for no bound"):
        clipped_policy_loss(three, three, three, clip_low=0.2, clip_high=0.2, dual_clip=1.0)


@pytest.mark.parametrize("function", [clipped_value_loss, value_clipped])
def test_value_functions_refuse_what_does_not_fit(function: Any) -> None:
    with pytest.raises(ValueError, match=r"returns has shape \[2\], values has \[3\]; they must be equal"):
        function(torch.zeros(3), torch.zeros(3), torch.zeros(2), clip_range=0.2)
    with pytest.raises(ValueError, match=r"clip_range 0.0 must be above 0, or None for no clip"):
        function(torch.zeros(3), torch.zeros(3), torch.zeros(3), clip_range=0.0)
