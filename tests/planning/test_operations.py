"""Operations counted by formula agree with counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from bench.utilisation import decode_limits
from onebase.planning.architecture import from_config
from onebase.planning.operations import (
    Shape,
    Tokens,
    backward_operations,
    forward_operations,
    stage_operations,
    tokens_of,
    trained_operations,
)
from onebase.planning.run import Adapter
from tests.planning.planned import BASE, BOTH

TINY = Shape(BASE)
ADAPTED = Shape(BASE, BOTH)
# Of a layer: q 4x4, k 4x2, v 4x2, o 4x4, gate and up 4x6, down 6x4.
LAYER = 16 + 8 + 8 + 16 + 24 + 24 + 24
LORA = 2 * 3 * ((4 + 4) + (4 + 2))


def test_the_tokens_of_a_tree_are_counted_with_its_prompt_once() -> None:
    # p0 p1 | a0 a1 a2 | b0: 1 + 2 in the prompt, 3 + 4 + 5 of a, 3 of b.
    assert tokens_of(2, [3, 1]) == Tokens(real=6, pairs=18, counted=4)
    assert tokens_of(2, [3]) + tokens_of(2, [1]) == Tokens(real=8, pairs=3 + 12 + 3 + 3, counted=4)


def test_parameters_in_matrix_products() -> None:
    assert (TINY.trunk_parameters, TINY.head_parameters, TINY.lora_parameters) == (2 * LAYER, 40, 0)
    assert ADAPTED.lora_parameters == LORA


def test_a_forward_pass() -> None:
    tokens = Tokens(real=6, pairs=18, counted=4)
    attention = 4 * 18 * 2 * 4  # scores and mean, 2 operations each, of 2 layers with queries of 4 numbers
    assert forward_operations(TINY, tokens, adapter=False, output_layer=False) == 2 * 240 * 6 + attention
    with_all = forward_operations(ADAPTED, tokens, adapter=True, output_layer=True)
    assert with_all == 2 * (240 + LORA) * 6 + attention + 2 * 40 * 4


def test_a_backward_pass_has_no_gradient_of_the_bases_weights() -> None:
    tokens = Tokens(real=6, pairs=18, counted=4)
    lowest = 16 + 8 + 8  # q, k and v of the first layer: below them nothing trains
    expected = 2 * (240 - lowest + 2 * LORA) * 6 + 8 * 18 * 2 * 4 + 2 * 40 * 4
    assert backward_operations(ADAPTED, tokens, output_layer=True) == expected


def test_what_a_stage_adds_to_forward_and_backward() -> None:
    tokens = tokens_of(5, [4, 3])
    plain, output = stage_operations("reward", ADAPTED, tokens), 2 * 2 * 40 * 7
    for stage in ("sft", "ppo-head", "grpo"):
        assert stage_operations(stage, ADAPTED, tokens) == plain + output
    reference = forward_operations(ADAPTED, tokens, adapter=False, output_layer=True)
    assert stage_operations("dpo", ADAPTED, tokens) == plain + output + reference
    assert stage_operations("ppo", ADAPTED, tokens) == 2 * plain + output
    with pytest.raises(ValueError, match="'pretrain' is not one of"):
        stage_operations("pretrain", ADAPTED, tokens)


def test_the_matrix_products_are_those_that_torch_counts() -> None:
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=4,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=2,
    )
    model, counter = LlamaForCausalLM(config), FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(torch.zeros(1, 7, dtype=torch.long))
    products = sum(sum(of.values()) for name, of in counter.get_flop_counts().items() if name.endswith("_proj"))
    assert products == 2 * Shape(from_config(config.to_dict(), "tiny")).trunk_parameters * 7


def test_training_the_base_itself_counts_every_weight_three_times() -> None:
    tokens = Tokens(real=6, pairs=18, counted=4)
    attention = 12 * 18 * 2 * 4
    whole = trained_operations(Shape(BASE, in_full=True), tokens, output_layer=True)
    assert whole == 3 * 2 * 240 * 6 + attention + 3 * 2 * 40 * 4


def test_gradients_end_at_the_lowest_layer_that_trains() -> None:
    tokens = Tokens(real=6, pairs=18, counted=4)
    upper = Shape(BASE, Adapter(3, (1,), ("q_proj", "v_proj")))
    assert (upper.lora_parameters, upper.trained_layers) == (LORA / 2, 1)
    one_layer = 2 * (LAYER - 32 + 2 * LORA / 2) * 6 + 8 * 18 * 4
    assert backward_operations(upper, tokens, output_layer=False) == one_layer
    kept = forward_operations(upper, tokens, adapter=True, output_layer=False, layers=1)
    assert kept == 2 * (LAYER + LORA / 2) * 6 + 4 * 18 * 4


def test_the_limits_of_decoding() -> None:
    # 2 rows with prompts of 3, 2 new tokens: one pass over the prompts, one over the 2 rows with 4 columns each.
    limits = decode_limits(
        TINY, prompt_tokens=6, rows=2, new_tokens=2, bytes_per_number=2, gflops=1e-6, gb_per_second=1e-6
    )
    weights, keys_and_values = 2 * LAYER + 40, 2 * 2 * 1 * 2
    assert limits["bytes_seconds"] == pytest.approx(2 * (2 * weights + 8 * keys_and_values) / 1e3)
    prompts, new = Tokens(6, 12, 2), Tokens(2, 8, 2)
    operations = forward_operations(TINY, prompts + new, adapter=True, output_layer=True)
    assert limits["operations_seconds"] == pytest.approx(operations / 1e3)
