"""The decoder of our own against the same modules run by transformers: states, log-probs and gradients."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor

from onebase.data.rows import lay_in_rows
from onebase.data.tree import build_tree_batch, separate
from onebase.engines import decoder, output_layer, tree_attention
from onebase.engines.budget import TokenBudget
from onebase.engines.decoder import Decoder
from onebase.engines.engine import engine_of, packs
from onebase.engines.exactness import decoder_gives_the_same
from onebase.engines.forward import completion_scores, logprobs_and_entropy, token_logprobs, token_values
from onebase.engines.opening import load_base, wrap_model
from onebase.engines.passes import lay_out, with_lower_states
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.records import Example, LowerStates, TreeBatch
from tests.tiny_models import (
    WINDOW,
    add_adapter_role,
    disturb,
    random_ids,
    save_tiny,
    through_transformers,
    tiny_model,
    tiny_tokenizer,
)

EXACT = 1e-5
"""Of the largest number of a tensor."""
ROUNDING: dict[str, float] = {"rtol": 0, "atol": 1e-5}
FAMILY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": ("llama", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
}
TARGETS: dict[str, list[str] | str] = {"all linear": "all-linear", "two layers": ["q_proj", "v_proj"]}
ROTARY: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1e4,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1e4},
}


def base_of(kind: str, *, dtype: torch.dtype = torch.float32, **overrides: Any) -> OneBase:
    """A tiny base whose norms and biases are not at their start, where they would change nothing.

    In another number format its weights are those of float32, rounded.
    """
    architecture, options = FAMILY.get(kind, (kind, {}))
    model = tiny_model(architecture, **(options | overrides))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
            parameter.copy_(parameter.bfloat16())
    for parameter in model.parameters():  # the angles of the positions stay in float32, as they do in a loaded model
        parameter.data = parameter.data.to(dtype)
    model.config.dtype = dtype
    return wrap_model(model, tiny_tokenizer())


def some_examples(num_completions: int) -> list[Example]:
    """Of unequal lengths, one with some tokens counted."""
    lengths = [5, 1, 7, 3, 11]
    examples = []
    for e, prompt_length in enumerate([9, 1, 14, 6, 3]):
        completions = [random_ids(lengths[(k + e) % 5], seed=70 * e + k) for k in range(num_completions)]
        examples.append(Example(random_ids(prompt_length, seed=2000 + e), completions))
    counted = [[position % 2 == 1 or len(ids) == 1 for position in range(len(ids))] for ids in examples[2].completions]
    examples[2] = replace(examples[2], counted=counted)
    return examples


def batch_of(*num_completions: int) -> TreeBatch:
    """Trees of unequal lengths, five of each number of completions."""
    return build_tree_batch([example for count in num_completions for example in some_examples(count)])


def weights_for(tensor: Tensor, seed: int = 5) -> Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed)).to(tensor.dtype)


@dataclass
class Measured:
    states: Tensor
    logprobs: Tensor
    gradients: dict[str, Tensor]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"states": self.states, "logprobs": self.logprobs, **self.gradients}


@contextmanager
def by_transformers(base: OneBase) -> Iterator[None]:
    """Without the packed engine for a while."""
    kept, base.packs = base.packs, False
    try:
        yield
    finally:
        base.packs = kept


def measure(base: OneBase, batch: TreeBatch, role: str = "policy") -> Measured:
    """States at places in no order and twice, log-probs, and the gradients of both for every parameter of the role."""
    places = torch.randperm(len(batch.source), generator=torch.Generator().manual_seed(3)).repeat(2)[:50]
    states = engine_of(base, role).states(batch, batch.source[places], batch.completion_index[places])
    logprobs = token_logprobs(base, batch, role=role)
    parameters = {name: p for name, p in base.model.named_parameters() if f".{role}." in name}
    loss = (states * weights_for(states)).sum() / 8 + (logprobs * weights_for(logprobs)).sum()
    found = torch.autograd.grad(loss, list(parameters.values()))
    return Measured(states.detach(), logprobs.detach(), dict(zip(parameters, found, strict=True)))


def assert_same(found: Measured, expected: Measured) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in found.tensors.items():
        other = expected.tensors[name]
        largest = float(other.abs().max())
        assert tensor.isfinite().all() and tensor.dtype == other.dtype and largest > 1e-3, name
        torch.testing.assert_close(tensor, other, rtol=0, atol=EXACT * largest, msg=lambda text, n=name: f"{n}: {text}")


def count_calls(base: OneBase) -> list[Any]:
    """Grows by what it is given whenever the whole model of transformers is run."""
    calls: list[Any] = []
    base.model.base_model.register_forward_pre_hook(lambda *args: calls.append(args[-1]), with_kwargs=True)
    return calls


# ------------------------------------------------------------------------------------------------ the same numbers


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("num_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("kind", FAMILY)
def test_states_logprobs_and_gradients_are_those_of_transformers(
    kind: str, num_kv_heads: int, targets: str, tied: bool
) -> None:
    base = base_of(kind, num_key_value_heads=num_kv_heads, tie_word_embeddings=tied)
    assert base.packs and base.layout == "tree"
    add_adapter_role(base, "policy", target_modules=TARGETS[targets])
    calls = count_calls(base)
    batch = batch_of(1, 3)
    assert int(batch.tree.max()) == 9 and not lay_in_rows(batch, "tree").is_token.all()  # of unequal lengths
    found = measure(base, batch)
    assert not calls
    with by_transformers(base):
        expected = measure(base, batch)
    assert len(calls) == 2 and len(found.gradients) == 2 * 2 * (7 if targets == "all linear" else 2)
    assert_same(found, expected)


@pytest.mark.parametrize("chosen", [[2], [1, 0, 4], [0, 1, 2, 3, 4, 2]], ids=["one", "three", "six"])
@pytest.mark.parametrize("num_completions", [1, 3])
def test_trees_of_one_and_of_three_completions_are_exact_in_batches_of_any_length(
    num_completions: int, chosen: list[int]
) -> None:
    base = base_of("llama")
    add_adapter_role(base, "policy")
    examples = some_examples(num_completions)
    batch = build_tree_batch([examples[i] for i in chosen])
    found = measure(base, batch)
    with by_transformers(base):
        assert_same(found, measure(base, batch))


@pytest.mark.parametrize("rotary", ROTARY)
def test_stretched_positions_are_those_of_transformers(rotary: str) -> None:
    base, plain = base_of("llama", rope_parameters=ROTARY[rotary]), base_of("llama")
    assert base.packs
    batch = batch_of(3)
    for each in (base, plain):
        add_adapter_role(each, "policy")
    found = measure(base, batch)
    assert not torch.allclose(found.logprobs, measure(plain, batch).logprobs, atol=1e-2)
    with by_transformers(base):
        assert_same(found, measure(base, batch))


def test_each_role_is_run_with_its_own_adapter_or_with_none() -> None:
    base = base_of("qwen3")
    add_adapter_role(base, "policy")
    add_adapter_role(base, "other", seed=1, r=2, layers="upper-half", target_modules=["k_proj", "down_proj"])
    base.add_role("reference")
    batch, found = batch_of(2), {}
    for role in base.roles:
        with torch.no_grad():
            found[role] = token_logprobs(base, batch, role=role)
            with by_transformers(base):
                expected = token_logprobs(base, batch, role=role)
        torch.testing.assert_close(found[role], expected, rtol=0, atol=EXACT)
    assert (found["policy"] - found["other"]).abs().max() > 0.1 < (found["policy"] - found["reference"]).abs().max()
    fresh = base_of("qwen3")
    fresh.add_role("reference")
    assert torch.equal(token_logprobs(fresh, batch, role="reference"), found["reference"])
    result = measure(base, batch, "other")
    with by_transformers(base):
        assert_same(result, measure(base, batch, "other"))


def test_a_role_that_does_not_train_gets_no_gradient_and_needs_no_graph() -> None:
    base = base_of("llama")
    add_adapter_role(base, "reference", trains=False)
    for parameter in base.parameters("reference"):
        parameter.requires_grad_(False)
    logprobs = token_logprobs(base, batch_of(2), role="reference")
    assert not logprobs.requires_grad


def test_scores_values_and_entropies_are_those_of_transformers() -> None:
    base = base_of("qwen2")
    add_adapter_role(base, "policy", head=True)
    batch = batch_of(1, 3)
    for pooling in ("last", "mean"):
        base.scalar_role("policy").pooling = pooling
        functions: list[Callable[[], Tensor]] = [
            lambda: completion_scores(base, batch, role="policy"),
            lambda: token_values(base, batch, role="policy"),
            lambda: torch.cat(logprobs_and_entropy(base, batch, role="policy", temperature=0.7)),
        ]
        for function in functions:
            results = []
            for engine in (nullcontext(), by_transformers(base)):
                with engine:
                    result = function()
                owned = base.parameters("policy")
                loss = (result * weights_for(result)).sum()
                gradients = torch.autograd.grad(loss, owned, allow_unused=True)
                results.append([result.detach(), *(g for g in gradients if g is not None)])
            assert len(results[0]) == len(results[1]) >= len(base.parameters("policy"))
            for tensor, other in zip(*results, strict=True):
                torch.testing.assert_close(tensor, other, rtol=0, atol=EXACT * float(other.abs().max()))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("targets", TARGETS)
def test_in_bfloat16_it_is_about_as_near_to_float32_as_transformers_is(kind: str, targets: str) -> None:
    exact, base = base_of(kind), base_of(kind, dtype=torch.bfloat16)
    for each in (exact, base):
        add_adapter_role(each, "policy", target_modules=TARGETS[targets])
        assert each.packs and all(parameter.dtype == torch.float32 for parameter in each.parameters("policy"))
    batch = batch_of(1, 3)
    with by_transformers(exact):
        true = measure(exact, batch)
    found = measure(base, batch)
    with by_transformers(base):
        plain = measure(base, batch)

    def distance(measured: Measured, names: list[str]) -> float:
        """Root of the mean square of the tensors' relative errors."""
        pairs = [(measured.tensors[name].float(), true.tensors[name]) for name in names]
        return sum(float((a - b).norm() / b.norm()) ** 2 for a, b in pairs) ** 0.5 / len(pairs) ** 0.5

    matrices = list(true.gradients)
    kinds = [
        ["states"],
        ["logprobs"],
        [name for name in matrices if "lora_A" in name],
        [name for name in matrices if "lora_B" in name],
    ]
    for names in kinds:
        ours, theirs = distance(found, names), distance(plain, names)
        assert 0 < ours <= 1.5 * theirs, (names, ours, theirs)
        assert ours < 0.05
    assert found.states.dtype == torch.bfloat16 and found.logprobs.dtype == torch.float32


