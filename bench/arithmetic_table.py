"""Reinforcement fine-tuning on arithmetic: four advantages, five seeds, beside SFT on few and on ten times the data.

usage: python -m bench.arithmetic_table [--folder FOLDER] [--seeds N] [--jobs N]

Each seed pretrains a base of its own on careless answers (`demo.arithmetic.overheard_texts`), as what the rest can
learn depends on how well the base knows the sums. It then runs SFT on 100 worked tasks, RFT from there with each
advantage, SFT on 1,000 tasks, and evaluates all on the same held-out tasks. Prints a table in Markdown; what is
finished is not run again. A seed takes about 35 minutes of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from onebase.demo.arithmetic import arithmetic_rows, overheard_texts
from onebase.reporting.intervals import Interval, bootstrap_mean, paired_bootstrap

ADVANTAGES = ("gae", "group", "rloo", "reinforce++")
FEW, MANY = 100, 1_000
DIFFICULTY = 2
ROLLOUTS, PROMPTS, MINIBATCH, SAMPLES = 96, 64, 16, 8
EVALUATED, EVALUATED_SAMPLES = 256, 8
PRETRAIN = (
    "data.eval_fraction=0.005 block_length=64 tiny.vocab_size=320 tiny.hidden_size=128 tiny.num_layers=3 "
    "tiny.max_length=96 optimizer.learning_rate=3e-3 optimizer.schedule=cosine optimizer.warmup_steps=50 "
    "optimizer.num_epochs=2 batch.minibatch=32 batch.microbatch_tokens=4096"
)
MODEL = "model.dtype=float32 model.chat_template=hh"
RFT = (
    f"data.limit=1500 generation.max_new_tokens=24 generation.samples_per_prompt={SAMPLES} max_steps={ROLLOUTS} "
    f"rft.rollout_prompts={PROMPTS} rft.minibatch_prompts={MINIBATCH} optimizer.learning_rate=1e-3 "
    f"evaluation.prompts=32 reward.verifiers=numeric"
)
OF_ADVANTAGE = {"gae": "rft.value_coefficient=0.5"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("runs/arithmetic"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    folder: Path = options.folder
    prepare(folder)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: one_seed(folder, seed), range(options.seeds)))
    print(table(folder, options.seeds))


def prepare(folder: Path) -> None:
    """Writes the data."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = overheard_texts(seed=0, count=150_000, difficulties=(1, DIFFICULTY, DIFFICULTY), right=0.65)
    write(folder / "overheard.jsonl", [{"text": text} for text in texts])
    train = arithmetic_rows(seed=0, count=1_800, difficulty=DIFFICULTY, split="train")
    write(folder / "few.jsonl", train[:FEW])
    write(folder / "many.jsonl", train[:MANY])
    write(folder / "train.jsonl", train)
    write(folder / "held.jsonl", arithmetic_rows(seed=0, count=EVALUATED, difficulty=DIFFICULTY, split="held_out"))


def one_seed(folder: Path, seed: int) -> None:
    """Runs and evaluates everything of one seed."""
    onebase(folder / f"base-{seed}", f"pretrain data.train={folder / 'overheard.jsonl'} seed={seed} {PRETRAIN}")
    model = folder / f"base-{seed}" / "model"
    base = f"model.model_name_or_path={model} {MODEL} seed={seed} batch.microbatch_tokens=8192"
    held = f"data.eval={folder / 'held.jsonl'}"
    for name, epochs in (("few", 3), ("many", 3)):
        sft = f"sft {base} data.train={folder / name}.jsonl {held} optimizer.num_epochs={epochs} "
        onebase(folder / f"sft-{name}-{seed}", sft + "optimizer.learning_rate=3e-4")
    for advantage in ADVANTAGES:
        start = f"start_from={folder / f'sft-few-{seed}' / 'policy'} data.train={folder / 'train.jsonl'}"
        rft = f"rft {base} {start} {held} {RFT} advantage={advantage} {OF_ADVANTAGE.get(advantage, '')}"
        onebase(folder / f"{advantage}-{seed}", rft)
    for name in (f"sft-few-{seed}", f"sft-many-{seed}", *(f"{advantage}-{seed}" for advantage in ADVANTAGES)):
        evaluate(folder, name)


def onebase(out: Path, words: str) -> None:
    """Runs a verb on one thread into a folder, unless it has finished there; seconds.json has the seconds it took."""
    if (out / "summary.json").exists():
        return
    started = time.monotonic()
    command = [sys.executable, "-m", "onebase", *words.split(), f"output_dir={out}", "threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    (out / "seconds.json").write_text(json.dumps(time.monotonic() - started))
    print(f"{out.name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def evaluate(folder: Path, name: str) -> None:
    """Writes samples of a policy on the held-out tasks, with their verdicts."""
    output = folder / f"{name}.samples.jsonl"
    if output.exists():
        return
    words = f"eval {folder / name / 'policy'} {folder / 'held.jsonl'} --verifier numeric --samples {EVALUATED_SAMPLES} "
    words += f"--max-new-tokens 24 --output {output}"
    done = subprocess.run(
        [sys.executable, "-m", "onebase", *words.split()],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def shares(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    """The samples of a policy, in groups of one prompt."""
    rows = [json.loads(line) for line in (folder / f"{name}.samples.jsonl").read_text(encoding="utf-8").splitlines()]
    return [rows[start : start + EVALUATED_SAMPLES] for start in range(0, len(rows), EVALUATED_SAMPLES)]


def table(folder: Path, seeds: int) -> str:
    """A row per way of training: means over seeds, the smallest rise over SFT with its interval, and its cost."""
    lines = [
        "| | pass@1, five seeds | mean | rise over SFT on few, each seed's interval above 0 | distinct answers of 8 | "
        "entropy | samples | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    ways = {f"SFT on {FEW}": "sft-few", f"SFT on {MANY:,}": "sft-many", **{f"RFT, {a}": a for a in ADVANTAGES}}
    for title, way in ways.items():
        passes: list[Interval] = []
        rises: list[Interval] = []
        distinct: list[float] = []
        seconds: list[float] = []
        entropy: list[float] = []
        for seed in range(seeds):
            of_prompts = right_of(shares(folder, f"{way}-{seed}"))
            passes.append(bootstrap_mean(of_prompts))
            rises.append(paired_bootstrap(right_of(shares(folder, f"sft-few-{seed}")), of_prompts))
            groups = shares(folder, f"{way}-{seed}")
            distinct.append(sum(len({row["completion"] for row in group}) for group in groups) / len(groups))
            seconds.append(json.loads((folder / f"{way}-{seed}" / "seconds.json").read_text()))
            samples = [row for group in groups for row in group]
            entropy.append(-sum(row["logprob"] for row in samples) / sum(row["tokens"] for row in samples))
        each = ", ".join(f"{one.mean:.2f}" for one in passes)
        mean = sum(one.mean for one in passes) / seeds
        rise = sum(one.mean for one in rises) / seeds
        above = sum(one.low > 0 for one in rises)
        cells = [title, each, f"{mean:.2f}", "" if way == "sft-few" else f"{rise:+.2f}, {above} of {seeds}"]
        cells += [f"{sum(distinct) / seeds:.1f}", f"{sum(entropy) / seeds:.2f}"]
        cells += [f"{ROLLOUTS * PROMPTS * SAMPLES:,}" if way in ADVANTAGES else "", f"{sum(seconds) / seeds:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def right_of(groups: list[list[dict[str, Any]]]) -> list[float]:
    """The share of right answers to each prompt."""
    return [sum(row["right"] for row in group) / len(group) for group in groups]


if __name__ == "__main__":
    main()
