"""Compares the peak memory of PPO's four roles on one base with LoRA SFT and with four separate models.

usage: python -m bench.memory [options of the workload, see --help]

Each is a fresh process, measured by its peak resident memory, including the interpreter and the libraries. SFT reads
the same prompts with completions as long as PPO samples, in minibatches of the same size. The four models run
`bench.four_models`.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from transformers import AutoTokenizer

from bench.machine import precisions
from bench.options import Measurement, run_alone
from bench.results import keep, stamp
from bench.side import measure_each, run_module
from bench.workload import Workload, prepare, python_of


def measure(workload: Workload, results: Path) -> list[str]:
    prepare(workload, python_of(workload, "classic"), workload.folder)

    def one_precision(precision: str) -> None:
        keep(precision, {**measure_precision(workload, precision), **stamp()}, results, within="memory")

    return measure_each(precisions(), one_precision)


def measure_precision(workload: Workload, precision: str) -> dict[str, Any]:
    """Returns the peak MB of every run, by what ran; all run in turn."""
    rows = write_answers(workload)
    sft = workload.ours("sft", precision, f"data.train={rows}", "lora.target_modules=[q_proj, v_proj]")
    four = (workload.folder, workload.size, precision, "--new-tokens", str(workload.new_tokens))
    sides = {
        "ppo": ("bench.ours", *workload.ours("ppo", precision)),
        "ppo-head": ("bench.ours", *workload.ours("ppo-head", precision)),
        "sft": ("bench.ours", *sft),
        "four models": ("bench.four_models", *four),
    }
    peaks: dict[str, list[int]] = {side: [] for side in sides}
    for _ in range(workload.rounds):
        for side, command in sides.items():
            peaks[side].append(run_module(*(str(word) for word in command))["peak_rss_mb"])
    print(f"bench: memory {precision}: " + ", ".join(f"{k} {median(v):.0f} MB" for k, v in peaks.items()), flush=True)
    return {"peak_rss_mb": peaks}


def write_answers(workload: Workload) -> Path:
    """Writes PPO's prompts, each with the first tokens of the next prompt as its answer."""
    path = workload.folder / f"answers-{workload.new_tokens}.jsonl"
    tokenizer = AutoTokenizer.from_pretrained(workload.folder / f"base-{workload.size}")
    prompts = json.loads((workload.folder / "prompts.json").read_text())[: workload.pairs]
    with path.open("w") as file:
        for prompt, following in zip(prompts, [*prompts[1:], prompts[0]], strict=True):
            answer = (following * workload.new_tokens)[: workload.new_tokens]
            file.write(json.dumps({"prompt": tokenizer.decode(prompt), "completion": tokenizer.decode(answer)}) + "\n")
    return path


if __name__ == "__main__":
    run_alone(Measurement("memory", measure))
