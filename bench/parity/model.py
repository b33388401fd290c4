"""Builds the model, adapter and rows whose losses `trl_losses.py` and `tests/recipes/test_trl_parity.py` compare.

Every weight is a closed formula of its place, so two environments build the same numbers without a file and without a
random number generator. Needs torch, tokenizers and transformers only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

PAD, END = 0, 1
VOCABULARY = 96
"""Padding, the end token and the words `w2` to `w95`, one id each."""

LORA: dict[str, Any] = {
    "r": 2,
    "lora_alpha": 4,
    "lora_dropout": 0.0,
    "task_type": "CAUSAL_LM",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
"""`peft.LoraConfig` values for the policy's adapter; the reference is the same base with the adapter off."""

SHAPES = ((0, 5, 4, 6), (20, 3, 7, 2), (40, 8, 5, 5), (60, 1, 3, 9), (61, 12, 1, 4), (77, 2, 10, 1))
"""Where the words of a row start, and its tokens of prompt, chosen and rejected completion, end token included. Two
completions are an end token alone, behind prompts that make it likely: the odds of ORPO are then not just the
probabilities.
"""


def rows() -> list[dict[str, list[int]]]:
    """Returns ids of `prompt`, `chosen` and `rejected`. Completions end in the end token, or TRL would add one."""
    return [
        {
            "prompt": words(start, prompt),
            "chosen": [*words(start + 30, chosen - 1), END],
            "rejected": [*words(start + 50, rejected - 1), END],
        }
        for start, prompt, chosen, rejected in SHAPES
    ]


def unpaired_rows() -> list[dict[str, Any]]:
    """Returns ids of `prompt` and `completion`, and `label`: alternately the chosen and the rejected completion."""
    return [
        {"prompt": row["prompt"], "completion": row["rejected" if i % 2 else "chosen"], "label": i % 2 == 0}
        for i, row in enumerate(rows())
    ]


def tiny_llama() -> LlamaForCausalLM:
    """Makes a Llama with two layers in float32, without dropout."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(formula_weights(model.state_dict(), size=0.5))
    return model


def formula_weights(tensors: Mapping[str, Tensor], *, size: float) -> dict[str, Tensor]:
    """Tensors of the same names and shapes in float32: `size * sin(0.7 k^2 + i)`, k the place in the tensor from 1, i
    the tensor's place among the sorted names; near 1 for norms. The square keeps matrices of full rank.
    """
    filled = {}
    for i, name in enumerate(sorted(tensors)):
        shape = tensors[name].shape
        k = torch.arange(1, shape.numel() + 1, dtype=torch.float64)
        wave = torch.sin(0.7 * k * k + i).reshape(shape)
        filled[name] = (1 + 0.2 * wave if len(shape) == 1 else size * wave).float()
    return filled


def tokenizer() -> PreTrainedTokenizerFast:
    """Makes a tokenizer with a word per id, split at spaces, and no beginning token."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", *(f"w{i}" for i in range(2, VOCABULARY))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>")


def words(start: int, count: int) -> list[int]:
    """Returns ids of words, a formula of where they start."""
    return [2 + (k**3 + 5 * k) % 89 for k in range(start, start + count)]
