from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch
from onebase.models.forward import completion_scores, logprobs_and_entropy, token_logprobs
from onebase.models.one_base import OneBase
from onebase.models.passes import lay_out, num_counted, per_example, split_to_fit
from onebase.records import Example, TreeBatch
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

BUDGETS = [1, 40, 64, 4096]


def some_examples() -> list[Example]:
    """Not sorted by length; one has masks, of which one counts nothing of a completion."""
    examples = [
        Example(
            random_ids(5 + 4 * (e % 3), seed=e), [random_ids(1 + (e + 2 * k) % 6, seed=9 * e + k) for k in range(1 + e)]
        )
        for e in (1, 3, 0, 2)
    ]
    masked = Example(
        random_ids(6, seed=77),
        [random_ids(4, seed=78), random_ids(3, seed=79)],
        counted=[[False, True, False, True], [False] * 3],
    )
    return [*examples[:2], masked, *examples[2:]]


def base(layout: str) -> OneBase:
    """Trees of `tree` lie end to end in one row, those of `tree, padded` in a row each."""
    one = tiny_base("llama through transformers" if "padded" in layout else "llama", layout=layout.split(",")[0])
    assert one.packs == (layout == "tree")
    add_adapter_role(one, "policy")
    add_adapter_role(one, "reward", head=True, seed=4)
    return one


@pytest.mark.parametrize("layout", ["tree", "tree, padded", "separate"])
@pytest.mark.parametrize("token_budget", BUDGETS)
def test_results_come_back_in_the_order_of_the_examples(layout: str, token_budget: int) -> None:
    one, examples, calls = base(layout), some_examples(), []

    def function(batch: TreeBatch) -> Tensor:
        calls.append(batch.input_ids.shape)
        return token_logprobs(one, batch, role="policy")

    found = per_example(one, examples, function, token_budget=token_budget)
    assert len(calls) == {1: 5, 4096: 1}.get(token_budget, len(calls))
    assert [len(part) for part in found] == [num_counted([example]) for example in examples]
    for example, part in zip(examples, found, strict=True):
        alone = token_logprobs(one, lay_out(one, [example]), role="policy")
        torch.testing.assert_close(part, alone.detach(), rtol=0, atol=1e-5)
        assert not part.requires_grad and part.dtype == torch.float32 and part.device.type == "cpu"


@pytest.mark.parametrize("layout", ["tree", "tree, padded", "separate"])
@pytest.mark.parametrize("token_budget", BUDGETS)
def test_numbers_per_completion_and_several_per_token_are_sorted_back_too(layout: str, token_budget: int) -> None:
    one, examples = base(layout), some_examples()
    scores = per_example(
        one,
        examples,
        lambda batch: completion_scores(one, batch, role="reward"),
        token_budget=token_budget,
        per_completion=True,
    )
    both = per_example(
        one,
        examples,
        lambda batch: torch.stack(logprobs_and_entropy(one, batch, role="policy"), -1).flatten(),
        token_budget=token_budget,
        numbers_per_token=2,
    )
    assert [len(part) for part in scores] == [len(example.completions) for example in examples]
    for example, score, pair in zip(examples, scores, both, strict=True):
        batch = lay_out(one, [example])
        torch.testing.assert_close(score, completion_scores(one, batch, role="reward").detach(), rtol=0, atol=1e-5)
        logprobs, entropy = logprobs_and_entropy(one, batch, role="policy")
        torch.testing.assert_close(pair.view(-1, 2)[:, 0], logprobs.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(pair.view(-1, 2)[:, 1], entropy.detach(), rtol=0, atol=1e-5)


def test_no_examples_give_no_results() -> None:
    one = base("tree")
    assert per_example(one, [], lambda batch: batch.targets, token_budget=64) == []


def test_a_function_with_a_wrong_count_is_not_split_silently() -> None:
    one = base("tree")
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        per_example(one, some_examples(), lambda batch: batch.targets[1:], token_budget=4096)


def test_counted_tokens_are_those_of_the_masks_where_there_are_some() -> None:
    assert num_counted([Example([1], [[2, 3], [4]]), Example([1], [[2, 3], [4]], [[True, False], [False]])]) == 4
    assert num_counted([]) == 0
    examples = some_examples()
    assert num_counted(examples) == len(build_tree_batch(examples).targets)


def test_the_layout_is_the_one_that_is_exact_for_the_base() -> None:
    examples = some_examples()
    rows = sum(len(example.completions) for example in examples)
    packed, padded = lay_out(base("tree"), examples), lay_out(base("tree, padded"), examples)
    assert packed.input_ids.shape == (1, sum(example.num_tokens for example in examples))
    assert int(packed.tree.min()) == 0 and int(packed.tree.max()) == len(examples) - 1  # no padding
    assert padded.input_ids.shape == (len(examples), max(example.num_tokens for example in examples))
    for batch in (packed, padded):
        assert int(batch.branch.max()) == max(len(example.completions) for example in examples)
    batch = lay_out(base("separate"), examples)
    assert batch.input_ids.shape[0] == rows and int(batch.branch.max()) == 1


@pytest.mark.parametrize("token_budget", BUDGETS)
def test_no_batch_holds_more_tokens_than_the_budget_however_it_is_laid_out(token_budget: int) -> None:
    examples = some_examples()
    num_batches = {}
    for layout in ("tree", "tree, padded", "separate"):
        one = base(layout)
        split = split_to_fit(one, examples, token_budget)
        assert sorted(sum(split, [])) == list(range(len(examples)))
        for indices in split:
            num_tokens = lay_out(one, [examples[i] for i in indices]).input_ids.numel()
            assert num_tokens <= token_budget or len(indices) == 1
        num_batches[layout] = len(split)
    assert num_batches["tree"] <= num_batches["tree, padded"] <= num_batches["separate"]
