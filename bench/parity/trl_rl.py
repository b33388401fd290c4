"""Writes `golden_rl.json`: advantages, losses and gradients of TRL 1.16's GRPOTrainer and RLOOTrainer on one rollout.

onebase does not depend on TRL, and this file does not import onebase. From the root of the repository:

    python -m venv trl-env
    trl-env/bin/pip install torch==2.13.0 trl==1.16.0 peft
    trl-env/bin/python -m bench.parity.trl_rl

`tests/recipes/test_trl_rl_parity.py` reads the file and computes the same through onebase, and lists where the two
define things differently. Every trainer is built as a user would build it. Only its sampling is replaced: the
completions are those of `rollout.py`. Its own code tokenizes the prompts, pads, computes the log-probs of the sampling
policy and of the reference, asks the reward function, and turns the scores into advantages. Then the policy's adapter
takes other weights, as an optimizer step would have given it, and `compute_loss` computes the loss.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import peft
import torch
import transformers
import trl
from datasets import Dataset, disable_progress_bars
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from trl.trainer.utils import split_tensor_dict

from bench.parity.model import LORA, formula_weights, tiny_llama, tokenizer
from bench.parity.rollout import MAX_NEW_TOKENS, NUM_PER_PROMPT, SAMPLED, SCORES, TRAINED, completions, prompts

TRAINERS = {"grpo": (trl.GRPOTrainer, trl.GRPOConfig), "rloo": (trl.RLOOTrainer, trl.RLOOConfig)}

CLIP: dict[str, Any] = {"epsilon": 0.2, "epsilon_high": 0.28}
KL: dict[str, Any] = {"beta": 0.3, "use_bias_correction_kl": False}
GSPO: dict[str, Any] = {"importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.05}

ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {"loss_type": "grpo", "epsilon": 0.2}),
    "grpo_fresh": ("grpo", {"loss_type": "grpo", "num_iterations": 1}),
    "grpo_batch": ("grpo", {"loss_type": "grpo", "scale_rewards": "batch", **CLIP}),
    "grpo_none": ("grpo", {"loss_type": "grpo", "scale_rewards": "none", **CLIP}),
    "grpo_high": ("grpo", {"loss_type": "grpo", **CLIP}),
    "grpo_delta": ("grpo", {"loss_type": "grpo", "delta": 1.5, **CLIP}),
    "grpo_kl": ("grpo", {"loss_type": "grpo", **CLIP, **KL}),
    "grpo_kl_weighed": ("grpo", {"loss_type": "grpo", **CLIP, **KL, "use_bias_correction_kl": True}),
    "grpo_kl_weighed_fresh": ("grpo", {"loss_type": "grpo", "num_iterations": 1, "beta": KL["beta"]}),
    "bnpo": ("grpo", {"loss_type": "bnpo", **CLIP}),
    "dapo": ("grpo", {"loss_type": "dapo", **CLIP}),
    "dapo_half": ("grpo", {"loss_type": "dapo", "steps_per_generation": 2, **CLIP}),
    "dr_grpo": ("grpo", {"loss_type": "dr_grpo", "scale_rewards": "none", **CLIP}),
    "gspo": ("grpo", {"loss_type": "grpo", **GSPO}),
    "gspo_kl": ("grpo", {"loss_type": "grpo", **GSPO, **KL}),
    "gspo_tokens": ("grpo", {"loss_type": "bnpo", **GSPO}),
    "rloo": ("rloo", {"beta": 0.0, **CLIP}),
    "rloo_kl": ("rloo", {"beta": 0.3, **CLIP}),
    "rloo_normalized": ("rloo", {"beta": 0.3, "normalize_advantages": True, **CLIP}),
}
"""The trainer and its arguments. `fresh` entries train on what was just sampled; `dapo_half` is the first of two steps
on one rollout; all others are a whole rollout in one step, by a policy that has moved since it sampled.
"""


MEASURED = ("kl", "clip_ratio/low_mean", "clip_ratio/high_mean")
"""Metrics of TRL that are kept, where a trainer has them."""


def make_trainer(kind: str, arguments: dict[str, Any], folder: str) -> Any:
    """A trainer whose sampled completions are those of `rollout.py`."""
    trainer_class, config_class = TRAINERS[kind]
    count = len(SCORES) * NUM_PER_PROMPT
    steps = arguments.get("steps_per_generation", 1)
    config = config_class(
        **{"num_iterations": 2} | arguments,  # more than one: TRL measures the log-probs of the policy that sampled
        output_dir=folder,
        per_device_train_batch_size=count // steps,
        num_generations=NUM_PER_PROMPT,
        max_completion_length=MAX_NEW_TOKENS,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = trainer_class(
        tiny_llama(),
        reward_funcs=given_scores,
        args=config,
        train_dataset=Dataset.from_list(dataset()),
        processing_class=tokenizer(),
        peft_config=peft.LoraConfig(**LORA),
    )
    # What sampling would have returned; the arguments and the log-probs that vLLM adds differ between the trainers.
    sampled = [ids for of_prompt in completions() for ids in of_prompt]
    trainer._generate_single_turn = lambda *_: (sampled, None) if kind == "grpo" else sampled
    trainer.current_gradient_accumulation_steps = 1  # `train` sets it
    trainer.model.train()
    return trainer


def dataset() -> list[dict[str, Any]]:
    """A row for each prompt, in words."""
    words = tokenizer().convert_ids_to_tokens
    return [
        {"prompt": " ".join(words(ids)), "scores": list(scores)} for ids, scores in zip(prompts(), SCORES, strict=True)
    ]


def given_scores(completion_ids: list[list[int]], scores: list[list[float]], **_: Any) -> list[float]:
    """Returns each completion's score: TRL repeats a prompt's row for each of its completions."""
    return [of_prompt[i % NUM_PER_PROMPT] for i, of_prompt in enumerate(scores)]


def take(trainer: Any, size: float) -> None:
    """Gives the adapter the weights of this size."""
    set_peft_model_state_dict(trainer.model, formula_weights(get_peft_model_state_dict(trainer.model), size=size))


def measure(trainer: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An entry of `golden_rl.json`, and the batch that TRL made of the rollout."""
    take(trainer, TRAINED if arguments.get("num_iterations") == 1 else SAMPLED)
    rows = [row for row in trainer.train_dataset for _ in range(NUM_PER_PROMPT)]
    batch = trainer._generate_and_score_completions(rows)
    check_tokens(batch)
    take(trainer, TRAINED)
    trained_on = split_tensor_dict(batch, arguments.get("steps_per_generation", 1))[0]
    loss = trainer.compute_loss(trainer.model, trained_on)
    loss.backward()
    gradients = {short_name(name): p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    metrics = trainer._metrics["train"]
    return {
        "trainer": type(trainer).__name__,
        "arguments": arguments,
        "advantages": batch["advantages"].tolist(),
        "loss": loss.item(),
        **{name: metrics[name][-1] for name in MEASURED if name in metrics},
        "gradients": {name: rounded(gradient) for name, gradient in gradients.items()},
    }, batch


@torch.no_grad()
def trained_logps(trainer: Any, batch: dict[str, Tensor]) -> Tensor:
    """The trained policy's log-probs `[N, C]`, by TRL's own forward pass."""
    ids, attended = (torch.cat([batch[f"prompt_{x}"], batch[f"completion_{x}"]], 1) for x in ("ids", "mask"))
    width = batch["completion_ids"].shape[1]
    logps, _, _ = trainer._get_per_token_logps_and_entropies(trainer.model, ids, attended, width)
    return logps


def check_tokens(batch: dict[str, Tensor]) -> None:
    """Stops unless TRL laid out the rollout's prompts and counts exactly the rollout's completions."""
    expected = [(prompt, ids) for prompt, group in zip(prompts(), completions(), strict=True) for ids in group]
    for i, (prompt, ids) in enumerate(expected):
        seen = batch["prompt_ids"][i][batch["prompt_mask"][i].bool()].tolist()
        counted = batch["completion_ids"][i][batch["completion_mask"][i].bool()].tolist()
        if (seen, counted) != (prompt, ids):
            raise SystemExit(f"TRL changed completion {i}: {seen} and {counted}, expected {prompt} and {ids}")


def short_name(parameter: str) -> str:
    """`layers.0.self_attn.q_proj.lora_A` of a parameter's whole name."""
    found = re.search(r"layers\..*lora_[AB]", parameter)
    assert found, parameter
    return found.group()


def rounded(values: Tensor) -> Any:
    """Nested lists of numbers, of which 6 digits are kept."""
    return [rounded(v) for v in values] if values.dim() else float(f"{values.item():.6g}")


def ragged(values: Tensor) -> list[list[float]]:
    """A list of each completion's tokens, of `[N, C]`."""
    lengths = [len(ids) for group in completions() for ids in group]
    return [row[:length].tolist() for row, length in zip(values, lengths, strict=True)]


def main() -> None:
    """Measures every entry and writes `golden_rl.json`."""
    disable_progress_bars()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    golden: dict[str, Any] = {
        "versions": {m.__name__: m.__version__ for m in (trl, torch, transformers, peft)},
        "prompts": prompts(),
        "completions": completions(),
        "scores": SCORES,
        "entries": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, (kind, arguments) in ENTRIES.items():
            trainer = make_trainer(kind, arguments, folder)
            golden["entries"][name], batch = measure(trainer, arguments)
            print(f"{name:<18}{golden['entries'][name]['loss']:>12.6f}")
            if name == "grpo_kl":
                golden["logps"] = ragged(trained_logps(trainer, batch))
                golden["old_logps"] = ragged(batch["old_per_token_logps"])
                golden["ref_logps"] = ragged(batch["ref_per_token_logps"])
            if name == "rloo_kl":
                golden["old_logps_of_completions"] = batch["old_logps"].tolist()
    text = json.dumps(golden, indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: re.sub(r"\s+", " ", numbers.group()), text)  # a line per list
    (Path(__file__).parent / "golden_rl.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
