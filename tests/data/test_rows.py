"""Padded rows against rows written out from the examples, one token at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from onebase.data.rows import Rows, attention_mask, lay_in_rows
from onebase.data.tree import build_tree_batch, is_plain_causal, laid, separate
from onebase.records import Example
from tests.data.test_tree import A, B, P, random_examples

LAYOUTS = ["tree", "separate"]


@dataclass
class Token:
    """One token of a row written out by hand."""

    id: int
    position: int
    branch: int


def written_out(examples: list[Example], layout: str) -> list[list[Token]]:
    """The rows of the examples: a tree each, or each completion behind its own copy of the prompt."""
    rows = []
    for example in examples:
        prompt = [Token(token, i, 0) for i, token in enumerate(example.prompt_ids)]
        branches = [
            [Token(token, len(prompt) + c, k + 1) for c, token in enumerate(completion)]
            for k, completion in enumerate(example.completions)
        ]
        if layout == "tree":
            rows.append([*prompt, *(token for branch in branches for token in branch)])
        else:
            rows += [[*prompt, *branch] for branch in branches]
    return rows


def rows_of(examples: list[Example], layout: str) -> Rows:
    return lay_in_rows(build_tree_batch(examples), layout)


def counting_through(width: int, longest: int) -> list[int]:
    return [min(column, longest) for column in range(width)]


# ------------------------------------------------------------------------------------------------ what stands where


def test_the_worked_example_is_one_row_or_one_for_each_completion() -> None:
    tree, apart = (rows_of([Example(P, [A, B])], layout) for layout in LAYOUTS)
    assert tree.input_ids.tolist() == [[*P, *A, *B]]
    assert tree.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 3, 4]]
    assert tree.branch.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2]]
    assert tree.is_token.all() and tree.row.tolist() == [0, 0]
    assert (tree.start.tolist(), tree.skipped.tolist(), tree.first.tolist()) == ([0, 0], [0, 0], [3, 6])
    assert apart.input_ids.tolist() == [[*P, *A], [*P, *B, 0]]
    assert apart.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert apart.branch.tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 2, 2, 0]]
    assert apart.is_token.tolist() == [[True] * 6, [True] * 5 + [False]] and apart.row.tolist() == [0, 1]
    assert (apart.start.tolist(), apart.skipped.tolist(), apart.first.tolist()) == ([0, 0], [0, 3], [3, 6])


def test_two_examples_take_two_rows_and_the_shorter_is_padded_on_the_right() -> None:
    rows = rows_of([Example(P, [A, B]), Example([41], [[51]])], "tree")
    assert rows.input_ids.tolist() == [[*P, *A, *B], [41, 51, 0, 0, 0, 0, 0, 0]]
    assert rows.is_token.tolist() == [[True] * 8, [True, True] + [False] * 6]
    assert rows.row.tolist() == [0, 0, 1] and rows.start.tolist() == [0, 0, 8]
    batch = build_tree_batch([Example(P, [A, B]), Example([41], [[51]])])
    row, column = rows.locate(batch.source, batch.completion_index)
    assert row.tolist() == [0, 0, 0, 0, 0, 1] and column.tolist() == [2, 3, 4, 2, 6, 0]
    row, column = rows.locate(batch.last, torch.arange(3))
    assert row.tolist() == [0, 0, 1] and column.tolist() == [5, 7, 1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(8))
def test_rows_hold_what_is_written_out_from_the_examples(layout: str, seed: int) -> None:
    examples = random_examples(seed)
    expected, rows = written_out(examples, layout), rows_of(examples, layout)
    width = max(map(len, expected))
    assert rows.input_ids.shape == rows.position_ids.shape == (len(expected), width)
    assert rows.is_token.shape == rows.branch.shape == (len(expected), width) and rows.is_token.dtype == torch.bool
    longest = max(token.position for row in expected for token in row)
    assert {len(row) for row in expected} != {width}  # there is padding
    for r, tokens in enumerate(expected):
        count = len(tokens)
        assert rows.input_ids[r].tolist() == [token.id for token in tokens] + [0] * (width - count)
        assert rows.branch[r].tolist() == [token.branch for token in tokens] + [0] * (width - count)
        assert rows.is_token[r].tolist() == [True] * count + [False] * (width - count)
        positions = [token.position for token in tokens] + counting_through(width, longest)[count:]
        assert rows.position_ids[r].tolist() == positions


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(8))
def test_every_place_is_found_in_the_row_of_the_completion_it_is_read_for(layout: str, seed: int) -> None:
    """Every prompt token for every completion, and every token of each completion for itself."""
    examples = random_examples(seed)
    batch = build_tree_batch(examples)
    rows = lay_in_rows(batch, layout)
    places, completions, expected = [], [], []
    place = number = 0
    for e, example in enumerate(examples):
        prompt, begin = len(example.prompt_ids), place + len(example.prompt_ids)
        for completion in example.completions:
            row = e if layout == "tree" else number
            first = begin - place if layout == "tree" else prompt
            for i in range(prompt):
                places.append(place + i)
                expected.append((row, i))
            for c in range(len(completion)):
                places.append(begin + c)
                expected.append((row, first + c))
            completions += [number] * (prompt + len(completion))
            begin, number = begin + len(completion), number + 1
        place = begin
    row, column = rows.locate(torch.tensor(places), torch.tensor(completions))
    assert list(zip(row.tolist(), column.tolist(), strict=True)) == expected
    assert torch.equal(rows.input_ids[row, column], batch.input_ids[torch.tensor(places)])
    assert torch.equal(rows.position_ids[row, column], batch.position_ids[torch.tensor(places)])
    assert rows.is_token[row, column].all()


def test_in_separate_rows_a_prompts_last_state_is_read_in_the_row_of_each_completion() -> None:
    rows = rows_of([Example([9], [[8]]), Example(P, [A, B])], "separate")
    place = torch.tensor([4, 4, 2, 2, 5, 8])  # p2 twice and p0 twice, each for a and for b; a0; b0
    row, column = rows.locate(place, torch.tensor([1, 2, 1, 2, 1, 2]))
    assert row.tolist() == [1, 2, 1, 2, 1, 2] and column.tolist() == [2, 2, 0, 0, 3, 3]
    assert rows.input_ids[row, column].tolist() == [13, 13, 11, 11, 21, 31]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_counted_token_stands_in_its_row_behind_what_predicts_it(layout: str) -> None:
    examples = random_examples(2, count=12)
    batch = build_tree_batch(examples)
    rows = lay_in_rows(batch, layout)
    expected = []
    for example in examples:
        for k, completion in enumerate(example.completions):
            sequence = example.tokens(k)
            for c, token in enumerate(completion):
                if example.counted is None or example.counted[k][c]:
                    position = len(example.prompt_ids) + c
                    expected.append((token, sequence[position - 1], position - 1, position))
    source = rows.locate(batch.source, batch.completion_index)
    token = rows.locate(batch.token, batch.completion_index)
    found = zip(
        batch.targets.tolist(),
        rows.input_ids[source].tolist(),
        rows.position_ids[source].tolist(),
        rows.position_ids[token].tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert torch.equal(source[0], token[0]) and torch.equal(rows.input_ids[token], batch.targets)
    last = rows.locate(batch.last, torch.arange(batch.num_completions))
    assert rows.input_ids[last].tolist() == [ids[-1] for example in examples for ids in example.completions]


def test_separate_rows_of_trees_are_the_rows_of_separate_examples() -> None:
    examples = random_examples(6)
    trees, alone = build_tree_batch(examples), build_tree_batch(separate(examples))
    found, expected = lay_in_rows(trees, "separate"), lay_in_rows(alone, "tree")
    assert len(expected.input_ids) == trees.num_completions
    for name in ("input_ids", "is_token", "row"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.position_ids[found.is_token], expected.position_ids[found.is_token])
    assert torch.equal(found.branch > 0, expected.branch > 0)
    for ours, theirs in zip(
        found.locate(trees.source, trees.completion_index),
        expected.locate(alone.source, alone.completion_index),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_trees_that_examples_bring_make_the_same_rows(layout: str) -> None:
    examples = random_examples(7)
    found, expected = rows_of(laid(examples), layout), rows_of(examples, layout)
    for name in ("input_ids", "position_ids", "branch", "is_token", "row", "start", "skipped", "first"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name


# ------------------------------------------------------------------------------------------------ padding


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("padded_id", [0, 1, 258, 50_000])
def test_padding_is_known_by_its_place_and_not_by_its_id(layout: str, padded_id: int) -> None:
    examples = [Example(P, [A, B]), Example([padded_id, 3], [[padded_id]])]
    rows, batch = rows_of(examples, layout), build_tree_batch(examples)
    assert rows.is_token.sum().item() == (8 if layout == "tree" else 3 + 3 + 3 + 2) + 3
    assert batch.targets.tolist() == [*A, *B, padded_id]
    assert rows.input_ids[rows.locate(batch.token, batch.completion_index)].tolist() == [*A, *B, padded_id]
    others = rows_of([Example(P, [A, B]), Example([5, 3], [[5]])], layout)
    assert torch.equal(attention_mask(rows), attention_mask(others))
    assert torch.equal(rows.is_token, others.is_token)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_position_exceeds_the_longest_real_one(layout: str) -> None:
    # A padding position beyond the context would read past the end of a learned position table.
    for seed in range(5, 10):
        rows = rows_of(random_examples(seed), layout)
        assert not rows.is_token.all()
        assert rows.position_ids.max() == rows.position_ids[rows.is_token].max()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_of_one_completion_have_positions_that_count_through_the_padding(layout: str) -> None:
    examples = [Example(P, [A]), Example([41], [[51]])]
    assert is_plain_causal(build_tree_batch(examples))
    assert rows_of(examples, layout).position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2
    assert (
        rows_of([Example(P, [A, B]), Example([41], [[51]])], "separate").position_ids.tolist()
        == [[0, 1, 2, 3, 4, 5]] * 3
    )


# ------------------------------------------------------------------------------------------------ masks


def mask_by_the_formula(examples: list[Example], layout: str, window: int | None) -> Tensor:
    rows = written_out(examples, layout)
    width = max(map(len, rows))
    mask = torch.eye(width, dtype=torch.bool).repeat(len(rows), 1, 1, 1)  # padding: itself, no softmax is empty
    for r, tokens in enumerate(rows):
        for i, query in enumerate(tokens):
            for j, key in enumerate(tokens):
                allowed = j <= i and key.branch in (0, query.branch)
                mask[r, 0, i, j] = allowed and (window is None or query.position - key.position < window)
    return mask


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_allows_exactly_what_the_formula_of_the_design_allows(layout: str, window: int | None) -> None:
    examples = random_examples(3)
    rows = rows_of(examples, layout)
    mask = attention_mask(rows, window=window)
    num_rows, columns = rows.input_ids.shape
    assert mask.shape == (num_rows, 1, columns, columns) and mask.dtype == torch.bool
    assert (rows.branch > 1).any() and not rows.is_token.all()  # several branches, and padding
    assert torch.equal(mask, mask_by_the_formula(examples, layout, window))


def test_the_window_counts_positions_not_columns() -> None:
    # b0 stands at column 6 and position 3: with a window of 2 it sees p2 (column 2, position 2) and itself.
    mask = attention_mask(rows_of([Example(P, [A, B])], "tree"), window=2)
    assert mask[0, 0, 6].nonzero().flatten().tolist() == [2, 6]


def test_what_stands_in_a_row_does_not_change_its_mask() -> None:
    rows = rows_of(random_examples(3), "tree")
    noise = replace(rows, input_ids=torch.randint(0, 99, rows.input_ids.shape))
    assert torch.equal(attention_mask(noise), attention_mask(rows))
