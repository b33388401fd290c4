from __future__ import annotations

import random
from dataclasses import fields, replace

import pytest
import torch

from onebase.data import tree as tree_layout
from onebase.data.tree import build_tree_batch, is_plain_causal, laid, lay, separate
from onebase.records import Example, LowerStates, Row, Tree, TreeBatch

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


WORKED_EXAMPLE = {
    "input_ids": [*P, *A, *B],
    "position_ids": [0, 1, 2, 3, 4, 5, 3, 4],
    "branch": [0, 0, 0, 1, 1, 1, 2, 2],
    "targets": [21, 22, 23, 31, 32],
    "source": [2, 3, 4, 2, 6],
    "token": [3, 4, 5, 6, 7],
    "completion_index": [0, 0, 0, 1, 1],
    "first": [3, 6],
    "last": [5, 7],
}


NUMBERS = ("tree_lengths", "branches", "longest")
"""The fields known to the host."""


def assert_fields(found: Tree | TreeBatch, expected: dict[str, list[int]], **numbers: object) -> None:
    assert {field.name for field in fields(found)} == {*expected, *numbers, "lower"}
    assert found.lower is None
    for name, number in numbers.items():
        assert getattr(found, name) == number, name
    for name, values in expected.items():
        tensor = getattr(found, name)
        assert tensor.tolist() == values, name
        assert tensor.dtype == torch.int64, name


def test_the_worked_example_of_the_record_comes_out_field_by_field() -> None:
    batch = build_tree_batch([Example(P, [A, B])])
    of_the_batch = {"tree": [0] * 8, "tree_index": [0, 0], "start": [0], "prompt_length": [3]}
    assert_fields(batch, WORKED_EXAMPLE | of_the_batch, tree_lengths=(8,), branches=(2,), longest=6)
    assert batch.num_completions == 2


def test_a_tree_alone_has_the_tensors_of_its_batch() -> None:
    assert_fields(lay(Example(P, [A, B])), WORKED_EXAMPLE, longest=6)
    counted = [[False, True, False], [True, True]]
    tree = lay(Example(P, [A, B], counted))
    assert (tree.targets.tolist(), tree.source.tolist(), tree.token.tolist()) == ([22, 31, 32], [3, 2, 6], [4, 6, 7])
    assert (tree.completion_index.tolist(), tree.first.tolist(), tree.last.tolist()) == ([0, 1, 1], [3, 6], [5, 7])


def test_trees_lie_end_to_end_in_the_order_given_without_padding() -> None:
    batch = build_tree_batch([Example(P, [A, B]), Example([41], [[51]]), Example([42], [[52], [53, 54]])])
    assert_fields(
        batch,
        {
            "input_ids": [*P, *A, *B, 41, 51, 42, 52, 53, 54],
            "position_ids": [0, 1, 2, 3, 4, 5, 3, 4, 0, 1, 0, 1, 1, 2],
            "tree": [0] * 8 + [1, 1] + [2] * 4,
            "branch": [0, 0, 0, 1, 1, 1, 2, 2, 0, 1, 0, 1, 2, 2],
            "targets": [21, 22, 23, 31, 32, 51, 52, 53, 54],
            "source": [2, 3, 4, 2, 6, 8, 10, 10, 12],
            "token": [3, 4, 5, 6, 7, 9, 11, 12, 13],
            "completion_index": [0, 0, 0, 1, 1, 2, 3, 4, 4],
            "first": [3, 6, 9, 11, 12],
            "last": [5, 7, 9, 11, 13],
            "tree_index": [0, 0, 1, 2, 2],
            "start": [0, 8, 10],
            "prompt_length": [3, 1, 1],
        },
        tree_lengths=(8, 2, 4),
        branches=(2, 1, 2),
        longest=6,
    )


def test_a_batch_has_every_token_of_its_examples_once_and_no_other() -> None:
    examples = random_examples(1, count=30)
    batch = build_tree_batch(examples)
    everything = [
        token
        for example in examples
        for token in [*example.prompt_ids, *(token for completion in example.completions for token in completion)]
    ]
    assert batch.input_ids.tolist() == everything
    assert len(everything) == sum(example.num_tokens for example in examples)
    assert batch.tree.bincount().tolist() == [example.num_tokens for example in examples]
    assert (batch.tree.diff() >= 0).all() and batch.branch.min() == 0


