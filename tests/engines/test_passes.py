from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.data.rows import lay_in_rows
from onebase.data.tree import build_tree_batch
from onebase.engines.budget import TokenBudget
from onebase.engines.engine import any_pads, packs
from onebase.engines.forward import completion_scores, logprobs_and_entropy, token_logprobs
from onebase.engines.passes import lay_out, num_counted, per_completion, per_token
from onebase.errors import DoesNotFitError
from onebase.models.base import OneBase
from onebase.records import Example, TreeBatch
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

BUDGETS = [1, 40, 64, 4096]
LAYOUTS = ["tree", "tree, padded", "separate"]


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


def base_of(layout: str) -> OneBase:
    """Trees of `tree` run end to end, those of `tree, padded` in a row each."""
    base = tiny_base("llama through transformers" if "padded" in layout else "llama", layout=layout.split(",")[0])
    add_adapter_role(base, "policy")
    add_adapter_role(base, "reward", head=True, seed=4)
    assert base.packs == packs(base, "policy") == packs(base, "reward") == (not any_pads(base)) == (layout == "tree")
    return base


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("token_budget", BUDGETS)
def test_results_come_back_in_the_order_of_the_examples(layout: str, token_budget: int) -> None:
    base, examples, calls = base_of(layout), some_examples(), []

    def function(batch: TreeBatch) -> dict[str, Tensor]:
        calls.append(batch.input_ids.shape)
        return {"logprobs": token_logprobs(base, batch, role="policy")}

    found = per_token(base, examples, function, budget=TokenBudget(token_budget))
    assert list(found) == ["logprobs"]
    assert len(calls) == {1: 5, 4096: 1}.get(token_budget, len(calls))
    assert [len(part) for part in found["logprobs"]] == [num_counted([example]) for example in examples]
    for example, part in zip(examples, found["logprobs"], strict=True):
        alone = token_logprobs(base, lay_out(base, [example]), role="policy")
        torch.testing.assert_close(part, alone.detach(), rtol=0, atol=1e-5)
        assert not part.requires_grad and part.dtype == torch.float32 and part.device.type == "cpu"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("token_budget", BUDGETS)
def test_numbers_per_completion_and_several_per_token_are_sorted_back_too(layout: str, token_budget: int) -> None:
    base, examples = base_of(layout), some_examples()
    scores = per_completion(
        base,
        examples,
        lambda batch: completion_scores(base, batch, role="reward"),
        budget=TokenBudget(token_budget),
    )
    both = per_token(
        base,
        examples,
        lambda batch: dict(zip(("logprobs", "entropy"), logprobs_and_entropy(base, batch, role="policy"), strict=True)),
        budget=TokenBudget(token_budget),
    )
    assert [len(part) for part in scores] == [len(example.completions) for example in examples]
    assert all(part.dtype == torch.float32 and part.device.type == "cpu" for part in scores)
    assert {name: len(parts) for name, parts in both.items()} == {"logprobs": 5, "entropy": 5}
    for e, (example, score) in enumerate(zip(examples, scores, strict=True)):
        batch = lay_out(base, [example])
        torch.testing.assert_close(score, completion_scores(base, batch, role="reward").detach(), rtol=0, atol=1e-5)
        logprobs, entropy = logprobs_and_entropy(base, batch, role="policy")
        torch.testing.assert_close(both["logprobs"][e], logprobs.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(both["entropy"][e], entropy.detach(), rtol=0, atol=1e-5)


def test_no_examples_give_no_results() -> None:
    base = base_of("tree")
    assert per_token(base, [], lambda batch: {"targets": batch.targets}, budget=TokenBudget(64)) == {}
    assert per_completion(base, [], lambda batch: batch.last, budget=TokenBudget(64)) == []


def test_a_function_with_a_wrong_count_is_not_split_silently() -> None:
    base, budget = base_of("tree"), TokenBudget(4096)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        per_token(base, some_examples(), lambda batch: {"targets": batch.targets[1:]}, budget=budget)
    with pytest.raises(RuntimeError, match="split_with_sizes"):
        per_completion(base, some_examples(), lambda batch: batch.targets, budget=budget)


def test_where_memory_runs_out_the_budget_is_halved_and_the_results_are_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, examples = base_of("tree"), some_examples()
    longest = max(example.num_tokens for example in examples)
    read: list[int] = []

    def function(batch: TreeBatch) -> dict[str, Tensor]:
        if len(batch.input_ids) > longest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        read.append(len(batch.input_ids))
        return {"logprobs": token_logprobs(base, batch, role="policy")}

    expected = per_token(base, examples, function, budget=TokenBudget(1))["logprobs"]
    read.clear()
    budget = TokenBudget(4 * longest)
    found = per_token(base, examples, function, budget=budget)["logprobs"]
    assert budget.tokens == longest  # 4, 2, 1 times; and it stays there for the next pass
    assert sum(read) == sum(example.num_tokens for example in examples)  # nothing was computed twice
    for part, other in zip(found, expected, strict=True):
        torch.testing.assert_close(part, other, rtol=0, atol=1e-5)
    said = capsys.readouterr().err
    assert f"out of memory: microbatches of {2 * longest} tokens from here on; the result is the same" in said
    assert f"out of memory: microbatches of {longest} tokens" in said


def test_an_example_that_alone_does_not_fit_is_said() -> None:
    base, examples, budget = base_of("tree"), some_examples(), TokenBudget(4096)
    longest = max(example.num_tokens for example in examples)

    def function(batch: TreeBatch) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DoesNotFitError, match=f"an example of {longest} tokens alone does not fit the device's memory"):
        per_completion(base, examples, function, budget=budget)
    assert budget.tokens == longest


