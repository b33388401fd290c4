"""Pair losses with a reference: numbers done by hand, the published formulas as loops, identities and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.objectives.preference import (
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    mean_logprobs,
    nll_loss,
    robust_loss,
    sigmoid_loss,
    sigmoid_norm_loss,
)

CHOSEN_LENGTHS = torch.tensor([3, 7, 20, 1, 12, 5])
REJECTED_LENGTHS = torch.tensor([4, 2, 31, 9, 12, 6])
Loss = Callable[..., Tensor]


def pairs(seed: int = 0) -> list[Tensor]:
    """Six pairs: chosen, rejected, and both under the reference, float64, the first two with gradient."""
    generator = torch.Generator().manual_seed(seed)
    sums = [-20 * torch.rand(6, generator=generator, dtype=torch.float64) for _ in range(4)]
    return [sums[0].requires_grad_(), sums[1].requires_grad_(), sums[2], sums[3]]


def log_sigmoid(x: Tensor) -> Tensor:
    return torch.log(1 / (1 + torch.exp(-x)))


def by_loop(kind: str, four: list[Tensor], *, beta: float, e: float = 0.0) -> Tensor:
    """The formulas as the papers print them, ratios of probabilities and all, one pair at a time."""
    losses = []
    for p in range(6):
        policy_w, policy_l, reference_w, reference_l = (sums[p] for sums in four)
        ratio_w, ratio_l = policy_w.exp() / reference_w.exp(), policy_l.exp() / reference_l.exp()
        h = beta * torch.log(ratio_w) - beta * torch.log(ratio_l)
        match kind:
            case "sigmoid":
                losses.append(-(1 - e) * log_sigmoid(h) - e * log_sigmoid(-h))
            case "sigmoid_norm":
                h = torch.log(ratio_w) / int(CHOSEN_LENGTHS[p]) - torch.log(ratio_l) / int(REJECTED_LENGTHS[p])
                losses.append(-(1 - e) * log_sigmoid(beta * h) - e * log_sigmoid(-beta * h))
            case "robust":
                losses.append(((1 - e) * -log_sigmoid(h) - e * -log_sigmoid(-h)) / (1 - 2 * e))
            case "hinge":
                losses.append(1 - h if h < 1 else h * 0)
            case "ipo":
                h = torch.log(ratio_w) / int(CHOSEN_LENGTHS[p]) - torch.log(ratio_l) / int(REJECTED_LENGTHS[p])
                losses.append((h - 0.5 / beta) ** 2)
    return torch.stack(losses)


ipo = partial(ipo_loss, chosen_lengths=CHOSEN_LENGTHS, rejected_lengths=REJECTED_LENGTHS)
sigmoid_norm = partial(sigmoid_norm_loss, chosen_lengths=CHOSEN_LENGTHS, rejected_lengths=REJECTED_LENGTHS)

WITH_REFERENCE: list[tuple[str, Loss, dict[str, float], dict[str, float]]] = [
    ("sigmoid", sigmoid_loss, {"beta": 0.1}, {"beta": 0.1}),
    ("sigmoid", sigmoid_loss, {"beta": 0.3, "label_smoothing": 0.2}, {"beta": 0.3, "e": 0.2}),
    ("robust", robust_loss, {"beta": 0.3, "label_smoothing": 0.2}, {"beta": 0.3, "e": 0.2}),
    ("hinge", hinge_loss, {"beta": 0.1}, {"beta": 0.1}),
    ("ipo", ipo, {"beta": 0.25}, {"beta": 0.25}),
    ("sigmoid_norm", sigmoid_norm, {"beta": 5.0}, {"beta": 5.0}),
    ("sigmoid_norm", sigmoid_norm, {"beta": 2.0, "label_smoothing": 0.2}, {"beta": 2.0, "e": 0.2}),
]


@pytest.mark.parametrize(("kind", "loss", "settings", "names"), WITH_REFERENCE)
def test_values_and_gradients_are_those_of_the_published_formula(
    kind: str, loss: Loss, settings: dict[str, float], names: dict[str, float]
) -> None:
    four = pairs()
    ours, theirs = loss(*four, **settings), by_loop(kind, four, **names)
    assert ours.shape == (6,)
    torch.testing.assert_close(ours, theirs)
    for mine, reference in zip(
        torch.autograd.grad(ours.sum(), four[:2]), torch.autograd.grad(theirs.sum(), four[:2]), strict=True
    ):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize(("kind", "loss", "settings", "names"), WITH_REFERENCE)
def test_gradients_match_finite_differences(
    kind: str, loss: Loss, settings: dict[str, float], names: dict[str, float]
) -> None:
    chosen, rejected, *reference = pairs(seed=1)
    assert torch.autograd.gradcheck(lambda c, r: loss(c, r, *reference, **settings), (chosen, rejected))


@pytest.mark.parametrize(("kind", "loss", "settings", "names"), WITH_REFERENCE)
def test_reference_gets_no_gradient(kind: str, loss: Loss, settings: dict[str, float], names: dict[str, float]) -> None:
    four = [sums.detach().requires_grad_() for sums in pairs()]
    loss(*four, **settings).sum().backward()
    assert four[0].grad is not None and four[1].grad is not None
    assert four[2].grad is None and four[3].grad is None


@pytest.mark.parametrize(("kind", "loss", "settings", "names"), WITH_REFERENCE)
def test_losses_stay_in_float32_and_finite_at_extreme_log_probs(
    kind: str, loss: Loss, settings: dict[str, float], names: dict[str, float]
) -> None:
    far, near = torch.full((6,), -1e5, requires_grad=True), torch.full((6,), -1.0, requires_grad=True)
    reference = torch.full((6,), -1.0), torch.full((6,), -1.0)
    for first, second in ((far, near), (near, far)):
        result = loss(first, second, *reference, **settings)
        gradients = torch.autograd.grad(result.sum(), (first, second))
        assert result.dtype == torch.float32 and result.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_losses_match_hand_computed_values() -> None:
    # The log-ratios are 2 and -1 nats, so that the rewards at beta 0.5 are 1 and -0.5, and lead by 1.5.
    one = [torch.tensor([value]) for value in (-3.0, -7.0, -5.0, -6.0)]
    right, wrong = math.log(1 + math.exp(-1.5)), math.log(1 + math.exp(1.5))
    assert implicit_rewards(one[0], one[2], beta=0.5).tolist() == [1.0]
    assert implicit_rewards(one[1], one[3], beta=0.5).tolist() == [-0.5]
    assert sigmoid_loss(*one, beta=0.5).item() == pytest.approx(right)
    assert sigmoid_loss(*one, beta=0.5, label_smoothing=0.1).item() == pytest.approx(0.9 * right + 0.1 * wrong)
    assert robust_loss(*one, beta=0.5, label_smoothing=0.1).item() == pytest.approx((0.9 * right - 0.1 * wrong) / 0.8)
    assert hinge_loss(*one, beta=0.5).item() == 0
    assert hinge_loss(*one, beta=0.25).item() == 0.25
    # 2/4 nats per token against -1/2, times beta 3: a lead of 3.
    loss = sigmoid_norm(*one, chosen_lengths=torch.tensor([4]), rejected_lengths=torch.tensor([2]), beta=3.0)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3)))
    # 2/4 nats per token against -1/2, a lead of 1; the target is 1 / (2 * 0.25) = 2.
    assert ipo(*one, chosen_lengths=torch.tensor([4]), rejected_lengths=torch.tensor([2]), beta=0.25).item() == 1


def test_loss_of_the_reference_itself_is_log_2() -> None:
    chosen, rejected, *_ = pairs()
    same = sigmoid_loss(chosen, rejected, chosen, rejected, beta=0.1)
    torch.testing.assert_close(same, torch.full((6,), math.log(2), dtype=torch.float64))


def test_gradient_of_dpo_is_the_closed_form_of_the_paper() -> None:
    """Rafailov et al. 2023, below eq. 7: -beta sigmoid(r_l - r_w) (grad log policy(w) - grad log policy(l))."""
    chosen, rejected, reference_chosen, reference_rejected = pairs(seed=2)
    loss = sigmoid_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.2)
    gradients = torch.autograd.grad(loss.sum(), (chosen, rejected))
    for p in range(6):
        lead = 0.2 * ((chosen[p] - reference_chosen[p]) - (rejected[p] - reference_rejected[p])).item()
        weight = 0.2 / (1 + math.exp(lead))
        assert gradients[0][p].item() == pytest.approx(-weight)
        assert gradients[1][p].item() == pytest.approx(weight)


def test_smoothing_of_a_half_makes_the_two_completions_alike() -> None:
    chosen, rejected, reference_chosen, reference_rejected = pairs()
    forward = sigmoid_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.3, label_smoothing=0.5)
    backward = sigmoid_loss(rejected, chosen, reference_rejected, reference_chosen, beta=0.3, label_smoothing=0.5)
    torch.testing.assert_close(forward, backward)


def test_smoothed_loss_is_smallest_where_the_preference_is_as_sure_as_the_labels() -> None:
    lead = math.log(0.8 / 0.2) / 0.1
    chosen, zero = torch.tensor([lead], dtype=torch.float64, requires_grad=True), torch.zeros(1, dtype=torch.float64)
    loss = sigmoid_loss(chosen, zero, zero, zero, beta=0.1, label_smoothing=0.2)
    assert torch.autograd.grad(loss, chosen)[0].item() == pytest.approx(0, abs=1e-12)


def test_robust_loss_without_flips_is_the_sigmoid_loss() -> None:
    four = pairs()
    torch.testing.assert_close(robust_loss(*four, beta=0.3, label_smoothing=0.0), sigmoid_loss(*four, beta=0.3))


def test_robust_loss_is_unbiased_under_flipped_labels() -> None:
    chosen, rejected, reference_chosen, reference_rejected = pairs()
    settings = {"beta": 0.3, "label_smoothing": 0.15}
    kept = robust_loss(chosen, rejected, reference_chosen, reference_rejected, **settings)
    flipped = robust_loss(rejected, chosen, reference_rejected, reference_chosen, **settings)
    clean = sigmoid_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.3)
    torch.testing.assert_close(0.85 * kept + 0.15 * flipped, clean)


def test_hinge_without_reference_is_the_slic_calibration_loss() -> None:
    chosen, rejected, zero = *pairs()[:2], torch.zeros(6, dtype=torch.float64)
    slic = (2.5 - chosen + rejected).clamp_min(0)
    torch.testing.assert_close(2.5 * hinge_loss(chosen, rejected, zero, zero, beta=1 / 2.5), slic)


def test_hinge_has_no_gradient_once_the_lead_is_reached() -> None:
    zero, chosen = torch.zeros(2), torch.tensor([9.0, 11.0], requires_grad=True)
    loss = hinge_loss(chosen, zero, zero, zero, beta=0.1)
    assert torch.autograd.grad(loss.sum(), chosen)[0].tolist() == pytest.approx([-0.1, 0])


def test_ipo_is_0_at_its_target_and_grows_alike_on_both_sides() -> None:
    lengths, zero, target = torch.tensor([4]), torch.zeros(1, dtype=torch.float64), 1 / (2 * 0.25)

    def at(lead: float) -> float:
        chosen = torch.tensor([4 * lead], dtype=torch.float64)
        return ipo_loss(chosen, zero, zero, zero, lengths, lengths, beta=0.25).item()

    assert at(target) == 0
    assert at(target + 0.3) == pytest.approx(0.09) == at(target - 0.3)


def test_ipo_with_lengths_of_1_is_the_formula_as_printed() -> None:
    four, ones = pairs(), torch.ones(6, dtype=torch.int64)
    h = (four[0] - four[1]) - (four[2] - four[3])
    torch.testing.assert_close(ipo(*four, chosen_lengths=ones, rejected_lengths=ones, beta=0.1), (h - 5) ** 2)


def test_the_length_normalised_loss_is_that_of_means() -> None:
    four = pairs()
    lengths = [CHOSEN_LENGTHS, REJECTED_LENGTHS, CHOSEN_LENGTHS, REJECTED_LENGTHS]
    means = sigmoid_loss(*(mean_logprobs(s, n) for s, n in zip(four, lengths, strict=True)), beta=2.0)
    torch.testing.assert_close(sigmoid_norm(*four, beta=2.0), means)


def test_nll_is_per_token_and_per_completion() -> None:
    sums, lengths = torch.tensor([-6.0, -5.0]), torch.tensor([3, 10])
    assert mean_logprobs(sums, lengths).tolist() == [-2.0, -0.5]
    assert nll_loss(sums, lengths).tolist() == [2.0, 0.5]


def test_no_pairs_give_no_losses() -> None:
    none = torch.zeros(0)
    assert sigmoid_loss(none, none, none, none, beta=0.1).shape == (0,)
    assert ipo_loss(none, none, none, none, none, none, beta=0.1).shape == (0,)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_beta_must_be_above_0(beta: float) -> None:
    four = pairs()
    calls: list[Loss] = [
        sigmoid_loss,
        partial(robust_loss, label_smoothing=0.1),
        hinge_loss,
        ipo,
        sigmoid_norm,
        lambda chosen, rejected, *_, beta: implicit_rewards(chosen, rejected, beta=beta),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=rf"beta {beta} must be above 0, and finite"):
            call(*four, beta=beta)


def test_label_smoothing_must_lie_in_its_range() -> None:
    four = pairs()
    for outside in (-0.1, 0.6, math.nan):
        with pytest.raises(ValueError, match=rf"label_smoothing {outside} must lie in \[0, 0.5\]$"):
            sigmoid_loss(*four, beta=0.1, label_smoothing=outside)
        with pytest.raises(ValueError, match=rf"label_smoothing {outside} must lie in \[0, 0.5\]$"):
            sigmoid_norm(*four, beta=0.1, label_smoothing=outside)
    for outside in (-0.1, 0.5, math.nan):
        with pytest.raises(ValueError, match=rf"label_smoothing {outside} must lie in \[0, 0.5\): at 0.5 the labels"):
            robust_loss(*four, beta=0.1, label_smoothing=outside)


@pytest.mark.parametrize(("kind", "loss", "settings", "names"), WITH_REFERENCE)
def test_pairs_that_do_not_fit_are_refused(kind: str, loss: Any, settings: dict[str, Any], names: Any) -> None:
    four = pairs()
    with pytest.raises(ValueError, match=r"rejected has shape \[5\], chosen has \[6\]; they must be equal"):
        loss(four[0], four[1][:5], *four[2:], **settings)
    with pytest.raises(ValueError, match=r"reference_rejected has shape \[1\], chosen has \[6\]"):
        loss(*four[:3], four[3][:1], **settings)
    with pytest.raises(ValueError, match=r"reference_chosen has shape \[6, 1\]; it must have 1 dimension"):
        loss(four[0], four[1], four[2][:, None], four[3], **settings)


def test_lengths_that_do_not_fit_are_refused() -> None:
    four = pairs()
    with pytest.raises(ValueError, match=r"rejected_lengths has shape \[2\], chosen has \[6\]"):
        ipo(*four, rejected_lengths=REJECTED_LENGTHS[:2], beta=0.1)
    empty = CHOSEN_LENGTHS.clone()
    empty[4] = 0
    with pytest.raises(ValueError, match=r"chosen_lengths holds 0 at place 4; it must be 1 or more: leave out compl"):
        ipo(*four, chosen_lengths=empty, beta=0.1)
    for per_token in (mean_logprobs, nll_loss):
        with pytest.raises(ValueError, match=r"lengths holds 0 at place 4"):
            per_token(four[0], empty)
        with pytest.raises(ValueError, match=r"lengths has shape \[3\], logprobs has \[6\]"):
            per_token(four[0], empty[:3])
        with pytest.raises(ValueError, match=r"logprobs has shape \[6, 1\]; it must have 1 dimension"):
            per_token(four[0][:, None], empty)


def test_implicit_rewards_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"reference_logprobs has shape \[1\], logprobs has \[2\]"):
        implicit_rewards(torch.zeros(2), torch.zeros(1), beta=0.1)
    with pytest.raises(ValueError, match=r"logprobs has shape \[\]; it must have 1 dimension"):
        implicit_rewards(torch.tensor(0.0), torch.tensor(0.0), beta=0.1)
