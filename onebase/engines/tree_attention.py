"""Attention inside prompt trees laid end to end in one row, without padding between them.

No token of a completion sees another completion, so most of a large tree's square of scores would be masked. A large
tree is therefore read in parts (`partial_attention.py`): its prompt and each of its completions is a *segment*, whose
tokens see those before them in it; and its completions *cross* to the prompt, which they see whole. With a prompt of P
tokens and K completions of C, P^2 + K C (P + C) scores take the place of (P + K C)^2. A small tree, or one of a single
completion, is a segment as a whole, with a mask if it branches.

Segments of similar length are batched together, and so are crossings, so that little is padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from onebase.engines import partial_attention
from onebase.engines.partial_attention import attend, gradients, join, later_keys
from onebase.models.hardware import usual_size
from onebase.records import TreeBatch
from onebase.transfer import to_device

SHORTEST_TO_LONGEST = 0.8
"""The smallest ratio of lengths within a group: at most about a fifth is then padding."""
COST_OF_PARTS = 100
"""What reading a tree in parts costs more than its scores, in scores per token: its tokens are gathered twice."""
MOST_PADDING = 1.5
"""Scores computed for a group of crossings, as a multiple of those that are needed."""


@dataclass(frozen=True, slots=True)
class SegmentGroup:
    """Segments of similar length that attention handles at once: `n` of them, of `t` places each."""

    shape: tuple[int, int]
    """n, t"""
    places: slice
    """The group's `n * t` places among all groups' places."""
    mask: Tensor | None
    """`[n, 1, t, t]`, added to the scores, in the base's number format; None if each is one plain causal sequence."""
    all_masks: Tensor
    """`[n or 1, t, t]` float32, present for causal sequences too."""
    whole: bool
    """Whether nothing is read outside the segments: False for the prompts and completions of trees in parts."""


@dataclass(frozen=True, slots=True)
class Crossing:
    """Trees whose completions read their prompts at once: `n` trees, each `q` completion tokens and `p` of the prompt.

    Behind the end of a shorter tree's completions or prompt, its last token is repeated.
    """

    shape: tuple[int, int, int]
    """n, q, p"""
    queries: Tensor
    """`[n * q]`, batch columns of completion tokens."""
    keys: Tensor
    """`[n * p]`, batch columns of prompt tokens."""
    real: Tensor
    """The places among the queries that are no repetition."""
    mask: Tensor
    """`[n, 1, 1, p]`, added to the scores, in the base's number format."""


@dataclass(frozen=True, slots=True)
class TreeGroups:
    """All trees of a batch, in groups. Each token has one place; places after a segment's end repeat its last token."""

    groups: tuple[SegmentGroup, ...]
    columns: Tensor
    """`[P]`, the batch column in each place."""
    places: Tensor
    """`[T]`, the place of each column."""
    padding: Tensor
    """The places after the ends of segments."""
    crossings: tuple[Crossing, ...]

    def attend(self, query_key_value: Tensor, scaling: float, *, num_heads: int) -> Tensor:
        """What each token reads from the tokens it may see: `[T, heads, d]`; see `tree_attention`."""
        return tree_attention(query_key_value, self, scaling, num_heads=num_heads)


class _Span(NamedTuple):
    """Neighbouring columns: a segment, or the completions of a tree."""

    start: int
    length: int
    branches: bool = False
    """Whether it is a whole tree of several completions."""
    whole: bool = True


def group_trees(batch: TreeBatch, dtype: torch.dtype) -> TreeGroups:
    """Groups the segments and crossings of a batch.

    Args:
        dtype: the masks' number format.
    """
    branch, start = batch.branch, 0
    in_parts = branch.device.type == "cpu"  # a GPU has FlexAttention, and would wait for the lengths of the parts
    segments: list[_Span] = []
    crossing: list[tuple[_Span, _Span]] = []
    for length, branches in zip(batch.tree_lengths, batch.branches, strict=True):
        parts = _parts_of(branch[start : start + length]) if in_parts and branches > 1 else []
        if parts and _scores(parts) + COST_OF_PARTS * length < usual_size(length) ** 2:
            segments += [_Span(start + part.start, part.length, whole=False) for part in parts]
            prompt = parts[0].length
            crossing.append((_Span(start + prompt, length - prompt), _Span(start, prompt)))
        else:
            segments.append(_Span(start, length, branches=branches > 1))
        start += length
    return _grouped(segments, crossing, batch.branch, dtype)


