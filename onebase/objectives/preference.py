"""Losses over pairs of completions, one chosen over the other, without a reward model but against a reference.

Shapes: P pairs. Log-probs are sums over the counted tokens of a completion, in nats, float32 or wider: a sum of some
hundred nats in bfloat16 is rounded to whole nats. Lengths are the numbers of those tokens. Everything is per pair and
unreduced: the caller divides by one number for the whole optimizer step. The reference is a constant: no gradient
flows through its log-probs. Losses that need no reference are in `reference_free`, ranked lists in `ranked`, single
completions with a verdict each in `unpaired`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from onebase.objectives._pairs import check_beta, check_flat, check_label_smoothing, check_lengths, smoothed


def implicit_rewards(logprobs: Tensor, reference_logprobs: Tensor, *, beta: float) -> Tensor:
    """The reward r for which the policy maximises r - beta KL, up to an offset per prompt.

    r = beta (log policy(y | x) - log reference(y | x))     (Rafailov et al. 2023, eq. 5 without beta log Z(x))

    Args:
        logprobs: `[N]`, one per completion, under the policy; the only argument gradients flow through.
        reference_logprobs: `[N]`, under the reference.
        beta: reward units per nat, above 0.

    Returns:
        `[N]`. Comparable among completions of one prompt only.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or beta is not above 0 and finite.
    """
    check_flat(logprobs=logprobs, reference_logprobs=reference_logprobs)
    check_beta(beta)
    return beta * (logprobs - reference_logprobs.detach())


def mean_logprobs(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Log-prob per token of each completion: what length-normalised losses compare.

    Args:
        logprobs: `[N]`, sums over the counted tokens.
        lengths: `[N]`, counted tokens of each completion, 1 or more.

    Returns:
        `[N]`, nats per token.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or a length is below 1.
    """
    check_flat(logprobs=logprobs, lengths=lengths)
    check_lengths(lengths=lengths)
    return logprobs / lengths


def nll_loss(logprobs: Tensor, lengths: Tensor) -> Tensor:
    """Negative log-likelihood per token of each completion: the term mixed into a preference loss.

    L = -log policy(y | x) / |y|     (the L_SFT in eq. 6 of Hong et al. 2024, ORPO)

    `orpo_loss` and `cpo_loss` of `reference_free` need it on the chosen completions, at a weight; for the other losses
    it is optional. Its mean weighs all completions equally, however long. TRL 1.16 weighs all tokens of its batch
    equally instead, in ORPO the prompt's too.

    Args:
        logprobs: `[N]`, sums over the counted tokens; gradients flow through it.
        lengths: `[N]`, counted tokens of each completion, 1 or more.

    Returns:
        `[N]`, unreduced, nats per token.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or a length is below 1.
    """
    return -mean_logprobs(logprobs, lengths)


def sigmoid_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Direct preference optimization (DPO), and its conservative form for labels that may be wrong (cDPO).

    With d = implicit reward of chosen - implicit reward of rejected:

        L = -log sigmoid(d)     (Rafailov et al. 2023, eq. 7)
        L = -(1 - e) log sigmoid(d) - e log sigmoid(-d)     (cDPO: Mitchell 2023, eq. 3), e = label_smoothing

    With e above 0 the loss is smallest at sigmoid(d) = 1 - e, so that d stays bounded.

    Step-DPO (Lai et al. 2024) is this loss on other data: the prompt of the tree is the question and the right steps
    so far, the completions are a right and a wrong next step. Its reference log-probs are given that prefix too.

    Args:
        chosen: `[P]` under the policy; gradients flow through it.
        rejected: `[P]` under the policy; gradients flow through it.
        reference_chosen: `[P]` under the reference.
        reference_rejected: `[P]` under the reference.
        beta: reward units per nat, above 0; 0.1 is common.
        label_smoothing: how probable a flipped label is, in [0, 0.5]; at 0.5 the two completions are alike.

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, beta is not above 0 and finite, or label_smoothing
            leaves [0, 0.5].
    """
    check_label_smoothing(label_smoothing)
    return smoothed(_reward_margin(chosen, rejected, reference_chosen, reference_rejected, beta), label_smoothing)


def sigmoid_norm_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Length-normalised DPO: implicit rewards per token, so that a long answer gains nothing by its length.

    d = beta (chosen - reference_chosen) / |chosen| - beta (rejected - reference_rejected) / |rejected|
    L = -log sigmoid(d)     (Lambert et al. 2024, Tulu 3, eq. 6), smoothed as in `sigmoid_loss`

    Args:
        chosen: `[P]`, sums under the policy; gradients flow through it.
        rejected: `[P]`, sums under the policy; gradients flow through it.
        reference_chosen: `[P]`, sums under the reference.
        reference_rejected: `[P]`, sums under the reference.
        chosen_lengths: `[P]`, tokens, 1 or more.
        rejected_lengths: `[P]`, tokens, 1 or more.
        beta: reward units per (nat per token), above 0; the paper takes 5, not the 0.1 of sums.
        label_smoothing: how probable a flipped label is, in [0, 0.5].

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, a length is below 1, beta is not above 0 and
            finite, or label_smoothing leaves [0, 0.5].
    """
    check_label_smoothing(label_smoothing)
    check_beta(beta)
    lead = _lead_per_token(chosen, rejected, reference_chosen, reference_rejected, chosen_lengths, rejected_lengths)
    return smoothed(beta * lead, label_smoothing)


