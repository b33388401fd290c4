"""Seconds that every verb is planned to take after a calibration, beside those it takes.

usage: python -m bench.planned_time [--work FOLDER] [--page FILE] [--only VERB ...]

Makes a base, its data and a config for each verb. Verb by verb it calibrates this machine, plans the run and only then
runs it in its own process as `onebase VERB` does: machines that share their processors are faster at one time than at
another. The plans use what was calibrated and no correction by an earlier run. Writes the table between two marks of
docs/planning.md. Needs no data, no network, and eight minutes on an idle machine. What other machines on the same host
disturb is measured again (`bench.stolen`); what else runs here disturbs it too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.machine import describe
from bench.side import ROOT, SideFailed, tail
from bench.stolen import least_stolen
from onebase.config.files import dump_config, load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.files import write_atomically
from onebase.models.scratch import train_tokenizer
from onebase.plans.plan_time import Costs, costs_of
from onebase.plans.planned_run import planned_run

PAGE = ROOT / "docs" / "planning.md"
BEGIN, END = "<!-- planned time -->", "<!-- end of planned time -->"
TARGET = 0.25
ROWS, PROMPTS = 120, 48
HIDDEN, LAYERS, VOCABULARY = 384, 6, 1024
WORDS = (
    "the of and to in is that it was for on are with as his they be at one have this from or had by not but what all "
    "were when we there can an your which their said if do will each about how up out them then she many some so these "
    "would other into has more her two like him see time could no make than first been its who now people my made over"
).split()
SHARED = {
    "model.chat_template": "plain",
    "model.dtype": "float32",
    "seed": "1",
}
LORA = {"lora.r": "16", "lora.alpha": "32"}
SAMPLING = {"generation.max_new_tokens": "32", "reward.callable": f"{Path(__file__)}:letters"}


@dataclass(frozen=True, slots=True)
class Result:
    """A verb's plan and its run."""

    verb: str
    costs: Costs
    seconds: float
    """Of the whole process."""
    step_seconds: float
    """Of all its steps, as it logged them; 0 where it has none of its own."""
    stolen: float
    """Share of the processor time that other machines took meanwhile."""

    @property
    def planned_steps(self) -> float:
        """Seconds planned for the phases that belong to steps."""
        steps = self.costs.times.seconds
        return steps["generate"] + steps["score"] + steps["update"]


def keys_of(work: Path) -> dict[str, dict[str, str]]:
    """Each verb's keys, in the order they run: ppo needs the role that reward trains."""
    base = {"model.model_name_or_path": str(work / "base"), **SHARED}
    pairs = {"data.train": str(work / "pairs.jsonl"), "batch.minibatch": "8"}
    prompts = {"data.train": str(work / "prompts.jsonl")}
    loop = {"data.eval": str(work / "held_out.jsonl"), "evaluation.prompts": "4", "on_finding": "off"}
    trained = {**base, **pairs, **LORA}
    return {
        "sft": {**trained, "optimizer.num_epochs": "2"},
        "pretrain": {
            **base,
            "data.train": str(work / "texts.jsonl"),
            "block_length": "128",
            "batch.minibatch": "8",
            "max_steps": "24",
        },
        "reward": {**trained, "optimizer.num_epochs": "2"},
        "dpo": {**trained, "optimizer.num_epochs": "1"},
        "best-of": {**base, **prompts, **SAMPLING, "generation.samples_per_prompt": "4"},
        "iterate": {
            **base,
            **prompts,
            **SAMPLING,
            **LORA,
            "rounds": "2",
            "prompts_per_round": "24",
            "generation.samples_per_prompt": "4",
            "batch.minibatch": "8",
        },
        "ppo": {
            **base,
            **prompts,
            **LORA,
            **loop,
            "reward.role": str(work / "runs" / "reward" / "reward"),
            "generation.max_new_tokens": "32",
            "ppo.rollout_prompts": "16",
            "ppo.minibatch_prompts": "8",
            "ppo.num_ppo_epochs": "2",
            "max_steps": "6",
        },
        "rft": {
            **base,
            **prompts,
            **LORA,
            **loop,
            **SAMPLING,
            "generation.samples_per_prompt": "4",
            "rft.rollout_prompts": "8",
            "rft.minibatch_prompts": "8",
            "max_steps": "6",
        },
    }


def letters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """Returns the share of each completion's letters that are vowels."""
    return [sum(letter in "aeiou" for letter in text) / max(len(text), 1) for text in completions]


def main() -> int:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--work", type=Path, default=ROOT / "bench" / ".work" / "planned")
    arguments.add_argument("--page", type=Path, default=PAGE)
    arguments.add_argument("--only", nargs="+", choices=list(VERB_CONFIGS), default=[])
    options = arguments.parse_args()
    work = options.work.absolute()
    shutil.rmtree(work, ignore_errors=True)
    os.environ["ONEBASE_CACHE"] = str(work / "cache")
    make(work)
    try:
        results = measure(work, options.only)
    except SideFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = table(results)
    print(text)
    if not options.only:
        write_atomically(options.page, between(options.page.read_text(encoding="utf-8"), text, options.page.name))
    return 0