def group_sequences(lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> TreeGroups:
    """Groups plain causal sequences of these lengths laid end to end."""
    segments = [_Span(*span) for span in zip(accumulate(lengths, initial=0), lengths, strict=False)]
    return _grouped(segments, [], torch.zeros(sum(lengths), dtype=torch.long, device=device), dtype)


def _parts_of(branch: Tensor) -> list[_Span]:
    """A tree's prompt and its completions, counted from the tree's first column."""
    _, counts = torch.unique_consecutive(branch, return_counts=True)
    lengths = counts.tolist()
    return [_Span(*span) for span in zip(accumulate(lengths, initial=0), lengths, strict=False)]


def _scores(parts: Sequence[_Span]) -> int:
    """How many scores a tree in these parts takes."""
    prompt, *completions = (usual_size(part.length) for part in parts)
    return prompt**2 + sum(completion * (prompt + completion) for completion in completions)


def _grouped(
    segments: Sequence[_Span], crossing: Sequence[tuple[_Span, _Span]], branch: Tensor, dtype: torch.dtype
) -> TreeGroups:
    """The groups, laid out on the CPU; `segments` are all columns in order, and `branch` is that of each column."""
    device = branch.device
    members: list[list[_Span]] = []
    for span in sorted(segments, key=lambda span: (span.whole, -span.length)):
        longest = members[-1][0].length if members and members[-1][0].whole == span.whole else 0
        fits = longest and (len(members[-1]) + 1) * usual_size(longest) ** 2 <= partial_attention.SCORES_AT_ONCE
        if fits and span.length >= SHORTEST_TO_LONGEST * longest:
            members[-1].append(span)
        else:
            members.append([span])
    groups: list[SegmentGroup] = []
    columns: list[Tensor] = []
    padding: list[Tensor] = []
    num_places = 0
    for chosen in members:
        shape = len(chosen), usual_size(chosen[0].length)
        of_group, is_padding = _columns_of(chosen, shape[1])
        columns.append(of_group)
        padding.append(is_padding.nonzero().squeeze(-1) + num_places)
        places = slice(num_places, num_places + len(of_group))
        branching = any(span.branches for span in chosen)
        branch_of = branch[to_device(of_group, device)].view(shape) if branching else None
        groups.append(SegmentGroup(shape, places, *_masks(branch_of, shape[1], dtype, device), chosen[0].whole))
        num_places = places.stop
    all_columns, all_padding = torch.cat(columns), torch.cat(padding)
    real = torch.ones(num_places, dtype=torch.bool).index_fill_(0, all_padding, False)
    place = torch.empty(len(branch), dtype=torch.long)
    place[all_columns[real]] = real.nonzero().squeeze(-1)
    return TreeGroups(
        tuple(groups),
        to_device(all_columns, device),
        to_device(place, device),
        to_device(all_padding, device),
        tuple(_crossings(crossing, dtype, device)),
    )


def _masks(branch: Tensor | None, width: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor | None, Tensor]:
    """A group's masks, from the branches `[n, t]` of its places; None: every segment is one causal sequence."""
    causal = later_keys(width, device)  # padding comes after the whole segment, so the segment never sees it
    if branch is None:
        return None, causal
    elsewhere = (branch[:, :, None] != branch[:, None, :]) & (branch != 0)[:, None, :]
    mask = causal.masked_fill(elsewhere, -torch.inf)
    return mask.to(dtype)[:, None], mask


def _crossings(crossing: Sequence[tuple[_Span, _Span]], dtype: torch.dtype, device: torch.device) -> list[Crossing]:
    """Crossings in groups, each a tree's completions and its prompt."""
    members: list[list[tuple[_Span, _Span]]] = []
    for each in sorted(crossing, key=lambda each: (-each[0].length * each[1].length, each)):
        wider = [*members[-1], each] if members else [each]
        scores = len(wider) * _widest(wider, 0) * _widest(wider, 1)
        needed = sum(usual_size(completions.length) * usual_size(prompt.length) for completions, prompt in wider)
        if members and scores <= min(MOST_PADDING * needed, partial_attention.SCORES_AT_ONCE):
            members[-1].append(each)
        else:
            members.append([each])
    found = []
    for chosen in members:
        shape = len(chosen), _widest(chosen, 0), _widest(chosen, 1)
        queries, is_padding = _columns_of([completions for completions, _ in chosen], shape[1])
        keys, is_behind = _columns_of([prompt for _, prompt in chosen], shape[2])
        mask = torch.zeros(shape[0], 1, 1, shape[2]).masked_fill_(is_behind.view(shape[0], 1, 1, -1), -torch.inf)
        laid = (to_device(x, device) for x in (queries, keys, (~is_padding).nonzero().squeeze(-1), mask.to(dtype)))
        found.append(Crossing(shape, *laid))
    return found


def _widest(members: Sequence[tuple[_Span, _Span]], part: int) -> int:
    return usual_size(max(each[part].length for each in members))


def _columns_of(spans: Sequence[_Span], width: int) -> tuple[Tensor, Tensor]:
    """The spans' columns, each padded to `width` by its last one, and which of them are padding: `[n * width]`."""
    steps = torch.arange(width)[None, :]
    start, length = torch.tensor([span[:2] for span in spans])[:, :, None].unbind(1)
    return (start + torch.minimum(steps, length - 1)).flatten(), (steps >= length).flatten()


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


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_key_value: Tensor, groups: TreeGroups, scaling: float, num_heads: int) -> Tensor:
        out, lse = _forward(query_key_value, groups, scaling, num_heads)
        ctx.save_for_backward(query_key_value, out, lse)
        ctx.groups, ctx.scaling = groups, scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        query_key_value, out, lse = ctx.saved_tensors
        return _backward(query_key_value, out, lse, gradient, ctx.groups, ctx.scaling), None, None, None


