"""Attention inside packed trees, against a softmax over the whole batch with the mask of the tree layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from onebase.data.rows import attention_mask, lay_in_rows
from onebase.data.tree import build_tree_batch
from onebase.engines import partial_attention
from onebase.engines import tree_attention as module
from onebase.engines.tree_attention import TreeGroups, group_sequences, group_trees, tree_attention
from onebase.models.hardware import usual_size
from onebase.records import Example, TreeBatch

SIZE = 8
SCALING = SIZE**-0.5
Shape = tuple[int, tuple[int, ...]]
"""Length of a prompt, and of its completions."""
TREES: dict[str, list[Shape]] = {
    "one plain sequence": [(5, (4,))],
    "plain sequences of many lengths": [(9, (3,)), (1, (1,)), (20, (13,)), (8, (3,)), (2, (5,))],
    "one tree": [(4, (3, 5, 1))],
    "trees of many lengths": [(6, (5, 1, 7)), (2, (1, 1, 1)), (15, (9, 9, 12)), (4, (2, 3, 1)), (5, (6, 2, 7))],
    "trees and plain sequences of one length": [(6, (2, 2)), (6, (4,)), (5, (5,)), (4, (1, 2, 3))],
}
HEADS = {"every head has its keys": (4, 4), "two heads share keys": (4, 2), "all heads share keys": (3, 1)}


@pytest.fixture(autouse=True, params=["whole", "in parts"])
def how_trees_are_read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs twice: trees as small as these are read whole unless parts seem to cost nothing."""
    if request.param == "in parts":
        monkeypatch.setattr(module, "COST_OF_PARTS", -(10**6))
    return str(request.param)


def batch_of(shapes: list[Shape]) -> TreeBatch:
    return build_tree_batch([Example([5] * prompt, [[6] * length for length in lengths]) for prompt, lengths in shapes])


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(query_key_value: Tensor, allowed: Tensor, num_heads: int) -> Tensor:
    """softmax(s Q K^T) V over all columns, `[T, heads, d]`; `allowed [T, T]`."""
    rest = (query_key_value.shape[1] - num_heads) // 2
    query, key, value = query_key_value.split([num_heads, rest, rest], dim=1)
    key, value = (part.repeat_interleave(num_heads // rest, dim=1) for part in (key, value))
    scores = torch.einsum("ihd,jhd->hij", query, key) * SCALING
    scores = scores.masked_fill(~allowed, -torch.inf)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), value)


def allowed_of(batch: TreeBatch) -> Tensor:
    """The mask of the padded rows, without their padding and end to end."""
    rows = lay_in_rows(batch, "tree")
    masks = zip(attention_mask(rows)[:, 0], rows.is_token, strict=True)
    return torch.block_diag(*[mask[real][:, real] for mask, real in masks]).bool()


class Squares(TorchDispatchMode):
    """The most numbers in a tensor `[..., t, t]` that an operation makes: scores, and all that is of their size."""

    def __init__(self, groups: TreeGroups) -> None:
        super().__init__()
        self.given = {group.all_masks.untyped_storage().data_ptr() for group in groups.groups}
        self.largest = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.dim() > 2 and value.shape[-1] == value.shape[-2] != SIZE:
                storage = value.untyped_storage()
                if storage.data_ptr() not in self.given:
                    self.largest = max(self.largest, storage.nbytes() // value.element_size())
        return result


def check(query_key_value: Tensor, groups: TreeGroups, allowed: Tensor, real: Tensor, num_heads: int) -> None:
    """Both directions against float64; what stands in padding is read by nobody and gets no gradient from anybody."""
    weights = random(len(query_key_value), num_heads, SIZE, seed=1) * real[:, None, None]
    exact = query_key_value.double().requires_grad_()
    expected = dense(exact, allowed, num_heads)
    (wanted,) = torch.autograd.grad((expected * weights.double()).sum(), exact)
    given = query_key_value.clone().requires_grad_()
    found = tree_attention(given, groups, SCALING, num_heads=num_heads)
    (gradient,) = torch.autograd.grad((found * weights).sum(), given)
    assert found.isfinite().all() and gradient.isfinite().all()
    torch.testing.assert_close(found[real].double(), expected[real], rtol=0, atol=2e-6)
    assert not gradient[~real].any()
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=5e-6)
    with torch.no_grad():
        assert torch.equal(tree_attention(given, groups, SCALING, num_heads=num_heads), found)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("trees", TREES)
def test_packed_trees_are_the_softmax_over_what_each_token_may_see(trees: str, heads: str) -> None:
    batch, (num_heads, num_kv_heads) = batch_of(TREES[trees]), HEADS[heads]
    values = random(batch.input_ids.numel(), num_heads + 2 * num_kv_heads, SIZE)
    real = torch.ones(len(values), dtype=torch.bool)
    check(values, group_trees(batch, torch.float32), allowed_of(batch), real, num_heads)


