"""The demo's task by every way of preference optimisation, from one SFT policy: gold score, KL and length of each.

usage: preference_table.py RUN [SAMPLES]    RUN is a folder `onebase demo` left; SAMPLES preference rows for each loss

Prints a Markdown table; writes the runs beside the demo's in RUN/preference/. Every loss reads the same SAMPLES rows of
RUN/data/preferences.jsonl once (kto: their pairs); RAFT samples 8 answers to SAMPLES / 8 prompts, keeps the best by the
demo's reward role, and trains SFT on them; PPO is the demo's own run, of 50 rollouts x 128 completions.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from onebase.config import BestOfConfig, DPOConfig, SFTConfig
from onebase.data.chat import chat_format
from onebase.data.formats import read_rows
from onebase.data.prepare import Limits, encode_prompts
from onebase.evaluation.held_out import evaluate_role
from onebase.evaluation.intervals import paired_bootstrap
from onebase.models.generation import Sampling, stop_ids
from onebase.models.loading import load_base
from onebase.models.role_files import load_role
from onebase.recipes import best_of, demo, dpo, sft
from onebase.rewards.functions import FunctionReward

SETTINGS = {
    "sigmoid": (0.5, 2e-4),
    "hinge": (0.5, 2e-4),
    "ipo": (2.0, 2e-4),
    "plackett_luce": (0.5, 2e-4),
    "kto": (0.5, 5e-4),
    "simpo": (2.0, 1e-4),
    "cpo": (0.1, 5e-4),
    "orpo": (0.1, 5e-4),
    "rrhf": (0.1, 5e-4),
}
"""beta and learning rate of each loss, chosen on this task: at beta 0.1 and 5e-4 the losses against a reference drift
10 nats and more from it, and their gold score falls below SFT's."""
LOSSES = tuple(SETTINGS)


def main() -> None:
    folder, samples = Path(sys.argv[1]), int((sys.argv[2:] or ["6400"])[0])
    out = folder / "preference"
    pairs_only(folder / "data" / "preferences.jsonl", out / "pairs.jsonl", samples)
    seconds = {}
    for loss in LOSSES:
        started = time.monotonic()
        dpo.run(dpo_config(folder, out, loss, samples))
        seconds[loss] = time.monotonic() - started
    started = time.monotonic()
    raft(folder, out, samples)
    seconds["RAFT"] = time.monotonic() - started
    seconds["PPO"] = json.loads((folder / "ppo" / "summary.json").read_text())["seconds"]
    table(folder, out, seconds)


def dpo_config(folder: Path, out: Path, loss: str, samples: int) -> DPOConfig:
    data = out / "pairs.jsonl" if loss == "kto" else folder / "data" / "preferences.jsonl"
    return DPOConfig.model_validate({
        "output_dir": str(out / loss), "loss": loss, "model": model(folder),
        "start_from": str(folder / "sft" / "policy"),
        "data": {"train": [str(data)], "limit": samples, "eval_fraction": 0.05},
        "preference": {"beta": SETTINGS[loss][0]},
        "optimizer": {"learning_rate": SETTINGS[loss][1], "schedule": "linear"},
        "batch": {"minibatch": 32, "microbatch_tokens": demo.TOKEN_BUDGET},
    })  # fmt: skip


def raft(folder: Path, out: Path, samples: int) -> None:
    best_of.run(BestOfConfig.model_validate({
        "output_dir": str(out / "best-of"), "policy": str(folder / "sft" / "policy"), "model": model(folder),
        "data": {"train": [str(folder / "data" / "prompts.jsonl")], "limit": samples // 8},
        "reward": {"role": str(folder / "reward" / "reward")},
        "generation": {"max_new_tokens": demo.MAX_NEW_TOKENS, "samples_per_prompt": 8},
        "batch": {"microbatch_tokens": demo.TOKEN_BUDGET},
    }))  # fmt: skip
    sft.run(SFTConfig.model_validate({
        "output_dir": str(out / "RAFT"), "model": model(folder), "start_from": str(folder / "sft" / "policy"),
        "data": {"train": [str(out / "best-of" / "best.jsonl")], "eval_fraction": 0.05},
        "optimizer": {"learning_rate": 1e-3, "schedule": "linear", "num_epochs": 2},
        "batch": {"minibatch": 32, "microbatch_tokens": demo.TOKEN_BUDGET},
    }))  # fmt: skip


def model(folder: Path) -> dict[str, str]:
    base = str(folder / "pretrain" / "model")
    return {"model_name_or_path": base, "dtype": "float32", "chat_template": demo.TEMPLATE}


def pairs_only(source: Path, target: Path, count: int) -> None:
    """The rows with two answers, as pairs: kto reads one answer at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for row in read_rows(source) if len(row.answers) == 2][:count]
    lines = [
        {"prompt": row.messages[0].content, "chosen": row.answers[0], "rejected": row.answers[1]} for row in rows
    ]
    target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def table(folder: Path, out: Path, seconds: dict[str, float]) -> None:
    one = load_base(str(folder / "pretrain" / "model"), dtype="float32")
    chat = chat_format(one.tokenizer, demo.TEMPLATE)
    names = {"SFT": folder / "sft", **{name: out / name for name in (*LOSSES, "RAFT")}, "PPO": folder / "ppo"}
    prompts = encode_prompts(
        read_rows(folder / "data" / "held_out.jsonl"), chat, Limits(one.context_length),
        max_new_tokens=demo.MAX_NEW_TOKENS, opening_tokens=1,
    )  # fmt: skip
    results = {}
    for name, run in names.items():
        load_role(one, name, run / "policy", kinds=("policy",))
        results[name] = evaluate_role(
            one, chat, prompts, FunctionReward("onebase.data.grammar:gold_reward"), role=name, reference="SFT",
            sampling=Sampling(demo.MAX_NEW_TOKENS, stop_ids=stop_ids(one)), samples_per_prompt=demo.HELD_OUT_SAMPLES,
            seed=0, token_budget=demo.TOKEN_BUDGET,
        )  # fmt: skip
    print("| | gold | less SFT | KL (nats/completion) | length (tokens) | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        row, rise = result.row(), paired_bootstrap(results["SFT"].scores, result.scores)
        spent = f"{seconds[name]:.0f}" if name in seconds else ""
        print(f"| {name} | {row['score'].text(2)} | {rise.text(3) if name != 'SFT' else ''} | {row['kl'].text(2)} | "
              f"{row['length'].text(1)} | {spent} |")  # fmt: skip


if __name__ == "__main__":
    main()
