"""Attention inside prompt trees laid end to end in one row, without padding between them.

Trees of similar length are batched together, so that a short one is not padded to the longest. The forward pass is
PyTorch's fused attention. On a CPU its backward pass took 12 times as long as its forward pass, so the backward pass is
written here as matrix products, from Dao et al. 2022 (FlashAttention), appendix B.2:

    P = softmax(s Q K^T + mask),  dP = dO V^T,  dS = P * (dP - rowsum(P * dP)),
    dQ = s dS K,  dK = s dS^T Q,  dV = P^T dO
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from onebase.models.hardware import usual_size
from onebase.records import TreeBatch
from onebase.transfer import to_device

SHORTEST_TO_LONGEST = 0.8
"""The smallest ratio of lengths within a group: at most about a fifth is then padding."""
SCORES_AT_ONCE = 1 << 23
"""Attention scores held at once in the backward pass: 32 MiB in float32, and as much again for their softmax. A group
of trees has no more than this per head."""


@dataclass(frozen=True, slots=True)
class TreeGroup:
    """Trees of similar length that attention handles at once: `n` trees of `t` places each."""

    shape: tuple[int, int]
    """n, t"""
    places: slice
    """The group's `n * t` places among all groups' places."""
    mask: Tensor | None
    """`[n, 1, t, t]`, added to the scores; None if every tree is one plain causal sequence."""
    all_masks: Tensor
    """`[n or 1, t, t]` float32, present for causal sequences too."""


@dataclass(frozen=True, slots=True)
class TreeGroups:
    """All trees of a batch, in groups. Each token has one place; places after a tree's end repeat its last token."""

    groups: tuple[TreeGroup, ...]
    columns: Tensor
    """`[P]`, the batch column in each place."""
    places: Tensor
    """`[T]`, the place of each column."""
    padding: Tensor
    """The places after the ends of trees."""

    def attend(self, query_key_value: Tensor, scaling: float, *, num_heads: int) -> Tensor:
        """What each token reads from the tokens it may see: `[T, heads, d]`; see `tree_attention`."""
        return tree_attention(query_key_value, self, scaling, num_heads=num_heads)


def group_trees(batch: TreeBatch, dtype: torch.dtype) -> TreeGroups:
    """Groups the trees of a batch.

    Args:
        dtype: the masks' number format.
    """
    return _grouped(batch.tree_lengths, batch.branches, batch.branch, dtype)


