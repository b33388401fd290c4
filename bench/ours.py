"""Our side of the benchmark: runs one stage as `onebase STAGE` does, on the workload of the peers' `prepare.py`.

usage: python -m bench.ours WORK s|m fp32|bf16 sft|reward|dpo|ppo|ppo-head|grpo [--rows N] [--batches N]
                            [--new-tokens N] [--completions N]
                            [KEY=VALUE ...]   (keys of the verb's config, e.g. lora.layers=upper-half)

Prints one JSON line: seconds of the optimizer steps (without reading data and loading, as with the peers), samples per
second, the operations these steps need (`planning/operations.py`), and the peak resident memory of the process in MB.

DPO computes the reference's log-probs in every step, as its peer does, so they are counted. PPO samples one completion
per prompt, as its peers do; GRPO as many as `--completions` says.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from onebase.config.files import load_config
from onebase.config.language import SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import PPOConfig
from onebase.planning.architecture import read_architecture
from onebase.planning.operations import Shape, Tokens, stage_operations, tokens_of
from onebase.planning.run import Adapter
from onebase.start import start_again_where_needed
from onebase.training.update import Part, Update

TURN = "\n\nAssistant:"
PHASES = ("generate", "score", "logprobs", "update")
GRPO_PROMPTS = 8
"""Prompts per step of grpo."""
PAIR_STAGES = {"sft": SFTConfig, "reward": RewardConfig, "dpo": DPOConfig}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("size")
    parser.add_argument("precision", choices=["fp32", "bf16"])
    parser.add_argument("stage", choices=[*PAIR_STAGES, "ppo", "ppo-head", "grpo"])
    parser.add_argument("--data", type=Path, help="hh-rlhf transcripts; needed once, to write the rows")
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--batches", type=int, default=3, help="rollouts; the first warms up and is not counted")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--completions", type=int, default=8, help="completions per prompt of grpo")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()  # overrides may follow the options
    measure = {"ppo": measure_ppo, "ppo-head": measure_ppo, "grpo": measure_grpo}.get(options.stage, measure_pairs)
    measured = measure(options)
    print(
        json.dumps(
            {
                "side": "onebase",
                "stage": options.stage,
                "model": options.size,
                "precision": options.precision,
                **measured,
                "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )
    )


def measure_pairs(options: argparse.Namespace) -> dict[str, Any]:
    """Measures one epoch over the rows in batches of 8, LoRA r=16 on all linear layers."""
    from onebase.recipes import dpo, reward, sft

    rows = options.work / f"pairs-{options.rows}.jsonl"
    if not rows.exists():
        write_pairs(rows, options.data, options.rows)
    keys = {
        "data.train": str(rows),
        "data.eval_fraction": "0",
        "data.max_prompt_tokens": "512",
        "batch.minibatch": "8",
        "lora.r": "16",
        "lora.alpha": "32",
        **({"preference.reference": "live"} if options.stage == "dpo" else {}),
    }
    recipe = {"sft": sft, "reward": reward, "dpo": dpo}[options.stage]
    with watched_steps() as steps:
        metrics = run(recipe, PAIR_STAGES[options.stage], options, keys)
    seconds = sum(row["perf/step_seconds"] for row in metrics)
    return {
        "seconds": round(seconds, 2),
        "samples_per_second": round(options.rows / seconds, 3),
        "gigaoperations": gigaoperations(steps, options, adapted="all-linear"),
    }


def measure_ppo(options: argparse.Namespace) -> dict[str, Any]:
    """Measures batches of 32 prompts, 4 epochs of 4 minibatches; policy and reward have LoRA r=16 on q_proj, v_proj."""
    from onebase.recipes import ppo

    prompts, held_out = options.work / "prompts.jsonl", options.work / "held_out.jsonl"
    if not prompts.exists():
        write_prompts(options.work, prompts, held_out)
    role = options.work / f"onebase-reward-{options.size}"
    if not role.exists():
        make_reward_role(options.work / f"base-{options.size}", role)
    keys = {
        "data.train": str(prompts),
        "data.eval": str(held_out),
        "evaluation.prompts": "1",
        "reward.role": str(role),
        "lora.r": "16",
        "lora.alpha": "32",
        "lora.target_modules": "[q_proj, v_proj]",
        "generation.max_new_tokens": str(options.new_tokens),
        "generation.samples_per_prompt": "1",
        "ppo.rollout_prompts": "32",
        "ppo.minibatch_prompts": "8",
        "ppo.num_ppo_epochs": "4",
        "max_steps": str(options.batches),
        "optimizer.learning_rate": "1e-5",
        "on_finding": "off",
        "ppo.critic": "head" if options.stage == "ppo-head" else "adapter",
    }
    with watched_steps() as steps:
        with_first = run(ppo, PPOConfig, options, keys)
    metrics = with_first[1:]
    seconds, seconds_with_first = (mean_of(rows, "perf/step_seconds") for rows in (metrics, with_first))
    counted = steps[len(steps) // len(with_first) :]
    return {
        "seconds_per_batch": round(seconds, 3),
        **phases_of(metrics),
        "samples_per_second": round(32 / seconds, 3),
        "samples_per_second_with_first": round(32 / seconds_with_first, 3),
        "gigaoperations": gigaoperations(counted, options, adapted=["q_proj", "v_proj"]) / len(metrics),
    }


def measure_grpo(options: argparse.Namespace) -> dict[str, Any]:
    """Measures rollouts of 8 prompts, one optimizer step each; the policy has LoRA r=16 on q_proj, v_proj."""
    from onebase.recipes import rft

    count = GRPO_PROMPTS * options.batches
    prompts, held_out = options.work / f"prompts-{count}.jsonl", options.work / "held_out.jsonl"
    if not prompts.exists():
        write_prompts(options.work, prompts, held_out, count)
    keys = {
        "data.train": str(prompts),
        "data.eval": str(held_out),
        "evaluation.prompts": "1",
        "reward.callable": f"{Path(__file__)}:letters",
        "lora.r": "16",
        "lora.alpha": "32",
        "lora.target_modules": "[q_proj, v_proj]",
        "generation.max_new_tokens": str(options.new_tokens),
        "generation.samples_per_prompt": str(options.completions),
        "rft.rollout_prompts": str(GRPO_PROMPTS),
        "rft.minibatch_prompts": str(GRPO_PROMPTS),
        "rft.kl_coefficient": "0.04",
        "max_steps": str(options.batches),
        "optimizer.learning_rate": "1e-5",
        "on_finding": "off",
    }
    with watched_steps() as steps:
        metrics = run(rft, RFTConfig, options, keys)[1:]
    seconds = mean_of(metrics, "perf/step_seconds")
    return {
        "completions": options.completions,
        "seconds_per_step": round(seconds, 3),
        **phases_of(metrics),
        "samples_per_second": round(GRPO_PROMPTS * options.completions / seconds, 3),
        "gigaoperations": gigaoperations(steps[1:], options, adapted=["q_proj", "v_proj"]) / len(metrics),
    }


def letters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Returns the share of each completion's letters that are vowels, the peer's reward."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def mean_of(metrics: list[dict[str, Any]], name: str) -> float:
    return sum(row[name] for row in metrics) / len(metrics)


def phases_of(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Returns the mean seconds of each phase of a rollout."""
    return {name: round(mean_of(metrics, f"perf/{name}_seconds"), 3) for name in PHASES}