@pytest.mark.parametrize("num_padding", [1, 37])
@pytest.mark.parametrize("trees", ["plain sequences of many lengths", "trees of many lengths"])
def test_trees_with_padding_behind_the_last_are_exact_too(trees: str, num_padding: int) -> None:
    batch = batch_of(TREES[trees])
    num_tokens = batch.input_ids.numel()
    real = torch.arange(num_tokens + num_padding) < num_tokens
    values = random(len(real), 8, SIZE)
    allowed = torch.block_diag(allowed_of(batch), torch.eye(num_padding)).bool()
    check(values, group_trees(batch, torch.float32), allowed, real, 4)


@pytest.mark.parametrize("scores_at_once", [1, 300, 1000, 5000, 20_000])
@pytest.mark.parametrize("heads", HEADS)
def test_scores_in_parts_give_the_gradients_of_all_at_once(
    heads: str, scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, (num_heads, num_kv_heads) = batch_of(TREES["trees of many lengths"] * 2), HEADS[heads]
    values = random(batch.input_ids.numel(), num_heads + 2 * num_kv_heads, SIZE)
    monkeypatch.setattr(partial_attention, "SCORES_AT_ONCE", scores_at_once)
    groups = group_trees(batch, torch.float32)
    real = torch.ones(len(values), dtype=torch.bool)
    check(values, groups, allowed_of(batch), real, num_heads)


@pytest.mark.parametrize("scores_at_once", [1, 5000, 20_000])
def test_no_more_scores_nor_masks_exist_at_once_than_allowed(
    scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(TREES["trees of many lengths"] * 2)
    monkeypatch.setattr(partial_attention, "SCORES_AT_ONCE", scores_at_once)
    groups = group_trees(batch, torch.float32)
    values = random(batch.input_ids.numel(), 12, SIZE).requires_grad_()
    found = tree_attention(values, groups, SCALING, num_heads=4)
    with Squares(groups) as squares:
        found.sum().backward()
    longest = max(group.shape[1] for group in groups.groups)
    assert longest**2 <= squares.largest <= max(scores_at_once, longest**2)


def test_sequences_end_to_end_are_plain_causal_attention() -> None:
    lengths = [7, 1, 12, 12, 3]
    sequence = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    groups = group_sequences(lengths, torch.float32, torch.device("cpu"))
    assert all(group.mask is None for group in groups.groups)
    order = torch.arange(len(sequence))
    allowed = (sequence[:, None] == sequence[None, :]) & (order[:, None] >= order[None, :])
    check(random(len(sequence), 8, SIZE), groups, allowed, torch.ones(len(sequence), dtype=torch.bool), 4)


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize("trees", TREES)
def test_every_column_stands_in_one_group_and_little_of_a_group_is_padding(trees: str, repeats: int) -> None:
    batch = batch_of(TREES[trees] * repeats)
    groups = group_trees(batch, torch.float32)
    real = torch.ones(len(groups.columns), dtype=torch.bool).index_fill_(0, groups.padding, False)
    num_columns = batch.input_ids.numel()
    assert sorted(groups.columns[real].tolist()) == list(range(num_columns))
    assert torch.equal(groups.columns[groups.places], torch.arange(num_columns)) and real[groups.places].all()
    assert [group.places.stop for group in groups.groups][-1] == len(groups.columns)
    for group in groups.groups:
        rows, width = group.shape
        lengths = real[group.places].view(rows, width).sum(-1)
        assert group.places.stop - group.places.start == rows * width and width % 16 == 0
        assert int(lengths.min()) >= module.SHORTEST_TO_LONGEST * int(lengths.max())
        assert width == usual_size(int(lengths.max()))


def test_attention_leaves_columns_of_no_group_at_zero_without_a_gradient() -> None:
    batch = batch_of(TREES["trees of many lengths"])
    num_tokens = batch.input_ids.numel()
    groups = group_trees(batch, torch.float32)
    values = random(num_tokens + 5, 8, SIZE)
    values[num_tokens:] = torch.nan
    given = values.requires_grad_()
    found = tree_attention(given, groups, SCALING, num_heads=4)
    assert not found[num_tokens:].any()
    assert torch.equal(found[:num_tokens], tree_attention(given[:num_tokens], groups, SCALING, num_heads=4))
    weights = random(*found.shape, seed=1)
    (gradient,) = torch.autograd.grad((found * weights).sum(), given)
    assert gradient.isfinite().all() and not gradient[num_tokens:].any()


def test_what_stands_in_another_branch_or_tree_changes_no_bit() -> None:
    batch = batch_of(TREES["trees of many lengths"])
    tree, branch = batch.tree, batch.branch
    groups = group_trees(batch, torch.float32)
    values = random(len(tree), 8, SIZE)
    changed = values.clone()
    elsewhere = (tree == 1) | ((tree == 0) & (branch == 2))
    changed[elsewhere] = random(int(elsewhere.sum()), 8, SIZE, seed=7, scale=100.0)
    weights = random(len(tree), 4, SIZE, seed=1) * ~elsewhere[:, None, None]
    results = []
    for given in (values.requires_grad_(), changed.requires_grad_()):
        found = tree_attention(given, groups, SCALING, num_heads=4)
        results.append((found, torch.autograd.grad((found * weights).sum(), given)[0]))
    (found, gradient), (other, other_gradient) = results
    assert torch.equal(found[~elsewhere], other[~elsewhere]) and not torch.equal(found[elsewhere], other[elsewhere])
    assert torch.equal(gradient[~elsewhere], other_gradient[~elsewhere]) and not other_gradient[elsewhere].any()


@pytest.mark.parametrize("spread", [1.0, 5.0])
@pytest.mark.parametrize("trees", ["plain sequences of many lengths", "trees of many lengths"])
def test_in_bfloat16_gradients_are_no_further_off_than_those_of_pytorchs_fused_attention(
    trees: str, spread: float
) -> None:
    batch = batch_of(TREES[trees] * 4)
    allowed, num_tokens = allowed_of(batch), batch.input_ids.numel()
    # Scores q k / sqrt(d) of standard deviation `spread`.
    scales = torch.tensor([spread**0.5] * 8 + [1.0] * 4)[None, :, None]
    values = (random(num_tokens, 12, SIZE) * scales).bfloat16()
    weights = random(num_tokens, 4, SIZE, seed=1).bfloat16()

    exact = values.double().requires_grad_()
    (true,) = torch.autograd.grad((dense(exact, allowed, 4) * weights.double()).sum(), exact)
    given = values.clone().requires_grad_()
    found = tree_attention(given, group_trees(batch, torch.bfloat16), SCALING, num_heads=4)
    (gradient,) = torch.autograd.grad((found * weights).sum(), given)
    plain = values.clone().requires_grad_()
    query, key, value = plain.transpose(0, 1)[None].chunk(3, dim=1)
    mask = torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill_(~allowed, -torch.inf)
    fused = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=SCALING)[0].transpose(0, 1)
    (fused_gradient,) = torch.autograd.grad((fused * weights).sum(), plain)

    assert gradient.dtype == found.dtype == torch.bfloat16 and gradient.isfinite().all()
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):  # queries, keys, values
        ours, theirs = (float((g[:, part] - true[:, part]).norm()) for g in (gradient, fused_gradient))
        assert ours <= 1.5 * theirs, (part, ours, theirs, float(true[:, part].norm()))


