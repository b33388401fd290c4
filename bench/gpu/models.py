"""Models of real sizes with random weights, made in memory, and rows of tokens to train them on.

Speed and memory depend on shapes, not on what the weights say, so nothing is downloaded.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

_LLAMA_3: dict[str, Any] = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPES: dict[str, dict[str, Any]] = {
    # Llama-3.2-1B and Llama-3.1-8B, from their config.json.
    "1b": _LLAMA_3
    | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "tie_word_embeddings": True},
    "8b": _LLAMA_3 | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
    # To try the measurement itself, on a CPU too.
    "tiny": _LLAMA_3
    | {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


@dataclass(frozen=True, slots=True)
class Load:
    """How much work a size gets."""

    pairs: int
    """Rows of an optimizer step: a prompt and two answers each."""
    steps: int
    """Steps timed, after one that is not."""
    prompts: int
    new_tokens: int
    """Of a PPO rollout, and of decoding."""
    longest: int
    """Tokens of the longest prompt."""


LOADS = {
    "1b": Load(pairs=64, steps=3, prompts=100, new_tokens=32, longest=512),
    "8b": Load(pairs=16, steps=1, prompts=100, new_tokens=32, longest=512),
    "tiny": Load(pairs=4, steps=1, prompts=4, new_tokens=4, longest=24),
}


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and two answers in tokens, the better one first."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def random_pairs(size: str, *, count: int | None = None, seed: int = 0) -> list[Pair]:
    """Pairs whose lengths vary as those of dialogues do: many short ones, few long ones."""
    load, vocabulary, rng = LOADS[size], SHAPES[size]["vocab_size"], random.Random(seed)

    def ids(shortest: int, longest: int) -> list[int]:
        length = round(shortest * (longest / shortest) ** rng.random())
        return [rng.randrange(3, vocabulary) for _ in range(length)]

    return [
        Pair(
            ids(load.longest // 8, load.longest), ids(load.longest // 16, load.longest // 2), ids(8, load.longest // 2)
        )
        for _ in range(count or load.pairs)
    ]


def random_model(size: str, quantization: str, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """A Llama of this size on the device, its linear layers in NF4 if asked."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES[size]), dtype=dtype)
    if quantization == "nf4":
        quantise(model, dtype)
    return model.eval().requires_grad_(False)


def quantise(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Puts the linear layers of the trunk in NF4, as loading with bitsandbytes does, one layer at a time."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    for parent in list(model.base_model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                new = Linear4bit(
                    layer.in_features,
                    layer.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=False,
                    quant_type="nf4",
                    device="meta",
                )
                weight = layer.weight.data
                packed: Any = Params4bit(
                    weight.cpu(), requires_grad=False, compress_statistics=False, quant_type="nf4", module=new
                )
                new.weight = packed.to(weight.device)
                new.support_avx512bf16_for_cpu = False  # see onebase/models/loading.py
                setattr(parent, name, new)
    marked: Any = model
    marked.is_quantized = marked.is_loaded_in_4bit = True
    marked.config.quantization_config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte after three special ones: enough for a chat format that no text goes through."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(["<pad>", "<s>", "</s>", *alphabet])}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
