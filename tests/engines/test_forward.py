from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from onebase.data import rows as row_layout
from onebase.data.rows import Rows, lay_in_rows
from onebase.data.tree import build_tree_batch, separate
from onebase.engines import decoder, output_layer, padded, tree_attention
from onebase.engines.engine import packs
from onebase.engines.forward import completion_scores, logprobs_and_entropy, source_states, token_logprobs, token_values
from onebase.engines.output_layer import selected_logprobs
from onebase.models.base import OneBase
from onebase.records import Example, TreeBatch
from tests.tiny_models import VOCABULARY, WINDOW, add_adapter_role, random_ids, tiny_base

EXACT = 1e-5
HF = "llama through transformers"
TREE_ARCHITECTURES = ["llama", HF, "gpt2", "qwen3", "gemma3", "gemma2", "mistral", "neox"]


def examples_with(num_completions: int) -> list[Example]:
    """Three examples: K completions each, all of different lengths, the prompts longer than the sliding window."""
    lengths = [5, 1, 7, 3]
    examples = []
    for e, prompt_length in enumerate([9, 6, 12]):
        completions = [random_ids(lengths[(k + e) % 4], seed=50 * e + k) for k in range(num_completions)]
        examples.append(Example(random_ids(prompt_length, seed=1000 + e), completions))
    assert min(len(example.prompt_ids) for example in examples) > WINDOW
    return examples


def some_counted(examples: list[Example]) -> list[Example]:
    generator = torch.Generator().manual_seed(7)
    masks = [[(torch.rand(len(c), generator=generator) < 0.6).tolist() for c in e.completions] for e in examples]
    return [Example(e.prompt_ids, e.completions, mask) for e, mask in zip(examples, masks, strict=True)]


def states_of_separate_rows(base: OneBase, examples: list[Example], role: str) -> list[tuple[Tensor, Tensor]]:
    """Logits and last hidden states of each completion as the model itself gives them, one unpadded row at a time."""
    rows = []
    with base.role(role):
        for example in examples:
            for completion in example.completions:
                ids = torch.tensor([[*example.prompt_ids, *completion]])
                output = base.model(input_ids=ids, output_hidden_states=True, use_cache=False)
                start = len(example.prompt_ids)
                rows.append((output.logits[0, start - 1 : -1], output.hidden_states[-1][0, start - 1 :]))
    return rows


def logprobs_of_separate_rows(base: OneBase, examples: list[Example], role: str) -> Tensor:
    completions = [completion for example in examples for completion in example.completions]
    counted = [
        example.counted[k] if example.counted is not None else [True] * len(completion)
        for example in examples
        for k, completion in enumerate(example.completions)
    ]
    parts = []
    rows = states_of_separate_rows(base, examples, role)
    for (logits, _), completion, mask in zip(rows, completions, counted, strict=True):
        logprobs = logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)]
        parts.append(logprobs[torch.tensor(mask)])
    return torch.cat(parts)


def random_weights(count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(3)) / 8


def gradients(base: OneBase, role: str, weighted: Tensor) -> list[Tensor]:
    """Of the weighted sum, for every parameter the role owns; each must have one, and not all may be near zero."""
    found = torch.autograd.grad(weighted, base.parameters(role))
    assert max(gradient.abs().max().item() for gradient in found) > 0.05
    return list(found)


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for one_tensor, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one_tensor, other, rtol=0, atol=EXACT)


# ---------------------------------------------------------------------------------------------- trees are exact