def measure(work: Path, only: list[str]) -> list[Result]:
    """Calibrates, plans and runs.

    Raises:
        SideFailed: the calibration or a run failed.
    """
    configs = {}
    for verb, keys in keys_of(work).items():
        words = [f"--{name}={value}" for name, value in {**keys, "output_dir": str(work / "runs" / verb)}.items()]
        configs[verb] = load_config(VERB_CONFIGS[verb], None, words)
        (work / f"{verb}.yaml").write_text(dump_config(configs[verb]), encoding="utf-8")
    found = []
    for verb, config in configs.items():
        if only and verb not in only and not (verb == "reward" and "ppo" in only):
            continue
        least_stolen(lambda: run("calibrate", ["plan", "--calibrate"]), f"calibration before {verb}")
        planned = costs_of(planned_run(config))
        (seconds, in_steps), stolen = least_stolen(partial(run_verb, verb, work), verb)
        found.append(Result(verb, planned, seconds, in_steps, stolen))
        print(f"bench: {verb}: planned {planned.times.total:.1f} s, took {seconds:.1f} s", flush=True)
    return found


def run_verb(verb: str, work: Path) -> tuple[float, float]:
    """Runs a verb afresh and returns the seconds of its process and of its steps.

    Raises:
        SideFailed: it failed.
    """
    folder = work / "runs" / verb
    shutil.rmtree(folder, ignore_errors=True)
    seconds = run(verb, [verb, str(work / f"{verb}.yaml")])
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return seconds, sum(json.loads(line).get("perf/step_seconds", 0.0) for line in lines)


def run(name: str, words: list[str]) -> float:
    """Runs `onebase` and returns the seconds of its process.

    Raises:
        SideFailed: it failed.
    """
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "onebase", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SideFailed(f"{name}: exit {done.returncode}: {tail(done.stderr)}")
    return time.perf_counter() - started


def make(work: Path) -> None:
    """Makes the base, its tokenizer and the data: sentences of random words, of uneven lengths."""
    work.mkdir(parents=True)
    drawn = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(drawn.choices(WORDS, k=drawn.randint(least, most)))

    rows: dict[str, list[dict[str, str]]] = {
        "pairs": [
            {"prompt": text(10, 80), "chosen": " " + text(10, 60), "rejected": " " + text(10, 60)} for _ in range(ROWS)
        ],
        "prompts": [{"prompt": text(10, 60)} for _ in range(PROMPTS)],
        "held_out": [{"prompt": text(10, 60)} for _ in range(4)],
        "texts": [{"text": text(100, 400)} for _ in range(PROMPTS)],
    }
    for name, lines in rows.items():
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    tokenizer = train_tokenizer([line["text"] for line in rows["texts"]], vocab_size=VOCABULARY)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(work / "base")
    tokenizer.save_pretrained(work / "base")


def table(results: list[Result]) -> str:
    """The table with its heading line: the machine, the date, and how many verbs are within the target."""
    within = [abs(result.costs.times.total / result.seconds - 1) <= TARGET for result in results]
    machine = describe()
    lines = [
        f"{time.strftime('%Y-%m-%d')}: {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; "
        f"a Llama of {LAYERS} layers of {HIDDEN}, float32, LoRA r=16, pretrain in full. {sum(within)} of {len(within)} "
        f"verbs are within {TARGET:.0%}.",
        "",
        "| verb | planned | took | error | of it steps: planned | took | error | stolen |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result, good in zip(results, within, strict=True):
        planned = result.costs.times.total
        missed = "" if good else " (**missed**)"
        cells = [
            result.verb,
            f"{planned:.1f} s",
            f"{result.seconds:.1f} s",
            f"{planned / result.seconds - 1:+.0%}{missed}",
        ]
        if result.step_seconds:
            steps = result.planned_steps
            cells += [f"{steps:.1f} s", f"{result.step_seconds:.1f} s", f"{steps / result.step_seconds - 1:+.0%}"]
        else:
            cells += ["", "", ""]
        cells.append(f"{result.stolen:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def between(page: str, text: str, name: str) -> str:
    """Returns the page with `text` in place of what was between its marks.

    Raises:
        ValueError: the page does not have both marks, once each and in order.
    """
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"{name}: expected '{BEGIN}' and '{END}' once each, in this order; put them back")
    return f"{page[: page.index(BEGIN)]}{BEGIN}\n\n{text.strip()}\n\n{page[page.index(END) :]}"


if __name__ == "__main__":
    sys.exit(main())