@contextmanager
def watched_steps() -> Iterator[list[Tokens]]:
    """Yields a list that collects the tokens of every optimizer step taken within."""
    steps: list[Tokens] = []
    step = Update.step

    def watched(self: Update, *parts: Part) -> dict[str, float]:
        read = {id(e): e for examples, _ in parts for e in examples}.values()  # policy and critic read the same trees
        trees = [tokens_of(len(e.prompt_ids), map(len, e.completions)) for e in read]
        steps.append(sum(trees, start=Tokens()))
        return step(self, *parts)

    with patch.object(Update, "step", watched):
        yield steps


def gigaoperations(steps: list[Tokens], options: argparse.Namespace, *, adapted: str | list[str]) -> float:
    """Returns the 1e9 operations these optimizer steps need, with rank-16 adapters in all layers."""
    modules = None if adapted == "all-linear" else tuple(adapted)
    base = read_architecture(str(options.work / f"base-{options.size}"))
    shape = Shape(base, Adapter(16, tuple(range(base.layers)), modules))
    return round(stage_operations(options.stage, shape, sum(steps, start=Tokens())) / 1e9, 3)


def run(recipe: Any, kind: Any, options: argparse.Namespace, keys: dict[str, str]) -> list[dict[str, Any]]:
    """Runs the recipe in a new folder and returns its metrics."""
    folder = options.work / "runs" / f"{options.stage}-{options.size}-{options.precision}"
    shutil.rmtree(folder, ignore_errors=True)
    keys |= {
        "output_dir": str(folder),
        "model.model_name_or_path": str(options.work / f"base-{options.size}"),
        "model.chat_template": "plain",
        "model.dtype": {"fp32": "float32", "bf16": "bfloat16"}[options.precision],
    }
    keys |= dict(pair.split("=", 1) for pair in options.overrides)
    words = [f"--{name}={value}" for name, value in keys.items()]
    recipe.run(load_config(kind, None, words))
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def write_pairs(path: Path, data: Path, count: int) -> None:
    """Writes the first rows of the transcripts, split where the last answer begins."""
    with gzip.open(data, "rt") as file, path.open("w") as out:
        for _, line in zip(range(count), file, strict=False):
            row = json.loads(line)
            cut = {side: row[side].rindex(TURN) + len(TURN) for side in ("chosen", "rejected")}
            out.write(
                json.dumps(
                    {
                        "prompt": row["chosen"][: cut["chosen"]],
                        "chosen": row["chosen"][cut["chosen"] :],
                        "rejected": row["rejected"][cut["rejected"] :],
                    }
                )
                + "\n"
            )


def write_prompts(work: Path, prompts: Path, held_out: Path, count: int | None = None) -> None:
    """Writes the peers' first prompts as text, which encodes to the same tokens, and one more to evaluate on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(next(work.glob("base-*")))
    texts = [tokenizer.decode(ids) for ids in json.loads((work / "prompts.json").read_text())[:count]]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    held_out.write_text(json.dumps({"prompt": "\n\nHuman: Hello\n\nAssistant:"}) + "\n")


def make_reward_role(model: Path, folder: Path) -> None:
    """Makes a reward role with a fresh adapter on q_proj and v_proj, like the peers'."""
    from onebase.data.chat import chat_format
    from onebase.engines.opening import load_base
    from onebase.models.adapters import lora_config
    from onebase.models.role_files import save_role

    base = load_base(str(model), dtype="float32")
    lora = lora_config(base.model, r=16, alpha=32, target_modules=["q_proj", "v_proj"])
    base.add_role("reward", adapter=lora, head=True)
    save_role(base, "reward", folder, kind="reward", chat=chat_format(base.tokenizer, "plain"))


if __name__ == "__main__":
    start_again_where_needed()  # as the `onebase` command does
    main()
