"""Losses over pairs of completions, one chosen over the other, with neither a reward model nor a reference.

Shapes: P pairs. Log-probs are sums over the counted tokens of a completion, in nats, float32 or wider. Lengths are the
numbers of those tokens. Everything is per pair and unreduced. Only the difference of the two is trained; to keep the
policy near the chosen completions, the caller adds their `preference.nll_loss`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from onebase.objectives._pairs import check_beta, check_flat, check_label_smoothing, check_lengths, smoothed


def simpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    gamma: float,
) -> Tensor:
    """Simple preference optimization (SimPO): log-probs per token as the reward, a margin, and no reference.

    L = -log sigmoid(beta chosen / |chosen| - beta rejected / |rejected| - gamma)     (Meng et al. 2024, eq. 6)

    TRL takes the same gamma (`simpo_gamma`). Not done: no label smoothing.

    Args:
        chosen: `[P]`, sums under the policy; gradients flow through it.
        rejected: `[P]`, sums under the policy; gradients flow through it.
        chosen_lengths: `[P]`, tokens, 1 or more.
        rejected_lengths: `[P]`, tokens, 1 or more.
        beta: reward units per (nat per token), above 0; the paper takes 2 to 10, not the 0.1 of DPO.
        gamma: by how much the reward of chosen should lead, 0 or more.

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, a length is below 1, beta is not above 0 and finite,
            or gamma is negative or not finite.
    """
    check_beta(beta)
    if not (math.isfinite(gamma) and gamma >= 0):
        raise ValueError(f"gamma {gamma} must be 0 or more, and finite")
    chosen_mean, rejected_mean = _means(chosen, rejected, chosen_lengths, rejected_lengths)
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - gamma)


def orpo_loss(chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> Tensor:
    """The odds-ratio term of odds ratio preference optimization (ORPO).

    With m = log-prob per token and log odds = m - log(1 - exp(m)):

        L_OR = -log sigmoid(log odds of chosen - log odds of rejected)     (Hong et al. 2024, eq. 7)

    This is one of two terms. The loss is L_ORPO = nll + lambda L_OR (eq. 6), nll being `preference.nll_loss` of the
    chosen completions: the caller mixes them, with lambda about 0.1 (`beta` in TRL). Alone it only orders the two.

    Args:
        chosen: `[P]`, sums under the policy; gradients flow through it.
        rejected: `[P]`, sums under the policy; gradients flow through it.
        chosen_lengths: `[P]`, tokens, 1 or more.
        rejected_lengths: `[P]`, tokens, 1 or more.

    Returns:
        `[P]`, unreduced. A mean closer to 0 than the dtype resolves near 1 counts as one resolution step below 0,
        where the odds are still finite, and has no gradient.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or a length is below 1.
    """
    chosen_mean, rejected_mean = _means(chosen, rejected, chosen_lengths, rejected_lengths)
    return -F.logsigmoid(_log_odds(chosen_mean) - _log_odds(rejected_mean))


def cpo_loss(chosen: Tensor, rejected: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The preference term of contrastive preference optimization (CPO): DPO with a uniform reference.

    L = -log sigmoid(beta (chosen - rejected))     (Xu et al. 2024, eq. 3), smoothed as in `preference.sigmoid_loss`

    The paper adds the negative log-likelihood of the chosen completions, which keeps the policy near them. The caller
    does so with `preference.nll_loss` and a weight (`cpo_alpha` in TRL): without it nothing stops both log-probs from
    falling.

    Args:
        chosen: `[P]` under the policy; gradients flow through it.
        rejected: `[P]` under the policy; gradients flow through it.
        beta: reward units per nat, above 0.
        label_smoothing: how probable a flipped label is, in [0, 0.5].

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, beta is not above 0 and finite, or label_smoothing
            leaves [0, 0.5].
    """
    check_label_smoothing(label_smoothing)
    check_beta(beta)
    check_flat(chosen=chosen, rejected=rejected)
    return smoothed(beta * (chosen - rejected), label_smoothing)


def _means(chosen: Tensor, rejected: Tensor, chosen_lengths: Tensor, rejected_lengths: Tensor) -> tuple[Tensor, Tensor]:
    check_flat(chosen=chosen, rejected=rejected, chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    return chosen / chosen_lengths, rejected / rejected_lengths


def _log_odds(mean: Tensor) -> Tensor:
    # Probability 1 has infinite odds, whose gradient is NaN. Log-probs nearer to 0 than eps are rounding anyway.
    mean = mean.clamp_max(-torch.finfo(mean.dtype).eps)
    return mean - torch.log(-torch.expm1(mean))
