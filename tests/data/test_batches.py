from __future__ import annotations

import random

import pytest
import torch

from onebase.data.batches import microbatch_indices, minibatch_indices, num_minibatches, row_shape
from onebase.data.rows import lay_in_rows
from onebase.data.tree import build_tree_batch
from onebase.engines.forward import token_logprobs
from onebase.records import Example
from onebase.seeds import mixed_seed
from tests.tiny_models import add_adapter_role, random_ids, tiny_base


def examples_of_many_lengths(count: int, seed: int = 0) -> list[Example]:
    rng = random.Random(seed)
    return [
        Example(
            random_ids(rng.randint(1, 9), seed=100 * i),
            [random_ids(rng.randint(1, 7), seed=100 * i + 1 + k) for k in range(rng.randint(1, 3))],
        )
        for i in range(count)
    ]


@pytest.mark.parametrize(("num_examples", "size"), [(10, 5), (10, 3), (1, 4), (7, 7), (7, 1), (100, 33)])
def test_every_example_comes_exactly_once_in_each_epoch(num_examples: int, size: int) -> None:
    steps = num_minibatches(num_examples, size)
    for epoch in range(3):
        batches = [
            minibatch_indices(epoch * steps + i, num_examples=num_examples, size=size, seed=5) for i in range(steps)
        ]
        assert sorted(sum(batches, [])) == list(range(num_examples))
        assert all(len(batch) == size for batch in batches[:-1]) and 1 <= len(batches[-1]) <= size


def test_the_examples_of_a_step_depend_on_nothing_but_the_step_and_the_seed() -> None:
    def batch(step: int, seed: int = 3) -> list[int]:
        return minibatch_indices(step, num_examples=50, size=8, seed=seed)

    forwards = [batch(step) for step in range(20)]
    torch.manual_seed(999)
    torch.rand(7)
    assert [batch(step) for step in reversed(range(20))][::-1] == forwards
    state = torch.get_rng_state()
    batch(4)
    assert torch.equal(torch.get_rng_state(), state)  # and drawing it leaves the global random state alone


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    def order(epoch: int, seed: int) -> tuple[int, ...]:
        return tuple(minibatch_indices(epoch, num_examples=30, size=30, seed=seed))

    orders = [order(epoch, seed) for epoch in range(5) for seed in range(5)]
    assert len(set(orders)) == 25


def test_seeds_that_differ_in_their_high_bits_alone_have_orders_of_their_own() -> None:
    seeds = [1, 1 + (1 << 12), 1 + (1 << 20), 1 + (1 << 31)]
    orders = {tuple(minibatch_indices(0, num_examples=30, size=30, seed=seed)) for seed in seeds}
    assert len(orders) == len(seeds)
    # Nor is an epoch of one seed an epoch of another.
    mixed = {mixed_seed("order", seed, epoch) for seed in range(1000) for epoch in range(10)}
    assert len(mixed) == 10_000 and max(mixed) < 1 << 32
    assert mixed_seed("order", 1, 23) != mixed_seed("order", 12, 3) != mixed_seed("round", 12, 3)


def test_a_microbatch_keeps_to_its_token_budget_and_no_example_is_lost() -> None:
    examples = examples_of_many_lengths(40)
    for budget in (1, 10, 37, 100, 10_000):
        batches = microbatch_indices(examples, budget)
        assert sorted(sum(batches, [])) == list(range(40))
        for batch in batches:
            padded = len(batch) * max(examples[i].num_tokens for i in batch)
            assert padded <= budget or len(batch) == 1
            assert lay_in_rows(build_tree_batch([examples[i] for i in batch]), "tree").input_ids.numel() == padded
    assert microbatch_indices([], 10) == []


def test_a_packed_microbatch_holds_as_many_trees_as_fit_its_budget_end_to_end() -> None:
    examples = examples_of_many_lengths(40)
    for budget in (1, 10, 37, 100, 10_000):
        batches = microbatch_indices(examples, budget, layout="packed")
        assert sorted(sum(batches, [])) == list(range(40))
        sizes = [sum(examples[i].num_tokens for i in batch) for batch in batches]
        for batch, size, following in zip(batches, sizes, [*batches[1:], None], strict=True):
            assert size <= budget or len(batch) == 1
            assert following is None or size + examples[following[0]].num_tokens > budget
            assert build_tree_batch([examples[i] for i in batch]).input_ids.shape == (size,)
        assert len(batches) <= len(microbatch_indices(examples, budget))
    assert microbatch_indices([], 10, layout="packed") == []


def test_microbatches_hold_neighbours_in_length_so_that_little_is_padding() -> None:
    examples = examples_of_many_lengths(64, seed=1)
    batches = microbatch_indices(examples, 128)
    lengths = [[examples[i].num_tokens for i in batch] for batch in batches]
    flat = sum(lengths, [])
    assert flat == sorted(flat, reverse=True)
    padded = sum(len(batch) * batch[0] for batch in lengths)
    assert padded < 1.2 * sum(flat)


def test_a_microbatch_split_changes_neither_the_loss_nor_the_gradients() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    examples = examples_of_many_lengths(9, seed=2)

    def loss_and_gradients(batches: list[list[int]]) -> tuple[float, list[torch.Tensor]]:
        total = 0.0
        for batch in batches:
            tree = build_tree_batch([examples[i] for i in batch])
            loss = -token_logprobs(base, tree, role="policy").sum() / 100
            loss.backward()
            total += loss.item()
        gradients = [parameter.grad.clone() for parameter in base.parameters("policy") if parameter.grad is not None]
        for parameter in base.parameters("policy"):
            parameter.grad = None
        return total, gradients

    expected_loss, expected = loss_and_gradients([list(range(9))])
    assert len(expected) == len(base.parameters("policy")) and max(g.abs().max().item() for g in expected) > 0.01
    for budget in (1, 30, 70):
        loss, gradients = loss_and_gradients(microbatch_indices(examples, budget))
        assert loss == pytest.approx(expected_loss, abs=1e-5)
        for gradient, wanted in zip(gradients, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=0, atol=1e-5)


def test_rows_of_the_separate_layout_are_counted_with_a_prompt_each() -> None:
    examples = [Example([1] * 10, [[2] * 3, [2] * 5]), Example([1] * 4, [[2]] * 3)]
    assert [row_shape(example, "separate") for example in examples] == [(2, 15), (3, 5)]
    for layout in ("tree", "packed"):
        assert [row_shape(example, layout) for example in examples] == [(1, 18), (1, 7)]
    # 5 rows as wide as the widest; as trees, 2 rows; packed, one row.
    for layout, needed in (("separate", 5 * 15), ("tree", 2 * 18), ("packed", 18 + 7)):
        assert microbatch_indices(examples, needed, layout=layout) == [[0, 1]]
        assert microbatch_indices(examples, needed - 1, layout=layout) == [[0], [1]]
    batch = build_tree_batch(examples)
    assert lay_in_rows(batch, "separate").input_ids.shape == (5, 15)
    assert lay_in_rows(batch, "tree").input_ids.shape == (2, 18)
    assert batch.input_ids.shape == (18 + 7,)
