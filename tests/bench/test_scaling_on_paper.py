"""The page on scaling holds what its program writes, and the program's arithmetic is that of its docstrings."""

from __future__ import annotations

import math

import pytest
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from bench.scaling_on_paper import DOCUMENT, MARKS, Machine, Model, Rollout, efficiency, most_gpus, seconds, text


def test_the_page_is_what_the_program_writes() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    between = page.partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert between.strip() == text().strip(), "run python -m bench.scaling_on_paper"


def test_parameters_and_adapter_are_those_of_a_model_of_that_shape() -> None:
    small = Model(layers=2, hidden=32, inner=48, key_values=16, vocabulary=50, rank=4)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config)
    norms = sum(p.numel() for name, p in model.named_parameters() if "norm" in name)
    assert sum(p.numel() for p in model.parameters()) - norms == small.parameters
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    assert sum(p.numel() for name, p in adapted.named_parameters() if "lora" in name) == small.adapter


def test_the_seconds_are_bytes_and_operations_over_what_the_machine_does() -> None:
    rollout = Rollout(completions=128, prompt=10, completion=20, minibatches=2)
    model, machine = Model(layers=1, hidden=4, inner=8, key_values=2, vocabulary=10, rank=2), Machine()
    found = seconds(8, rollout, model, machine)
    weights = 2 * model.parameters
    assert found["generation"] == pytest.approx(20 * (weights + 16 * 20 * model.cache_bytes) / machine.bytes_read)
    forward = weights * 30 / machine.flops
    assert found["scoring"] == pytest.approx(16 * 4 * forward)
    assert found["updates"] == pytest.approx(2 * 8 * 2 * 3 * forward)
    ring = 2 * 7 / 8 * 4 * model.adapter / machine.inside + 2 * 3 * machine.delay
    assert found["all-reduce"] == pytest.approx(2 * 2 * ring)
    assert found["publishing"] == pytest.approx(2 * 2 * model.adapter / machine.disk + 0.5)
    assert found["first process"] == pytest.approx(0.128)
    other = seconds(16, rollout, model, machine)
    assert other["all-reduce"] > found["all-reduce"] and other["scoring"] == pytest.approx(found["scoring"] / 2)


def test_a_gpu_without_a_completion_of_its_own_adds_nothing() -> None:
    model, machine = Model(), Machine()
    at, beyond = (seconds(gpus, Rollout(), model, machine) for gpus in (1024, 4096))
    assert all(beyond[part] >= at[part] for part in at)
    assert efficiency(8, Rollout(), Rollout(), model, machine) == 1
    most = most_gpus(0.5, model, machine)
    assert (
        efficiency(most, Rollout(), Rollout(), model, machine)
        >= 0.5
        > efficiency(2 * most, Rollout(), Rollout(), model, machine)
    )
    assert math.log2(most) == int(math.log2(most))
