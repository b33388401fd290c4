"""KTO against the published value function as a loop, its limits, its reference point, and refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from onebase.objectives.unpaired import kto_kl, kto_loss

DESIRABLE = torch.tensor([True, False, True, True, False, False])
KL = torch.tensor(0.8, dtype=torch.float64)


def completions(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Six completions under the policy, with gradient, and under the reference; float64."""
    generator = torch.Generator().manual_seed(seed)
    reference = -20 * torch.rand(6, generator=generator, dtype=torch.float64)
    policy = reference + 4 * torch.randn(6, generator=generator, dtype=torch.float64)
    return policy.requires_grad_(), reference


def test_values_and_gradients_are_those_of_the_published_value_function() -> None:
    policy, reference = completions()
    ours = kto_loss(policy, reference, DESIRABLE, KL, beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    losses = []
    for n in range(6):
        reward = torch.log(policy[n].exp() / reference[n].exp())
        if DESIRABLE[n]:
            losses.append(1.5 - 1.5 / (1 + torch.exp(-0.3 * (reward - 0.8))))
        else:
            losses.append(0.5 - 0.5 / (1 + torch.exp(-0.3 * (0.8 - reward))))
    theirs = torch.stack(losses)
    assert ours.shape == (6,)
    torch.testing.assert_close(ours, theirs)
    mine, expected = (torch.autograd.grad(result.sum(), policy)[0] for result in (ours, theirs))
    torch.testing.assert_close(mine, expected)


def test_gradients_match_finite_differences() -> None:
    policy, reference = completions(seed=1)
    assert torch.autograd.gradcheck(lambda p: kto_loss(p, reference, DESIRABLE, KL, beta=0.3), policy)


def test_losses_match_hand_computed_values() -> None:
    # A log-ratio of 3 nats is 2 over the reference point, 1 at beta 0.5.
    policy, reference = torch.tensor([-4.0, -4.0]), torch.tensor([-7.0, -7.0])
    loss = kto_loss(policy, reference, torch.tensor([True, False]), torch.tensor(1.0), beta=0.5, undesirable_weight=2.0)
    assert loss.tolist() == pytest.approx([1 - 1 / (1 + math.exp(-1)), 2 / (1 + math.exp(-1))])


def test_loss_is_half_its_weight_at_the_reference_point() -> None:
    reference = completions()[1]
    at = kto_loss(reference + KL, reference, DESIRABLE, KL, beta=0.3, desirable_weight=3.0, undesirable_weight=5.0)
    torch.testing.assert_close(at, torch.where(DESIRABLE, 1.5, 2.5).double())


def test_loss_saturates_between_0_and_its_weight_and_lets_go_on_both_sides() -> None:
    reference, verdicts = torch.zeros(4), torch.tensor([True, False, True, False])
    policy = torch.tensor([1e5, -1e5, -1e5, 1e5], requires_grad=True)
    loss = kto_loss(
        policy, reference, verdicts, torch.tensor(0.0), beta=0.1, desirable_weight=3.0, undesirable_weight=5.0
    )
    assert loss.tolist() == [0, 0, 3, 5]
    assert torch.autograd.grad(loss.sum(), policy)[0].tolist() == [0, 0, 0, 0]


def test_small_losses_are_not_rounded_away_in_float32() -> None:
    loss = kto_loss(torch.tensor([20.0]), torch.zeros(1), torch.tensor([True]), torch.tensor(0.0), beta=1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.exp(-20), rel=1e-5)


def test_desirable_is_pushed_up_and_undesirable_down() -> None:
    policy, reference = completions()
    gradient = torch.autograd.grad(kto_loss(policy, reference, DESIRABLE, KL, beta=0.1).sum(), policy)[0]
    assert torch.equal(gradient < 0, DESIRABLE) and (gradient != 0).all()


def test_a_weight_of_0_leaves_a_kind_out() -> None:
    policy, reference = completions()
    loss = kto_loss(policy, reference, DESIRABLE, KL, beta=0.1, undesirable_weight=0.0)
    assert (loss[DESIRABLE] > 0).all() and (loss[~DESIRABLE] == 0).all()


def test_only_the_policy_gets_a_gradient() -> None:
    policy, reference = completions()
    reference, kl = reference.requires_grad_(), KL.clone().requires_grad_()
    kto_loss(policy, reference, DESIRABLE, kl, beta=0.1).sum().backward()
    assert policy.grad is not None and reference.grad is None and kl.grad is None


def test_reference_point_is_the_mean_log_ratio_and_never_below_0() -> None:
    policy, reference = torch.tensor([-3.0, -8.0, -5.0], requires_grad=True), torch.tensor([-5.0, -7.0, -7.0])
    estimate = kto_kl(policy, reference)
    assert estimate.shape == () and estimate.item() == 1.0
    assert not estimate.requires_grad
    assert kto_kl(reference, policy).item() == 0
    assert kto_kl(reference, reference).item() == 0


def test_no_completions_give_no_losses() -> None:
    none = torch.zeros(0)
    assert kto_loss(none, none, none.bool(), torch.tensor(0.0), beta=0.1).shape == (0,)


def test_completions_that_do_not_fit_are_refused() -> None:
    policy, reference = completions()
    with pytest.raises(ValueError, match=r"desirable has shape \[2\], logprobs has \[6\]; they must be equal"):
        kto_loss(policy, reference, DESIRABLE[:2], KL, beta=0.1)
    with pytest.raises(ValueError, match=r"reference_logprobs has shape \[1\], logprobs has \[6\]"):
        kto_loss(policy, reference[:1], DESIRABLE, KL, beta=0.1)
    with pytest.raises(ValueError, match=r"logprobs has shape \[6, 1\]; it must have 1 dimension"):
        kto_loss(policy[:, None], reference[:, None], DESIRABLE[:, None], KL, beta=0.1)
    with pytest.raises(ValueError, match=r"desirable has dtype torch.int64; it must be torch.bool"):
        kto_loss(policy, reference, DESIRABLE.long(), KL, beta=0.1)
    with pytest.raises(ValueError, match=r"kl_estimate has shape \[6\]; it must have 0 dimension"):
        kto_loss(policy, reference, DESIRABLE, reference, beta=0.1)
    with pytest.raises(ValueError, match=r"mismatched_reference_logprobs has shape \[1\], mismatched_logprobs has"):
        kto_kl(policy, reference[:1])
    with pytest.raises(ValueError, match=r"mismatched_logprobs has shape \[6, 1\]; it must have 1 dimension"):
        kto_kl(policy[:, None], reference[:, None])
    with pytest.raises(ValueError, match=r"mismatched_logprobs is empty; the KL estimate of KTO needs at least one"):
        kto_kl(policy[:0], reference[:0])


def test_settings_out_of_range_are_refused() -> None:
    policy, reference = completions()
    for beta in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"beta {beta} must be above 0, and finite"):
            kto_loss(policy, reference, DESIRABLE, KL, beta=beta)
    for weight in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"^desirable_weight {weight} must be 0 or more, and finite"):
            kto_loss(policy, reference, DESIRABLE, KL, beta=0.1, desirable_weight=weight)
        with pytest.raises(ValueError, match=rf"undesirable_weight {weight} must be 0 or more, and finite"):
            kto_loss(policy, reference, DESIRABLE, KL, beta=0.1, undesirable_weight=weight)