def _forward(query_key_value: Tensor, groups: TreeGroups, scaling: float, num_heads: int) -> tuple[Tensor, Tensor]:
    """What each token reads, `[T, heads, d]`, and the logs of the softmaxes' sums, `[T, heads]`."""
    placed = query_key_value.index_select(0, groups.columns)
    reads: list[Tensor] = []
    sums: list[Tensor] = []
    for group in groups.groups:
        of_group = placed[group.places].unflatten(0, group.shape).transpose(1, 2)
        query, key, value = _parts(of_group, num_heads, 1)
        read, lse = attend(query, key, value, scaling=scaling, mask=group.mask, causal=group.mask is None)
        reads.append(read.transpose(1, 2).flatten(0, 1))
        sums.append(lse.transpose(1, 2).flatten(0, 1))
    out, all_lse = (_back_in_columns(parts, groups, len(query_key_value)) for parts in (reads, sums))
    for crossing in groups.crossings:
        n, q, p = crossing.shape
        query = query_key_value.index_select(0, crossing.queries)[:, :num_heads].unflatten(0, (n, q)).transpose(1, 2)
        seen = query_key_value.index_select(0, crossing.keys).unflatten(0, (n, p)).transpose(1, 2)
        _, key, value = _parts(seen, num_heads, 1)
        found = attend(query, key, value, scaling=scaling, mask=crossing.mask)
        read, lse = (part.transpose(1, 2).flatten(0, 1)[crossing.real] for part in found)
        columns = crossing.queries[crossing.real]
        joined, lse = join(out[columns], all_lse[columns], read, lse)
        out.index_copy_(0, columns, joined)
        all_lse.index_copy_(0, columns, lse)
    return out, all_lse


