"""GAE against its double sum, and explained variance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from onebase.objectives.advantages import explained_variance, gae


def literal_gae(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l}) of one row without masked cells, V past it 0."""
    length = len(rewards)
    advantages = np.zeros(length)
    for t in range(length):
        for step in range(length - t):
            after = values[t + step + 1] if t + step + 1 < length else 0.0
            advantages[t] += (gamma * lam) ** step * (rewards[t + step] + gamma * after - values[t + step])
    return advantages


def random_case(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    mask = torch.rand(12, 9) < 0.6
    mask[0], mask[1] = True, False
    return torch.randn(12, 9, dtype=dtype), torch.randn(12, 9, dtype=dtype), mask


def test_advantages_match_hand_computed_values() -> None:
    rewards, values = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0.5, 1.0, 1.5]])
    advantages, returns = gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    # delta = 0 + .5 - .5, 1 + .75 - 1, 2 + 0 - 1.5;  A_2 = .5, A_1 = .75 + .25 * .5, A_0 = 0 + .25 * .875
    assert advantages.tolist() == [[0.21875, 0.875, 0.5]]
    assert returns.tolist() == [[0.71875, 1.875, 2.0]]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0), (0.9, 0.0), (0.0, 0.5)])
def test_advantages_match_the_double_sum_over_real_tokens(gamma: float, lam: float) -> None:
    rewards, values, mask = random_case()
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for n in range(len(mask)):
        real = mask[n].numpy()
        expected = literal_gae(rewards[n].numpy()[real], values[n].numpy()[real], gamma, lam)
        np.testing.assert_allclose(advantages[n].numpy()[real], expected, atol=1e-12)
        np.testing.assert_allclose(returns[n].numpy()[real], expected + values[n].numpy()[real], atol=1e-12)
        assert (advantages[n][~mask[n]] == 0).all() and (returns[n][~mask[n]] == 0).all()


def test_at_lambda_1_returns_are_discounted_sums_of_rewards() -> None:
    rewards, values, _ = random_case()
    _, returns = gae(rewards, values, torch.ones_like(rewards, dtype=torch.bool), gamma=0.9, lam=1.0)
    for t in range(9):
        expected = sum(0.9 ** (s - t) * rewards[:, s] for s in range(t, 9))
        torch.testing.assert_close(returns[:, t], expected)


def test_garbage_under_the_mask_changes_nothing() -> None:
    rewards, values, mask = random_case()
    clean = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    for garbage in (math.nan, math.inf, 1e30):
        dirty = gae(rewards.masked_fill(~mask, garbage), values.masked_fill(~mask, garbage), mask, gamma=0.9, lam=0.8)
        assert torch.equal(dirty[0], clean[0]) and torch.equal(dirty[1], clean[1])


@pytest.mark.parametrize("padding", [(0, 4), (4, 0), (2, 3)])
def test_padding_on_either_side_changes_nothing(padding: tuple[int, int]) -> None:
    rewards, values, mask = random_case()
    narrow = gae(rewards, values, mask, gamma=0.9, lam=0.8)
    wide = gae(*(torch.nn.functional.pad(x, padding) for x in (rewards, values, mask)), gamma=0.9, lam=0.8)
    for before, after in zip(narrow, wide, strict=True):
        assert torch.equal(after, torch.nn.functional.pad(before, padding))


def test_advantages_carry_no_gradient_and_leave_inputs_alone() -> None:
    rewards, values, mask = random_case()
    before = rewards.clone(), values.clone(), mask.clone()
    advantages, returns = gae(rewards.requires_grad_(), values.requires_grad_(), mask, gamma=1.0, lam=0.95)
    assert not advantages.requires_grad and not returns.requires_grad
    assert all(torch.equal(a, b) for a, b in zip(before, (rewards, values, mask), strict=True))


def test_no_columns_give_no_advantages() -> None:
    advantages, returns = gae(torch.ones(2, 0), torch.ones(2, 0), torch.ones(2, 0, dtype=torch.bool), gamma=1, lam=1)
    assert advantages.shape == returns.shape == (2, 0)


def test_gae_refuses_what_does_not_fit() -> None:
    rewards, values, mask = random_case()
    with pytest.raises(ValueError, match=r"values has shape \[9\]; it must have 2 dimension"):
        gae(rewards, values[0], mask, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"values has shape \[12, 8\], rewards has \[12, 9\]; they must be equal"):
        gae(rewards, values[:, 1:], mask, gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"mask has dtype torch.float32"):
        gae(rewards, values, mask.float(), gamma=1.0, lam=1.0)
    with pytest.raises(ValueError, match=r"gamma 1.1 must lie in \[0, 1\]"):
        gae(rewards, values, mask, gamma=1.1, lam=1.0)
    with pytest.raises(ValueError, match=r"lam -0.1 must lie in \[0, 1\]"):
        gae(rewards, values, mask, gamma=1.0, lam=-0.1)


def test_explained_variance_matches_hand_computed_values() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0, 4.0])
    assert explained_variance(returns + 7, returns).item() == 1.0
    assert explained_variance(torch.zeros(4), returns).item() == 0.0
    assert explained_variance(-returns, returns).item() == pytest.approx(1 - 4)
    assert explained_variance(returns / 2, returns).item() == pytest.approx(0.75)


def test_explained_variance_matches_numpy_and_ignores_masked_garbage() -> None:
    values, returns, mask = random_case()
    kept = values[mask].numpy(), returns[mask].numpy()
    expected = 1 - np.var(kept[1] - kept[0]) / np.var(kept[1])
    dirty = explained_variance(values.masked_fill(~mask, math.nan), returns.masked_fill(~mask, math.inf), mask)
    assert dirty.item() == pytest.approx(expected)
    assert not explained_variance(values.requires_grad_(), returns, mask).requires_grad


def test_explained_variance_of_equal_returns_is_not_a_number_one_could_mistake() -> None:
    assert explained_variance(torch.ones(3), torch.ones(3)).isnan()
    assert explained_variance(torch.arange(3.0), torch.ones(3)).item() == -math.inf


def test_explained_variance_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"returns has shape \[2\], values has \[3\]; they must be equal"):
        explained_variance(torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match=r"mask has dtype torch.float32"):
        explained_variance(torch.ones(3), torch.ones(3), torch.ones(3))
    with pytest.raises(ValueError, match=r"mask \[3\] has no True entry"):
        explained_variance(torch.ones(3), torch.ones(3), torch.zeros(3, dtype=torch.bool))