def robust_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Robust DPO (rDPO): an unbiased estimate of the DPO loss on clean labels, from labels flipped at a known rate.

    L = (-(1 - e) log sigmoid(d) + e log sigmoid(-d)) / (1 - 2 e)     (Chowdhury et al. 2024), e = label_smoothing,
    d as in `sigmoid_loss`

    Its mean over a pair labelled right with probability 1 - e and wrong with e is the DPO loss of the right label. A
    single loss may be negative. Unlike cDPO it never stops pushing d up, and does so harder than DPO.

    Args:
        chosen: `[P]` under the policy; gradients flow through it.
        rejected: `[P]` under the policy; gradients flow through it.
        reference_chosen: `[P]` under the reference.
        reference_rejected: `[P]` under the reference.
        beta: reward units per nat, above 0.
        label_smoothing: the rate of flipped labels, in [0, 0.5).

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, beta is not above 0 and finite, or label_smoothing
            leaves [0, 0.5).
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing {label_smoothing} must lie in [0, 0.5): at 0.5 the labels tell nothing")
    margin = _reward_margin(chosen, rejected, reference_chosen, reference_rejected, beta)
    kept, flipped = F.logsigmoid(margin), F.logsigmoid(-margin)
    return (label_smoothing * flipped - (1 - label_smoothing) * kept) / (1 - 2 * label_smoothing)


def hinge_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
) -> Tensor:
    """The hinge loss on implicit rewards: no gradient once chosen leads by 1.

    L = max(0, 1 - d), d as in `sigmoid_loss`     (hinge-norm of Liu et al. 2023, RSO, with gamma = beta)

    The rank calibration loss of SLiC-HF (Zhao et al. 2023), max(0, delta - log policy(chosen) + log policy(rejected)),
    is delta times this at beta = 1 / delta, given zeros for the reference.

    Not done: neither the sampling of RSO nor the regularization term of SLiC-HF, which is `nll_loss` without the
    division by the length.

    Args:
        chosen: `[P]` under the policy; gradients flow through it.
        rejected: `[P]` under the policy; gradients flow through it.
        reference_chosen: `[P]` under the reference.
        reference_rejected: `[P]` under the reference.
        beta: reward units per nat, above 0; the log-ratio of chosen leads by 1 / beta nats where the loss ends.

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, or beta is not above 0 and finite.
    """
    return F.relu(1 - _reward_margin(chosen, rejected, reference_chosen, reference_rejected, beta))


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
    *,
    beta: float,
) -> Tensor:
    """Identity preference optimization (IPO): a squared error that holds the lead of chosen at a target.

    h = (chosen - reference_chosen) / |chosen| - (rejected - reference_rejected) / |rejected|
    L = (h - 1 / (2 beta))^2     (Azar et al. 2024, eq. 17, where beta is tau and there is no division)

    The division by the lengths is not in the paper: with it the target is in nats per token, and means the same for
    short and long completions. The authors confirmed it to TRL, which does the same. Lengths of 1 give eq. 17 as
    printed.

    Args:
        chosen: `[P]`, sums under the policy; gradients flow through it.
        rejected: `[P]`, sums under the policy; gradients flow through it.
        reference_chosen: `[P]`, sums under the reference.
        reference_rejected: `[P]`, sums under the reference.
        chosen_lengths: `[P]`, tokens, 1 or more.
        rejected_lengths: `[P]`, tokens, 1 or more.
        beta: above 0; the target is 1 / (2 beta) nats per token.

    Returns:
        `[P]`, unreduced.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, a length is below 1, or beta is not above 0 and
            finite.
    """
    check_beta(beta)
    lead = _lead_per_token(chosen, rejected, reference_chosen, reference_rejected, chosen_lengths, rejected_lengths)
    return (lead - 1 / (2 * beta)).square()


def _lead_per_token(
    chosen: Tensor,
    rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    chosen_lengths: Tensor,
    rejected_lengths: Tensor,
) -> Tensor:
    check_flat(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
    )
    check_lengths(chosen_lengths=chosen_lengths, rejected_lengths=rejected_lengths)
    chosen_ratio = (chosen - reference_chosen.detach()) / chosen_lengths
    return chosen_ratio - (rejected - reference_rejected.detach()) / rejected_lengths


def _reward_margin(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    check_flat(
        chosen=chosen, rejected=rejected, reference_chosen=reference_chosen, reference_rejected=reference_rejected
    )
    # Policy minus reference first: the two are close, so their difference is exact where chosen - rejected is not.
    return implicit_rewards(chosen, reference_chosen, beta=beta) - implicit_rewards(
        rejected, reference_rejected, beta=beta
    )