def group_sequences(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> TreeGroups:
    """Groups plain causal sequences of these lengths laid end to end."""
    return _grouped(lengths, [1] * len(lengths), torch.zeros(sum(lengths), dtype=torch.long, device=device), dtype)


def _grouped(lengths: Sequence[int], branches: Sequence[int], branch: Tensor, dtype: torch.dtype) -> TreeGroups:
    """The groups, laid out on the CPU."""
    device, starts = branch.device, [0, *accumulate(lengths)]
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
        steps = torch.arange(shape[1])
        start, length = (torch.tensor([x[i] for i in chosen])[:, None] for x in (starts, lengths))
        columns.append(start + torch.minimum(steps[None, :], length - 1))
        padding.append((steps[None, :] >= length).flatten().nonzero().squeeze(-1) + num_places)
        places = slice(num_places, num_places + shape[0] * shape[1])
        plain = all(branches[i] == 1 for i in chosen)
        groups.append(TreeGroup(shape, places, *_masks(branch[to_device(columns[-1], device)], plain, dtype)))
        num_places = places.stop
    all_columns, all_padding = torch.cat([column.flatten() for column in columns]), torch.cat(padding)
    real = torch.ones(num_places, dtype=torch.bool).index_fill_(0, all_padding, False)
    place = torch.empty(sum(lengths), dtype=torch.long)
    place[all_columns[real]] = real.nonzero().squeeze(-1)
    return TreeGroups(tuple(groups), *(to_device(x, device) for x in (all_columns, place, all_padding)))


def _masks(branch: Tensor, plain: bool, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    """A group's masks, from the branches `[n, t]` of its places; `plain`: every tree is one causal sequence."""
    steps = torch.arange(branch.shape[1], device=branch.device)
    allowed = (steps[:, None] >= steps[None, :])[None]  # padding comes after the whole tree, so the tree never sees it
    if not plain:
        allowed = allowed & ((branch[:, :, None] == branch[:, None, :]) | (branch == 0)[:, None, :])
    mask = torch.zeros(allowed.shape, device=branch.device).masked_fill_(~allowed, -torch.inf)
    return None if plain else mask.to(dtype)[:, None], mask


def tree_attention(query_key_value: Tensor, groups: TreeGroups, scaling: float, *, num_heads: int) -> Tensor:
    """What each token reads from the tokens it may see: `[T, heads, d]`, zeros in columns outside every group.

    Args:
        query_key_value: `[T, heads + 2 kv heads, d]`; each kv head is read by `heads / kv heads` query heads.
        groups: the trees in the first columns, grouped.
        num_heads: query heads.
    """
    if not torch.is_grad_enabled():
        return _forward(query_key_value, groups, scaling, num_heads)[0]
    return _TreeAttention.apply(query_key_value, groups, scaling, num_heads)


def _parts(tensor: Tensor, num_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits queries, keys and values, side by side in `dim`; keys and values are repeated to match the queries."""
    rest = (tensor.shape[dim] - num_heads) // 2
    query, key, value = tensor.split([num_heads, rest, rest], dim=dim)
    if rest != num_heads:
        key, value = (x.repeat_interleave(num_heads // rest, dim=dim) for x in (key, value))
    return query, key, value


def _back_in_columns(parts: Sequence[Tensor], groups: TreeGroups, num_columns: int) -> Tensor:
    """Gathers the groups' `[n * t, heads, d]` into `[T, heads, d]`."""
    everywhere = torch.cat(list(parts))
    out = everywhere.new_empty(num_columns, *everywhere.shape[1:])
    num_tokens = len(groups.places)
    torch.index_select(everywhere, 0, groups.places, out=out[:num_tokens])
    out[num_tokens:] = 0
    return out


def _forward(query_key_value: Tensor, groups: TreeGroups, scaling: float, num_heads: int) -> tuple[Tensor, Tensor]:
    """What each token reads, `[T, heads, d]`, and the queries, keys and values in every place."""
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
        into_places = [
            _backward(placed[group.places], into_reads[group.places], group, ctx.scaling) for group in groups.groups
        ]
        return _back_in_columns(into_places, groups, len(gradient)), None, None, None


def _backward(query_key_value: Tensor, gradient: Tensor, group: TreeGroup, scaling: float) -> Tensor:
    """Gradient of a group's `query_key_value [n * t, heads + 2 kv heads, d]` from its output's, `[n * t, heads, d]`."""
    n, t = group.shape
    heads, d = gradient.shape[1:]
    rest = (query_key_value.shape[1] - heads) // 2

    def by_head(tensor: Tensor) -> Tensor:  # [n * t, heads, d] -> [heads, n * t, d]
        return tensor.transpose(0, 1).contiguous()

    query, key, value = _parts(by_head(query_key_value), heads, 0)
    gradient = by_head(gradient)
    into = gradient.new_empty(3, heads, n * t, d)  # queries, keys and values
    at_once = max(1, SCORES_AT_ONCE // (n * t * t))
    for head in range(0, heads, at_once):
        some = slice(head, head + at_once)
        q, k, v, g = (tensor[some].reshape(-1, t, d) for tensor in (query, key, value, gradient))
        _attention_gradients(q, k, v, g, group.all_masks, scaling, into[:, some].unflatten(2, (n, t)).flatten(1, 2))
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
    # Scores are in float32, as in the forward pass: in bfloat16 a score of 20 would be off by 0.06.
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
