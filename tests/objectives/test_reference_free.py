"""Pair losses without a reference: numbers done by hand, the published formulas as loops, identities and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from onebase.objectives.preference import sigmoid_loss
from onebase.objectives.reference_free import cpo_loss, orpo_loss, simpo_loss

CHOSEN_LENGTHS = torch.tensor([3, 7, 20, 1, 12])
REJECTED_LENGTHS = torch.tensor([4, 2, 31, 9, 12])
Loss = Callable[[Tensor, Tensor], Tensor]

simpo: Loss = partial(simpo_loss, chosen_lengths=CHOSEN_LENGTHS, rejected_lengths=REJECTED_LENGTHS, beta=2.0, gamma=0.7)
orpo: Loss = partial(orpo_loss, chosen_lengths=CHOSEN_LENGTHS, rejected_lengths=REJECTED_LENGTHS)
cpo: Loss = partial(cpo_loss, beta=0.2, label_smoothing=0.1)


def pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Five pairs with gradient, float64."""
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = -20 * torch.rand(2, 5, generator=generator, dtype=torch.float64)
    return chosen.requires_grad_(), rejected.requires_grad_()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def simpo_by_hand(w: Tensor, l: Tensor, n_w: int, n_l: int) -> Tensor:  # noqa: E741
    return -torch.log(sigmoid(2.0 / n_w * w - 2.0 / n_l * l - 0.7))


def orpo_by_hand(w: Tensor, l: Tensor, n_w: int, n_l: int) -> Tensor:  # noqa: E741
    # Probabilities here are geometric means over the tokens.
    p_w, p_l = torch.exp(w) ** (1 / n_w), torch.exp(l) ** (1 / n_l)
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -torch.log(sigmoid(torch.log(odds_ratio)))


def cpo_by_hand(w: Tensor, l: Tensor, n_w: int, n_l: int) -> Tensor:  # noqa: E741
    prefers = w.exp() ** 0.2 / (w.exp() ** 0.2 + l.exp() ** 0.2)
    return -0.9 * torch.log(prefers) - 0.1 * torch.log(1 - prefers)


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [(simpo, simpo_by_hand), (orpo, orpo_by_hand), (cpo, cpo_by_hand)],
    ids=["simpo", "orpo", "cpo"],
)
def test_values_and_gradients_are_those_of_the_published_formula(loss: Loss, by_hand: Callable[..., Tensor]) -> None:
    chosen, rejected = pairs()
    ours = loss(chosen, rejected)
    lengths = list(zip(CHOSEN_LENGTHS.tolist(), REJECTED_LENGTHS.tolist(), strict=True))
    theirs = torch.stack([by_hand(chosen[p], rejected[p], *lengths[p]) for p in range(5)])
    assert ours.shape == (5,)
    torch.testing.assert_close(ours, theirs)
    mine, reference = (torch.autograd.grad(result.sum(), (chosen, rejected)) for result in (ours, theirs))
    torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("loss", [simpo, orpo, cpo], ids=["simpo", "orpo", "cpo"])
def test_gradients_match_finite_differences(loss: Loss) -> None:
    assert torch.autograd.gradcheck(loss, pairs(seed=1))


@pytest.mark.parametrize("loss", [simpo, orpo, cpo], ids=["simpo", "orpo", "cpo"])
def test_losses_and_gradients_are_finite_from_sure_to_hopeless(loss: Loss) -> None:
    values = torch.tensor([0.0, -1e-12, -1.0, -1e3, -1e5])
    for shift in range(5):
        chosen, rejected = values.clone().requires_grad_(), values.roll(shift).requires_grad_()
        result = loss(chosen, rejected)
        gradients = torch.autograd.grad(result.sum(), (chosen, rejected))
        assert result.dtype == torch.float32 and result.isfinite().all()
        assert all(gradient.isfinite().all() for gradient in gradients)


def test_losses_match_hand_computed_values() -> None:
    two, four = torch.tensor([2]), torch.tensor([4])
    # -1 against -0.75 per token: rewards -2 and -1.5, which lead by -0.5 - 0.5 with the margin.
    simpo_value = simpo_loss(torch.tensor([-2.0]), torch.tensor([-3.0]), two, four, beta=2.0, gamma=0.5).item()
    assert simpo_value == pytest.approx(math.log(1 + math.exp(1)))
    # Probabilities 3/4 and 1/2 per token: odds 3 and 1, sigmoid(log 3) = 3/4.
    chosen, rejected = torch.tensor([2 * math.log(0.75)]), torch.tensor([4 * math.log(0.5)])
    assert orpo_loss(chosen, rejected, two, four).item() == pytest.approx(math.log(4 / 3))
    assert cpo_loss(torch.tensor([-2.0]), torch.tensor([-12.0]), beta=0.1).item() == pytest.approx(
        math.log(1 + math.exp(-1))
    )


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_cpo_is_dpo_with_a_reference_of_0(label_smoothing: float) -> None:
    chosen, rejected = pairs()
    zero = torch.zeros(5, dtype=torch.float64)
    torch.testing.assert_close(
        cpo_loss(chosen, rejected, beta=0.3, label_smoothing=label_smoothing),
        sigmoid_loss(chosen, rejected, zero, zero, beta=0.3, label_smoothing=label_smoothing),
    )


