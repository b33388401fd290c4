from __future__ import annotations

import random
from dataclasses import fields

import pytest
import torch

from onebase.data.tree import attention_mask, build_tree_batch, is_plain_causal, separate
from onebase.records import Example, LowerStates, Row, TreeBatch

P, A, B = [11, 12, 13], [21, 22, 23], [31, 32]


def random_examples(seed: int, count: int = 6) -> list[Example]:
    rng = random.Random(seed)
    examples = []
    for _ in range(count):
        completions = [[rng.randrange(1, 99) for _ in range(rng.randint(1, 5))] for _ in range(rng.randint(1, 4))]
        counted = [[rng.random() < 0.6 for _ in completion] for completion in completions]
        prompt = [rng.randrange(1, 99) for _ in range(rng.randint(1, 6))]
        examples.append(Example(prompt, completions, counted if rng.random() < 0.5 else None))
    return examples


def test_the_worked_example_of_the_record_comes_out_field_by_field() -> None:
    batch = build_tree_batch([Example(P, [A, B])])
    expected = {
        "input_ids": [[*P, *A, *B]],
        "position_ids": [[0, 1, 2, 3, 4, 5, 3, 4]],
        "tree": [[0] * 8],
        "branch": [[0, 0, 0, 1, 1, 1, 2, 2]],
        "targets": [21, 22, 23, 31, 32],
        "source_row": [0, 0, 0, 0, 0],
        "source_column": [2, 3, 4, 2, 6],
        "token_column": [3, 4, 5, 6, 7],
        "completion_index": [0, 0, 0, 1, 1],
        "last_row": [0, 0],
        "last_column": [5, 7],
        "example_index": [0, 0],
    }
    assert {field.name for field in fields(TreeBatch)} == {*expected, "lower"}
    assert batch.lower is None
    for name, values in expected.items():
        tensor = getattr(batch, name)
        assert tensor.tolist() == values, name
        assert tensor.dtype == torch.int64, name
    assert batch.num_completions == 2


def test_two_examples_take_two_rows_and_the_shorter_is_padded_on_the_right() -> None:
    batch = build_tree_batch([Example(P, [A, B]), Example([41], [[51]])], pad_id=7)
    assert batch.input_ids.tolist() == [[*P, *A, *B], [41, 51, 7, 7, 7, 7, 7, 7]]
    assert batch.tree.tolist()[1] == [0, 0, -1, -1, -1, -1, -1, -1]
    assert batch.source_row.tolist() == [0, 0, 0, 0, 0, 1]
    assert batch.source_column.tolist()[-1] == 0
    assert batch.last_row.tolist() == [0, 0, 1]
    assert batch.last_column.tolist() == [5, 7, 1]
    assert batch.example_index.tolist() == [0, 0, 1]


def test_trees_share_a_row_while_they_fit_in_the_order_given() -> None:
    examples = [Example(P, [A, B]), Example([41], [[51]]), Example([42], [[52], [53, 54]])]
    batch = build_tree_batch(examples, max_row_tokens=10)
    assert batch.input_ids.tolist() == [[*P, *A, *B, 41, 51], [42, 52, 53, 54, 0, 0, 0, 0, 0, 0]]
    assert batch.tree.tolist() == [[0] * 8 + [1, 1], [0, 0, 0, 0, -1, -1, -1, -1, -1, -1]]
    assert batch.position_ids.tolist()[0] == [0, 1, 2, 3, 4, 5, 3, 4, 0, 1]
    assert batch.branch.tolist()[0] == [0, 0, 0, 1, 1, 1, 2, 2, 0, 1]
    assert batch.targets.tolist() == [21, 22, 23, 31, 32, 51, 52, 53, 54]
    assert batch.source_row.tolist() == [0] * 6 + [1] * 3
    assert batch.source_column.tolist() == [2, 3, 4, 2, 6, 8, 0, 0, 2]
    assert batch.token_column.tolist() == [3, 4, 5, 6, 7, 9, 1, 2, 3]
    assert batch.completion_index.tolist() == [0, 0, 0, 1, 1, 2, 3, 4, 4]
    assert batch.last_row.tolist() == [0, 0, 0, 1, 1]
    assert batch.last_column.tolist() == [5, 7, 9, 1, 3]
    assert batch.example_index.tolist() == [0, 0, 1, 2, 2]