@pytest.mark.parametrize("architecture", TREE_ARCHITECTURES)
@pytest.mark.parametrize("num_completions", [1, 2, 4])
def test_a_tree_gives_the_logprobs_and_gradients_of_separate_rows(architecture: str, num_completions: int) -> None:
    base = tiny_base(architecture, layout="tree")
    add_adapter_role(base, "policy")
    examples = examples_with(num_completions)
    expected = logprobs_of_separate_rows(base, examples, "policy")
    weights = random_weights(len(expected))
    expected_gradients = gradients(base, "policy", expected @ weights)
    found = token_logprobs(base, build_tree_batch(examples), role="policy")
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert_same(gradients(base, "policy", found @ weights), expected_gradients)
    # And tree by tree, of which none has padding.
    alone = torch.cat([token_logprobs(base, build_tree_batch([example]), role="policy") for example in examples])
    torch.testing.assert_close(alone, expected, rtol=0, atol=EXACT)
    assert_same(gradients(base, "policy", alone @ weights), expected_gradients)


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "qwen3", "gemma3"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_counted_masks_and_three_completions_are_exact_with_either_attention(architecture: str, attention: str) -> None:
    base = tiny_base(architecture, layout="tree", attn_implementation=attention)
    add_adapter_role(base, "policy")
    examples = some_counted(examples_with(3))
    expected = logprobs_of_separate_rows(base, examples, "policy")
    assert 0 < len(expected) < sum(len(c) for e in examples for c in e.completions)
    weights = random_weights(len(expected))
    expected_gradients = gradients(base, "policy", expected @ weights)
    batch = build_tree_batch(examples)
    assert not lay_in_rows(batch, "tree").is_token.all()  # there is padding
    found = token_logprobs(base, batch, role="policy")
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    assert_same(gradients(base, "policy", found @ weights), expected_gradients)


@pytest.mark.parametrize("architecture", TREE_ARCHITECTURES)
def test_a_mask_that_leaks_between_branches_would_be_seen(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(architecture, layout="tree")
    add_adapter_role(base, "policy")
    examples = examples_with(2)
    batch = build_tree_batch(examples)
    expected = logprobs_of_separate_rows(base, examples, "policy")

    def leaking_mask(rows: Rows, *, window: int | None = None) -> Tensor:
        one_branch = torch.zeros_like(rows.branch)
        columns = torch.arange(rows.branch.shape[1]).expand_as(rows.branch)
        plain = replace(rows, branch=one_branch, position_ids=columns)
        return row_layout.attention_mask(plain, window=window)

    def leaking_groups(batch: TreeBatch, dtype: torch.dtype) -> tree_attention.TreeGroups:
        return tree_attention.group_trees(replace(batch, branch=torch.zeros_like(batch.branch)), dtype)

    monkeypatch.setattr(padded, "attention_mask", leaking_mask)
    monkeypatch.setattr(decoder, "group_trees", leaking_groups)
    leaked = token_logprobs(base, batch, role="policy")
    assert (leaked - expected).abs().max() > 100 * EXACT


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_mask_that_leaks_in_the_backward_pass_alone_would_be_seen(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base(architecture)
    add_adapter_role(base, "policy")
    assert packs(base, "policy")
    examples = examples_with(2)
    batch = build_tree_batch(examples)
    expected = logprobs_of_separate_rows(base, examples, "policy")
    weights = random_weights(len(expected))
    expected_gradients = gradients(base, "policy", expected @ weights)

    def leaking_groups(batch: TreeBatch, dtype: torch.dtype) -> tree_attention.TreeGroups:
        one_branch = tree_attention.group_trees(replace(batch, branch=torch.zeros_like(batch.branch)), dtype)
        groups = tree_attention.group_trees(batch, dtype)
        pairs = zip(groups.groups, one_branch.groups, strict=True)
        return replace(groups, groups=tuple(replace(group, all_masks=leak.all_masks) for group, leak in pairs))

    monkeypatch.setattr(decoder, "group_trees", leaking_groups)
    found = token_logprobs(base, batch, role="policy")
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
    leaked = gradients(base, "policy", found @ weights)
    assert max((a - b).abs().max().item() for a, b in zip(leaked, expected_gradients, strict=True)) > 100 * EXACT


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "qwen3", "gemma3", "bloom"])
def test_scores_and_values_of_a_tree_are_those_of_separate_rows(architecture: str) -> None:
    base = tiny_base(architecture)
    assert base.layout == ("separate" if architecture == "bloom" else "tree")
    add_adapter_role(base, "reward", head=True)
    add_adapter_role(base, "critic", head=True, seed=5)
    examples = examples_with(3)
    reward, critic = base.scalar_role("reward"), base.scalar_role("critic")
    rows = [hidden for _, hidden in states_of_separate_rows(base, examples, "reward")]
    expected_scores = torch.stack([hidden[-1] @ reward.head.weight[0] for hidden in rows])
    expected_means = torch.stack([(hidden[1:] @ reward.head.weight[0]).mean() for hidden in rows])
    expected_values = torch.cat(
        [hidden[:-1] @ critic.head.weight[0] for _, hidden in states_of_separate_rows(base, examples, "critic")]
    )
    weights, token_weights = random_weights(len(expected_scores)), random_weights(len(expected_values))
    score_gradients = gradients(base, "reward", expected_scores @ weights)
    value_gradients = gradients(base, "critic", expected_values @ token_weights)
    batch = build_tree_batch(examples)
    assert reward.pooling == "last"
    scores = completion_scores(base, batch, role="reward")
    assert scores.shape == (9,) and scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=EXACT)
    assert_same(gradients(base, "reward", scores @ weights), score_gradients)
    reward.pooling = "mean"
    torch.testing.assert_close(completion_scores(base, batch, role="reward"), expected_means, rtol=0, atol=EXACT)
    values = token_values(base, batch, role="critic")
    assert values.shape == batch.targets.shape and values.dtype == torch.float32
    torch.testing.assert_close(values, expected_values, rtol=0, atol=EXACT)
    assert_same(gradients(base, "critic", values @ token_weights), value_gradients)


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "gemma3", "bloom"])
def test_a_score_reads_the_last_token_whether_it_is_counted_or_not(architecture: str) -> None:
    base = tiny_base(architecture)
    add_adapter_role(base, "reward", head=True)
    example = examples_with(2)[0]
    uncounted = Example(example.prompt_ids, example.completions, [[False] * len(c) for c in example.completions])
    scores = [completion_scores(base, build_tree_batch([e]), role="reward") for e in (example, uncounted)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)


