"""Kahneman-Tversky optimization (KTO): completions labelled desirable or not, without pairs.

Shapes: N completions. Log-probs are sums over the counted tokens of a completion, in nats, float32 or wider.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from onebase.objectives._shapes import check_mask, check_rank, check_same_shape
from onebase.objectives.preference import implicit_rewards


@torch.no_grad()
def kto_kl(mismatched_logprobs: Tensor, mismatched_reference_logprobs: Tensor) -> Tensor:
    """The reference point of KTO: how far the policy has gone from the reference, on completions of other prompts.

    z_0 = max(0, mean_i(log policy(y_j | x_i) - log reference(y_j | x_i))), y_j a completion of another prompt
    (Ethayarajh et al. 2024, section 4.1)

    Biased, and not quite the divergence: the y_j are not sampled from the policy. A common choice of j is the next
    row of the batch.

    Not done: no reduction across processes or microbatches. It belongs to the whole minibatch: taken per microbatch,
    it would make the result depend on their size. It needs at least two prompts, or y_j is not mismatched.

    Args:
        mismatched_logprobs: `[N]` of y_j behind x_i, under the policy.
        mismatched_reference_logprobs: `[N]`, the same under the reference.

    Returns:
        A tensor without dimensions, nats per completion, 0 or more; no gradient.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or there is no completion.
    """
    check_rank(1, mismatched_logprobs=mismatched_logprobs)
    check_same_shape(
        mismatched_logprobs=mismatched_logprobs, mismatched_reference_logprobs=mismatched_reference_logprobs
    )
    if not mismatched_logprobs.numel():
        raise ValueError("mismatched_logprobs is empty; the KL estimate of KTO needs at least one completion")
    return (mismatched_logprobs - mismatched_reference_logprobs).mean().clamp_min(0)


def kto_loss(
    logprobs: Tensor,
    reference_logprobs: Tensor,
    desirable: Tensor,
    kl_estimate: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimization: the value of a gain or loss against the reference point saturates.

    With r = log policy(y | x) - log reference(y | x), z_0 = kl_estimate and lambda the weight of its kind:

        L = lambda_D (1 - sigmoid(beta (r - z_0)))     desirable
        L = lambda_U (1 - sigmoid(beta (z_0 - r)))     undesirable     (Ethayarajh et al. 2024, eq. 8)

    L lies in [0, lambda]. Its gradient fades on both sides of r = z_0: neither what is learnt already nor what cannot
    be learnt pulls any more.

    Args:
        logprobs: `[N]` under the policy; the only argument gradients flow through.
        reference_logprobs: `[N]` under the reference.
        desirable: `[N]` bool, True on desirable completions.
        kl_estimate: z_0 of `kto_kl`, without dimensions, nats per completion; 0 leaves the reference point out.
        beta: above 0, per nat; 0.1 is common.
        desirable_weight: lambda_D, 0 or more.
        undesirable_weight: lambda_U, 0 or more. Where one kind is rarer, weight it up until the weighted counts of
            the two are about equal.

    Returns:
        `[N]`, unreduced, in the order given.

    Raises:
        ValueError: if the shapes do not fit, `desirable` is not bool, beta is not above 0 and finite, or a weight is
            negative or not finite.
    """
    check_same_shape(logprobs=logprobs, desirable=desirable)
    check_mask(desirable=desirable)
    check_rank(0, kl_estimate=kl_estimate)
    for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{name} {weight} must be 0 or more, and finite")
    gain = implicit_rewards(logprobs, reference_logprobs, beta=beta) - beta * kl_estimate.detach()
    # 1 - sigmoid(x) is written sigmoid(-x): the first rounds to 0 where the second still tells how small it is.
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))