def test_a_group_whose_mask_is_lost_would_be_seen(how_trees_are_read: str) -> None:
    batch = batch_of(TREES["one tree"])
    groups = group_trees(batch, torch.float32)
    values = random(batch.input_ids.numel(), 12, SIZE)
    real = torch.ones(len(values), dtype=torch.bool)
    if how_trees_are_read == "whole":
        (group,) = groups.groups
        causal = group.all_masks.new_full(group.all_masks.shape, -torch.inf).triu(1)
        leaks = [
            replace(groups, groups=(each,)) for each in (replace(group, mask=None), replace(group, all_masks=causal))
        ]
    else:
        # The tree's prompt and completions, in groups of similar length, and one crossing.
        (crossing,) = groups.crossings
        unmasked = [replace(group, all_masks=torch.zeros_like(group.all_masks)) for group in groups.groups]
        leaks = [replace(groups, groups=tuple(unmasked)), replace(groups, crossings=())]
        leaks += [replace(groups, crossings=(replace(crossing, mask=torch.zeros_like(crossing.mask)),))]
    for leak in leaks:
        with pytest.raises(AssertionError, match="Tensor-likes are not close"):
            check(values, leak, allowed_of(batch), real, 4)


def test_a_large_tree_is_read_in_parts_and_a_small_one_whole(how_trees_are_read: str) -> None:
    batch = batch_of([(150, (64,) * 8), (200, (100,)), (20, (9, 9, 9))])
    groups = group_trees(batch, torch.float32)
    if how_trees_are_read == "whole":  # as the costs are
        assert [crossing.shape for crossing in groups.crossings] == [(1, 512, 160)]
        assert [(group.shape, group.whole) for group in groups.groups] == [
            ((1, 160), False),
            ((8, 64), False),
            ((1, 320), True),
            ((1, 48), True),
        ]
        parts = 150 * 150 + 8 * 64 * (150 + 64)
        computed = sum(group.shape[0] * group.shape[1] ** 2 for group in groups.groups if not group.whole)
        assert computed + 512 * 160 < 1.1 * parts < 0.34 * (150 + 512) ** 2