@pytest.mark.parametrize("architecture", [HF, "gpt2", "gemma3", "bloom"])
@pytest.mark.parametrize("padded_id", [1, 200, VOCABULARY - 1])
def test_what_stands_in_the_padding_changes_nothing(
    architecture: str, padded_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the packed engine pads with is in `test_decoder.py`."""
    base = tiny_base(architecture)
    add_adapter_role(base, "policy", head=True)
    padding: list[int] = []

    def with_padding(ids: Tensor) -> None:
        def lay(batch: TreeBatch, layout: str) -> Rows:
            rows = lay_in_rows(batch, layout)
            padding.append(int((~rows.is_token).sum()))
            return replace(rows, input_ids=torch.where(rows.is_token, rows.input_ids, ids[: rows.input_ids.shape[1]]))

        monkeypatch.setattr(padded, "lay_in_rows", lay)

    for num_completions in (1, 3):
        batch = build_tree_batch(examples_with(num_completions))
        for function in (token_logprobs, token_values, completion_scores):
            monkeypatch.setattr(padded, "lay_in_rows", lay_in_rows)
            expected = function(base, batch, role="policy")
            for ids in (torch.full((200,), padded_id), torch.randint(0, VOCABULARY, (200,))):
                with_padding(ids)
                torch.testing.assert_close(function(base, batch, role="policy"), expected, rtol=0, atol=1e-6)
    assert len(padding) == 12 and all(padding)


@pytest.mark.parametrize("architecture", ["llama", HF, "gpt2", "gemma3"])
def test_what_stands_in_one_branch_or_tree_changes_nothing_in_another(architecture: str) -> None:
    base = tiny_base(architecture, layout="tree")
    add_adapter_role(base, "policy")
    first, second = examples_with(2)[:2]
    expected = token_logprobs(base, build_tree_batch([first, second]), role="policy")
    kept = len(first.completions[0])
    changed = Example(first.prompt_ids, [first.completions[0], random_ids(len(first.completions[1]), seed=99)])
    other = Example(random_ids(len(second.prompt_ids), seed=98), second.completions)
    found = token_logprobs(base, build_tree_batch([changed, other]), role="policy")
    assert torch.equal(found[:kept], expected[:kept])
    assert not torch.equal(found[kept:], expected[kept:])


def test_the_separate_layout_gives_a_models_own_logprobs_and_gradients_through_the_same_functions() -> None:
    base = tiny_base("bloom")
    assert base.layout == "separate"
    add_adapter_role(base, "policy")
    examples = some_counted(examples_with(3))
    expected = logprobs_of_separate_rows(base, examples, "policy")
    weights = random_weights(len(expected))
    expected_gradients = gradients(base, "policy", expected @ weights)
    for batch in (build_tree_batch(examples), build_tree_batch(separate(examples))):
        found = token_logprobs(base, batch, role="policy")
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)
        assert_same(gradients(base, "policy", found @ weights), expected_gradients)


def test_llama_in_the_separate_layout_is_llama_in_trees() -> None:
    rows = tiny_base("llama", layout="separate")
    add_adapter_role(rows, "policy")
    assert not packs(rows, "policy")
    batch = build_tree_batch(examples_with(3))
    expected = token_logprobs(rows, batch, role="policy")
    for architecture in ("llama", HF):
        trees = tiny_base(architecture, layout="tree")
        add_adapter_role(trees, "policy")
        assert packs(trees, "policy") == (architecture == "llama")
        found = token_logprobs(trees, batch, role="policy")
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


# ---------------------------------------------------------------------------------------------- logits in chunks


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_and_entropy_are_those_of_a_direct_computation(temperature: float) -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    examples = examples_with(2)
    logits = torch.cat([logits for logits, _ in states_of_separate_rows(base, examples, "policy")]) / temperature
    targets = torch.tensor([token for e in examples for c in e.completions for token in c])
    expected = torch.distributions.Categorical(logits=logits)
    batch = build_tree_batch(examples)
    logprobs, entropy = logprobs_and_entropy(base, batch, role="policy", temperature=temperature)
    torch.testing.assert_close(logprobs, expected.log_prob(targets), rtol=0, atol=EXACT)
    torch.testing.assert_close(entropy, expected.entropy(), rtol=0, atol=EXACT)
    # Log-probs alone go another way through the output layer.
    alone = token_logprobs(base, batch, role="policy", temperature=temperature)
    torch.testing.assert_close(alone, expected.log_prob(targets), rtol=0, atol=EXACT)
    torch.testing.assert_close(alone, logprobs, rtol=2e-7, atol=1e-6)
    with torch.no_grad():
        measured, its_entropy = logprobs_and_entropy(base, batch, role="policy", temperature=temperature)
        torch.testing.assert_close(measured, expected.log_prob(targets), rtol=0, atol=EXACT)
        torch.testing.assert_close(its_entropy, expected.entropy(), rtol=0, atol=EXACT)
        # So that a role has no divergence from itself, whatever else is measured of it.
        assert torch.equal(token_logprobs(base, batch, role="policy", temperature=temperature), measured)


def test_entropy_that_is_not_asked_for_is_zero() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    _, entropy = logprobs_and_entropy(base, build_tree_batch(examples_with(1)), role="policy", with_entropy=False)
    assert not entropy.any()


@pytest.mark.parametrize(
    "overrides", [("gemma2", {"final_logit_softcapping": 2.0}), ("llama", {}), ("gpt2", {})], ids=lambda o: o[0]
)
def test_the_size_of_a_chunk_changes_neither_values_nor_gradients(
    overrides: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, options = overrides
    base = tiny_base(architecture, **options)
    add_adapter_role(base, "policy")
    examples = examples_with(3)
    batch = build_tree_batch(examples)
    weights = random_weights(len(batch.targets))

    def measure(with_entropy: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
        logprobs, entropy = logprobs_and_entropy(base, batch, role="policy", temperature=0.7, with_entropy=with_entropy)
        return logprobs, entropy, gradients(base, "policy", logprobs @ weights + entropy @ weights.flip(0))

    for with_entropy in (True, False):
        monkeypatch.setattr(output_layer, "LOGITS_PER_CHUNK", {"cpu": 1 << 30})
        logprobs, entropy, expected = measure(with_entropy)
        assert with_entropy == bool(entropy.any())
        for tokens, fewest in ((0, 1), (1, 1), (5, 1), (len(weights), 1), (5, 32)):
            monkeypatch.setattr(output_layer, "LOGITS_PER_CHUNK", {"cpu": tokens * VOCABULARY})
            monkeypatch.setattr(output_layer, "FEWEST_TOKENS_PER_CHUNK", fewest)
            chunked_logprobs, chunked_entropy, found = measure(with_entropy)
            torch.testing.assert_close(chunked_logprobs, logprobs, rtol=0, atol=1e-6)
            torch.testing.assert_close(chunked_entropy, entropy, rtol=0, atol=1e-6)
            assert_same(found, expected)
            with torch.no_grad():
                results = logprobs_and_entropy(base, batch, role="policy", temperature=0.7, with_entropy=with_entropy)
            for result, wanted in zip(results, (logprobs, entropy), strict=True):
                torch.testing.assert_close(result, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("scale", [1.0, 1 / 0.7, 0.25])
@pytest.mark.parametrize("with_bias", [False, True])
def test_selected_logprobs_and_their_slope_are_those_of_log_softmax(with_bias: bool, scale: float, chunk: int) -> None:
    generator = torch.Generator().manual_seed(6)
    states = torch.randn(40, 24, generator=generator).requires_grad_()
    weight = torch.randn(101, 24, generator=generator) / 3
    bias = torch.randn(101, generator=generator) if with_bias else None
    targets = torch.randint(0, 101, (40,), generator=generator)
    weights = torch.randn(40, generator=generator)
    exact = states.detach().double().requires_grad_()
    logits = scale * torch.nn.functional.linear(exact, weight.double(), None if bias is None else bias.double())
    expected = logits.log_softmax(-1)[torch.arange(40), targets]
    (wanted,) = torch.autograd.grad(expected @ weights.double(), exact)
    found = selected_logprobs(states, weight, bias, targets, scale, chunk)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    (gradient,) = torch.autograd.grad(found @ weights, states)
    torch.testing.assert_close(gradient.double(), wanted, rtol=0, atol=5e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_selected_logprobs_in_bfloat16_are_no_further_off_than_those_of_pytorch(temperature: float) -> None:
    generator = torch.Generator().manual_seed(6)
    states = torch.randn(200, 64, generator=generator).bfloat16().requires_grad_()
    weight = (torch.randn(501, 64, generator=generator) / 3).bfloat16()
    targets = torch.randint(0, 501, (200,), generator=generator)
    weights = torch.randn(200, generator=generator)

    def both(states: Tensor, logprobs: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = torch.autograd.grad(logprobs @ weights.to(logprobs.dtype), states)
        return logprobs.detach(), gradient

    def plain(states: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.nn.functional.linear(states, weight)
        logits = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
        return both(states, logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0])

    true = plain(states.detach().double().requires_grad_(), weight.double())
    found = both(states, selected_logprobs(states, weight, None, targets, 1 / temperature, 64))
    assert found[0].dtype == torch.float32 and found[1].dtype == torch.bfloat16
    for ours, theirs, exact in zip(found, plain(states, weight), true, strict=True):
        assert (ours - exact).norm() <= 1.1 * (theirs - exact).norm()


def test_no_logprobs_are_selected_from_no_states() -> None:
    states = torch.zeros(0, 8).requires_grad_()
    found = selected_logprobs(states, torch.randn(11, 8), None, torch.zeros(0, dtype=torch.long), 1.0, 7)
    found.sum().backward()
    assert found.shape == (0,) and states.grad is not None and states.grad.shape == (0, 8)


def test_soft_caps_on_the_logits_are_the_models_own() -> None:
    base = tiny_base("gemma2", layout="tree", final_logit_softcapping=0.5)
    base.add_role("policy")
    examples = examples_with(2)
    found = token_logprobs(base, build_tree_batch(examples), role="policy")
    torch.testing.assert_close(found, logprobs_of_separate_rows(base, examples, "policy"), rtol=0, atol=EXACT)


@pytest.mark.parametrize("architecture", ["granite", "cohere"])
def test_the_scale_of_the_logits_is_the_models_own(architecture: str) -> None:
    base = tiny_base(architecture, layout="tree")
    base.add_role("policy")
    examples = examples_with(2)
    found = token_logprobs(base, build_tree_batch(examples), role="policy")
    torch.testing.assert_close(found, logprobs_of_separate_rows(base, examples, "policy"), rtol=0, atol=EXACT)


class LargestTensor(TorchDispatchMode):
    """Counts the elements of every tensor an operation makes, the views of a model's weights left out."""

    def __init__(self, base: OneBase) -> None:
        super().__init__()
        self.weights = {parameter.untyped_storage().data_ptr() for parameter in base.model.parameters()}
        self.largest = 0

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor) and value.untyped_storage().data_ptr() not in self.weights:
                self.largest = max(self.largest, value.numel())
        return result