def _backward(
    query_key_value: Tensor, out: Tensor, lse: Tensor, gradient: Tensor, groups: TreeGroups, scaling: float
) -> Tensor:
    """The gradient of `query_key_value` from that of `out`."""
    num_heads = out.shape[1]
    num_kv_heads = (query_key_value.shape[1] - num_heads) // 2
    product = torch.linalg.vecdot(gradient.float(), out.float())  # [T, heads]
    placed, placed_lse = (tensor.index_select(0, groups.columns) for tensor in (query_key_value, lse))
    # What stands in padding is read by nobody.
    into_reads, placed_product = (
        tensor.index_select(0, groups.columns).index_fill_(0, groups.padding, 0) for tensor in (gradient, product)
    )
    into_places: list[Tensor] = []
    for group in groups.groups:
        of_group = [_by_head(x[group.places], group.shape) for x in (placed, into_reads, placed_lse, placed_product)]
        query, key, value = _parts(of_group[0], num_heads, 0)
        into_query, into_key, into_value = gradients(
            query,
            key,
            value,
            of_group[1],
            scaling=scaling,
            mask=group.all_masks,
            joined=None if group.whole else (of_group[2], of_group[3]),
        )
        into_shared = [_summed(x, num_kv_heads) for x in (into_key, into_value)]
        into_places.append(torch.cat([into_query, *into_shared]).flatten(1, 2).transpose(0, 1))
    into = _back_in_columns(into_places, groups, len(gradient))
    for crossing in groups.crossings:
        n, q, p = crossing.shape
        columns = crossing.queries[crossing.real]
        query, into_read, of_lse, of_product = (
            _by_head(_only_real(x, columns, crossing), (n, q))
            for x in (query_key_value[:, :num_heads], gradient, lse, product)
        )
        seen = _by_head(query_key_value.index_select(0, crossing.keys), (n, p))
        _, key, value = _parts(seen, num_heads, 0)
        mask = crossing.mask[:, 0].float()
        into_query, into_key, into_value = gradients(
            query, key, value, into_read, scaling=scaling, mask=mask, joined=(of_lse, of_product)
        )
        into[:, :num_heads].index_add_(0, columns, into_query.flatten(1, 2).transpose(0, 1)[crossing.real])
        into_shared = [_summed(x, num_kv_heads) for x in (into_key, into_value)]
        into[:, num_heads:].index_add_(0, crossing.keys, torch.cat(into_shared).flatten(1, 2).transpose(0, 1))
    return into


def _parts(tensor: Tensor, num_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits queries, keys and values, side by side in `dim`; keys and values are repeated to match the queries."""
    rest = (tensor.shape[dim] - num_heads) // 2
    query, key, value = tensor.split([num_heads, rest, rest], dim=dim)
    if rest != num_heads:
        key, value = (x.repeat_interleave(num_heads // rest, dim=dim) for x in (key, value))
    return query, key, value


def _summed(into: Tensor, num_kv_heads: int) -> Tensor:
    """Gradients of keys or values that several query heads read, `[heads, ...] -> [kv heads, ...]`."""
    return into if len(into) == num_kv_heads else into.unflatten(0, (num_kv_heads, -1)).sum(1)


def _by_head(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """`[n * t, heads, ...] -> [heads, n, t, ...]`."""
    return tensor.transpose(0, 1).contiguous().unflatten(1, shape)


def _only_real(tensor: Tensor, columns: Tensor, crossing: Crossing) -> Tensor:
    """The crossing's queries' entries of `tensor [T, ...]`, zeros in padding: `[n * q, ...]`."""
    n, q, _ = crossing.shape
    return tensor.new_zeros(n * q, *tensor.shape[1:]).index_copy_(0, crossing.real, tensor.index_select(0, columns))


def _back_in_columns(parts: Sequence[Tensor], groups: TreeGroups, num_columns: int) -> Tensor:
    """Gathers the groups' `[n * t, heads, ...]` into `[T, heads, ...]`."""
    everywhere = torch.cat(list(parts))
    out = everywhere.new_empty(num_columns, *everywhere.shape[1:])
    num_tokens = len(groups.places)
    torch.index_select(everywhere, 0, groups.places, out=out[:num_tokens])
    out[num_tokens:] = 0
    return out