def test_smoothing_of_a_half_makes_the_two_completions_alike() -> None:
    chosen, rejected = pairs()
    smoothed = partial(cpo_loss, beta=0.3, label_smoothing=0.5)
    torch.testing.assert_close(smoothed(chosen, rejected), smoothed(rejected, chosen))


def test_repeating_the_tokens_of_a_completion_changes_neither_simpo_nor_orpo() -> None:
    chosen, rejected = pairs()
    longer = (3 * chosen, 5 * rejected, 3 * CHOSEN_LENGTHS, 5 * REJECTED_LENGTHS)
    torch.testing.assert_close(orpo_loss(*longer), orpo(chosen, rejected))
    torch.testing.assert_close(simpo_loss(*longer, beta=2.0, gamma=0.7), simpo(chosen, rejected))


def test_simpo_without_margin_on_single_tokens_is_cpo() -> None:
    chosen, rejected = pairs()
    ones = torch.ones(5, dtype=torch.int64)
    torch.testing.assert_close(
        simpo_loss(chosen, rejected, ones, ones, beta=0.3, gamma=0.0), cpo_loss(chosen, rejected, beta=0.3)
    )


def test_orpo_of_equals_is_log_2_and_pushes_them_apart() -> None:
    chosen, rejected = (torch.tensor([-4.0], requires_grad=True) for _ in range(2))
    loss = orpo_loss(chosen, rejected, torch.tensor([5]), torch.tensor([5]))
    assert loss.item() == pytest.approx(math.log(2))
    gradients = torch.autograd.grad(loss, (chosen, rejected))
    assert gradients[0].item() < 0 < gradients[1].item()


def test_orpo_of_an_almost_sure_completion_is_not_rounded_away_in_float32() -> None:
    # Odds of about 1e6 against odds of 1: -log sigmoid(log 1e6) is about 1e-6.
    one = torch.tensor([1])
    loss = orpo_loss(torch.tensor([-1e-6]), torch.tensor([math.log(0.5)]), one, one)
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)


def test_no_pairs_give_no_losses() -> None:
    none = torch.zeros(0)
    assert orpo_loss(none, none, none, none).shape == (0,)
    assert simpo_loss(none, none, none, none, beta=2.0, gamma=0.5).shape == (0,)
    assert cpo_loss(none, none, beta=0.1).shape == (0,)


def test_settings_out_of_range_are_refused() -> None:
    chosen, rejected = pairs()
    lengths = (CHOSEN_LENGTHS, REJECTED_LENGTHS)
    for beta in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"beta {beta} must be above 0, and finite"):
            simpo_loss(chosen, rejected, *lengths, beta=beta, gamma=0.5)
        with pytest.raises(ValueError, match=rf"beta {beta} must be above 0, and finite"):
            cpo_loss(chosen, rejected, beta=beta)
    for gamma in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match=rf"gamma {gamma} must be 0 or more, and finite"):
            simpo_loss(chosen, rejected, *lengths, beta=2.0, gamma=gamma)
    with pytest.raises(ValueError, match=r"label_smoothing 0.7 must lie in \[0, 0.5\]"):
        cpo_loss(chosen, rejected, beta=0.1, label_smoothing=0.7)


def test_pairs_and_lengths_that_do_not_fit_are_refused() -> None:
    chosen, rejected = pairs()
    with pytest.raises(ValueError, match=r"rejected has shape \[4\], chosen has \[5\]; they must be equal"):
        cpo_loss(chosen, rejected[:4], beta=0.1)
    with pytest.raises(ValueError, match=r"chosen has shape \[5, 1\]; it must have 1 dimension"):
        cpo_loss(chosen[:, None], rejected[:, None], beta=0.1)
    for loss in (orpo_loss, partial(simpo_loss, beta=2.0, gamma=0.5)):
        with pytest.raises(ValueError, match=r"rejected_lengths has shape \[1\], chosen has \[5\]"):
            loss(chosen, rejected, CHOSEN_LENGTHS, REJECTED_LENGTHS[:1])
        with pytest.raises(ValueError, match=r"rejected_lengths holds 0 at place 0; it must be 1 or more"):
            loss(chosen, rejected, CHOSEN_LENGTHS, 0 * REJECTED_LENGTHS)
