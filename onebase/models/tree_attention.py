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
"""Attention scores that exist at once in the backward pass: 32 MiB in float32, and as much again for their softmax. One
head of a group of trees has no more than these."""


@dataclass(frozen=True, slots=True)
class TreeGroup:
    """Trees of about the same length, which attention handles at once: `n` of them in `t` places each."""

    shape: tuple[int, int]
    """n, t"""
    places: slice
    """Its `n * t` places among those of all groups."""
    mask: Tensor | None
    """`[n, 1, t, t]`, added to the scores; None where every tree is one plain causal sequence."""
    all_masks: Tensor
    """`[n or 1, t, t]` float32, also of causal sequences."""


@dataclass(frozen=True, slots=True)
class TreeGroups:
    """All trees of a batch, in groups. A token has one place of its own; behind a tree's end its last stands again."""

    groups: tuple[TreeGroup, ...]
    columns: Tensor
    """`[P]`, the column of the batch that stands in each place."""
    places: Tensor
    """`[T]`, the place of each column."""
    padding: Tensor
    """The places behind the ends of trees."""


def group_trees(batch: TreeBatch, dtype: torch.dtype) -> TreeGroups:
    """Groups the trees of a batch whose rows are laid end to end; padding is a tree of its own, which nothing reads.

    Args:
        dtype: of the masks.
    """
    rows = torch.arange(len(batch.tree), device=batch.tree.device)[:, None]
    largest = int(batch.tree.max()) + 2
    tree, branch = (batch.tree + 1 + rows * largest).flatten(), batch.branch.flatten()
    return _grouped(tree, branch, dtype)


def group_sequences(sequence: Tensor, dtype: torch.dtype) -> TreeGroups:
    """Groups plain causal sequences laid end to end; `sequence [T]` numbers them."""
    return _grouped(sequence, torch.zeros_like(sequence), dtype)


def _grouped(tree: Tensor, branch: Tensor, dtype: torch.dtype) -> TreeGroups:
    _, counts = torch.unique_consecutive(tree, return_counts=True)
    lengths = counts.tolist()
    starts = (counts.cumsum(0) - counts).tolist()
    members: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[members[-1][0]] if members else 0
        fits = members and (len(members[-1]) + 1) * usual_size(longest) ** 2 <= SCORES_AT_ONCE
        if fits and lengths[i] >= SHORTEST_TO_LONGEST * longest:
            members[-1].append(i)
        else:
            members.append([i])
    groups: list[TreeGroup] = []
    columns: list[Tensor] = []
    padding: list[Tensor] = []
    num_places = 0
    for chosen in members:
        shape = len(chosen), usual_size(lengths[chosen[0]])
        steps = torch.arange(shape[1], device=tree.device)
        start, length = (torch.tensor([x[i] for i in chosen], device=tree.device)[:, None] for x in (starts, lengths))
        columns.append(start + torch.minimum(steps[None, :], length - 1))
        padding.append((steps[None, :] >= length).flatten().nonzero().squeeze(-1) + num_places)
        places = slice(num_places, num_places + shape[0] * shape[1])
        groups.append(TreeGroup(shape, places, *_masks(branch[columns[-1]], dtype)))
        num_places = places.stop
    all_columns, all_padding = torch.cat([part.flatten() for part in columns]), torch.cat(padding)
    real = torch.ones(num_places, dtype=torch.bool, device=tree.device).index_fill_(0, all_padding, False)
    place = torch.empty_like(tree)
    place[all_columns[real]] = real.nonzero().squeeze(-1)
    return TreeGroups(tuple(groups), all_columns, place, all_padding)


