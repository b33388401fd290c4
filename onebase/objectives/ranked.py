"""Losses over ranked lists of completions, without a reward model.

Shapes: N completions in L lists, each of any length. They are laid end to end with `list_index [N]`, as they leave
the model (there it is the example of each completion), and not padded to `[L, K]`: one long list would pad all the
others, and the mask would be one more thing to get wrong. The order of the completions does not matter; the grades
rank them. All pairs of a batch are compared in one `[N, N]` table, small for the N of one forward pass.

Higher grades are better; completions of equal grade do not compete with each other. Everything is per list and
unreduced: the caller divides by one number for the whole optimizer step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from onebase.objectives._shapes import check_rank, check_same_shape
from onebase.objectives.masked import completion_sum


def rrhf_loss(mean_logprobs: Tensor, grades: Tensor, list_index: Tensor, num_lists: int) -> Tensor:
    """The ranking term of RRHF: every worse completion whose log-prob per token exceeds a better one's pays for it.

    p = log policy(y | x) / |y|
    L = sum over i, j of one list with grade_i < grade_j of max(0, p_i - p_j)     (Yuan et al. 2023, eq. 2)

    A sum, as in the paper: a list of K grades pays up to K (K - 1) / 2 times, so longer lists weigh more.

    Not done: the paper adds the negative log-likelihood of the best completion of each list, summed over its tokens.
    The caller adds it, or `preference.nll_loss`, which is per token.

    Args:
        mean_logprobs: `[N]`, nats per token, as of `preference.mean_logprobs`; gradients flow through it.
        grades: `[N]`, higher is better.
        list_index: `[N]` int64 in 0..L-1.
        num_lists: L.

    Returns:
        `[L]`, unreduced; 0 for a list in order, or without two grades.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, a grade is NaN, or the index leaves 0..L-1.
    """
    check_rank(1, mean_logprobs=mean_logprobs)
    check_same_shape(mean_logprobs=mean_logprobs, grades=grades, list_index=list_index)
    better = _better_than(grades, list_index, num_lists)
    excess = mean_logprobs.unsqueeze(0) - mean_logprobs.unsqueeze(1)  # [N, N], by how much column exceeds row
    paid = F.relu(torch.where(better, excess, 0)).sum(1)
    return completion_sum(paid, list_index, num_lists)


def plackett_luce_loss(rewards: Tensor, grades: Tensor, list_index: Tensor, num_lists: int) -> Tensor:
    """DPO on a ranking of K completions: the best is picked among all, the next among those left, and so on.

    L = -sum_{k=1..K} log(exp(r_k) / sum_{j=k..K} exp(r_j)), best first     (Rafailov et al. 2023, eq. 20; the model
    is Plackett 1975, Luce 1959)

    At K = 2 it is `preference.sigmoid_loss` of the pair. It is the negative log-likelihood of the whole ranking, a sum
    of K - 1 terms that are not 0, so longer lists weigh more.

    Ties: each completion is picked among itself and those of a strictly lower grade, so that equals do not compete.
    A list with ties is then no longer one likelihood of a ranking (that would sum over the orders the tie leaves
    open), but nothing pushes equals apart, and a pair of equals above one worse is two picks against it.

    Not done: no length normalisation; the offset of the rewards per list has no effect.

    Args:
        rewards: `[N]`, as of `preference.implicit_rewards`, beta included; gradients flow through it.
        grades: `[N]`, higher is better.
        list_index: `[N]` int64 in 0..L-1.
        num_lists: L.

    Returns:
        `[L]`, unreduced; 0 for a list without two grades.

    Raises:
        ValueError: if the shapes differ, an argument is not flat, a grade is NaN, or the index leaves 0..L-1.
    """
    check_rank(1, rewards=rewards)
    check_same_shape(rewards=rewards, grades=grades, list_index=list_index)
    better = _better_than(grades, list_index, num_lists)
    lead = rewards.unsqueeze(0) - rewards.unsqueeze(1)  # [N, N], of column over row
    # The diagonal, a completion against itself, is 0: exp(0) is the 1 in log(1 + ...), and no row is empty.
    rivals = torch.where(better, lead, -torch.inf).fill_diagonal_(0)
    return completion_sum(rivals.logsumexp(1), list_index, num_lists)


def _better_than(grades: Tensor, list_index: Tensor, num_lists: int) -> Tensor:
    """`[N, N]` bool, True where row and column stand in one list and the row has the higher grade."""
    if grades.is_cpu and grades.isnan().any():  # a GPU would have to be waited for
        place = int(grades.isnan().nonzero()[0])
        raise ValueError(f"grade {place} is NaN; every completion needs a number to be ranked by")
    outside = (list_index < 0) | (list_index >= num_lists)
    if outside.is_cpu and outside.any():
        raise ValueError(f"list_index holds {list_index[outside][0].item()}; it must lie in 0..{num_lists - 1}")
    same_list = list_index.unsqueeze(1) == list_index.unsqueeze(0)
    return same_list & (grades.unsqueeze(1) > grades.unsqueeze(0))
