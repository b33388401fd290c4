"""The cells of `bench.planned`: which there are, and each one's configuration and data as a user would write them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from bench.planned_bases import TEMPLATE, words

VERBS = ("sft", "reward", "dpo", "ppo", "rft", "best-of", "iterate", "pretrain")
FORMATS: dict[str, dict[str, str]] = {
    "fp32": {"dtype": "float32"},
    "bf16": {"dtype": "bfloat16"},
    "nf4": {"dtype": "float32", "quantization": "nf4"},
}
WAYS: dict[str, dict[str, Any]] = {"lora": {}, "full": {"r": 0}, "upper half": {"layers": "upper-half"}}
SIZES = ("small", "medium", "large")
LENGTHS = (64, 256)
"""Tokens of a prompt with one completion; a quarter of them is the completion."""
MINIBATCH = 2
"""Examples of an optimizer step, each a microbatch of its own."""
DIFFERENCES = ("256", "nf4", "bf16", "full", "medium", "upper half", "large")
"""What may differ from the plainest cell (fp32, lora, small, 64), the most telling first."""
REWARD = """def score(prompts, completions, **columns):
    return [sum(map(ord, text)) % 997 / 997 for text in completions]  # even short ones differ
"""


@dataclass(frozen=True, slots=True)
class Cell:
    """One run to measure."""

    verb: str
    number_format: str
    way: str
    size: str
    length: int

    @property
    def name(self) -> str:
        """A name for its folder."""
        return "-".join([self.verb, self.number_format, self.way.replace(" ", "-"), self.size, str(self.length)])

    def keys(self) -> dict[str, Any]:
        """Returns what tells it from the others, as it is kept."""
        return asdict(self)


def every_cell(verbs: Iterable[str] = VERBS) -> list[Cell]:
    """Returns the cells of these verbs, those that tell most first: every verb, then formats and ways, then sizes."""
    found = [Cell(*parts) for parts in product(verbs, FORMATS, WAYS, SIZES, LENGTHS)]
    return sorted(found, key=_usefulness)


def _usefulness(cell: Cell) -> tuple[int, int, int]:
    # A cell that differs from the plainest one in one thing tells more than one that differs in three, and all verbs
    # alike before the next thing.
    parts = (cell.size, str(cell.length), cell.number_format, cell.way)
    differs = sorted(DIFFERENCES.index(part) for part in parts if part in DIFFERENCES)
    return (len(differs), differs[-1] if differs else 0, VERBS.index(cell.verb))


def write_cell(cell: Cell, work: Path) -> Path:
    """Writes the cell's folder with its configuration and data, and returns the configuration's path."""
    folder = work / "cells" / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.from_file(str(work / f"base-{cell.size}" / "tokenizer.json"))
    rows = rows_of(cell, tokenizer)
    for name, some in {"train": rows[1:], "eval": rows[:1]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    if cell.verb == "iterate":
        (folder / "my_rewards.py").write_text(REWARD, encoding="utf-8")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(configuration(cell, folder, work), sort_keys=False), encoding="utf-8")
    return path


def rows_of(cell: Cell, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Returns the verb's rows, the first of them to evaluate on."""
    draw = random.Random(0)
    answer = cell.length // 4

    def text(tokens: int) -> str:
        return " ".join(some_words(tokens, tokenizer, draw))

    around = len(tokenizer.encode("\n\nHuman: \n\nAssistant: ", add_special_tokens=True).ids) + 1  # and the end token

    def prompt() -> str:
        return text(cell.length - answer - around)

    if cell.verb == "pretrain":
        return [{"text": text(2 * cell.length)} for _ in range(1 + MINIBATCH * 2)]
    if cell.verb == "sft":
        return [{"prompt": prompt(), "completion": text(answer)} for _ in range(1 + MINIBATCH * 2)]
    if cell.verb in ("reward", "dpo"):
        count = 1 + MINIBATCH * 2
        return [{"prompt": prompt(), "chosen": text(answer), "rejected": text(answer)} for _ in range(count)]
    # Every prompt asks for the same number; what matters is how long it is.
    return [{"prompt": prompt(), "gold": "42"} for _ in range(1 + MINIBATCH)]


def some_words(tokens: int, tokenizer: Tokenizer, draw: random.Random) -> Iterator[str]:
    """Yields words that together have this many tokens, or one or two fewer."""
    known, left = words(), tokens
    while left > 0:
        word = draw.choice(known)
        left -= len(tokenizer.encode(f" {word}", add_special_tokens=False).ids)
        if left >= 0:
            yield word


def configuration(cell: Cell, folder: Path, work: Path) -> dict[str, Any]:
    """Returns the configuration, with no more keys than the cell needs."""
    model = {"model_name_or_path": str(work / f"base-{cell.size}"), **FORMATS[cell.number_format]}
    if cell.verb != "pretrain":
        model["chat_template"] = TEMPLATE
    trained = {"lora": WAYS[cell.way]} if WAYS[cell.way] else {}
    budget: dict[str, Any] = {"microbatch_tokens": cell.length}
    batch = {"minibatch": MINIBATCH, **budget}
    files = {"train": str(folder / "train.jsonl"), "eval": str(folder / "eval.jsonl")}
    roles, way = work / f"roles-{cell.size}", cell.way.replace(" ", "-")
    start = {} if cell.way == "full" else {"start_from": str(roles / f"policy-{way}")}
    judged = {"role": str(roles / f"reward-{'lora' if cell.way == 'full' else way}")}
    drawn = {"max_new_tokens": cell.length // 4}
    rollout = {"rollout_prompts": 2, "minibatch_prompts": 1}
    common = {"output_dir": str(folder / "run"), "model": model}
    steps = {"max_steps": 2}
    match cell.verb:
        case "pretrain":
            trained = {"lora": {"r": 16, **WAYS[cell.way]}} if cell.way != "full" else {}
            own = {**steps, **trained, "data": files, "batch": batch, "block_length": cell.length}
        case "reward":
            own = {**steps, **trained, "data": files, "batch": batch}
        case "sft" | "dpo":  # with held-out rows they would also sample answers to show, most of the time of a cell
            own = {**steps, **trained, "data": {"train": files["train"], "eval_fraction": 0}, "batch": batch}
        case "ppo":
            own = {
                "max_steps": 1,
                **(start or trained),
                "data": files,
                "reward": judged,
                "generation": drawn,
                "ppo": {**rollout, "num_ppo_epochs": 1},
                "batch": budget,
                "evaluation": {"prompts": 1},
            }
        case "rft":
            own = {
                "max_steps": 1,
                **trained,
                "data": files,
                "reward": {"verifiers": "numeric"},
                "generation": {**drawn, "samples_per_prompt": 4},
                "rft": rollout,
                "batch": budget,
                "evaluation": {"prompts": 1},
            }
        case "best-of":
            own = {
                **start,
                "data": {"train": files["train"]},
                "reward": judged,
                "generation": drawn,
                "batch": budget,
            }
        case "iterate":
            own = {
                **trained,
                "rounds": 1,
                "prompts_per_round": 2,
                "data": {"train": files["train"]},
                "reward": {"callable": f"{folder / 'my_rewards.py'}:score"},
                "generation": {**drawn, "samples_per_prompt": 2},
                "batch": {**batch, "minibatch": 1},
            }
        case _:
            raise ValueError(f"{cell.verb}: not a verb that is measured")
    return common | own