def test_other_failures_are_not_tried_again() -> None:
    calls = []

    def function(batch: TreeBatch) -> Tensor:
        calls.append(batch)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        per_completion(base_of("tree"), some_examples(), function, budget=TokenBudget(4096))
    assert len(calls) == 1


def test_counted_tokens_are_those_of_the_masks_where_there_are_some() -> None:
    assert num_counted([Example([1], [[2, 3], [4]]), Example([1], [[2, 3], [4]], [[True, False], [False]])]) == 4
    assert num_counted([]) == 0
    examples = some_examples()
    assert num_counted(examples) == len(build_tree_batch(examples).targets)


def test_a_batch_is_laid_out_once_and_run_in_the_layout_that_is_exact_for_the_base() -> None:
    examples, shapes = some_examples(), {}
    rows = sum(len(example.completions) for example in examples)
    longest_row = max(len(e.prompt_ids) + max(map(len, e.completions)) for e in examples)
    batches = []
    for layout in LAYOUTS:
        base = base_of(layout)
        batch = lay_out(base, examples)
        batches.append(batch)
        assert batch.input_ids.shape == (sum(example.num_tokens for example in examples),)
        assert int(batch.tree.max()) == len(examples) - 1
        assert int(batch.branch.max()) == max(len(example.completions) for example in examples)
        shapes[layout] = shapes_read(base)
        token_logprobs(base, batch, role="policy")
    for batch in batches[1:]:
        for name in ("input_ids", "position_ids", "branch", "targets", "source", "completion_index", "last"):
            assert torch.equal(getattr(batch, name), getattr(batches[0], name)), name
    assert shapes == {
        "tree": [],  # no padding, and not through transformers
        "tree, padded": [(len(examples), max(example.num_tokens for example in examples))],
        "separate": [(rows, longest_row)],
    }


def shapes_read(base: OneBase) -> list[tuple[int, ...]]:
    """Grows by the rows and columns that transformers is given."""
    shapes: list[tuple[int, ...]] = []

    def note(_module: Any, _args: Any, given: dict[str, Any]) -> None:
        shapes.append(tuple(given["input_ids"].shape))

    base.model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("token_budget", BUDGETS)
def test_no_batch_holds_more_tokens_than_the_budget_however_it_is_laid_out(token_budget: int) -> None:
    examples = some_examples()
    num_batches = {}
    for layout in LAYOUTS:
        base = base_of(layout)
        split = TokenBudget(token_budget).split(base, examples)
        assert sorted(sum(split, [])) == list(range(len(examples)))
        for indices in split:
            batch = lay_out(base, [examples[i] for i in indices])
            num_tokens = (batch if layout == "tree" else lay_in_rows(batch, base.layout)).input_ids.numel()
            assert num_tokens <= token_budget or len(indices) == 1
        num_batches[layout] = len(split)
    assert num_batches["tree"] <= num_batches["tree, padded"] <= num_batches["separate"]
