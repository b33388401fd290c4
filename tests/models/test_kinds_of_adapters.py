"""Adapters that are not LoRA: any that PEFT puts into layers makes a role like every other, and no other kind does."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from onebase.data.tree import build_tree_batch
from onebase.engines.engine import any_pads, packs
from onebase.engines.forward import completion_scores, token_logprobs
from onebase.engines.opening import load_base
from onebase.errors import ModelError
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.role_files import load_role, save_role
from onebase.models.roles import ScalarRole
from onebase.records import Example
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from tests.models.test_one_base import base_weights, role_weights, same, some_batch, train_one_step, trainable
from tests.tiny_models import add_adapter_role, disturb, random_ids, save_tiny, tiny_base, tiny_model

LAYERS = ["q_proj", "down_proj"]
KINDS: dict[str, dict[str, Any]] = {
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LoHa": {"target_modules": LAYERS, "r": 4, "alpha": 8},
    "LoKr": {"target_modules": LAYERS, "r": 4, "alpha": 8},
    "OFT": {"target_modules": LAYERS, "oft_block_size": 8, "r": 0},
    "BOFT": {"target_modules": LAYERS, "boft_block_size": 4},
    "HRA": {"target_modules": LAYERS, "r": 4},
    "Vera": {"target_modules": LAYERS, "r": 4},
    "FourierFT": {"target_modules": LAYERS, "n_frequency": 50},
    "LNTuning": {"target_modules": ["input_layernorm"]},
}


def config_of(kind: str) -> PeftConfig:
    config_class = getattr(peft, f"{kind}Config", None)
    if config_class is None:
        pytest.skip("this version of PEFT does not have it")
    return config_class(task_type="CAUSAL_LM", **KINDS[kind])


def add_role_of(base: OneBase, kind: str, name: str, *, seed: int, trains: bool, head: bool = False) -> None:
    """None of its parameters is at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base.add_role(name, adapter=config_of(kind), head=head, trains=trains)
    disturb(base, name, seed=seed)


def four_roles(kind: str, base: OneBase | None = None) -> OneBase:
    base = base or tiny_base("llama")
    add_role_of(base, kind, "policy", seed=1, trains=True)
    base.add_role("reference", copy_of="policy")
    add_role_of(base, kind, "reward", seed=2, trains=False, head=True)
    base.add_role("critic", copy_of="reward", head=True, trains=True)
    return base


def owned(base: OneBase, name: str) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in base.parameters(name)]


def logits_as(base: OneBase, name: str, ids: Tensor) -> Tensor:
    with torch.no_grad(), base.role(name):
        return base.model(input_ids=ids).logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trained", ["policy", "critic"])
