"""Times decoding 32 prompts with the policy's LoRA adapter, by ours or by transformers' `generate` with PEFT.

usage: python -m bench.decode WORK s|m fp32|bf16 onebase|transformers [--new-tokens N]

Both use the same model, prompts, adapter (r=16 on q_proj and v_proj), sampling (the whole distribution, temperature 1)
and number of new tokens. After an untimed run, the middle of three is reported. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from bench.machine import DTYPES
from onebase.start import start_again_where_needed

NUM_PROMPTS = 32
LORA: dict[str, Any] = {"r": 16, "target_modules": ["q_proj", "v_proj"]}
TIMED_RUNS = 3


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("work", type=Path)
    arguments.add_argument("size")
    arguments.add_argument("precision", choices=list(DTYPES))
    arguments.add_argument("side", choices=["onebase", "transformers"])
    arguments.add_argument("--new-tokens", type=int, default=64)
    options = arguments.parse_args()
    if options.side == "onebase":
        start_again_where_needed()  # as the `onebase` command does
    base, dtype = options.work / f"base-{options.size}", DTYPES[options.precision]
    prompts = json.loads((options.work / "prompts.json").read_text())[:NUM_PROMPTS]
    decoder = {"onebase": ours, "transformers": by_transformers}[options.side](base, dtype, prompts, options.new_tokens)
    times = []
    for _ in range(1 + TIMED_RUNS):
        started = time.perf_counter()
        num_tokens = decoder()
        times.append(time.perf_counter() - started)
        assert num_tokens == NUM_PROMPTS * options.new_tokens, f"{num_tokens} tokens were decoded"
    seconds = median(times[1:])
    print(
        json.dumps(
            {
                "side": options.side,
                "stage": "decode",
                "model": options.size,
                "precision": options.precision,
                "seconds": round(seconds, 3),
                "samples_per_second": round(NUM_PROMPTS / seconds, 3),
                "tokens_per_second": round(NUM_PROMPTS * options.new_tokens / seconds, 1),
                "prompt_tokens": sum(map(len, prompts)),
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def ours(folder: Path, dtype: torch.dtype, prompts: list[list[int]], new_tokens: int) -> Callable[[], int]:
    from onebase.engines.opening import load_base
    from onebase.models.adapters import lora_config
    from onebase.sampling.local import generate
    from onebase.sampling.sampler import Sampling
    from onebase.seeds import sample_seeds

    base = load_base(str(folder), dtype=str(dtype).removeprefix("torch."), device="cpu")
    base.add_role("policy", adapter=lora_config(base.model, alpha=32, **LORA))
    seeds = sample_seeds(0, num_prompts=len(prompts), samples_per_prompt=1)
    sampling = Sampling(max_new_tokens=new_tokens)  # no token ends a completion

    def decoder() -> int:
        return sum(len(s.ids) for s in generate(base, prompts, role="policy", sampling=sampling, seeds=seeds))

    return decoder


def by_transformers(base: Path, dtype: torch.dtype, prompts: list[list[int]], new_tokens: int) -> Callable[[], int]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    policy = get_peft_model(model, LoraConfig(lora_alpha=32, task_type="CAUSAL_LM", **LORA)).eval()
    inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    torch.manual_seed(0)

    @torch.no_grad()
    def decoder() -> int:
        ids = policy.generate(
            **inputs,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            temperature=1.0,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        return ids[:, inputs["input_ids"].shape[1] :].numel()

    return decoder


if __name__ == "__main__":
    main()
