"""Makes a base of random weights with its tokenizer, and four roles on it, for `bench.planned`.

usage: python -m bench.planned_bases FOLDER small|medium|large

Memory depends on shapes, not on what the weights say. The weights are stored in bfloat16, as most published bases are.
"""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16, "num_attention_heads": 8},
    "medium": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""Llamas of 53, 136 and 300 M parameters, with half as many heads for keys as for queries."""
VOCABULARY, CONTEXT = 8192, 1024
TEMPLATE = "hh"
LAYERS = {"lora": "all", "upper half": "upper-half"}
"""Which layers the adapters of the roles are on, by the way of training that reads them."""
_SYLLABLES = ("ba", "do", "ki", "lu", "me", "no", "pa", "ri", "so", "tu", "ve", "zy")


def words() -> list[str]:
    """Returns the words that all texts are made of, nearly all of them tokens of the vocabulary."""
    draw = random.Random(0)
    return sorted({"".join(draw.choices(_SYLLABLES, k=draw.randint(2, 4))) for _ in range(4000)})


def make(folder: Path, size: str) -> None:
    """Writes `folder/base-SIZE`, and `folder/roles-SIZE` with a policy and a reward role per entry of `LAYERS`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from onebase.models.scratch import train_tokenizer

    draw = random.Random(1)
    known = words()
    texts = ["\n\nHuman: " + " ".join(draw.choices(known, k=40)) + "\n\nAssistant: " for _ in range(4000)]
    tokenizer = train_tokenizer(texts, vocab_size=VOCABULARY)
    shape = SHAPES[size]
    config = LlamaConfig(
        **shape,
        vocab_size=VOCABULARY,
        num_key_value_heads=shape["num_attention_heads"] // 2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    base, temporary = folder / f"base-{size}", folder / f".base-{size}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(base, ignore_errors=True)
    temporary.rename(base)
    make_roles(base, folder / f"roles-{size}")


def make_roles(base: Path, folder: Path) -> None:
    """Writes roles with fresh adapters, which take the room of trained ones."""
    from onebase.data.chat import chat_format
    from onebase.engines.opening import load_base
    from onebase.models.adapters import lora_config
    from onebase.models.role_files import save_role

    opened = load_base(str(base), dtype="float32")
    chat = chat_format(opened.tokenizer, TEMPLATE)
    for way, layers in LAYERS.items():
        for kind in ("policy", "reward"):
            name = f"{kind} {way}"
            adapter = lora_config(opened.model, r=16, alpha=32, layers=layers)
            opened.add_role(name, adapter=adapter, head=kind == "reward")
            save_role(opened, name, folder / f"{kind}-{way.replace(' ', '-')}", kind=kind, chat=chat)


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
