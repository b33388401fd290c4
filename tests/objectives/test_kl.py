"""KL estimators against the exact divergence of categoricals, shaped rewards, and the coefficients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.objectives.kl import AdaptiveKL, FixedKL, kl_estimate, kl_shaped_rewards


def two_categoricals() -> tuple[Tensor, Tensor]:
    logits = torch.randn(9, dtype=torch.float64, requires_grad=True)
    return logits, torch.randn(9, dtype=torch.float64).log_softmax(0)


def expected_estimate(logits: Tensor, reference: Tensor, estimator: Any) -> Tensor:
    """E over tokens sampled from the policy, the sampling itself without gradient: what a loss term averages to."""
    logprobs = logits.log_softmax(0)
    return (logprobs.exp().detach() * kl_estimate(logprobs, reference, estimator)).sum()


def exact_kl(p: Tensor, q: Tensor) -> Tensor:
    """sum_v p (log p - log q) of two log-probability vectors."""
    return (p.exp() * (p - q)).sum()


def test_estimates_match_hand_computed_values() -> None:
    logprobs = torch.tensor([math.log(0.5), math.log(0.1)])
    reference = torch.tensor([math.log(0.25), math.log(0.4)])
    k1 = [math.log(2), -math.log(4)]
    assert kl_estimate(logprobs, reference, "k1").tolist() == pytest.approx(k1)
    assert kl_estimate(logprobs, reference, "k2").tolist() == pytest.approx([k1[0] ** 2 / 2, k1[1] ** 2 / 2])
    assert kl_estimate(logprobs, reference, "k3").tolist() == pytest.approx([0.5 - 1 + k1[0], 4 - 1 + k1[1]])


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator: str) -> None:
    logits, reference = two_categoricals()
    assert expected_estimate(logits, reference, estimator).item() == pytest.approx(
        exact_kl(logits.log_softmax(0), reference).item(), abs=1e-12
    )


def test_k2_is_biased_but_exact_to_second_order() -> None:
    logits, reference = two_categoricals()
    exact = exact_kl(logits.log_softmax(0), reference).item()
    assert abs(expected_estimate(logits, reference, "k2").item() - exact) > 1e-3
    near = (reference + 1e-3 * torch.randn(9, dtype=torch.float64)).log_softmax(0)
    assert expected_estimate(near, reference, "k2").item() == pytest.approx(exact_kl(near, reference).item(), rel=1e-2)


def test_expected_gradient_of_k1_is_0() -> None:
    logits, reference = two_categoricals()
    (gradient,) = torch.autograd.grad(expected_estimate(logits, reference, "k1"), logits)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_expected_gradient_of_k2_is_that_of_the_divergence_from_the_reference() -> None:
    logits, reference = two_categoricals()
    (gradient,) = torch.autograd.grad(expected_estimate(logits, reference, "k2"), logits)
    (exact,) = torch.autograd.grad(exact_kl(logits.log_softmax(0), reference), logits)
    torch.testing.assert_close(gradient, exact)


def test_expected_gradient_of_k3_is_that_of_the_divergence_the_other_way_round() -> None:
    logits, reference = two_categoricals()
    (gradient,) = torch.autograd.grad(expected_estimate(logits, reference, "k3"), logits)
    (exact,) = torch.autograd.grad(exact_kl(reference, logits.log_softmax(0)), logits)
    torch.testing.assert_close(gradient, exact)


def test_k3_keeps_its_precision_near_0_in_float32() -> None:
    difference = torch.tensor([3e-4, -3e-4, 1e-2])
    exact = torch.expm1(-difference.double()) + difference.double()
    estimate = kl_estimate(difference, torch.zeros(3), "k3")
    torch.testing.assert_close(estimate.double(), exact, rtol=1e-3, atol=0)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_estimates_are_0_at_equal_logprobs_and_keep_the_shape(estimator: Any) -> None:
    logprobs = torch.randn(3, 4)
    assert torch.equal(kl_estimate(logprobs, logprobs.clone(), estimator), torch.zeros(3, 4))


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_gradient_of_estimates_matches_finite_differences(estimator: Any) -> None:
    logprobs = torch.randn(5, dtype=torch.float64, requires_grad=True)
    reference = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p, q: kl_estimate(p, q, estimator), (logprobs, reference))


def test_estimate_refuses_what_does_not_fit() -> None:
    unknown: Any = "k4"
    with pytest.raises(ValueError, match=r"KL estimator 'k4' is unknown; choose 'k1', 'k2' or 'k3'"):
        kl_estimate(torch.zeros(2), torch.zeros(2), unknown)
    with pytest.raises(ValueError, match=r"reference_logprobs has shape \[1\], logprobs has \[2\]; they must be equal"):
        kl_estimate(torch.zeros(2), torch.zeros(1), "k1")


KL = torch.tensor([[0.1, 0.2, 0.3], [0.4, -0.5, 9.0], [9.0, 0.6, 9.0], [9.0, 9.0, 9.0]])
REAL = torch.tensor([[True, True, True], [True, True, False], [False, True, False], [False, False, False]])
SCORES = torch.tensor([1.0, -2.0, 3.0, 4.0])


def test_shaped_rewards_match_hand_computed_values() -> None:
    rewards = kl_shaped_rewards(SCORES, KL, REAL, 0.5)
    expected = [[-0.05, -0.1, 0.85], [-0.2, -1.75, 0.0], [0.0, 2.7, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(rewards, torch.tensor(expected))


def test_shaped_rewards_match_a_loop_and_sum_to_the_score_less_the_penalty() -> None:
    scores, kl, mask = torch.randn(20), torch.randn(20, 8), torch.rand(20, 8) < 0.5
    mask[0] = False
    rewards = kl_shaped_rewards(scores, kl, mask, 0.3)
    for n in range(20):
        real = [t for t in range(8) if mask[n, t]]
        for t in range(8):
            expected = -0.3 * kl[n, t].item() * (t in real) + scores[n].item() * (bool(real) and t == real[-1])
            assert rewards[n, t].item() == pytest.approx(expected, abs=1e-6)
        if real:
            assert rewards[n].sum().item() == pytest.approx((scores[n] - 0.3 * kl[n, real].sum()).item(), abs=1e-5)


def test_garbage_under_the_mask_and_more_masked_columns_change_no_reward() -> None:
    rewards = kl_shaped_rewards(SCORES, KL, REAL, 0.5)
    dirty = KL.masked_fill(~REAL, float("nan"))
    assert torch.equal(kl_shaped_rewards(SCORES, dirty, REAL, 0.5), rewards)
    wide = torch.nn.functional.pad(dirty, (1, 2), value=float("inf"))
    wide_rewards = kl_shaped_rewards(SCORES, wide, torch.nn.functional.pad(REAL, (1, 2)), 0.5)
    assert torch.equal(wide_rewards, torch.nn.functional.pad(rewards, (1, 2)))


def test_shaped_rewards_of_no_columns_are_empty_and_inputs_stay_as_they_were() -> None:
    assert kl_shaped_rewards(SCORES, KL[:, :0], REAL[:, :0], 0.5).shape == (4, 0)
    before = SCORES.clone(), KL.clone(), REAL.clone()
    kl_shaped_rewards(SCORES, KL, REAL, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (SCORES, KL, REAL), strict=True))


def test_shaped_rewards_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"scores has 3 entries, kl has 4 rows; one score per completion"):
        kl_shaped_rewards(SCORES[:3], KL, REAL, 0.5)
    with pytest.raises(ValueError, match=r"scores has shape \[4, 1\]; it must have 1 dimension"):
        kl_shaped_rewards(SCORES[:, None], KL, REAL, 0.5)
    with pytest.raises(ValueError, match=r"kl has shape \[3\]; it must have 2 dimension"):
        kl_shaped_rewards(SCORES, KL[0], REAL, 0.5)
    with pytest.raises(ValueError, match=r"mask has shape \[4, 2\], kl has \[4, 3\]"):
        kl_shaped_rewards(SCORES, KL, REAL[:, 1:], 0.5)
    with pytest.raises(ValueError, match=r"mask has dtype torch.int64"):
        kl_shaped_rewards(SCORES, KL, REAL.long(), 0.5)


def test_fixed_coefficient_stays() -> None:
    controller = FixedKL(0.05)
    controller.update(100.0, 64)
    assert controller.coefficient == 0.05


def test_adaptive_coefficient_follows_the_hand_computed_steps() -> None:
    controller = AdaptiveKL(coefficient=0.2, target=6.0, horizon=1000.0)
    controller.update(6.6, 100)  # error 0.1
    assert controller.coefficient == pytest.approx(0.2 * 1.01)
    controller.update(60.0, 100)  # error 9, clipped to 0.2
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02)
    controller.update(-1.0, 500)  # error below -1, clipped to -0.2
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02 * 0.9)
    controller.update(6.0, 100)  # on target
    assert controller.coefficient == pytest.approx(0.2 * 1.01 * 1.02 * 0.9)


def test_coefficients_go_on_from_their_state() -> None:
    adaptive = AdaptiveKL(0.2, target=6.0, horizon=1000.0)
    adaptive.update(9.0, 128)
    resumed = AdaptiveKL(0.7, target=6.0, horizon=1000.0)
    resumed.load_state_dict(adaptive.state_dict())
    adaptive.update(3.0, 128)
    resumed.update(3.0, 128)
    assert resumed.coefficient == adaptive.coefficient
    fixed = FixedKL(0.0)
    fixed.load_state_dict(FixedKL(0.3).state_dict())
    assert fixed == FixedKL(0.3)


def test_coefficients_refuse_impossible_settings() -> None:
    with pytest.raises(ValueError, match=r"KL coefficient -0.1 must be 0 or more, and finite"):
        FixedKL(-0.1)
    with pytest.raises(ValueError, match=r"adaptive KL coefficient 0.0 must be above 0, and finite"):
        AdaptiveKL(0.0, 6.0, 1000.0)
    with pytest.raises(ValueError, match=r"adaptive KL target -6.0 must be above 0, and finite"):
        AdaptiveKL(0.2, -6.0, 1000.0)
    with pytest.raises(ValueError, match=r"adaptive KL horizon inf must be above 0, and finite"):
        AdaptiveKL(0.2, 6.0, math.inf)


def test_adaptive_coefficient_refuses_updates_it_cannot_follow() -> None:
    controller = AdaptiveKL(0.2, 6.0, 100.0)
    with pytest.raises(ValueError, match=r"KL nan is not finite; the KL coefficient cannot follow it"):
        controller.update(math.nan, 10)
    for num_samples in (-1, 500):
        with pytest.raises(ValueError, match=rf"{num_samples} samples with horizon 100.0; they must be 0 or more and"):
            controller.update(6.0, num_samples)
    assert controller.coefficient == 0.2


@pytest.mark.parametrize("controller", [FixedKL(0.2), AdaptiveKL(0.2, 6.0, 100.0)])
def test_coefficients_refuse_another_state(controller: FixedKL | AdaptiveKL) -> None:
    with pytest.raises(ValueError, match=r"KL state has keys \['beta'\]; expected \['coefficient'\]"):
        controller.load_state_dict({"beta": 0.1})