def _masks(branch: Tensor, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """A group's masks from the branches `[n, t]` of its places."""
    steps = torch.arange(branch.shape[1], device=branch.device)
    allowed = (steps[:, None] >= steps[None, :])[None]  # what stands behind a tree's end is later than all of it
    plain = bool((branch <= 1).all())
    if not plain:
        allowed = allowed & ((branch[:, :, None] == branch[:, None, :]) | (branch == 0)[:, None, :])
    mask = torch.zeros(allowed.shape, device=branch.device).masked_fill_(~allowed, -torch.inf)
    return None if plain else mask.to(dtype)[:, None], mask


def tree_attention(query_key_value: Tensor, groups: TreeGroups, scaling: float, *, num_heads: int) -> Tensor:
    """What every token reads from the tokens it may see: `[T, heads, d]`, zeros in columns of no group.

    Args:
        query_key_value: `[T, heads + 2 kv heads, d]`; each kv head is read by `heads / kv heads` query heads.
        groups: of the trees that make up the first columns.
        num_heads: of the queries.
    """
    if not torch.is_grad_enabled():
        return _forward(query_key_value, groups, scaling, num_heads)[0]
    return _TreeAttention.apply(query_key_value, groups, scaling, num_heads)


def _parts(tensor: Tensor, num_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, which stand side by side in `dim`; as many of each, keys and values repeated."""
    rest = (tensor.shape[dim] - num_heads) // 2
    query, key, value = tensor.split([num_heads, rest, rest], dim=dim)
    if rest != num_heads:
        key, value = (part.repeat_interleave(num_heads // rest, dim=dim) for part in (key, value))
    return query, key, value


def _back_in_columns(parts: Sequence[Tensor], groups: TreeGroups, num_columns: int) -> Tensor:
    """Each group's `[n * t, heads, d]` to `[T, heads, d]`."""
    everywhere = torch.cat(list(parts))
    out = everywhere.new_empty(num_columns, *everywhere.shape[1:])
    num_tokens = len(groups.places)
    torch.index_select(everywhere, 0, groups.places, out=out[:num_tokens])
    out[num_tokens:] = 0
    return out


def _forward(query_key_value: Tensor, groups: TreeGroups, scaling: float, num_heads: int) -> tuple[Tensor, Tensor]:
    """`[T, heads, d]`, and the queries, keys and values of every place."""
    placed = query_key_value.index_select(0, groups.columns)
    reads = []
    for group in groups.groups:
        query, key, value = _parts(placed[group.places].unflatten(0, group.shape).transpose(1, 2), num_heads, 1)
        read = scaled_dot_product_attention(
            query, key, value, attn_mask=group.mask, is_causal=group.mask is None, scale=scaling
        )  # [n, heads, t, d]
        reads.append(read.transpose(1, 2).flatten(0, 1))
    return _back_in_columns(reads, groups, len(query_key_value)), placed


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_key_value: Tensor, groups: TreeGroups, scaling: float, num_heads: int) -> Tensor:
        out, placed = _forward(query_key_value, groups, scaling, num_heads)
        ctx.save_for_backward(placed)
        ctx.groups, ctx.scaling = groups, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        (placed,) = ctx.saved_tensors
        groups: TreeGroups = ctx.groups
        into_reads = gradient.index_select(0, groups.columns).index_fill_(0, groups.padding, 0)
        parts = [
            _backward(placed[group.places], into_reads[group.places], group, ctx.scaling) for group in groups.groups
        ]
        return _back_in_columns(parts, groups, len(gradient)), None, None, None


def _backward(query_key_value: Tensor, gradient: Tensor, group: TreeGroup, scaling: float) -> Tensor:
    """Gradient of a group's `query_key_value [n * t, heads + 2 kv heads, d]` from that of `[n * t, heads, d]`."""
    n, t = group.shape
    heads, d = gradient.shape[1:]
    rest = (query_key_value.shape[1] - heads) // 2

    def by_head(tensor: Tensor) -> Tensor:  # [n * t, heads, d] -> [heads, n * t, d]
        return tensor.transpose(0, 1).contiguous()

    query, key, value = _parts(by_head(query_key_value), heads, 0)
    gradient = by_head(gradient)
    into = gradient.new_empty(3, heads, n * t, d)  # of queries, keys and values
    at_once = max(1, SCORES_AT_ONCE // (n * t * t))
    for head in range(0, heads, at_once):
        part = slice(head, head + at_once)
        q, k, v, g = (tensor[part].reshape(-1, t, d) for tensor in (query, key, value, gradient))
        _attention_gradients(q, k, v, g, group.all_masks, scaling, into[:, part].unflatten(2, (n, t)).flatten(1, 2))
    into_query, into_key, into_value = into
    if rest != heads:  # several query heads read the same keys and values
        into_key, into_value = (x.unflatten(0, (rest, -1)).sum(1) for x in (into_key, into_value))
        return torch.cat([into_query, into_key, into_value]).transpose(0, 1)
    return into.flatten(0, 1).transpose(0, 1)


def _attention_gradients(
    query: Tensor, key: Tensor, value: Tensor, gradient: Tensor, masks: Tensor, scaling: float, into: Tensor
) -> None:
    """Writes the gradients of query, key and value `[heads * n, t, d]` to `into [3, heads * n, t, d]`.

    Args:
        masks: `[n or 1, t, t]`.
    """
    # The scores in float32 as in the forward pass: a score of 20 in bfloat16 would be off by 0.06.
    scores = torch.bmm(query.to(torch.float32, copy=True).mul_(scaling), key.float().transpose(1, 2))
    scores.unflatten(0, (-1, len(masks))).add_(masks)
    probabilities = scores.softmax(-1).to(query.dtype)
    del scores
    torch.bmm(probabilities.transpose(1, 2), gradient, out=into[2])
    into_scores = torch._softmax_backward_data(
        torch.bmm(gradient * scaling, value.transpose(1, 2)), probabilities, -1, query.dtype
    )
    torch.bmm(into_scores, key, out=into[0])
    torch.bmm(into_scores.transpose(1, 2), query, out=into[1])
