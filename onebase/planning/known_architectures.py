"""The sizes of well-known models, as their published config.json files say, so that planning needs no network."""

from __future__ import annotations

import re
from typing import Any

_COLUMNS = (
    "model_type",
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "tie_word_embeddings",
    "max_position_embeddings",
)
_ROWS: dict[str, tuple[str, int, int, int, int, int, int, int, bool, int]] = {
    "llama-7b": ("llama", 32, 4096, 11008, 32, 32, 128, 32000, False, 2048),
    "llama-2-7b": ("llama", 32, 4096, 11008, 32, 32, 128, 32000, False, 4096),
    "llama-2-13b": ("llama", 40, 5120, 13824, 40, 40, 128, 32000, False, 4096),
    "llama-2-70b": ("llama", 80, 8192, 28672, 64, 8, 128, 32000, False, 4096),
    "llama-3-8b": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, False, 8192),
    "llama-3-70b": ("llama", 80, 8192, 28672, 64, 8, 128, 128256, False, 8192),
    "llama-3.1-8b": ("llama", 32, 4096, 14336, 32, 8, 128, 128256, False, 131072),
    "llama-3.1-70b": ("llama", 80, 8192, 28672, 64, 8, 128, 128256, False, 131072),
    "llama-3.1-405b": ("llama", 126, 16384, 53248, 128, 8, 128, 128256, False, 131072),
    "llama-3.2-1b": ("llama", 16, 2048, 8192, 32, 8, 64, 128256, True, 131072),
    "llama-3.2-3b": ("llama", 28, 3072, 8192, 24, 8, 128, 128256, True, 131072),
    "llama-3.3-70b": ("llama", 80, 8192, 28672, 64, 8, 128, 128256, False, 131072),
    "tinyllama-1.1b": ("llama", 22, 2048, 5632, 32, 4, 64, 32000, False, 2048),
    "smollm2-135m": ("llama", 30, 576, 1536, 9, 3, 64, 49152, True, 8192),
    "smollm2-360m": ("llama", 32, 960, 2560, 15, 5, 64, 49152, True, 8192),
    "smollm2-1.7b": ("llama", 24, 2048, 8192, 32, 32, 64, 49152, True, 8192),
    "mistral-7b": ("mistral", 32, 4096, 14336, 32, 8, 128, 32768, False, 32768),
    "mistral-7b-v0.3": ("mistral", 32, 4096, 14336, 32, 8, 128, 32768, False, 32768),
    "qwen2.5-0.5b": ("qwen2", 24, 896, 4864, 14, 2, 64, 151936, True, 32768),
    "qwen2.5-1.5b": ("qwen2", 28, 1536, 8960, 12, 2, 128, 151936, True, 131072),
    "qwen2.5-3b": ("qwen2", 36, 2048, 11008, 16, 2, 128, 151936, True, 32768),
    "qwen2.5-7b": ("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, False, 131072),
    "qwen2.5-14b": ("qwen2", 48, 5120, 13824, 40, 8, 128, 152064, False, 131072),
    "qwen2.5-32b": ("qwen2", 64, 5120, 27648, 40, 8, 128, 152064, False, 131072),
    "qwen2.5-72b": ("qwen2", 80, 8192, 29568, 64, 8, 128, 152064, False, 131072),
    "qwen3-0.6b": ("qwen3", 28, 1024, 3072, 16, 8, 128, 151936, True, 40960),
    "qwen3-1.7b": ("qwen3", 28, 2048, 6144, 16, 8, 128, 151936, True, 40960),
    "qwen3-4b": ("qwen3", 36, 2560, 9728, 32, 8, 128, 151936, True, 40960),
    "qwen3-8b": ("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, False, 40960),
    "qwen3-14b": ("qwen3", 40, 5120, 17408, 40, 8, 128, 151936, False, 40960),
    "qwen3-32b": ("qwen3", 64, 5120, 25600, 64, 8, 128, 151936, False, 40960),
    "gemma-2-2b": ("gemma2", 26, 2304, 9216, 8, 4, 256, 256000, True, 8192),
    "gemma-2-9b": ("gemma2", 42, 3584, 14336, 16, 8, 256, 256000, True, 8192),
    "gemma-2-27b": ("gemma2", 46, 4608, 36864, 32, 16, 128, 256000, True, 8192),
    "gemma-3-270m": ("gemma3_text", 18, 640, 2048, 4, 1, 256, 262144, True, 32768),
    "gemma-3-1b": ("gemma3_text", 26, 1152, 6912, 4, 1, 256, 262144, True, 32768),
    "phi-3-mini": ("phi3", 32, 3072, 8192, 32, 32, 96, 32064, False, 4096),
    "phi-3-medium": ("phi3", 40, 5120, 17920, 40, 10, 128, 32064, False, 4096),
    "phi-4": ("phi3", 40, 5120, 17920, 40, 10, 128, 100352, False, 16384),
    "phi-4-mini": ("phi3", 32, 3072, 8192, 24, 8, 128, 200064, True, 131072),
    "gpt2": ("gpt2", 12, 768, 3072, 12, 12, 64, 50257, True, 1024),
    "gpt2-medium": ("gpt2", 24, 1024, 4096, 16, 16, 64, 50257, True, 1024),
    "gpt2-large": ("gpt2", 36, 1280, 5120, 20, 20, 64, 50257, True, 1024),
    "gpt2-xl": ("gpt2", 48, 1600, 6400, 25, 25, 64, 50257, True, 1024),
}
_FLAVOURS = re.compile(
    r"(-(instruct|base|chat|it|pt|hf|meta|v0\.\d|(4|8|128)k|thinking|2507|step|intermediate|3t|v1\.0))+$"
)
_WINDOWS = {"mistral-7b-v0.1": (32000, 4096)}
"""The first Mistral had another vocabulary, and attention that looks back 4,096 tokens."""


def known(name: str) -> dict[str, Any] | None:
    """What config.json says of a well-known model, by its name on the Hub or in short; None if it is not in the table.

    An instruction-tuned model has its base's sizes: `Qwen/Qwen2.5-7B-Instruct` is `qwen2.5-7b`.
    """
    short = name.rpartition("/")[2].lower().removeprefix("meta-")
    vocabulary, window = next((sizes for start, sizes in _WINDOWS.items() if short.startswith(start)), (None, None))
    row = _ROWS.get(short) or _ROWS.get(_FLAVOURS.sub("", short))
    if row is None:
        return None
    found: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True)) | {"torch_dtype": "bfloat16"}
    return found | ({"vocab_size": vocabulary, "sliding_window": window} if vocabulary else {})


def names() -> list[str]:
    """The names in the table."""
    return list(_ROWS)