# ------------------------------------------------------------------------------------------------ padding


def padded_by(monkeypatch: pytest.MonkeyPatch, more: Callable[[int], int]) -> None:
    for module in (decoder, tree_attention, output_layer):
        monkeypatch.setattr(module, "usual_size", more)


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_however_much_is_padded_the_results_and_gradients_are_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(kind)
    add_adapter_role(base, "policy")
    batch = batch_of(1, 3)
    padded_by(monkeypatch, lambda count: count)
    expected = measure(base, batch)
    for extra in (1, 37, 200):
        padded_by(monkeypatch, lambda count, extra=extra: count + extra)
        assert_same(measure(base, batch), expected)


@pytest.mark.parametrize("size", [0.0, 1e4])
def test_what_the_padding_holds_leaks_nowhere(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for value in (size, 1.0):
        base = base_of("llama")
        add_adapter_role(base, "policy")
        # Id 0 stands in the padding alone. An embedding of zeros has no length to be divided by.
        with torch.no_grad():
            base.model.get_input_embeddings().weight[0] = value
        batch = batch_of(1, 3)
        assert not (batch.input_ids == 0).any()
        padded_by(monkeypatch, lambda count: count + 50)
        found.append(measure(base, batch))
    assert_same(*found)


def test_one_token_alone_and_a_tree_that_is_exactly_a_usual_size_are_run_too() -> None:
    base = base_of("llama")
    add_adapter_role(base, "policy", head=True)
    for prompt, completions in ((1, [1]), (8, [8]), (16, [8, 4, 4]), (17, [8, 4, 4])):
        example = Example(random_ids(prompt, seed=1), [random_ids(n, seed=n) for n in completions])
        batch = build_tree_batch([example])
        found = measure(base, batch)
        with by_transformers(base):
            expected = measure(base, batch)
        for name, tensor in found.tensors.items():
            # Of all gradients: a token that sees itself alone gives queries and keys none.
            size = max(float(g.abs().max()) for g in expected.gradients.values())
            torch.testing.assert_close(tensor, expected.tensors[name], rtol=0, atol=EXACT * size)


# ------------------------------------------------------------------------------------------------ nothing counted


def test_where_nothing_is_counted_results_are_empty_and_the_backward_pass_runs() -> None:
    base = base_of("llama")
    add_adapter_role(base, "policy", head=True)
    examples = [replace(e, counted=[[False] * len(ids) for ids in e.completions]) for e in some_examples(2)]
    batch = lay_out(base, examples)
    for forced in (False, True):
        if forced:
            through_transformers(base)
        with torch.no_grad():
            assert token_logprobs(base, batch, role="policy").shape == (0,)
            assert token_values(base, batch, role="policy").shape == (0,)
            scores = completion_scores(base, batch, role="policy")
        assert scores.shape == (10,) and scores.isfinite().all()
        for logprobs in (
            logprobs_and_entropy(base, batch, role="policy"),
            logprobs_and_entropy(base, batch, role="policy", with_entropy=False),
        ):
            assert logprobs[0].shape == (0,)
            logprobs[0].sum().backward()  # a microbatch of a step in which others are counted
    assert all(p.grad is None or not p.grad.any() for p in base.parameters("policy"))


def test_no_gradient_comes_from_trees_in_which_nothing_is_counted() -> None:
    base = base_of("llama")
    add_adapter_role(base, "policy")
    counted, silent = some_examples(2)[:2]
    silent = replace(silent, counted=[[False] * len(ids) for ids in silent.completions])
    found = measure(base, lay_out(base, [counted, silent]))
    alone = measure(base, lay_out(base, [counted]))
    assert_same(found, alone)


# ------------------------------------------------------------------------------------------------ which bases


def loss_of(base: OneBase) -> Tensor:
    """Of trees of unequal lengths, a step's whole pass."""
    return token_logprobs(base, lay_out(base, some_examples(2)), role="policy").sum()


def assert_run_by_transformers(base: OneBase) -> None:
    assert not packs(base, "policy")
    calls = count_calls(base)
    loss_of(base).backward()
    assert [len(call["input_ids"]) for call in calls] == [5 if base.layout == "tree" else 10]


@pytest.mark.parametrize("architecture", ["gpt2", "neox", "gemma2", "gemma3", "bloom"])
def test_architectures_of_other_families_are_run_by_transformers(architecture: str) -> None:
    base = base_of(architecture)
    add_adapter_role(base, "policy")
    assert not Decoder.runs(base.model)
    assert_run_by_transformers(base)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("mistral", {"sliding_window": WINDOW}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 0}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}),
        ("llama", {"hidden_act": "gelu"}),
    ],
    ids=["mistral's window", "qwen2's window", "qwen3's window", "dynamic positions", "another activation"],
)
def test_what_the_decoder_does_not_know_is_run_by_transformers(architecture: str, options: dict[str, Any]) -> None:
    base = base_of(architecture, **options)
    add_adapter_role(base, "policy")
    assert not Decoder.runs(base.model)
    assert_run_by_transformers(base)


