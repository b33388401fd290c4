"""Measures how far correct merges are from the role on its base, on models as deep as small real ones.

usage: python -m bench.merging [LAYERS ...]      by default 2 and 24, each 256 wide

For each depth and number format a base with random weights is written, with a role whose adapter is random too: so
large that tokens differ in likelihood by nats, and the role from its base by tenths of nats. Then it is merged, read
back by transformers alone and compared as `onebase merge --verify` does. Prints a Markdown table: the largest figure of
three seeds, and in the last column the smallest distance of a role from its base.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from onebase.data.chat import chat_format
from onebase.demo.grammar import pretraining_texts
from onebase.engines.opening import load_base
from onebase.exporting import verify
from onebase.models.adapters import lora_config
from onebase.models.scratch import make_llama, train_tokenizer

WIDTH, HEADS, CONTEXT, VOCABULARY = 256, 4, 512, 2000
LINEAR, EMBEDDING, ADAPTER = 2.0, 8.0, 0.02
"""Factors on the weights as they are initialised, and the deviation of the adapter's second matrices."""
SEEDS = range(3)


def main() -> None:
    depths = [int(word) for word in sys.argv[1:]] or [2, 24]
    print("| layers | written in | log-probs, mean | at most | greedy answers the same | where they part | the role |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for layers in depths:
        for dtype in ("float32", "float16", "bfloat16"):
            print(row(layers, dtype), flush=True)


def row(layers: int, dtype: str) -> str:
    found, moved = [], []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            difference, effect = measured(Path(folder), layers, dtype, seed)
        found.append(difference)
        moved.append(effect)
    same, answers = sum(each.same for each in found), sum(each.answers for each in found)
    return (
        f"| {layers} | {dtype} | {max(each.logprob for each in found):.2g} | {max(each.largest for each in found):.2g} "
        f"| {same} of {answers} | {max(each.gap for each in found):.2g} | {min(moved):.2g} |"
    )


def measured(folder: Path, layers: int, dtype: str, seed: int) -> tuple[verify.Difference, float]:
    """How far the merged model is from the role, and the role from its base, in nats per token."""
    tokenizer = train_tokenizer(pretraining_texts(seed=0, count=2000), vocab_size=VOCABULARY)
    model = make_llama(tokenizer, hidden_size=WIDTH, num_layers=layers, num_heads=HEADS, max_length=CONTEXT, seed=seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(EMBEDDING if "embed" in name else LINEAR if "proj" in name else 1)
    model.to(getattr(torch, dtype)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = load_base(str(folder / "base"), dtype=dtype, device="cpu")
    torch.manual_seed(seed)
    base.add_role("policy", adapter=lora_config(base.model, r=16, alpha=32))
    with torch.no_grad():
        for weight in base.parameters("policy"):
            if not weight.any():  # PEFT begins them at zero, where the adapter changes nothing
                weight.normal_(std=ADAPTER)
    said = verify.what_role_says(base, "policy", chat_format(tokenizer, "plain"))
    effect = verify.effect(base, said)
    base.merged("policy").save_pretrained(folder / "merged")
    plain: Any = AutoModelForCausalLM.from_pretrained(folder / "merged", dtype="auto").eval()
    return verify.compare_policies(plain, said, *verify.what_model_says(plain, said)), effect


if __name__ == "__main__":
    main()
