"""Advantages and returns over completion tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from onebase.objectives._shapes import check_mask, check_rank, check_same_shape
from onebase.objectives.masked import masked_variance


@torch.no_grad()
def gae(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation over the real tokens of each completion.

    A_t = sum_{l >= 0} (gamma lam)^l delta_{t+l},   delta_t = r_t + gamma V_{t+1} - V_t
    (Schulman et al. 2016, eq. 16)

    t counts the real tokens of a row. Masked columns are skipped wherever they are: V_{t+1} is the value at the next
    real token. V after the last real token is 0: the episode ends there.

    Not done: no whitening, no bootstrap from a completion cut off by its length limit, no gradient.

    Args:
        rewards: `[N, C]`, KL penalty included, the score on the last real token.
        values: `[N, C]`, V(s_t), for the state before token t.
        mask: `[N, C]` bool, True on real tokens.
        gamma: discount per token, in [0, 1].
        lam: decay of the estimator, in [0, 1]; 0 gives delta_t, 1 the discounted return minus V_t.

    Returns:
        advantages `[N, C]` and returns `[N, C]` = advantages + values, both 0 where masked.

    Raises:
        ValueError: if the shapes differ, the mask is not bool, or gamma or lam leaves [0, 1].
    """
    check_rank(2, rewards=rewards, values=values, mask=mask)
    check_same_shape(rewards=rewards, values=values, mask=mask)
    check_mask(mask=mask)
    for name, factor in (("gamma", gamma), ("lam", lam)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} {factor} must lie in [0, 1]")
    num_columns = rewards.shape[1]
    advantages = torch.zeros_like(rewards)
    next_value = values.new_zeros(values.shape[0])  # [N]
    next_advantage = rewards.new_zeros(rewards.shape[0])  # [N]
    for t in reversed(range(num_columns)):
        real = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # A masked column passes on what it was given, so the recursion skips it.
        next_advantage = torch.where(real, delta + gamma * lam * next_advantage, next_advantage)
        next_value = torch.where(real, values[:, t], next_value)
        advantages[:, t] = torch.where(real, next_advantage, 0)
    return advantages, torch.where(mask, advantages + values, 0)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor | None = None) -> Tensor:
    """How much of the spread of the returns the values predict.

    1 - Var(returns - values) / Var(returns)

    1 is a perfect critic up to a constant offset, 0 is no better than a constant, below 0 is worse. NaN or -infinity
    if all returns are equal: there is no spread to explain.

    Args:
        values: any shape, the predictions made before the returns were known.
        returns: same shape.
        mask: same shape, bool; None counts every entry.

    Returns:
        A tensor without dimensions; no gradient.

    Raises:
        ValueError: if the shapes differ, the mask is not bool, or no entry is True.
    """
    check_same_shape(values=values, returns=returns, mask=mask)
    mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
    return 1 - masked_variance(returns - values, mask) / masked_variance(returns, mask)
