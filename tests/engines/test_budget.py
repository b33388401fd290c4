from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch
from onebase.engines import budget, tree_attention
from onebase.engines.budget import (
    MOST_TOKENS,
    find_token_budget,
    free_memory,
    mask_bytes_per_pair,
    saved_bytes_per_token,
)
from onebase.engines.forward import token_logprobs
from onebase.engines.passes import lay_out
from onebase.engines.tree_attention import group_trees
from onebase.errors import DoesNotFitError
from onebase.models.base import OneBase
from onebase.models.hardware import peak_memory_mb
from onebase.records import Example
from tests.tiny_models import add_adapter_role, random_ids, through_transformers, tiny_base


def base_with_policy(*, num_layers: int = 2, layout: str = "tree") -> OneBase:
    base = tiny_base("llama", layout=layout, num_hidden_layers=num_layers, max_position_embeddings=1024)
    add_adapter_role(base, "policy")
    return base


def bytes_held(base: OneBase, examples: list[Example]) -> int:
    """Counted directly: every storage that autograd saves and that is no parameter."""
    parameters = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = build_tree_batch(examples)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logprobs = token_logprobs(base, batch, role="policy")
    assert logprobs.requires_grad
    return sum(seen.values())


def trees(count: int, *, prompt: int, completions: int, length: int) -> list[Example]:
    return [
        Example(random_ids(prompt, seed=e), [random_ids(length, seed=9 * e + k) for k in range(completions)])
        for e in range(count)
    ]


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(budget, "free_memory", lambda device: count)


@pytest.mark.parametrize(("count", "prompt", "length"), [(6, 60, 60), (1, 300, 300), (12, 20, 25)])
def test_saved_bytes_per_token_are_those_of_a_larger_batch(count: int, prompt: int, length: int) -> None:
    base = base_with_policy()
    examples = trees(count, prompt=prompt, completions=1, length=length)
    direct = bytes_held(base, examples) / sum(example.num_tokens for example in examples)
    assert saved_bytes_per_token(base, "policy") == pytest.approx(direct, rel=0.3)


@pytest.mark.parametrize(("count", "completions", "length"), [(1, 2, 200), (2, 4, 100), (8, 3, 20)])
def test_a_tree_of_several_completions_holds_its_masks_too(count: int, completions: int, length: int) -> None:
    base = through_transformers(base_with_policy(num_layers=3))  # rows with padding, each layer with its mask
    examples = trees(count, prompt=100, completions=completions, length=length)
    width = examples[0].num_tokens
    estimate = saved_bytes_per_token(base, "policy") + width * mask_bytes_per_pair(base, "policy")
    assert estimate == pytest.approx(bytes_held(base, examples) / (count * width), rel=0.3)


@pytest.mark.parametrize(("count", "completions", "length"), [(1, 2, 60), (4, 4, 40)])
def test_without_padding_the_masks_are_there_once_for_all_layers(
    count: int, completions: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_with_policy(num_layers=3)
    examples = trees(count, prompt=112 if completions == 2 else 64, completions=completions, length=length)
    width = examples[0].num_tokens
    batch = lay_out(base, examples)

    def held() -> int:
        groups = group_trees(batch, base.model.dtype)
        crossing = sum(each.mask.nbytes for each in groups.crossings)
        masks = (mask for group in groups.groups for mask in (group.mask, group.all_masks) if mask is not None)
        return crossing + sum(mask.nbytes for mask in masks)

    bound = mask_bytes_per_pair(base, "policy") * count * width**2
    monkeypatch.setattr(tree_attention, "COST_OF_PARTS", 10**9)
    assert bound == pytest.approx(held(), rel=0.1)
    monkeypatch.setattr(tree_attention, "COST_OF_PARTS", -(10**9))  # the masks of trees in parts are smaller
    assert held() < 0.3 * bound


def test_rows_of_one_completion_need_no_mask() -> None:
    assert mask_bytes_per_pair(base_with_policy(layout="separate"), "policy") == 0


def test_a_deeper_model_holds_more_per_token() -> None:
    shallow, deep = (saved_bytes_per_token(base_with_policy(num_layers=n), "policy") for n in (1, 4))
    assert deep > 2 * shallow


def test_measuring_leaves_no_gradient_and_the_same_result() -> None:
    base = base_with_policy()
    first = saved_bytes_per_token(base, "policy")
    assert all(p.grad is None for p in base.parameters("policy"))
    with torch.no_grad():  # as a caller may have it
        assert saved_bytes_per_token(base, "policy") == first > 1


def test_more_free_memory_never_gives_a_smaller_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_with_policy()
    budgets = []
    for mebibytes in (2, 4, 8, 16, 10_000):
        free(monkeypatch, mebibytes << 20)
        budgets.append(find_token_budget(base, "policy", longest=100))
    assert budgets == sorted(budgets) and len(set(budgets)) >= 4
    assert budgets[0] >= 100 and budgets[-1] == MOST_TOKENS["cpu"]


def test_the_longest_tree_always_has_room_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_with_policy()
    free(monkeypatch, 1 << 40)
    assert find_token_budget(base, "policy", longest=MOST_TOKENS["cpu"] + 7) == MOST_TOKENS["cpu"] + 7
    per_token = saved_bytes_per_token(base, "policy") + 200 * mask_bytes_per_pair(base, "policy")
    free(monkeypatch, int(1.2 * 200 * per_token))  # more than half of the free memory, and less than all of it
    assert find_token_budget(base, "policy", longest=200) == 200


def test_a_tree_that_does_not_fit_is_said_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_with_policy()
    free(monkeypatch, 3 << 20)
    with pytest.raises(DoesNotFitError) as caught:
        find_token_budget(base, "policy", longest=800)
    message = str(caught.value)
    per_token = saved_bytes_per_token(base, "policy") + 800 * mask_bytes_per_pair(base, "policy")
    assert "the longest example has 800 tokens" in message and "only 3 MiB are free" in message
    assert f"about {800 * per_token / 2**20:.0f} MiB ({per_token / 1024:.0f} KiB a token)" in message
    assert caught.value.remedy == "example-does-not-fit" and "\n" not in message
    assert caught.value.exit_code == 4


def test_free_and_peak_memory_are_positive_and_of_this_machine() -> None:
    device = torch.device("cpu")
    assert 0 < free_memory(device) < 1 << 50
    before = peak_memory_mb(device)
    held = torch.ones(32 << 20, dtype=torch.uint8) * 2
    assert 10 < before <= peak_memory_mb(device) < 1 << 20
    del held
