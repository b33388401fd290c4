"""Tiny random language models and a byte tokenizer, made in memory: no file, no network, the same weights every time.

The weights are larger than a trained model's would be, so that what one token sees of another moves the log-probs by
far more than the tolerance of a test: a mask that leaks cannot hide.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BloomConfig,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from onebase.engines.opening import wrap_model
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase

PAD, BOS, EOS = 0, 1, 2
VOCABULARY = 259
"""Three special tokens and the 256 bytes."""
WINDOW = 4
"""Positions that a sliding-window layer of the tiny models sees."""

_SPECIAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "initializer_range": 0.15,
}
_LLAMA_LIKE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GEMMA_LIKE: dict[str, Any] = _LLAMA_LIKE | {
    "head_dim": 8,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
}

ARCHITECTURES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "llama": (LlamaConfig, _LLAMA_LIKE),
    "llama through transformers": (LlamaConfig, _LLAMA_LIKE),
    "qwen2": (Qwen2Config, _LLAMA_LIKE),
    "qwen3": (Qwen3Config, _LLAMA_LIKE | {"head_dim": 8}),
    "mistral": (MistralConfig, _LLAMA_LIKE | {"sliding_window": WINDOW}),
    "gemma2": (Gemma2Config, _GEMMA_LIKE),
    "gemma3": (Gemma3TextConfig, _GEMMA_LIKE),
    "gpt2": (
        GPT2Config,
        {
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "neox": (
        GPTNeoXConfig,
        {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "granite": (GraniteConfig, _LLAMA_LIKE | {"logits_scaling": 4.0}),
    "cohere": (CohereConfig, _LLAMA_LIKE | {"logit_scale": 0.25}),
    "bloom": (BloomConfig, {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


def tiny_model(architecture: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A causal language model of random float32 weights, in evaluation mode.

    Args:
        architecture: a key of `ARCHITECTURES`.
        overrides: entries of its configuration.
    """
    config_class, sizes = ARCHITECTURES[architecture]
    attention = overrides.pop("attn_implementation", None)
    config = config_class(**(_SPECIAL | sizes | overrides))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One id per byte, after `<pad>` 0, `<s>` 1 and `</s>` 2."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", model_max_length=128
    )


def tiny_base(architecture: str, *, seed: int = 0, layout: str = "auto", **overrides: Any) -> OneBase:
    """A `OneBase` around a tiny model."""
    model = tiny_model(architecture, seed=seed, **overrides)
    base = wrap_model(model, tiny_tokenizer(), layout=layout, name_or_path=f"tiny-{architecture}")
    return through_transformers(base) if architecture.endswith("through transformers") else base


def through_transformers(base: OneBase) -> OneBase:
    """The same base without the packed engine, as on a GPU or with an architecture of another family."""
    base.packs = False
    return base


def save_tiny(folder: Path, architecture: str, *, seed: int = 0, max_shard_size: str = "5GB", **overrides: Any) -> Path:
    """Writes a tiny model and its tokenizer as a transformers folder."""
    tiny_model(architecture, seed=seed, **overrides).save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def add_adapter_role(
    base: OneBase, name: str, *, seed: int = 0, r: int = 4, head: bool = False, trains: bool = True, **options: Any
) -> None:
    """Adds a role whose adapter and head are not at their start, where they would change nothing.

    Args:
        options: of `lora_config`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base.add_role(name, adapter=lora_config(base.model, r=r, alpha=2 * r, **options), head=head, trains=trains)
    disturb(base, name, seed=seed)


def disturb(base: OneBase, name: str, *, seed: int = 0, size: float = 0.1) -> None:
    """Adds noise to the parameters a role owns."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in base.parameters(name):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator).to(parameter.dtype))


def random_ids(count: int, *, seed: int) -> list[int]:
    """Ids of the tiny vocabulary, no special token among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()