def test_training_a_role_changes_no_byte_of_the_base_or_of_another_role(kind: str, trained: str) -> None:
    base = four_roles(kind)
    weights, roles = base_weights(base), {name: role_weights(base, name) for name in base.roles}
    before = owned(base, trained)
    assert len(weights) > 10 and all(roles.values()) and before
    for _ in range(2):
        train_one_step(base, trained)
    assert same(base_weights(base), weights)
    for name in base.roles:
        assert same(role_weights(base, name), roles[name]) == (name != trained), name
    pairs = zip(owned(base, trained), before, strict=True)
    assert not any(torch.equal(*pair) for pair in pairs), "a parameter did not train"
    for parameter in base.model.parameters():
        assert parameter.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_roles_are_what_they_are_alone_and_the_base_is_bare_without_them(kind: str) -> None:
    ids = torch.tensor([random_ids(9, seed=4)])
    base = four_roles(kind)
    base.add_role("base")
    bare = tiny_model("llama")(input_ids=ids).logits
    assert torch.equal(logits_as(base, "base", ids), bare)
    assert torch.equal(logits_as(base, "reference", ids), logits_as(base, "policy", ids))
    found = {name: logits_as(base, name, ids) for name in ("policy", "reward")}
    for name, logits in found.items():
        assert (logits - bare).abs().max() > 1e-3
        alone = tiny_base("llama")
        alone.add_role(name, adapter=copy.deepcopy(base.adapter_config(name)), weights=base.adapter_weights(name))
        assert torch.equal(logits_as(alone, name, ids), logits)
    assert (found["policy"] - found["reward"]).abs().max() > 1e-3
    train_one_step(base, "policy")
    assert torch.equal(logits_as(base, "base", ids), bare)
    assert not torch.equal(logits_as(base, "policy", ids), found["policy"])
    assert torch.equal(logits_as(base, "reference", ids), found["policy"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_trains_is_what_the_trained_roles_own_whatever_is_in_force(kind: str) -> None:
    base = four_roles(kind)
    own = {id(parameter) for name in ("policy", "critic") for parameter in base.parameters(name)}
    expected = trainable(base)
    assert {id(parameter) for parameter in base.model.parameters() if parameter.requires_grad} == {
        identity for identity in own if identity != id(base.scalar_role("critic").head.weight)
    }
    for name in base.roles:
        with base.role(name):
            assert trainable(base) == expected
    base.remove_role("policy")
    base.remove_role("critic")
    assert trainable(base) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_through_transformers_and_a_role_without_adapter_is_still_packed(kind: str) -> None:
    base = four_roles(kind)
    base.add_role("base")
    assert {name: packs(base, name) for name in base.roles} == dict.fromkeys(base.roles, False) | {"base": True}
    assert base.packs and any_pads(base)
    prompt, completions = random_ids(7, seed=0), [random_ids(4, seed=1), random_ids(6, seed=2)]
    batch = build_tree_batch([Example(prompt, completions)])
    for name in ("policy", "reward", "base"):
        expected = []
        for completion in completions:
            logits = logits_as(base, name, torch.tensor([[*prompt, *completion]]))[0, len(prompt) - 1 : -1]
            expected.append(logits.log_softmax(-1)[torch.arange(len(completion)), torch.tensor(completion)])
        with torch.no_grad():
            found = token_logprobs(base, batch, role=name)
        torch.testing.assert_close(found, torch.cat(expected), rtol=0, atol=1e-5)
        (sample,) = generate(base, [prompt], role=name, sampling=Sampling(5), seeds=[3])
        again = token_logprobs(base, build_tree_batch([Example(prompt, [sample.ids])]), role=name)
        torch.testing.assert_close(torch.tensor(sample.logprobs), again.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_role_on_file_is_the_role_that_was_saved(kind: str, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "base", "llama")
    base = four_roles(kind, load_base(str(folder), dtype="float32", device="cpu"))
    for name in ("policy", "reward"):
        save_role(base, name, tmp_path / name, kind=name)  # type: ignore[arg-type]
    fresh = load_base(str(folder), dtype="float32", device="cpu")
    weights = base_weights(fresh)
    load_role(fresh, "policy", tmp_path / "policy", kinds=("policy",), trains=True)
    reward = load_role(fresh, "reward", tmp_path / "reward", kinds=("reward",))
    assert type(fresh.adapter_config("policy")) is type(config_of(kind)) and isinstance(reward, ScalarRole)
    plain = {name.replace("base_layer.", ""): tensor for name, tensor in base_weights(fresh).items()}
    assert all(torch.equal(plain[name], tensor) for name, tensor in weights.items())
    for name in ("policy", "reward"):
        assert same(role_weights(fresh, name), role_weights(base, name))
    batch = some_batch()
    assert torch.equal(token_logprobs(fresh, batch, role="policy"), token_logprobs(base, batch, role="policy"))
    assert torch.equal(completion_scores(fresh, batch, role="reward"), completion_scores(base, batch, role="reward"))
    assert not any(parameter.requires_grad for parameter in fresh.parameters("reward"))
    before = owned(fresh, "policy")
    train_one_step(fresh, "policy")
    assert not any(torch.equal(*pair) for pair in zip(owned(fresh, "policy"), before, strict=True))
    # And what other tools read.
    other = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "policy").eval()
    ids = torch.tensor([random_ids(9, seed=4)])
    torch.testing.assert_close(other(input_ids=ids).logits, logits_as(base, "policy", ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_do_not_fit_are_refused_and_leave_nothing_behind(kind: str) -> None:
    base = tiny_base("llama")
    add_role_of(base, kind, "policy", seed=1, trains=True)
    good, before, trains = base.adapter_weights("policy"), set(dict(base.model.named_parameters())), trainable(base)
    own = sorted(name for name in good if "layers" in name)
    for weights in (
        {name: tensor for name, tensor in good.items() if name != own[0]},
        good | {own[0].replace("layers.0", "layers.7"): good[own[0]]},
        good | {own[0]: torch.zeros(1, 7, 7)},
    ):
        with pytest.raises(ModelError, match="the adapter of role 'other' does not fit this base: ") as caught:
            base.add_role("other", adapter=config_of(kind), weights=weights)
        assert "\n" not in str(caught.value)
        assert list(base.roles) == ["policy"] and trainable(base) == trains
        assert set(dict(base.model.named_parameters())) == before
    base.add_role("other", adapter=config_of(kind), weights=good)
    assert torch.equal(*(token_logprobs(base, some_batch(), role=name) for name in base.roles))


def test_another_kind_than_the_roles_that_are_there_is_refused() -> None:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    before, expected = set(dict(base.model.named_parameters())), token_logprobs(base, some_batch(), role="policy")
    with pytest.raises(ModelError, match="the adapter of role 'other' cannot be put on this base: Cannot combine") as e:
        base.add_role("other", adapter=config_of("IA3"))
    assert "\n" not in str(e.value)
    assert list(base.roles) == ["policy"] and set(dict(base.model.named_parameters())) == before
    assert torch.equal(token_logprobs(base, some_batch(), role="policy"), expected)
    add_adapter_role(base, "other")


NOT_INTO_LAYERS: dict[str, dict[str, Any]] = {
    "PromptTuning": {"num_virtual_tokens": 4},
    "PrefixTuning": {"num_virtual_tokens": 4},
    "PromptEncoder": {"num_virtual_tokens": 4},
    "CPT": {},
    "AdaptionPrompt": {"adapter_len": 4, "adapter_layers": 1},
}


@pytest.mark.parametrize("kind", NOT_INTO_LAYERS)
def test_prompts_and_prefixes_that_are_learned_are_refused_in_one_line(kind: str) -> None:
    config = getattr(peft, f"{kind}Config")(task_type="CAUSAL_LM", **NOT_INTO_LAYERS[kind])
    base = tiny_base("llama")
    names = [name for name, _ in base.model.named_modules()]
    with pytest.raises(ModelError) as caught:
        base.add_role("policy", adapter=config)
    assert str(caught.value) == (
        f"the adapter of role 'policy' is {config.peft_type.value}, which does not go into a model's layers; "
        "use LoRA, or another kind that does"
    )
    assert base.roles == {} and [name for name, _ in base.model.named_modules()] == names
    add_adapter_role(base, "policy")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("bias", "all"),
        ("bias", "lora_only"),
        ("modules_to_save", ["lm_head"]),
        ("layer_replication", [[0, 2], [1, 2]]),
        ("trainable_token_indices", [5]),
    ],
)
def test_an_adapter_that_the_base_or_other_roles_would_share_is_refused(option: str, value: Any) -> None:
    base = tiny_base("qwen2")
    base.add_role("base")
    weights, expected = base_weights(base), token_logprobs(base, some_batch(), role="base")
    config = lora_config(base.model, r=2, alpha=4)
    setattr(config, option, value)
    with pytest.raises(ModelError, match=f"the adapter of role 'policy' has {option} = .*, which the base and other"):
        base.add_role("policy", adapter=config, trains=True)
    assert list(base.roles) == ["base"] and same(base_weights(base), weights) and trainable(base) == set()
    assert torch.equal(token_logprobs(base, some_batch(), role="base"), expected)
    add_adapter_role(base, "policy")


@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_on_the_output_layer_is_refused_and_another_can_be_added_afterwards(tied: bool) -> None:
    """The output layer is read outside of the role, so that its adapter would be left out without a word."""
    base = tiny_base("llama", tie_word_embeddings=tied)
    base.add_role("base")
    expected = token_logprobs(base, some_batch(), role="base")
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ModelError, match="does not fit this base: it adapts the output layer, which all roles"):
        base.add_role("policy", adapter=config, trains=True)
    assert list(base.roles) == ["base"] and trainable(base) == set()
    assert torch.equal(token_logprobs(base, some_batch(), role="base"), expected)
    add_adapter_role(base, "policy")
    assert packs(base, "policy") and not any("lm_head" in name for name in base.adapter_weights("policy"))