@pytest.mark.parametrize("with_entropy", [True, False])
def test_the_logits_of_a_batch_never_exist_at_once_in_forward_or_backward(
    with_entropy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 16 tokens: what the shapes of matrix products are padded to at least.
    vocabulary, tokens_per_chunk = 20_000, 16
    base = tiny_base("llama", layout="tree", vocab_size=vocabulary, hidden_size=16, intermediate_size=24)
    add_adapter_role(base, "policy")
    chunk = vocabulary * tokens_per_chunk
    monkeypatch.setattr(output_layer, "LOGITS_PER_CHUNK", {"cpu": chunk})
    monkeypatch.setattr(output_layer, "FEWEST_TOKENS_PER_CHUNK", 1)
    batch = build_tree_batch(examples_with(4) * 3)
    assert len(batch.targets) * vocabulary > 8 * chunk
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += 0 if tensor.untyped_storage().data_ptr() in counter.weights else tensor.numel()
        return tensor

    with LargestTensor(base) as counter:
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            logprobs, entropy = logprobs_and_entropy(base, batch, role="policy", with_entropy=with_entropy)
        assert counter.largest == chunk  # the counter sees the chunks
        # Nothing the size of a chunk waits for the backward pass, let alone one from each chunk.
        assert saved < chunk
        (logprobs.sum() + entropy.sum()).backward()
    assert counter.largest == chunk
    with LargestTensor(base) as counter, torch.no_grad():
        logprobs_and_entropy(base, batch, role="policy", with_entropy=with_entropy)
    assert counter.largest == chunk
    assert all(parameter.grad is not None for parameter in base.parameters("policy"))


def test_a_batch_in_which_nothing_is_counted_gives_empty_logprobs() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy", head=True)
    batch = build_tree_batch([Example([5, 6], [[7, 8]], [[False, False]])])
    logprobs, entropy = logprobs_and_entropy(base, batch, role="policy")
    assert logprobs.shape == entropy.shape == token_values(base, batch, role="policy").shape == (0,)
    logprobs.sum().backward()


def test_gradients_have_the_same_bytes_every_time_with_several_threads() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(4, 300, 512, requires_grad=True)
    row, column = torch.randint(0, 4, (1000,)), torch.randint(0, 20, (1000,))  # each state is read about 12 times
    weight = torch.randn(1000, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        gradients = []
        for _ in range(10):
            states = padded.at(hidden, row, column)
            assert torch.equal(states, hidden[row, column])
            gradients.append(torch.autograd.grad((states * weight).sum(), hidden)[0])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    expected = torch.zeros_like(hidden).index_put((row, column), weight, accumulate=True)
    torch.testing.assert_close(gradients[0], expected)


def test_hidden_states_leave_no_role_in_force() -> None:
    base = tiny_base("llama")
    base.add_role("policy")
    assert source_states(base, build_tree_batch(examples_with(1)), role="policy").shape[-1] == base.hidden_size
    assert base.active is None
