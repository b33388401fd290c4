"""Advantages and returns over completion tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from onebase.objectives._shapes import check_mask, check_rank, check_same_shape
from onebase.objectives.masked import masked_variance, whiten

DEVIATION_OFFSET = 1e-4
"""Added to the standard deviation that scores are divided by, as TRL does; the GRPO paper has no such term."""


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
def group_advantages(
    scores: Tensor, num_per_prompt: int, *, deviation: Literal["group", "rollout", "none"] = "group"
) -> Tensor:
    """Each score minus the mean of its group, the K completions of one prompt.

    A_i = (r_i - mean(r_group)) / (std + 1e-4)
    (Shao et al. 2024, "DeepSeekMath", section 4.1.2, outcome supervision)

    std is the sample deviation (over K - 1) of the group; with `rollout` that of all scores (Liu et al. 2025, "Tricks
    or Traps?", section 4.2), and with `none` nothing is divided (Dr. GRPO, Liu et al. 2025, section 3.2): a small
    deviation then no longer makes an easy or a hard prompt count more than the others.

    Computed in float64, so equal scores give exactly 0. Not done: no KL, no length.

    Args:
        scores: `[N]`, the K completions of a prompt next to each other, higher is better.
        num_per_prompt: K, 2 or more.
        deviation: what to divide by.

    Returns:
        `[N]` in the dtype of the scores.

    Raises:
        ValueError: if the scores are not `[N]`, K is below 2 or does not divide N.
    """
    groups = _groups(scores, num_per_prompt)
    centred = groups - groups.mean(1, keepdim=True)
    if deviation == "group":
        centred = centred / (groups.std(1, keepdim=True) + DEVIATION_OFFSET)
    elif deviation == "rollout":
        centred = centred / (groups.std() + DEVIATION_OFFSET)
    return centred.flatten().to(scores.dtype)


@torch.no_grad()
def leave_one_out_advantages(scores: Tensor, num_per_prompt: int) -> Tensor:
    """Each score minus the mean of the other K - 1 scores of its prompt.

    A_i = r_i - 1/(K - 1) sum_{j != i} r_j = K/(K - 1) (r_i - mean(r_group))
    (Kool et al. 2019; RLOO of Ahmadian et al. 2024, "Back to Basics", section 3.2)

    The baseline does not depend on the completion it is subtracted from, so the gradient stays unbiased. Computed in
    float64, so equal scores give exactly 0.

    Args:
        scores: `[N]`, the K completions of a prompt next to each other, higher is better.
        num_per_prompt: K, 2 or more.

    Returns:
        `[N]` in the dtype of the scores.

    Raises:
        ValueError: if the scores are not `[N]`, K is below 2 or does not divide N.
    """
    groups = _groups(scores, num_per_prompt)
    others = (groups.sum(1, keepdim=True) - groups) / (num_per_prompt - 1)
    return (groups - others).flatten().to(scores.dtype)


@torch.no_grad()
def global_baseline_advantages(rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """The return from each token on, whitened over all tokens of the rollout: the baseline is one number for all.

    G_t = sum_{l >= 0} gamma^l r_{t+l},   A_t = (G_t - mean(G)) / sqrt(Var(G) + 1e-8)
    (REINFORCE++, Hu et al. 2025, eq. 8 and 9, with gamma = 1)

    Args:
        rewards: `[N, C]`, KL penalty included, the score on the last real token.
        mask: `[N, C]` bool, True on real tokens.
        gamma: discount per token, in [0, 1].

    Returns:
        `[N, C]`, 0 where masked.

    Raises:
        ValueError: as `gae`.
    """
    returns, _ = gae(rewards, torch.zeros_like(rewards), mask, gamma=gamma, lam=1.0)
    return whiten(returns, mask)


def _groups(scores: Tensor, num_per_prompt: int) -> Tensor:
    check_rank(1, scores=scores)
    if num_per_prompt < 2 or scores.numel() % num_per_prompt:
        raise ValueError(
            f"{scores.numel()} scores in groups of {num_per_prompt}; a group needs 2 or more, and all are of one size"
        )
    return scores.double().view(-1, num_per_prompt)


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
