"""Rotary angles that change with the longest row of a batch: within the context that is left, they never do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedConfig

from onebase.data.tree import build_tree_batch
from onebase.engines.forward import token_logprobs
from onebase.engines.opening import load_base, wrap_model
from onebase.models.base import OneBase
from onebase.records import Example
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.training.plan import describe_base
from tests.tiny_models import VOCABULARY, random_ids, tiny_tokenizer

SHORT, LONG = 24, 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": SHORT,
}


def configuration(kind: str) -> PreTrainedConfig:
    if kind == "phi3 longrope":
        return Phi3Config(
            **SIZES, max_position_embeddings=LONG, original_max_position_embeddings=SHORT, rope_parameters=LONGROPE
        )
    rope = LONGROPE if kind == "llama longrope" else {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    length = LONG if kind == "llama longrope" else SHORT
    return LlamaConfig(**SIZES, max_position_embeddings=length, rope_parameters=rope)


def base_of(kind: str, layout: str) -> OneBase:
    torch.manual_seed(0)
    base = wrap_model(AutoModelForCausalLM.from_config(configuration(kind)).float(), tiny_tokenizer(), layout=layout)
    base.add_role("policy")
    return base


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("kind", ["phi3 longrope", "llama longrope", "llama dynamic"])
def test_a_row_is_the_same_alone_and_beside_the_longest(kind: str, layout: str) -> None:
    base = base_of(kind, layout)
    assert base.context_length == SHORT
    row = Example(random_ids(4, seed=1), [random_ids(5, seed=2)])
    longest = Example(random_ids(10, seed=3), [random_ids(base.context_length - 10, seed=4)])
    alone = token_logprobs(base, build_tree_batch([row]), role="policy")
    beside = token_logprobs(base, build_tree_batch([row, longest]), role="policy")[: len(alone)]
    again = token_logprobs(base, build_tree_batch([row]), role="policy")
    torch.testing.assert_close(beside, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(again, alone, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["tree", "separate"])
@pytest.mark.parametrize("kind", ["phi3 longrope", "llama longrope", "llama dynamic"])
def test_sampled_logprobs_are_those_measured_again(kind: str, layout: str) -> None:
    base = base_of(kind, layout)
    prompts = [random_ids(length, seed=length) for length in (3, 8, base.context_length - 8)]
    samples = generate(
        base,
        prompts,
        role="policy",
        sampling=Sampling(8, stop_ids=()),
        seeds=sample_seeds(0, num_prompts=3, samples_per_prompt=1, stream="test"),
    )
    for prompt, sample in zip(prompts, samples, strict=True):
        found = token_logprobs(base, build_tree_batch([Example(prompt, [list(sample.ids)])]), role="policy")
        torch.testing.assert_close(torch.tensor(sample.logprobs), found, rtol=0, atol=2e-5)


def test_a_shorter_context_is_said_by_a_run_and_by_a_plan(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(configuration("phi3 longrope")).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    (note,) = load_base(str(tmp_path), dtype="float32", device="cpu").notes
    assert note.startswith(f"context {SHORT} of {LONG} positions: beyond them the rotary angles of all tokens change")
    plan = describe_base(str(tmp_path), "none", "float32")
    assert plan.context == SHORT and note in plan.lines[0]
    assert base_of("llama dynamic", "tree").notes == []