def test_every_counted_token_is_predicted_by_the_token_before_it_in_its_own_branch() -> None:
    examples = random_examples(2, count=12)
    batch = build_tree_batch(examples)
    expected = []
    number = 0
    for e, example in enumerate(examples):
        for k, completion in enumerate(example.completions):
            sequence = example.tokens(k)
            for c, token in enumerate(completion):
                if example.counted is None or example.counted[k][c]:
                    position = len(example.prompt_ids) + c
                    branch = 0 if c == 0 else k + 1
                    expected.append((token, sequence[position - 1], position - 1, branch, position, k + 1, number, e))
            number += 1
    source, token = batch.source, batch.token
    found = zip(
        batch.targets.tolist(),
        batch.input_ids[source].tolist(),
        batch.position_ids[source].tolist(),
        batch.branch[source].tolist(),
        batch.position_ids[token].tolist(),
        batch.branch[token].tolist(),
        batch.completion_index.tolist(),
        batch.tree_index[batch.completion_index].tolist(),
        strict=True,
    )
    assert list(found) == expected
    assert torch.equal(batch.input_ids[token], batch.targets)
    assert torch.equal(batch.tree[source], batch.tree[token])
    assert torch.equal(batch.tree[token], batch.tree_index[batch.completion_index])
    assert (batch.completion_index.diff() >= 0).all()
    completions = [completion for example in examples for completion in example.completions]
    assert batch.input_ids[batch.last].tolist() == [completion[-1] for completion in completions]
    assert batch.input_ids[batch.first].tolist() == [completion[0] for completion in completions]
    assert (batch.last - batch.first + 1).tolist() == [len(completion) for completion in completions]
    assert batch.input_ids[batch.start].tolist() == [example.prompt_ids[0] for example in examples]
    assert batch.prompt_length.tolist() == [len(example.prompt_ids) for example in examples]


def test_a_token_that_is_not_counted_is_no_target_but_still_stands_in_the_tree() -> None:
    counted = [[False, True, False], [False, False]]
    batch = build_tree_batch([Example(P, [A, B], counted)])
    assert batch.input_ids.tolist() == [*P, *A, *B]
    assert batch.targets.tolist() == [22]
    assert batch.source.tolist() == [3]
    assert batch.token.tolist() == [4]
    assert batch.completion_index.tolist() == [0]
    assert batch.first.tolist() == [3, 6] and batch.last.tolist() == [5, 7]
    assert batch.num_completions == 2


def test_a_batch_in_which_nothing_is_counted_has_completions_and_no_targets() -> None:
    batch = build_tree_batch([Example(P, [B], [[False, False]])])
    assert batch.targets.tolist() == [] and batch.targets.dtype == torch.int64
    assert batch.source.dtype == batch.token.dtype == torch.int64 and batch.num_completions == 1


def test_only_trees_of_one_prompt_with_one_completion_are_plain_causal() -> None:
    one_completion = [Example(P, [A]), Example([41], [[51]])]
    assert is_plain_causal(build_tree_batch(one_completion))
    assert not is_plain_causal(build_tree_batch([Example(P, [A, B])]))
    assert not is_plain_causal(build_tree_batch([*one_completion, Example(P, [A, B])]))


def test_separate_makes_one_example_per_completion_and_splits_what_belongs_to_it() -> None:
    row = Row((), place="data.jsonl:4")
    example = Example(P, [A, B], [[True, False, True], [True, True]], grades=[2.0, -1.0], margin=0.5, row=row)
    first, second = separate([example])
    assert (first.completions, first.counted, first.grades) == ([A], [[True, False, True]], [2.0])
    assert (second.completions, second.counted, second.grades) == ([B], [[True, True]], [-1.0])
    assert first.prompt_ids == second.prompt_ids == P and first.row is row and second.margin == 0.5
    bare = separate([Example(P, [A, B])])
    assert [e.counted for e in bare] == [None, None] and [e.grades for e in bare] == [None, None]


def test_separate_examples_and_trees_list_the_same_completions_and_targets_in_the_same_order() -> None:
    examples = random_examples(6)
    tree, alone = build_tree_batch(examples), build_tree_batch(separate(examples))
    assert is_plain_causal(alone) and not is_plain_causal(tree)
    assert torch.equal(tree.targets, alone.targets) and torch.equal(tree.completion_index, alone.completion_index)
    assert tree.num_completions == alone.num_completions == len(alone.start)


