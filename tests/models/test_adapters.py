from __future__ import annotations

from typing import Any

import pytest
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Gemma3Config, MixtralConfig, Qwen3MoeConfig

from onebase.data.tree import build_tree_batch
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import wrap_model
from onebase.errors import ModelError
from onebase.models.adapters import lora_config, without_adapter
from onebase.models.base import OneBase
from onebase.records import Example
from tests.models.test_one_base import four_roles
from tests.tiny_models import VOCABULARY, tiny_base, tiny_model, tiny_tokenizer


def adapted(base: OneBase) -> set[str]:
    return {key.removeprefix("base_model.model.").split(".lora_")[0] for key in base.adapter_weights("policy")}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("all", {0, 1, 2, 3, 4}),
        ("upper-half", {2, 3, 4}),
        ("upper-quarter", {4}),
        ("1-3", {1, 2, 3}),
        ("0-0", {0}),
        ([4, 0], {0, 4}),
        ((3,), {3}),
        ([2, 2, 2, 2, 2], {2}),
    ],
)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_layers_puts_the_adapter_on_those_layers_and_no_other(
    architecture: str, layers: Any, expected: set[int]
) -> None:
    number: dict[str, Any] = {"num_hidden_layers": 5} if architecture == "llama" else {"n_layer": 5}
    base = tiny_base(architecture, **number)
    base.add_role("policy", adapter=lora_config(base.model, r=2, alpha=4, layers=layers), trains=True)
    assert {int(name.split(".")[2]) for name in adapted(base)} == expected


@pytest.mark.parametrize(
    ("architecture", "per_layer"),
    [("llama", 7), ("qwen3", 7), ("gemma3", 7), ("gpt2", 4), ("neox", 4), ("bloom", 4)],
)
def test_all_linear_is_every_linear_layer_but_the_output_layer(architecture: str, per_layer: int) -> None:
    base = tiny_base(architecture)
    base.add_role("policy", adapter=lora_config(base.model, r=2, alpha=4))
    assert len(adapted(base)) == 2 * per_layer
    assert not any("lm_head" in name or "embed" in name for name in adapted(base))
    again = lora_config(base.model, r=2, alpha=4)  # the same with adapters there already
    assert set(again.target_modules or ()) == set(base.adapter_config("policy").target_modules or ())


def test_all_linear_leaves_out_the_layers_that_text_never_reaches() -> None:
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "head_dim": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "sliding_window": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, pad_token_id=0)
    base = wrap_model(AutoModelForCausalLM.from_config(config).float(), tiny_tokenizer())
    assert any("vision" in name for name, _ in base.model.named_modules())
    base.add_role("policy", adapter=lora_config(base.model, r=2, alpha=4, layers="all"), trains=True)
    assert len(adapted(base)) == 14 and all("language_model" in name for name in adapted(base))
    token_logprobs(base, build_tree_batch([Example([5, 6], [[7], [8, 9]])]), role="policy").sum().backward()
    assert all(parameter.grad is not None for parameter in base.parameters("policy"))
    assert without_adapter(base.model) == ""


@pytest.mark.parametrize(
    ("config_class", "fused"), [(Qwen3MoeConfig, "Qwen3MoeExperts"), (MixtralConfig, "MixtralExperts")]
)
def test_experts_that_get_no_adapter_are_named(config_class: Any, fused: str) -> None:
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        head_dim=8,
    )
    base = wrap_model(AutoModelForCausalLM.from_config(config).float(), tiny_tokenizer())
    note = without_adapter(base.model)
    assert fused in note and "the experts get no adapter" in note
    base.add_role("policy", adapter=lora_config(base.model, r=2, alpha=4))
    assert without_adapter(base.model) == note and not any("experts" in name for name in adapted(base))
    assert without_adapter(tiny_model("llama")) == ""


def test_target_modules_names_the_layers_to_adapt() -> None:
    base = tiny_base("llama")
    base.add_role("policy", adapter=lora_config(base.model, r=2, alpha=4, target_modules=["q_proj", "down_proj"]))
    assert {name.split(".")[-1] for name in adapted(base)} == {"q_proj", "down_proj"}
    single = tiny_base("gpt2")
    single.add_role("policy", adapter=lora_config(single.model, r=2, alpha=4, target_modules="c_attn"))
    assert {name.split(".")[-1] for name in adapted(single)} == {"c_attn"}


def test_a_layer_or_name_that_the_model_lacks_is_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no linear layer is named 'c_attn'; here: .*q_proj"):
        lora_config(model, r=2, alpha=4, target_modules=["q_proj", "c_attn"])
    with pytest.raises(ModelError, match="no linear layer is named, so none would get an adapter"):
        lora_config(model, r=2, alpha=4, target_modules=[])
    with pytest.raises(ModelError, match="the layers 'upper' are not all, upper-half, upper-quarter, a range"):
        lora_config(model, r=2, alpha=4, layers="upper")
    wrong: list[Any] = ["1-2", "1-0", "0-9999999999999", [0, 2], [-1], []]
    for layers in wrong:
        with pytest.raises(ModelError, match="the layers .* reach outside the model's, 0-1") as caught:
            lora_config(model, r=2, alpha=4, layers=layers)
        assert caught.value.remedy == "unknown-layers"


def test_dropout_is_off_unless_asked_for_and_rank_and_alpha_arrive() -> None:
    config = lora_config(tiny_model("gpt2"), r=3, alpha=7)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.fan_in_fan_out) == (3, 7, 0.0, True)
    assert lora_config(tiny_model("llama"), r=3, alpha=7, dropout=0.1).lora_dropout == 0.1
    assert not lora_config(tiny_model("llama"), r=3, alpha=7).fan_in_fan_out


def test_a_role_without_adapter_has_no_configuration() -> None:
    base = four_roles()
    base.add_role("base")
    config = base.adapter_config("policy")
    assert isinstance(config, LoraConfig) and config.r == 4
    assert base.adapter_config("base") is None
    bare = tiny_base("llama")
    bare.add_role("base")
    assert bare.adapter_config("base") is None


def test_the_context_length_is_the_number_of_positions_the_base_was_made_for() -> None:
    assert tiny_base("llama").context_length == tiny_base("gpt2").context_length == 128