def test_a_row_never_exceeds_its_budget_except_for_one_tree_that_is_larger_alone() -> None:
    examples = random_examples(1, count=30)
    for budget in (1, 8, 20, 64):
        batch = build_tree_batch(examples, max_row_tokens=budget)
        for tokens, trees in zip((batch.tree >= 0).sum(1).tolist(), batch.tree.max(1).values.tolist(), strict=True):
            assert tokens <= budget or trees == 0
    everything = sum(example.num_tokens for example in examples)
    assert build_tree_batch(examples, max_row_tokens=everything).input_ids.shape == (1, everything)


@pytest.mark.parametrize("budget", [0, 25, 1000])
def test_every_counted_token_is_predicted_by_the_token_before_it_in_its_own_branch(budget: int) -> None:
    examples = random_examples(2, count=12)
    batch = build_tree_batch(examples, max_row_tokens=budget)
    expected = []
    number = 0
    for e, example in enumerate(examples):
        for k, completion in enumerate(example.completions):
            sequence = [*example.prompt_ids, *completion]
            for c, token in enumerate(completion):
                if example.counted is None or example.counted[k][c]:
                    position = len(example.prompt_ids) + c
                    expected.append((token, sequence[position - 1], position - 1, position, number, e))
            number += 1
    row, column = batch.source_row, batch.source_column
    found = zip(
        batch.targets.tolist(),
        batch.input_ids[row, column].tolist(),
        batch.position_ids[row, column].tolist(),
        batch.position_ids[row, batch.token_column].tolist(),
        batch.completion_index.tolist(),
        batch.example_index[batch.completion_index].tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert batch.input_ids[row, batch.token_column].tolist() == batch.targets.tolist()
    assert (batch.completion_index.diff() >= 0).all()
    last = [completion[-1] for example in examples for completion in example.completions]
    assert batch.input_ids[batch.last_row, batch.last_column].tolist() == last


def test_a_token_that_is_not_counted_is_no_target_but_still_stands_in_the_row() -> None:
    counted = [[False, True, False], [False, False]]
    batch = build_tree_batch([Example(P, [A, B], counted)])
    assert batch.input_ids.tolist() == [[*P, *A, *B]]
    assert batch.targets.tolist() == [22]
    assert batch.source_column.tolist() == [3]
    assert batch.token_column.tolist() == [4]
    assert batch.completion_index.tolist() == [0]
    assert batch.last_column.tolist() == [5, 7]
    assert batch.num_completions == 2


def test_a_batch_in_which_nothing_is_counted_has_completions_and_no_targets() -> None:
    batch = build_tree_batch([Example(P, [B], [[False, False]])])
    assert batch.targets.tolist() == [] and batch.targets.dtype == torch.int64
    assert batch.source_column.dtype == torch.int64 and batch.num_completions == 1


@pytest.mark.parametrize("window", [None, 1, 3])
def test_the_mask_allows_exactly_what_the_formula_of_the_design_allows(window: int | None) -> None:
    batch = build_tree_batch(random_examples(3), max_row_tokens=30)
    mask = attention_mask(batch, window=window)
    rows, columns = batch.input_ids.shape
    assert mask.shape == (rows, 1, columns, columns) and mask.dtype == torch.bool
    assert (batch.tree.max(1).values > 0).any() and (batch.tree < 0).any()  # several trees in a row, and padding
    tree, branch, position = batch.tree.tolist(), batch.branch.tolist(), batch.position_ids.tolist()
    for r in range(rows):
        for i in range(columns):
            for j in range(columns):
                allowed = j <= i and tree[r][i] == tree[r][j] and branch[r][j] in (0, branch[r][i])
                if window is not None:
                    allowed = allowed and position[r][i] - position[r][j] < window
                if tree[r][i] < 0:
                    allowed = i == j  # padding: itself, so that no row of the softmax is empty
                assert bool(mask[r, 0, i, j]) == allowed, (r, i, j)


def test_the_window_counts_positions_not_columns() -> None:
    # b0 stands at column 6 and position 3: with a window of 2 it sees p2 (column 2, position 2) and itself.
    mask = attention_mask(build_tree_batch([Example(P, [A, B])]), window=2)
    assert mask[0, 0, 6].nonzero().flatten().tolist() == [2, 6]


@pytest.mark.parametrize("pad_id", [0, 1, 258, 50_000])
def test_padding_is_known_by_its_tree_and_not_by_its_id(pad_id: int) -> None:
    examples = [Example(P, [A, B]), Example([pad_id, 3], [[pad_id]])]
    batch = build_tree_batch(examples, pad_id=pad_id)
    assert (batch.tree >= 0).sum().item() == 8 + 3
    assert batch.targets.tolist() == [*A, *B, pad_id]
    assert torch.equal(attention_mask(batch), attention_mask(build_tree_batch(examples, pad_id=5)))


def test_no_position_exceeds_the_longest_real_one() -> None:
    # A padding position beyond the context would read past the end of a learned position table.
    for budget in (0, 40):
        batch = build_tree_batch(random_examples(5), max_row_tokens=budget)
        assert batch.position_ids.max() == batch.position_ids[batch.tree >= 0].max()


def test_only_rows_of_one_prompt_with_one_completion_are_plain_causal() -> None:
    one_completion = [Example(P, [A]), Example([41], [[51]])]
    assert is_plain_causal(build_tree_batch(one_completion))
    assert not is_plain_causal(build_tree_batch(one_completion, max_row_tokens=100))
    assert not is_plain_causal(build_tree_batch([Example(P, [A, B])]))


def test_plain_causal_rows_have_positions_that_count_through_the_padding() -> None:
    batch = build_tree_batch([Example(P, [A]), Example([41], [[51]])])
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_separate_makes_one_example_per_completion_and_splits_what_belongs_to_it() -> None:
    row = Row((), place="data.jsonl:4")
    example = Example(P, [A, B], [[True, False, True], [True, True]], grades=[2.0, -1.0], margin=0.5, row=row)
    first, second = separate([example])
    assert (first.completions, first.counted, first.grades) == ([A], [[True, False, True]], [2.0])
    assert (second.completions, second.counted, second.grades) == ([B], [[True, True]], [-1.0])
    assert first.prompt_ids == second.prompt_ids == P and first.row is row and second.margin == 0.5
    bare = separate([Example(P, [A, B])])
    assert [e.counted for e in bare] == [None, None] and [e.grades for e in bare] == [None, None]


def test_separate_rows_and_trees_list_the_same_completions_and_targets_in_the_same_order() -> None:
    examples = random_examples(6)
    tree, rows = build_tree_batch(examples), build_tree_batch(separate(examples))
    assert is_plain_causal(rows)
    assert torch.equal(tree.targets, rows.targets) and torch.equal(tree.completion_index, rows.completion_index)
    assert tree.num_completions == rows.num_completions == rows.input_ids.shape[0]


def test_tuples_serve_as_well_as_lists_and_nothing_given_is_changed() -> None:
    prompt, completions = (11, 12, 13), ((21, 22, 23), (31, 32))
    batch = build_tree_batch([Example(prompt, completions)])
    assert batch.input_ids.tolist() == [[*P, *A, *B]]
    mutable = Example(list(P), [list(A), list(B)])
    build_tree_batch([mutable, mutable], max_row_tokens=100)
    assert mutable.prompt_ids == P and mutable.completions == [A, B]


def test_lower_states_go_along_end_to_end_where_all_come_from_one_layer() -> None:
    def example(number: float, num_layers: int) -> Example:
        return Example([1], [[2]], lower=LowerStates(num_layers, torch.full((2, 3), number)))

    lower = build_tree_batch([example(7, 2), example(8, 2)], max_row_tokens=4).lower
    assert lower is not None and lower.num_layers == 2
    assert lower.states.tolist() == [[7] * 3] * 2 + [[8] * 3] * 2
    assert build_tree_batch([example(7, 2), example(8, 1)], max_row_tokens=4).lower is None
    assert build_tree_batch([example(7, 2), Example([1], [[2]])], max_row_tokens=4).lower is None


def test_moving_a_batch_moves_every_field() -> None:
    lower = LowerStates(1, torch.zeros(len(P + A + B), 4))
    moved = build_tree_batch([Example(P, [A, B], lower=lower)]).to("meta")
    assert moved.lower is not None and moved.lower.num_layers == 1
    tensors = [getattr(moved, field.name) for field in fields(TreeBatch) if field.name != "lower"]
    assert all(tensor.device.type == "meta" for tensor in [*tensors, moved.lower.states])


@pytest.mark.parametrize(
    "example", [Example([], [A]), Example(P, []), Example(P, [A, []])], ids=["no prompt", "no completion", "empty one"]
)
def test_an_example_that_cannot_be_a_tree_is_named_by_its_place(example: Example) -> None:
    with pytest.raises(ValueError, match="^example 1: a tree needs a prompt token and completions of at least one"):
        build_tree_batch([Example(P, [A]), example])
    placed = Example(example.prompt_ids, example.completions, row=Row((), place="pairs.jsonl:17"))
    with pytest.raises(ValueError, match="^pairs.jsonl:17: a tree needs"):
        build_tree_batch([placed])


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples to lay out"):
        build_tree_batch([])
