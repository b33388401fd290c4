"""Runs a PPO step with four separately loaded models, as the memory baseline for one base.

usage: python -m bench.four_models WORK s|m fp32|bf16 [--new-tokens N]

Policy and critic have LoRA adapters (r=16 on q_proj and v_proj), reference and reward none. It takes 32 prompts with
completions of random tokens, padded, eight rows at a time: forward passes of reference and reward, then loss and
backward pass for policy and critic. Nothing is sampled, so the peak is a lower bound. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification

from bench.machine import DTYPES

LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"]}
ROWS, AT_A_TIME = 32, 8


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("work", type=Path)
    arguments.add_argument("size")
    arguments.add_argument("precision", choices=list(DTYPES))
    arguments.add_argument("--new-tokens", type=int, default=64)
    options = arguments.parse_args()
    base, dtype = options.work / f"base-{options.size}", DTYPES[options.precision]
    prompts = json.loads((options.work / "prompts.json").read_text())[:ROWS]
    torch.manual_seed(0)
    step(base, dtype, prompts, options.new_tokens)
    print(
        json.dumps(
            {
                "side": "four models",
                "stage": "ppo",
                "model": options.size,
                "precision": options.precision,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def step(base: Path, dtype: torch.dtype, prompts: list[list[int]], new_tokens: int) -> None:
    """Loads the four models and trains two of them once on every row."""
    policy = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=dtype), LoraConfig(task_type="CAUSAL_LM", **LORA)
    )
    reference = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    reward = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=dtype)
    critic = get_peft_model(
        AutoModelForTokenClassification.from_pretrained(base, num_labels=1, dtype=dtype),
        LoraConfig(task_type="TOKEN_CLS", **LORA),
    )
    trained = [p for model in (policy, critic) for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    for first in range(0, len(prompts), AT_A_TIME):
        ids, mask, counted = padded_rows(prompts[first : first + AT_A_TIME], new_tokens, policy.config.vocab_size)
        with torch.no_grad():
            old = token_logprobs(reference(input_ids=ids, attention_mask=mask).logits, ids)
            score = reward(input_ids=ids, attention_mask=mask).logits.float()
        logprobs = token_logprobs(policy(input_ids=ids, attention_mask=mask).logits, ids)
        (-torch.exp(logprobs - old) * score * counted).sum().div(counted.sum()).backward()
        values = critic(input_ids=ids, attention_mask=mask).logits.float().squeeze(-1)[:, :-1]
        ((values - score) ** 2 * counted).sum().div(counted.sum()).backward()
        optimizer.step()
        optimizer.zero_grad()


def padded_rows(prompts: list[list[int]], new_tokens: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns right-padded ids `[B, T]`, the attention mask `[B, T]` and the mask of completion tokens `[B, T-1]`."""
    length = max(map(len, prompts)) + new_tokens
    ids = torch.zeros(len(prompts), length, dtype=torch.long)
    mask, counted = torch.zeros_like(ids), torch.zeros(len(prompts), length - 1)
    for row, prompt in enumerate(prompts):
        end = len(prompt) + new_tokens
        ids[row, :end] = torch.cat([torch.tensor(prompt), torch.randint(3, vocab, (new_tokens,))])
        mask[row, :end] = 1
        counted[row, len(prompt) - 1 : end - 1] = 1
    return ids, mask, counted


def token_logprobs(logits: Tensor, ids: Tensor) -> Tensor:
    """Returns log-probs `[B, T-1]` from the logits `[B, T, V]`."""
    return logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


if __name__ == "__main__":
    main()
