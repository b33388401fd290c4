"""The policy losses (clipped, KL penalty, actor-critic, ratios of whole completions), the value loss, their metrics.

Everything is per token and unreduced: the caller divides by one number for the whole optimizer step, so that the
split into microbatches never changes the result.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from onebase.objectives._shapes import check_same_shape
from onebase.objectives.masked import completion_mean, completion_sum


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """The clipped surrogate loss of each token.

    With rho = exp(logprobs - old_logprobs):

        L = -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A)

    (Schulman et al. 2017, eq. 7, sign flipped for minimising; clip_high above clip_low is the clip-higher of DAPO,
    Yu et al. 2025, section 3.1). With `dual_clip` = c, where A < 0:

        L = min(that, -c A)     (Ye et al. 2020, eq. 5, sign flipped: objective at least c A, loss at most c |A|)

    Without it the loss of a token with A < 0 grows without bound as rho grows; with it the token has no gradient
    beyond rho = c.

    Not done: no whitening of the advantages, no reduction, no clamp of the log-ratio, no correction for log-probs
    that another engine sampled.

    Args:
        logprobs: `[M]` under the policy being trained; the only argument gradients flow through.
        old_logprobs: `[M]` under the policy that sampled.
        advantages: `[M]`.
        clip_low: how far below 1 the ratio may count, in [0, 1).
        clip_high: how far above 1 the ratio may count, 0 or more.
        dual_clip: c, above 1; None for no bound.

    Returns:
        `[M]`, unreduced.

    Raises:
        ValueError: if the shapes differ or a clip setting is out of its range.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clip(clip_low, clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip {dual_clip} must be above 1, or None for no bound")
    advantages = advantages.detach()
    unclipped, clipped = _surrogate_losses(_ratio(logprobs, old_logprobs), advantages, clip_low, clip_high)
    loss = torch.maximum(unclipped, clipped)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def penalised_policy_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, coefficient: float) -> Tensor:
    """The surrogate loss of each token with a KL penalty in place of the clip: the other PPO.

    L = -rho A + beta (rho - 1 - log rho),   rho = exp(logprobs - old_logprobs)     (Schulman et al. 2017, eq. 8)

    The paper's KL(old || new) is over the whole vocabulary. At tokens sampled from the old policy, rho - 1 - log rho is
    an unbiased estimate of it that is never negative, and its gradient is one of the divergence's gradient.
    `AdaptivePenalty` in `kl.py` adapts beta.

    Args:
        logprobs: `[M]` under the policy being trained; the only argument gradients flow through.
        old_logprobs: `[M]` under the policy that sampled.
        advantages: `[M]`.
        coefficient: beta, units of the advantage per nat, 0 or more.

    Returns:
        `[M]`, unreduced.

    Raises:
        ValueError: if the shapes differ or the coefficient is negative.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    if not coefficient >= 0:
        raise ValueError(f"coefficient {coefficient} must be 0 or more")
    log_ratio = logprobs - old_logprobs.detach()
    return -log_ratio.exp() * advantages.detach() + coefficient * (torch.expm1(log_ratio) - log_ratio)


def actor_critic_loss(logprobs: Tensor, advantages: Tensor) -> Tensor:
    """The plain policy gradient's loss of each token.

    L = -A log pi(token)     (Mnih et al. 2016, section 4, without its entropy term; A2C)

    It knows no old policy, so it is right for one step on a rollout.

    Args:
        logprobs: `[M]` under the policy being trained; the only argument gradients flow through.
        advantages: `[M]`.

    Returns:
        `[M]`, unreduced.

    Raises:
        ValueError: if the shapes differ.
    """
    check_same_shape(logprobs=logprobs, advantages=advantages)
    return -advantages.detach() * logprobs


def completion_log_ratio(
    logprobs: Tensor,
    old_logprobs: Tensor,
    completion_index: Tensor,
    num_completions: int,
    *,
    reduction: Literal["mean", "sum"],
) -> Tensor:
    """The log-ratio of each token's whole completion, to clip completions instead of tokens.

    s_i = mean_t or sum_t (logprobs_t - old_logprobs_t)   over the tokens t of completion i

    mean: GSPO's sequence ratio exp(s_i), the geometric mean (Zheng et al. 2025, eq. 7), whatever the length. sum: the
    ratio of the completions' probabilities, the importance weight of RLOO. Give the result to `clipped_policy_loss` as
    `logprobs`, with zeros as `old_logprobs`.

    Args:
        logprobs: `[M]` under the policy being trained; the only argument gradients flow through.
        old_logprobs: `[M]` under the policy that sampled.
        completion_index: `[M]` int64 in 0..N-1.
        num_completions: N.
        reduction: `mean` or `sum`.

    Returns:
        `[M]`, the same for all tokens of a completion.

    Raises:
        ValueError: if the arguments are not flat or differ in shape.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs)
    reduce = completion_mean if reduction == "mean" else completion_sum
    return reduce(logprobs - old_logprobs.detach(), completion_index, num_completions)[completion_index]


