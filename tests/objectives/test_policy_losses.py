"""The policy losses beside the clip: KL penalty, actor-critic, and ratios of whole completions."""

from __future__ import annotations

import math

import pytest
import torch

from onebase.objectives.kl import AdaptivePenalty
from onebase.objectives.policy import (
    actor_critic_loss,
    clipped_policy_loss,
    completion_log_ratio,
    penalised_policy_loss,
)


def test_the_penalty_stands_beside_the_unclipped_surrogate() -> None:
    new, old = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    advantages = torch.tensor([2.0, -1.0, 3.0])
    found = penalised_policy_loss(new, old, advantages, coefficient=0.7)
    rows = zip(found.tolist(), new.tolist(), old.tolist(), advantages.tolist(), strict=True)
    for loss, now, before, advantage in rows:
        ratio = math.exp(now) / math.exp(before)
        assert loss == pytest.approx(-ratio * advantage + 0.7 * (ratio - 1 - math.log(ratio)), rel=1e-5)
    with pytest.raises(ValueError, match="coefficient -1 must be 0 or more"):
        penalised_policy_loss(new, old, advantages, coefficient=-1)


def test_the_penalty_and_its_gradient_are_those_of_the_divergence_in_expectation() -> None:
    """Over all tokens of a small vocabulary, weighted by the old policy: KL(old || new) and its gradient."""
    torch.manual_seed(0)
    old = torch.log_softmax(torch.randn(6, dtype=torch.float64), 0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    new = torch.log_softmax(logits, 0)
    exact = (old.exp() * (old - new)).sum()
    (slope,) = torch.autograd.grad(exact, logits, retain_graph=True)
    estimate = (old.exp() * penalised_policy_loss(new, old, torch.zeros(6, dtype=torch.float64), coefficient=1.0)).sum()
    (found,) = torch.autograd.grad(estimate, logits)
    torch.testing.assert_close(estimate, exact)
    torch.testing.assert_close(found, slope)


def test_the_actor_critic_loss_is_the_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    advantages = torch.tensor([2.0, -3.0], requires_grad=True)
    actor_critic_loss(logprobs, advantages).sum().backward()
    assert logprobs.grad is not None and logprobs.grad.tolist() == [-2.0, 3.0] and advantages.grad is None
    clipped = clipped_policy_loss(logprobs, logprobs.detach(), advantages, clip_low=0.2, clip_high=0.2, dual_clip=None)
    (slope,) = torch.autograd.grad(clipped.sum(), logprobs)
    assert slope.tolist() == [-2.0, 3.0]  # on the sampling policy itself all are one


def test_a_completions_ratio_is_the_mean_or_the_sum_over_its_tokens() -> None:
    new = torch.tensor([-1.0, -2.0, -0.5, -3.0], requires_grad=True)
    old = torch.tensor([-1.2, -1.0, -0.5, -2.0])
    index = torch.tensor([0, 0, 0, 1])
    mean = completion_log_ratio(new, old, index, 2, reduction="mean")
    assert mean.tolist() == pytest.approx([(0.2 - 1.0 + 0.0) / 3] * 3 + [-1.0])
    assert completion_log_ratio(new, old, index, 2, reduction="sum").tolist() == pytest.approx([-0.8] * 3 + [-1.0])
    (slope,) = torch.autograd.grad(mean[0], new)
    assert slope.tolist() == pytest.approx([1 / 3] * 3 + [0.0])


def test_gspo_clips_a_completion_as_a_whole() -> None:
    """One token far off does not clip a completion whose geometric mean is within the range."""
    new, old = torch.tensor([-1.0, -1.0, -1.0]).requires_grad_(), torch.tensor([-1.45, -1.0, -1.0])
    ratio = completion_log_ratio(new, old, torch.zeros(3, dtype=torch.long), 1, reduction="mean")  # 0.15
    clip = {"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
    by_sequence = clipped_policy_loss(ratio, torch.zeros(3), torch.ones(3), **clip)  # type: ignore[arg-type]
    by_token = clipped_policy_loss(new, old, torch.ones(3), **clip)  # type: ignore[arg-type]
    assert by_sequence.tolist() == pytest.approx([-math.exp(0.15)] * 3) and by_token.tolist()[0] == pytest.approx(-1.2)
    (slope,) = torch.autograd.grad(by_sequence.sum(), new, retain_graph=True)
    assert slope.tolist() == pytest.approx([-math.exp(0.15)] * 3)


def test_the_penalty_halves_below_its_band_and_doubles_above() -> None:
    penalty = AdaptivePenalty(1.0, target=0.03)
    for kl, expected in ((0.019, 0.5), (0.021, 0.5), (0.044, 0.5), (0.046, 1.0), (0.5, 2.0), (0.0, 1.0)):
        penalty.update(kl)
        assert penalty.coefficient == expected
    other = AdaptivePenalty(5.0, target=0.03)
    other.load_state_dict(penalty.state_dict())
    assert other.coefficient == 1.0
    with pytest.raises(ValueError, match="KL nan is not finite"):
        penalty.update(math.nan)
    for wrong in ({"coefficient": 0.0, "target": 1.0}, {"coefficient": 1.0, "target": -1.0}):
        with pytest.raises(ValueError, match="must be above 0, and finite"):
            AdaptivePenalty(**wrong)
