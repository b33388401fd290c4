"""Attention inside prompt trees that lie end to end in one row, without padding between them.

Trees of about the same length are gathered into a batch of their own, so that a short one is not padded to the longest.
The forward pass is PyTorch's fused attention. Its backward pass on a CPU was 12 times as slow as its forward pass, so
that one is written out here in matrix products, from the formulas of Dao et al. 2022 (FlashAttention), appendix B.2:

    P = softmax(s Q K^T + mask),  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),
    dQ = s dS K,  dK = s dS^T Q,  dV = P^T dO
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from onebase.models.hardware import usual_size
from onebase.records import TreeBatch

SHORTEST_TO_LONGEST = 0.8
"""Trees of a batch differ in length by no more than this: what is padded is then at most about a fifth."""
SCORES_AT_ONCE = 1 << 23
"""Attention scores that exist at once in the backward pass: 32 MiB in float32, and as much again for their softmax."""


@dataclass(frozen=True, slots=True)
class TreeGroup:
    """Trees that attention handles at once.

    A batch has `n` rows of `t` places; behind a tree's end its last column stands again, as padding.
    """

    shape: tuple[int, int]
    """n, t"""
    columns: Tensor
    """`[n * t]`, the column of the row that stands in each place."""
    real: Tensor
    """`[m]`, the places that are not padding."""
    mask: Tensor | None
    """`[n, 1, t, t]`, added to the scores; None where every tree is one plain causal sequence."""
    all_masks: Tensor
    """`[n or 1, 1, t, t]` float32, also of causal sequences."""

    padding: Tensor
    """`[n, 1, t, 1]` bool."""

    @property
    def has_padding(self) -> bool:
        return len(self.real) < len(self.columns)


def group_trees(batch: TreeBatch, dtype: torch.dtype) -> list[TreeGroup]:
    """Groups the trees of a batch whose rows are laid end to end; padding is a tree of its own, which nothing reads.

    Args:
        dtype: of the masks.
    """
    rows = torch.arange(len(batch.tree), device=batch.tree.device)[:, None]
    largest = int(batch.tree.max()) + 2
    tree, branch = (batch.tree + 1 + rows * largest).flatten(), batch.branch.flatten()
    return _grouped(tree, branch, dtype)


def group_sequences(sequence: Tensor, dtype: torch.dtype) -> list[TreeGroup]:
    """Groups plain causal sequences laid end to end; `sequence [T]` numbers them."""
    return _grouped(sequence, torch.zeros_like(sequence), dtype)


def _grouped(tree: Tensor, branch: Tensor, dtype: torch.dtype) -> list[TreeGroup]:
    _, counts = torch.unique_consecutive(tree, return_counts=True)
    starts = (counts.cumsum(0) - counts).tolist()
    order = sorted(range(len(starts)), key=lambda i: -int(counts[i]))
    groups: list[list[int]] = []
    for i in order:
        if groups and counts[i] >= SHORTEST_TO_LONGEST * counts[groups[-1][0]]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_group([starts[i] for i in group], counts[group], branch, dtype) for group in groups]


def _group(starts: list[int], lengths: Tensor, branch: Tensor, dtype: torch.dtype) -> TreeGroup:
    steps = torch.arange(usual_size(int(lengths.max())), device=branch.device)
    lengths = lengths[:, None]
    columns = torch.tensor(starts, device=branch.device)[:, None] + torch.minimum(steps[None, :], lengths - 1)
    padding = steps[None, :] >= lengths
    real = (~padding).flatten().nonzero().squeeze(-1)
    branches = branch[columns]  # [n, t]
    allowed = (steps[:, None] >= steps[None, :])[None]  # what stands behind a tree's end is later than all of it
    plain = bool((branches <= 1).all())
    if not plain:
        allowed = allowed & ((branches[:, :, None] == branches[:, None, :]) | (branches == 0)[:, None, :])
    mask = torch.zeros(allowed.shape, device=branch.device).masked_fill_(~allowed, -torch.inf)[:, None]
    return TreeGroup(
        (len(starts), len(steps)), columns.flatten(), real, None if plain else mask.to(dtype), mask,
        padding[:, None, :, None],
    )  # fmt: skip


def tree_attention(
    query_key_value: Tensor, groups: Sequence[TreeGroup], scaling: float, *, num_heads: int
) -> Tensor:
    """What every token reads from the tokens it may see: `[T, heads, d]`.

    Args:
        query_key_value: `[T, heads + 2 kv heads, d]`; each kv head is read by `heads / kv heads` query heads.
        groups: of the trees that make up the T columns.
        num_heads: of the queries.
    """
    if not torch.is_grad_enabled():
        return _forward(query_key_value, groups, scaling, num_heads)
    return _TreeAttention.apply(query_key_value, tuple(groups), scaling, num_heads)


def _gathered(tensor: Tensor, group: TreeGroup) -> Tensor:
    """`[T, heads, d] -> [n, heads, t, d]`."""
    taken = tensor.index_select(0, group.columns).view(*group.shape, *tensor.shape[1:])
    return taken.transpose(1, 2).contiguous()


def _parts(tensor: Tensor, num_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of `[n, heads + 2 kv heads, t, d]`, each `[n, heads, t, d]`."""
    rest = (tensor.shape[1] - num_heads) // 2
    query, key, value = tensor.split([num_heads, rest, rest], dim=1)
    if rest != num_heads:
        key, value = (part.repeat_interleave(num_heads // rest, dim=1) for part in (key, value))
    return query, key, value


def _scatter(out: Tensor, values: Tensor, group: TreeGroup) -> None:
    """Puts `[n, heads, t, d]` back into the columns of `[T, heads, d]`, without what is padding."""
    flat = values.transpose(1, 2).flatten(0, 1)  # [n * t, heads, d]
    if group.has_padding:
        out.index_copy_(0, group.columns[group.real], flat.index_select(0, group.real))
    else:
        out.index_copy_(0, group.columns, flat)


def _forward(query_key_value: Tensor, groups: Sequence[TreeGroup], scaling: float, num_heads: int) -> Tensor:
    num_tokens, _, size = query_key_value.shape
    out = query_key_value.new_zeros(num_tokens, num_heads, size)
    for group in groups:
        query, key, value = _parts(_gathered(query_key_value, group), num_heads)
        read = scaled_dot_product_attention(
            query, key, value, attn_mask=group.mask, is_causal=group.mask is None, scale=scaling
        )  # [n, heads, t, d]
        _scatter(out, read, group)
    return out


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_key_value: Tensor, groups: tuple[TreeGroup, ...], scaling: float, num_heads: int
    ) -> Tensor:
        ctx.save_for_backward(query_key_value)
        ctx.groups, ctx.scaling, ctx.num_heads = groups, scaling, num_heads
        return _forward(query_key_value, groups, scaling, num_heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (query_key_value,) = ctx.saved_tensors
        into = torch.zeros_like(query_key_value)
        for group in ctx.groups:
            g = _gathered(gradient, group)
            if group.has_padding:
                g.masked_fill_(group.padding, 0)
            _scatter(into, _backward(_gathered(query_key_value, group), g, group, ctx.scaling), group)
        return into, None, None, None


def _backward(query_key_value: Tensor, gradient: Tensor, group: TreeGroup, scaling: float) -> Tensor:
    """Gradient of `query_key_value [n, heads + 2 kv heads, t, d]` from that of `[n, heads, t, d]`."""
    n, heads, t, d = gradient.shape
    rest = (query_key_value.shape[1] - heads) // 2
    query, key, value = (part.reshape(n * heads, t, d) for part in _parts(query_key_value, heads))
    gradient = gradient.view(n * heads, t, d)
    into = gradient.new_empty(3, n * heads, t, d)  # of queries, keys and values
    num_heads = max(1, min(heads, SCORES_AT_ONCE // (t * t)))  # at once, of one tree or of several whole ones
    num_trees = max(1, SCORES_AT_ONCE // (heads * t * t))
    for tree in range(0, n, num_trees):
        masks = group.all_masks if len(group.all_masks) == 1 else group.all_masks[tree : tree + num_trees]
        for head in range(tree * heads, min(tree + num_trees, n) * heads, num_heads * num_trees):
            part = slice(head, min(head + num_heads * num_trees, min(tree + num_trees, n) * heads))
            _attention_gradients(query[part], key[part], value[part], gradient[part], masks, scaling, into[:, part])
    into_query, into_key, into_value = into.view(3, n, heads, t, d)
    if rest != heads:  # several query heads read the same keys and values
        into_key, into_value = (x.unflatten(1, (rest, -1)).sum(2) for x in (into_key, into_value))
    return torch.cat([into_query, into_key, into_value], dim=1)


def _attention_gradients(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, masks: Tensor, scaling: float, into: Tensor
) -> None:
    """Writes the gradients of query, key and value `[b, t, d]` to `into [3, b, t, d]`.

    Args:
        masks: `[n or 1, 1, t, t]`, of the n trees whose heads these are.
    """
    # The scores in float32 as in the forward pass: a score of 20 in bfloat16 would be off by 0.06.
    scores = torch.bmm(query.to(torch.float32, copy=True).mul_(scaling), key.float().transpose(1, 2))
    scores.unflatten(0, (len(masks), -1)).add_(masks)
    probabilities = scores.softmax(-1).to(query.dtype)
    del scores
    torch.bmm(probabilities.transpose(1, 2), gradient, out=into[2])
    into_scores = torch._softmax_backward_data(
        torch.bmm(gradient, value.transpose(1, 2)), probabilities, -1, query.dtype
    )
    torch.bmm(into_scores, key, out=into[0])
    torch.bmm(into_scores.transpose(1, 2), query, out=into[1])
    into[:2].mul_(scaling)