def test_tuples_serve_as_well_as_lists_and_nothing_given_is_changed() -> None:
    prompt, completions = (11, 12, 13), ((21, 22, 23), (31, 32))
    batch = build_tree_batch([Example(prompt, completions)])
    assert batch.input_ids.tolist() == [*P, *A, *B]
    mutable = Example(list(P), [list(A), list(B)])
    build_tree_batch([mutable, mutable])
    assert mutable.prompt_ids == P and mutable.completions == [A, B] and mutable.tree is None


def test_examples_that_bring_their_trees_give_the_same_batch_and_are_not_laid_out_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = random_examples(4)
    with_trees = laid(examples)
    assert with_trees == examples  # the field takes no part in that
    assert all(example.tree is not None for example in with_trees)
    expected = build_tree_batch(examples)
    mixed = build_tree_batch([*with_trees[:3], *examples[3:]])

    def refuse(*_: object, **__: object) -> Tree:
        raise AssertionError("laid out again")

    monkeypatch.setattr(tree_layout, "lay", refuse)
    for found in (build_tree_batch(with_trees), mixed):
        for field in fields(TreeBatch):
            if field.name in NUMBERS:
                assert getattr(found, field.name) == getattr(expected, field.name), field.name
            elif field.name != "lower":
                assert torch.equal(getattr(found, field.name), getattr(expected, field.name)), field.name
    # In other company and order the tree is read as it stands.
    assert build_tree_batch(with_trees[::-1]).num_completions == expected.num_completions


def test_separate_examples_leave_the_tree_of_all_behind() -> None:
    assert all(example.tree is None for example in separate(laid([Example(P, [A, B])])))
    batch = build_tree_batch(separate(laid([Example(P, [A, B])])))
    assert batch.input_ids.tolist() == [*P, *A, *P, *B]


def test_lower_states_go_along_end_to_end_where_all_come_from_one_layer() -> None:
    def example(number: float, num_layers: int) -> Example:
        lower = LowerStates(num_layers, torch.full((2, 3), number))
        bare = Example([1], [[2]])
        return replace(bare, tree=replace(lay(bare), lower=lower))

    lower = build_tree_batch([example(7, 2), example(8, 2)]).lower
    assert lower is not None and lower.num_layers == 2
    assert lower.states.tolist() == [[7] * 3] * 2 + [[8] * 3] * 2
    assert build_tree_batch([example(7, 2), example(8, 1)]).lower is None
    assert build_tree_batch([example(7, 2), Example([1], [[2]])]).lower is None


def test_moving_a_batch_moves_every_field() -> None:
    lower = LowerStates(1, torch.zeros(len(P + A + B), 4))
    bare = Example(P, [A, B])
    moved = build_tree_batch([replace(bare, tree=replace(lay(bare), lower=lower))]).to("meta")
    assert moved.lower is not None and moved.lower.num_layers == 1
    tensors = [getattr(moved, field.name) for field in fields(TreeBatch) if field.name not in ("lower", *NUMBERS)]
    assert all(tensor.device.type == "meta" for tensor in [*tensors, moved.lower.states])
    assert build_tree_batch([bare]).to("meta").lower is None


@pytest.mark.parametrize(
    "example", [Example([], [A]), Example(P, []), Example(P, [A, []])], ids=["no prompt", "no completion", "empty one"]
)
def test_an_example_that_cannot_be_a_tree_is_named_by_its_place(example: Example) -> None:
    with pytest.raises(ValueError, match="^example 1: a tree needs a prompt token and completions of at least one"):
        build_tree_batch([Example(P, [A]), example])
    with pytest.raises(ValueError, match="^example 1: a tree needs a prompt token and completions of at least one"):
        laid([Example(P, [A]), example])
    placed = Example(example.prompt_ids, example.completions, row=Row((), place="pairs.jsonl:17"))
    with pytest.raises(ValueError, match="^pairs.jsonl:17: a tree needs"):
        build_tree_batch([placed])
    with pytest.raises(ValueError, match="^pairs.jsonl:17: a tree needs"):
        lay(placed)


def test_no_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="no examples to lay out"):
        build_tree_batch([])
