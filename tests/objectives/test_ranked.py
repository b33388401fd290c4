"""List losses against the published sums written as loops, what ties and other lists may change, and refusals."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from onebase.objectives.preference import implicit_rewards, sigmoid_loss
from onebase.objectives.ranked import plackett_luce_loss, rrhf_loss

Loss = Callable[[Tensor, Tensor, Tensor, int], Tensor]
BOTH = pytest.mark.parametrize("loss", [rrhf_loss, plackett_luce_loss])

GRADES = torch.tensor([3.0, 1.0, 2.0, 0.0, 5.0, 4.0, 1.0, 1.0, 2.0, 0.5])
LIST_INDEX = torch.tensor([0, 0, 0, 0, 1, 1, 3, 3, 3, 3])
"""Lists of 4, 2, 0 and 4 completions; the last one holds a tie."""


def values(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(10, generator=generator, dtype=torch.float64).requires_grad_()


def members(which: int) -> list[int]:
    return [n for n in range(10) if LIST_INDEX[n] == which]


def rrhf_by_loop(p: Tensor) -> Tensor:
    losses = []
    for which in range(4):
        loss = p.sum() * 0
        for i in members(which):
            for j in members(which):
                if GRADES[i] < GRADES[j] and p[i] > p[j]:
                    loss = loss + p[i] - p[j]
        losses.append(loss)
    return torch.stack(losses)


def plackett_luce_by_loop(r: Tensor) -> Tensor:
    losses = []
    for which in range(4):
        loss = r.sum() * 0
        for i in members(which):
            worse = [j for j in members(which) if GRADES[j] < GRADES[i]]
            loss = loss - torch.log(r[i].exp() / (r[i].exp() + sum(r[j].exp() for j in worse)))
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.parametrize(("loss", "by_loop"), [(rrhf_loss, rrhf_by_loop), (plackett_luce_loss, plackett_luce_by_loop)])
def test_values_and_gradients_are_those_of_a_loop_over_pairs(loss: Loss, by_loop: Callable[[Tensor], Tensor]) -> None:
    given = values()
    ours, theirs = loss(given, GRADES, LIST_INDEX, 4), by_loop(given)
    assert ours.shape == (4,)
    torch.testing.assert_close(ours, theirs)
    # Weighted, so that a gradient that crosses lists would show.
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0])
    mine, reference = (torch.autograd.grad((weight * result).sum(), given)[0] for result in (ours, theirs))
    torch.testing.assert_close(mine, reference)


@BOTH
def test_gradients_match_finite_differences(loss: Loss) -> None:
    assert torch.autograd.gradcheck(lambda v: loss(v, GRADES, LIST_INDEX, 4), values(seed=1))


@pytest.mark.parametrize("num_completions", range(2, 7))
def test_plackett_luce_of_a_ranking_is_the_product_of_picks_best_first(num_completions: int) -> None:
    """Rafailov et al. 2023, eq. 18 and 20, on a list that is ordered best first."""
    rewards = values(seed=3)[:num_completions].detach()
    likelihood = 1.0
    for k in range(num_completions):
        likelihood *= math.exp(rewards[k]) / sum(math.exp(rewards[j]) for j in range(k, num_completions))
    grades, one_list = -torch.arange(float(num_completions)), torch.zeros(num_completions, dtype=torch.int64)
    loss = plackett_luce_loss(rewards, grades, one_list, 1)
    assert loss.item() == pytest.approx(-math.log(likelihood))


def test_plackett_luce_likelihoods_of_all_rankings_sum_to_1() -> None:
    rewards, one_list = values()[:4].detach(), torch.zeros(4, dtype=torch.int64)
    orders = torch.cartesian_prod(*[torch.arange(4.0)] * 4)
    rankings = [order for order in orders if len(order.unique()) == 4]
    likelihoods = [plackett_luce_loss(rewards, order, one_list, 1).neg().exp().item() for order in rankings]
    assert len(likelihoods) == 24
    assert sum(likelihoods) == pytest.approx(1)


def test_plackett_luce_of_two_is_the_sigmoid_loss() -> None:
    logprobs, reference = values(), values(seed=4).detach()
    rewards = implicit_rewards(logprobs, reference, beta=0.3)
    grades, pair_index = torch.tensor([1.0, 0.0]).repeat(5), torch.arange(5).repeat_interleave(2)
    pair = sigmoid_loss(logprobs[::2], logprobs[1::2], reference[::2], reference[1::2], beta=0.3)
    torch.testing.assert_close(plackett_luce_loss(rewards, grades, pair_index, 5), pair)


def test_losses_match_hand_computed_values() -> None:
    # exp(r) is 2, 1, 1 from best to worst: picked with 2/4, then 1/2.
    rewards, one_list = torch.tensor([0.0, math.log(2), 0.0]), torch.zeros(3, dtype=torch.int64)
    grades = torch.tensor([0.0, 2.0, 1.0])
    assert plackett_luce_loss(rewards, grades, one_list, 1).item() == pytest.approx(math.log(4))
    # The worst stands over the best by 1 and over the second by 3; those two are in order.
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    assert rrhf_loss(logprobs, torch.tensor([0.0, 2.0, 1.0]), one_list, 1).item() == 4


def test_rrhf_of_a_list_in_order_is_0_with_no_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -3.5], requires_grad=True)
    loss = rrhf_loss(logprobs, torch.tensor([9.0, 4.0, 4.0, 0.0]), torch.zeros(4, dtype=torch.int64), 1)
    assert loss.item() == 0
    assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == [0, 0, 0, 0]


@BOTH
def test_equal_grades_do_not_compete(loss: Loss) -> None:
    tied, one_list = torch.tensor([0.3, 2.0, -1.0], requires_grad=True), torch.zeros(3, dtype=torch.int64)
    all_equal = loss(tied, torch.ones(3), one_list, 1)
    assert all_equal.item() == 0
    assert torch.autograd.grad(all_equal.sum(), tied)[0].tolist() == [0, 0, 0]
    # Two equals above one worse: the sum of each against the worse, as two lists of two would give.
    above = loss(tied, torch.tensor([1.0, 1.0, 0.0]), one_list, 1)
    apart = loss(tied[torch.tensor([0, 2, 1, 2])], torch.tensor([1.0, 0.0, 1.0, 0.0]), torch.tensor([0, 0, 1, 1]), 2)
    assert above.item() == pytest.approx(apart.sum().item())


@BOTH
def test_other_lists_and_the_order_of_completions_change_nothing(loss: Loss) -> None:
    given = values().detach()
    together = loss(given, GRADES, LIST_INDEX, 4)
    for which in range(4):
        own = LIST_INDEX == which
        alone = loss(given[own], GRADES[own], torch.zeros(int(own.sum()), dtype=torch.int64), 1)
        torch.testing.assert_close(together[which], alone[0])
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(given[order], GRADES[order], LIST_INDEX[order], 4), together)


@BOTH
def test_what_is_not_finite_stays_in_its_list(loss: Loss) -> None:
    clean = values()
    spoilt = torch.where(LIST_INDEX == 1, -torch.inf, clean)
    losses = loss(spoilt, GRADES, LIST_INDEX, 4)[[0, 3]]
    expected = loss(clean, GRADES, LIST_INDEX, 4)[[0, 3]]
    torch.testing.assert_close(losses, expected)
    mine, reference = (torch.autograd.grad(result.sum(), clean)[0] for result in (losses, expected))
    torch.testing.assert_close(mine, reference)


@BOTH
def test_only_the_order_of_the_grades_counts(loss: Loss) -> None:
    given = values()
    torch.testing.assert_close(loss(given, GRADES.exp() - 50, LIST_INDEX, 4), loss(given, GRADES, LIST_INDEX, 4))
    shifted = given + torch.tensor([5.0, -3.0, 0.0, 100.0])[LIST_INDEX]
    torch.testing.assert_close(loss(shifted, GRADES, LIST_INDEX, 4), loss(given, GRADES, LIST_INDEX, 4))


@BOTH
def test_lists_that_rank_nothing_cost_nothing(loss: Loss) -> None:
    single = loss(torch.tensor([-3.0]), torch.ones(1), torch.tensor([1]), 3)
    assert single.tolist() == [0, 0, 0]
    assert loss(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 2).tolist() == [0, 0]


@BOTH
def test_losses_stay_in_float32_and_finite_at_extreme_values(loss: Loss) -> None:
    extreme = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    result = loss(extreme, torch.tensor([2.0, 1.0, 0.0]), torch.zeros(3, dtype=torch.int64), 1)
    assert result.dtype == torch.float32 and result.isfinite().all()
    assert torch.autograd.grad(result.sum(), extreme)[0].isfinite().all()


@BOTH
def test_lists_that_do_not_fit_are_refused(loss: Loss) -> None:
    given, first = values(), "mean_logprobs" if loss is rrhf_loss else "rewards"
    with pytest.raises(ValueError, match=rf"grades has shape \[4\], {first} has \[10\]; they must be equal"):
        loss(given, GRADES[:4], LIST_INDEX, 4)
    with pytest.raises(ValueError, match=rf"list_index has shape \[1\], {first} has \[10\]"):
        loss(given, GRADES, LIST_INDEX[:1], 4)
    with pytest.raises(ValueError, match=rf"{first} has shape \[2, 5\]; it must have 1 dimension"):
        loss(given.view(2, 5), GRADES.view(2, 5), LIST_INDEX.view(2, 5), 4)
    with pytest.raises(ValueError, match=r"list_index holds 3; it must lie in 0..2"):
        loss(given, GRADES, LIST_INDEX, 3)
    with pytest.raises(ValueError, match=r"list_index holds -1; it must lie in 0..3"):
        loss(given, GRADES, LIST_INDEX - 1, 4)
    with pytest.raises(ValueError, match=r"grade 7 is NaN; every completion needs a number to be ranked by"):
        loss(given, torch.where(torch.arange(10) == 7, torch.nan, GRADES), LIST_INDEX, 4)