@torch.no_grad()
def truncated_importance_weights(logprobs: Tensor, sampled_logprobs: Tensor, *, cap: float) -> Tensor:
    """How much each token's policy loss counts if another engine, or an older policy, drew it.

        w = min(pi_old(token) / mu(token), cap)

    pi_old: the policy as our own forward pass sees it before the update, which the clipped ratio is taken against; mu:
    the distribution the token was drawn from (truncated importance sampling, TIS: Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training"; the cap is from Espeholt et al. 2018, eq. 1). With the ratio
    of the loss it makes pi / mu, whose truncation bounds the variance and leaves a bias where the cap is reached.

    Not done: no weight for the KL to the reference or the entropy, no product over a completion's tokens.

    Args:
        logprobs: `[M]` of pi_old.
        sampled_logprobs: `[M]` of mu, at the same temperature.
        cap: the largest weight, 1 or more.

    Returns:
        `[M]` without gradient, above 0 and at most `cap`.

    Raises:
        ValueError: if the shapes differ or the cap is below 1.
    """
    check_same_shape(logprobs=logprobs, sampled_logprobs=sampled_logprobs)
    if not cap >= 1:
        raise ValueError(f"cap {cap} must be 1 or more: below it even equal engines would count less")
    return torch.exp(logprobs - sampled_logprobs).clamp(max=cap)


@torch.no_grad()
def policy_statistics(
    logprobs: Tensor, old_logprobs: Tensor, *, clip_low: float, clip_high: float, advantages: Tensor
) -> dict[str, Tensor]:
    """The policy's metrics at each token, before averaging.

    - `policy/approxkl`: (logprobs - old_logprobs)^2 / 2, the k2 estimate of KL(old || new) in nats: the tokens were
      sampled from the old policy. Biased, never negative, exact to second order in the distance.
    - `policy/clipfrac`: 1 where the clip removed the gradient: ratio above 1 + clip_high with A > 0, or below
      1 - clip_low with A < 0. A ratio outside the range on the other side still learns and is not counted; nor is
      the dual clip.
    - `policy/ratio`: exp(logprobs - old_logprobs).

    Args:
        logprobs: `[M]` under the policy being trained.
        old_logprobs: `[M]` under the policy that sampled.
        clip_low: as given to `clipped_policy_loss`.
        clip_high: as given to `clipped_policy_loss`.
        advantages: `[M]`.

    Returns:
        Three `[M]` tensors without gradient, by metric name.

    Raises:
        ValueError: if the shapes differ or a clip setting is out of its range.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    _check_clip(clip_low, clip_high)
    ratio = _ratio(logprobs, old_logprobs)
    unclipped, clipped = _surrogate_losses(ratio, advantages, clip_low, clip_high)
    return {
        "policy/approxkl": 0.5 * (logprobs - old_logprobs).square(),
        "policy/clipfrac": (clipped > unclipped).to(logprobs.dtype),
        "policy/ratio": ratio,
    }


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float | None) -> Tensor:
    """The clipped squared error of each value.

    L = max((V - R)^2, (V_clip - R)^2) / 2,   V_clip = clip(V, V_old - clip_range, V_old + clip_range)

    Not in the PPO paper: it is the value loss of OpenAI baselines' ppo2 (Huang et al. 2022, "The 37 implementation
    details of PPO", detail 9). With `clip_range` None, L = (V - R)^2 / 2 (Schulman et al. 2017, below eq. 9, halved).

    Args:
        values: `[M]` of the critic being trained; the only argument gradients flow through.
        old_values: `[M]` of the critic when the rollout was collected.
        returns: `[M]` targets.
        clip_range: how far a value may move from its old one, in units of the return, above 0; None for no clip.

    Returns:
        `[M]`, unreduced.

    Raises:
        ValueError: if the shapes differ or the clip range is not above 0.
    """
    unclipped, clipped = _value_errors(values, old_values.detach(), returns.detach(), clip_range)
    return 0.5 * torch.maximum(unclipped, clipped)


@torch.no_grad()
def value_clipped(values: Tensor, old_values: Tensor, returns: Tensor, *, clip_range: float | None) -> Tensor:
    """1 for each value whose gradient the clip removed, else 0; the mean is the clip fraction of the value loss.

    Args:
        values: `[M]` of the critic being trained.
        old_values: `[M]` of the critic when the rollout was collected.
        returns: `[M]` targets.
        clip_range: as given to `clipped_value_loss`; None clips nothing.

    Returns:
        `[M]` of 0 and 1 in the dtype of `values`.

    Raises:
        ValueError: if the shapes differ or the clip range is not above 0.
    """
    unclipped, clipped = _value_errors(values, old_values, returns, clip_range)
    return (clipped > unclipped).to(values.dtype)


def _ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    return torch.exp(logprobs - old_logprobs.detach())


def _surrogate_losses(ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    return -advantages * ratio, -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)


def _value_errors(
    values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float | None
) -> tuple[Tensor, Tensor]:
    check_same_shape(values=values, old_values=old_values, returns=returns)
    unclipped = (values - returns).square()
    if clip_range is None:
        return unclipped, unclipped
    if not clip_range > 0:
        raise ValueError(f"clip_range {clip_range} must be above 0, or None for no clip")
    # The value is clamped, not old + clamp(difference): inside the range it then stays equal to the last bit, and no
    # rounding is counted as a clip.
    return unclipped, (values.clamp(old_values - clip_range, old_values + clip_range) - returns).square()


def _check_clip(clip_low: float, clip_high: float) -> None:
    if not 0 <= clip_low < 1:
        raise ValueError(f"clip_low {clip_low} must lie in [0, 1)")
    if not clip_high >= 0:
        raise ValueError(f"clip_high {clip_high} must be 0 or more")
