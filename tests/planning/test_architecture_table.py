"""Sizes of well-known models against the parameter counts published with their weights, and against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from onebase.errors import ModelError
from onebase.planning.architecture import from_config, read_architecture
from onebase.planning.known_architectures import known, names

PUBLISHED = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-chat-hf": 68_976_648_192,
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B": 1_543_714_304,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen2.5-72B": 72_706_203_648,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "google/gemma-2-2b-it": 2_614_341_888,
    "google/gemma-2-27b": 27_227_128_320,
    "google/gemma-3-1b-it": 999_885_952,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "microsoft/phi-4": 14_659_507_200,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-1.7B": 1_711_376_384,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-xl": 1_557_611_200,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_known_model_has_the_parameters_it_was_published_with(name: str) -> None:
    assert read_architecture(name).parameters == PUBLISHED[name]


@pytest.mark.parametrize("name", names())
def test_every_model_in_the_table_has_what_transformers_builds_from_its_sizes(name: str) -> None:
    sizes = dict(known(name) or {})
    sizes["num_hidden_layers"] = 2  # all layers are alike
    if sizes["model_type"] == "gpt2":
        usual = ("n_layer", "n_embd", "n_inner", "n_head", "n_positions")
        ours = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        for theirs, key in zip(usual, (*ours, "max_position_embeddings"), strict=True):
            sizes[theirs] = sizes.pop(key)
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes, pad_token_id=0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    planned = from_config(config.to_dict(), name)
    assert planned.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert planned.output_parameters == (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


@pytest.mark.parametrize(
    ("kind", "extra"),
    [("llama", {"attention_bias": True}), ("llama", {"mlp_bias": True}), ("qwen2", {}), ("gemma", {}),
     ("qwen3", {"attention_bias": True})],
)  # fmt: skip
def test_biases_are_counted(kind: str, extra: dict[str, bool]) -> None:
    config = AutoConfig.for_model(
        kind,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=100,
        pad_token_id=0,
        **extra,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert from_config(config.to_dict(), "new").parameters == sum(p.numel() for p in model.parameters())


def test_an_adapter_has_rank_times_inputs_and_outputs_of_every_layer_it_is_on() -> None:
    small = read_architecture("smollm2-135m")
    # q and o: 576 + 576, k and v: 576 + 192, gate, up and down: 576 + 1536
    assert small.adapter_parameters(8) == 30 * 8 * (2 * 1152 + 2 * 768 + 3 * 2112)
    assert small.adapter_parameters(8, ("q_proj",), 15) == 15 * 8 * 1152


def test_the_first_mistral_looks_back_over_a_window() -> None:
    assert read_architecture("mistralai/Mistral-7B-v0.1").window == 4096
    assert read_architecture("mistral-7b-v0.3").window is None


def write(folder: Path, config: object) -> str:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(folder)


def test_a_folder_is_read_without_weights(tmp_path: Path) -> None:
    sizes = known("qwen3-0.6b")
    assert read_architecture(write(tmp_path, sizes)).parameters == 596_049_920


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no config\.json in this folder"):
        read_architecture(str(tmp_path))


def test_a_config_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json holds no mapping"):
        read_architecture(write(tmp_path, [1]))


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_architecture(str(tmp_path))


def test_an_unknown_kind_names_those_that_are_known() -> None:
    with pytest.raises(ModelError, match=r"a model of the kind mamba cannot be planned; .*llama, mistral"):
        from_config({"model_type": "mamba"}, "m")


def test_an_impossible_size_is_named() -> None:
    with pytest.raises(ModelError, match=r"num_hidden_layers = -1; a whole number above 0 is needed"):
        from_config({**(known("llama-2-7b") or {}), "num_hidden_layers": -1}, "m")