def test_a_window_that_is_not_in_use_keeps_no_base_from_the_decoder() -> None:
    base = base_of("qwen2", use_sliding_window=False, sliding_window=WINDOW)
    add_adapter_role(base, "policy")
    assert base.packs
    found = measure(base, batch_of(3))
    with by_transformers(base):
        assert_same(found, measure(base, batch_of(3)))


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_a_base_in_4_bits_packs_and_gives_what_transformers_gives(architecture: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    # Qwen's tokenizer class adds an id.
    folder = str(save_tiny(tmp_path, architecture, hidden_size=64, intermediate_size=64, vocab_size=260))
    base = load_base(folder, dtype="float32", quantization="nf4", device="cpu")
    add_adapter_role(base, "policy")
    calls = count_calls(base)
    assert packs(base, "policy")
    found = measure(base, batch_of(1, 3))
    assert not calls
    with by_transformers(base):
        assert_same(found, measure(base, batch_of(1, 3)))
    assert calls


def test_what_is_kept_for_the_backward_pass_of_a_4_bit_base_holds_no_expanded_weight(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = str(save_tiny(tmp_path, "llama", hidden_size=64, intermediate_size=1024))
    base = load_base(folder, dtype="float32", quantization="nf4", device="cpu")
    add_adapter_role(base, "policy")
    kept: list[tuple[int, ...]] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(base)
    assert kept and not {(1024, 64), (64, 1024), (2048, 64)} & set(kept)


def test_the_separate_layout_is_run_by_transformers() -> None:
    base = wrap_model(tiny_model("llama"), tiny_tokenizer(), layout="separate")
    add_adapter_role(base, "policy")
    assert_run_by_transformers(base)


def test_a_base_whose_own_weights_train_is_run_by_transformers_and_all_of_them_get_gradients() -> None:
    base = base_of("llama")
    base.add_role("policy")
    assert base.packs
    base.train_base("policy")
    assert_run_by_transformers(base)
    assert base.packs  # a fact of the model, which other roles would make use of
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in base.parameters("policy"))


def test_dropout_is_left_to_transformers_where_a_role_trains_with_it() -> None:
    base = base_of("llama")
    add_adapter_role(base, "reward")
    assert packs(base, "reward")
    add_adapter_role(base, "policy", dropout=0.5)
    assert_run_by_transformers(base)
    with base.dropout():
        assert loss_of(base).item() != loss_of(base).item()
    assert base.packs and packs(base, "reward")


VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    "DoRA": lambda: {"use_dora": True},
    "a bias of its own": lambda: {"lora_bias": True},
    "KaSA": lambda: {"kasa_config": peft.tuners.lora.config.KasaConfig()},
    "activated LoRA": lambda: {"alora_invocation_tokens": [5]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_lora_are_run_by_transformers(variant: str) -> None:
    base = base_of("llama", attention_bias=True, mlp_bias=True)
    config = lora_config(base.model, r=4, alpha=8)
    try:
        options = VARIANTS[variant]()
    except AttributeError:
        pytest.skip("this version of PEFT does not have it")
    for name, value in options.items():
        assert hasattr(config, name)
        setattr(config, name, value)
    base.add_role("policy", adapter=config, trains=True)
    disturb(base, "policy")
    assert base.packs and not packs(base, "policy")
    calls = count_calls(base)
    loss_of(base).backward()
    assert calls and all(p.grad is not None for p in base.parameters("policy"))


def test_a_rank_stabilised_scale_and_ranks_of_their_own_are_known_to_the_decoder() -> None:
    base = base_of("llama")
    config = lora_config(base.model, r=4, alpha=8)
    config.use_rslora, config.rank_pattern, config.alpha_pattern = True, {"q_proj": 2}, {"v_proj": 3}
    base.add_role("policy", adapter=config, trains=True)
    disturb(base, "policy")
    assert packs(base, "policy")
    found = measure(base, batch_of(3))
    with by_transformers(base):
        assert_same(found, measure(base, batch_of(3)))


def test_a_decoder_that_gives_other_numbers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    assert base_of("llama").packs
    turn = decoder.rotate_
    monkeypatch.setattr(
        decoder, "rotate_", lambda x, cosine, sine, *, num_heads: turn(x, cosine, -sine, num_heads=num_heads - 1)
    )
    for dtype in (torch.float32, torch.bfloat16):
        base = base_of("llama", dtype=dtype)
        assert not base.packs and not decoder_gives_the_same(base.model)
        add_adapter_role(base, "policy")
        assert_run_by_transformers(base)


def test_the_trial_of_the_decoder_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = copy.deepcopy(model.state_dict())
    base = wrap_model(model, tiny_tokenizer())
    assert base.packs and not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# ----------------------------------------------------------------------------- lower layers, computed once for all


def with_and_without_lower_states(base: OneBase, role: str = "policy") -> tuple[list[Example], list[Example]]:
    examples = some_examples(3)
    lowered = with_lower_states(base, examples, role=role, budget=TokenBudget(60))
    assert all(example.tree is not None for example in lowered)
    assert lowered == examples  # the field takes no part in that
    return lowered, examples


def lower_states_of(examples: list[Example]) -> list[LowerStates | None]:
    return [example.tree.lower if example.tree is not None else None for example in examples]


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_lower_states_change_neither_logprobs_nor_gradients(kind: str) -> None:
    base = base_of(kind, num_hidden_layers=4)
    add_adapter_role(base, "policy", layers="upper-half")
    add_adapter_role(base, "critic", layers="3", head=True)
    base.add_role("reference")
    lowered, examples = with_and_without_lower_states(base)
    assert [lower.num_layers for lower in lower_states_of(lowered) if lower is not None] == [2] * 5
    # In other company and order than when they were computed.
    order = [3, 0, 4, 2]
    with_states, without = (lay_out(base, [some[i] for i in order]) for some in (lowered, examples))
    assert with_states.lower is not None and without.lower is None
    assert_same(measure(base, with_states), measure(base, without))
    for values in (token_logprobs, token_values):
        role = "reference" if values is token_logprobs else "critic"
        torch.testing.assert_close(values(base, with_states, role=role), values(base, without, role=role), **ROUNDING)


def test_a_role_that_adapts_nothing_starts_behind_the_last_layer() -> None:
    base = base_of("llama", num_hidden_layers=4)
    add_adapter_role(base, "policy")
    base.add_role("base")
    lowered, examples = with_and_without_lower_states(base, role="base")
    assert [lower.num_layers for lower in lower_states_of(lowered) if lower is not None] == [4] * 5
    with_states, without = (lay_out(base, some) for some in (lowered, examples))
    for role in ("base", "policy"):
        expected = token_logprobs(base, without, role=role)
        torch.testing.assert_close(token_logprobs(base, with_states, role=role), expected, **ROUNDING)


def test_lower_layers_are_not_run_again() -> None:
    base = base_of("llama", num_hidden_layers=4)
    add_adapter_role(base, "policy", layers="upper-quarter")
    lowered, examples = with_and_without_lower_states(base)
    before = {name: lay_out(base, some) for name, some in (("with", lowered), ("without", examples))}
    with torch.no_grad():
        for layer in base.model.base_model.layers[:3]:
            layer.mlp.down_proj.weight.mul_(2)
    changed = {name: token_logprobs(base, batch, role="policy") for name, batch in before.items()}
    with torch.no_grad():
        for layer in base.model.base_model.layers[:3]:
            layer.mlp.down_proj.weight.div_(2)
    same = token_logprobs(base, before["without"], role="policy")
    torch.testing.assert_close(changed["with"], same, **ROUNDING)
    assert (changed["without"] - same).abs().max() > 1e-3


def test_a_role_with_an_adapter_below_leaves_lower_states_aside() -> None:
    base = base_of("llama", num_hidden_layers=4)
    add_adapter_role(base, "policy", layers="upper-half")
    add_adapter_role(base, "reward", head=True)
    lowered, examples = with_and_without_lower_states(base)
    scores = [completion_scores(base, lay_out(base, some), role="reward") for some in (lowered, examples)]
    assert torch.equal(*scores)
    of_reward = with_lower_states(base, examples, role="reward", budget=TokenBudget(60))
    assert lower_states_of(of_reward) == [None] * 5 and all(example.tree is not None for example in of_reward)


def test_where_transformers_runs_the_model_there_are_no_lower_states() -> None:
    base = base_of("llama")
    add_adapter_role(base, "policy", layers="1")
    with by_transformers(base):
        found = with_lower_states(base, some_examples(2), role="policy", budget=TokenBudget(60))
    assert lower_states_of(found) == [None] * 5 and all(example.tree is not None for example in found)


def test_lower_states_stay_out_of_batches_they_do_not_fit() -> None:
    base = base_of("llama", num_hidden_layers=4)
    add_adapter_role(base, "policy", layers="upper-half")
    lowered, examples = with_and_without_lower_states(base)
    assert lay_out(base, [lowered[0], examples[1]]).lower is None
    assert lay_out(base, lowered).lower is not None
    assert lower_states_of(separate(lowered)) == [None] * 15
    assert build_tree_batch(separate(lowered)).lower is None
