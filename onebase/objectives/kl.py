"""Estimates of the KL divergence from the reference, the rewards it shapes, and the coefficient that weighs it.

The divergence is KL(policy || reference) = E_policy[log policy - log reference], in nats. Throughout, tokens were
sampled from the policy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from onebase.objectives._shapes import check_mask, check_rank, check_same_shape

KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """Estimates KL(policy || reference) at each sampled token.

    With d = log policy(token) - log reference(token)     (Schulman 2020, "Approximating KL Divergence"):

        k1 = d                      unbiased, may be negative, high variance
        k2 = d^2 / 2                biased (exact to second order in the distance), never negative, low variance
        k3 = exp(-d) - 1 + d        unbiased, never negative, low variance while the policies are close

    As a metric the value matters: use k1 or k3. In the reward use k1: with k2 or k3 the optimum is not that of score
    minus KL, because they change with the policy they are averaged under. As a loss term the expected gradient matters,
    which is not the gradient of the expected value, because the sampling depends on the policy too:

        k1: E[grad log policy] = 0: no signal, only noise
        k2: E[d grad log policy] = grad KL(policy || reference): the divergence above
        k3: E[(1 - reference/policy) grad log policy] = grad KL(reference || policy): the divergence the other way round

    Not done: no sum, no mean, no clamp (k3 overflows float32 where d < -88), no correction for tokens sampled from
    an older policy.

    Args:
        logprobs: `[M]` (or any shape), log-probability of each token under the policy; gradients flow through it.
        reference_logprobs: same shape, under the reference.
        estimator: `k1`, `k2` or `k3`.

    Returns:
        Same shape, nats.

    Raises:
        ValueError: if the shapes differ or the estimator is unknown.
    """
    check_same_shape(logprobs=logprobs, reference_logprobs=reference_logprobs)
    difference = logprobs - reference_logprobs
    match estimator:
        case "k1":
            return difference
        case "k2":
            return 0.5 * difference.square()
        case "k3":
            # exp(-d) - 1 would round to a multiple of 6e-8 in float32, as large as k3 itself near d = 3e-4.
            return torch.expm1(-difference) + difference
    raise ValueError(f"KL estimator {estimator!r} is unknown; choose 'k1', 'k2' or 'k3'")


def kl_shaped_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coefficient: float) -> Tensor:
    """Rewards per token: the KL penalty on every token, and the score on the last real one.

    r_t = -beta KL_t + [t is the last real token] score
    (Ziegler et al. 2019, eq. 2; Stiennon et al. 2020, section 3.4; Ouyang et al. 2022, eq. 2, without the
    pretraining term; the papers write the sum over tokens, with k1 as KL_t)

    Not done: no clipping or scaling of the scores. A row without real tokens is all 0: its score has nowhere to go.

    Args:
        scores: `[N]`, one per completion, higher is better.
        kl: `[N, C]`, nats, an estimate per token.
        mask: `[N, C]` bool, True on real tokens.
        kl_coefficient: beta, score units per nat.

    Returns:
        `[N, C]`, 0 where masked. Row sums are score - beta sum_t KL_t.

    Raises:
        ValueError: if the shapes do not fit or the mask is not bool.
    """
    check_rank(1, scores=scores)
    check_rank(2, kl=kl, mask=mask)
    check_same_shape(kl=kl, mask=mask)
    check_mask(mask=mask)
    if scores.shape[0] != kl.shape[0]:
        raise ValueError(f"scores has {scores.shape[0]} entries, kl has {kl.shape[0]} rows; one score per completion")
    real_tokens_from_here = mask.flip(1).cumsum(1).flip(1)  # [N, C]
    is_last = mask & (real_tokens_from_here == 1)
    penalty = torch.where(mask, -kl_coefficient * kl, 0)
    return penalty + torch.where(is_last, scores.unsqueeze(1), 0)


@dataclass
class FixedKL:
    """A constant KL coefficient."""

    coefficient: float
    """beta, score units per nat; 0 or more."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.coefficient) and self.coefficient >= 0):
            raise ValueError(f"KL coefficient {self.coefficient} must be 0 or more, and finite")

    def update(self, kl: float, num_samples: int) -> None:
        """Does nothing; has the arguments of `AdaptiveKL.update`."""

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Resumes from `state_dict()`.

        Raises:
            ValueError: if the state is not that of a KL coefficient.
        """
        self.coefficient = _read_coefficient(state)


@dataclass
class AdaptiveKL:
    """A KL coefficient that a proportional controller steers towards a target divergence.

    e = clip(KL / target - 1, -0.2, 0.2)
    beta <- beta (1 + e n / horizon)     (Ziegler et al. 2019, section 2.2, with K_beta = n / horizon as in their code)
    """

    coefficient: float
    """beta at the start, score units per nat; above 0, because multiplying could never move it off 0."""
    target: float
    """The divergence to hold: nats per completion (summed over its tokens), above 0."""
    horizon: float
    """Completions over which a full error changes beta by about 20 %, above 0; the paper's code takes 10000."""

    def __post_init__(self) -> None:
        for name in ("coefficient", "target", "horizon"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"adaptive KL {name} {value} must be above 0, and finite")

    def update(self, kl: float, num_samples: int) -> None:
        """Moves the coefficient after a rollout.

        Args:
            kl: divergence summed over a completion's tokens, averaged over completions, nats.
            num_samples: n, the number of completions averaged over.

        Raises:
            ValueError: if `kl` is not finite, or `num_samples` is negative or at least 5 horizons, where the
                coefficient could reach 0 or change sign.
        """
        if not math.isfinite(kl):
            raise ValueError(f"KL {kl} is not finite; the KL coefficient cannot follow it")
        if not 0 <= num_samples < 5 * self.horizon:
            raise ValueError(
                f"{num_samples} samples with horizon {self.horizon}; they must be 0 or more and fewer than 5 horizons"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * num_samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: the coefficient; target and horizon belong to the config."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Resumes from `state_dict()`.

        Raises:
            ValueError: if the state is not that of a KL coefficient.
        """
        self.coefficient = _read_coefficient(state)


@dataclass
class AdaptivePenalty:
    """The coefficient of the KL penalty that may stand for PPO's clip, kept where an update moves the policy enough.

    d = KL(old || new) after the updates on a rollout
    d < target / 1.5:   beta <- beta / 2
    d > target * 1.5:   beta <- beta * 2     (Schulman et al. 2017, section 4)
    """

    coefficient: float
    """beta at the start, units of the advantage per nat; above 0, because multiplying could never move it off 0."""
    target: float
    """d_targ, nats per token, above 0."""

    def __post_init__(self) -> None:
        for name in ("coefficient", "target"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"adaptive penalty {name} {value} must be above 0, and finite")

    def update(self, kl: float) -> None:
        """Moves the coefficient after the updates on a rollout.

        Args:
            kl: KL(old || new), nats per token.

        Raises:
            ValueError: if `kl` is not finite.
        """
        if not math.isfinite(kl):
            raise ValueError(f"KL {kl} is not finite; the penalty's coefficient cannot follow it")
        if kl < self.target / 1.5:
            self.coefficient /= 2
        elif kl > self.target * 1.5:
            self.coefficient *= 2

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps: the coefficient; the target belongs to the config."""
        return {"coefficient": self.coefficient}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Resumes from `state_dict()`.

        Raises:
            ValueError: if the state is not that of a KL coefficient.
        """
        self.coefficient = _read_coefficient(state)


def _read_coefficient(state: Mapping[str, float]) -> float:
    if set(state) != {"coefficient"}:
        raise ValueError(f"KL state has keys {sorted(state)}; expected ['coefficient']")
    return float(state["coefficient"])
