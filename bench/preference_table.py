"""Compares all methods of preference optimisation on the demo's task, from one SFT policy: gold score, KL, length.

usage: preference_table.py RUN [SAMPLES]    RUN is a folder `onebase demo` left

Prints two Markdown tables, and writes the runs to RUN/preference/:

    equal samples    every loss reads the same SAMPLES (6,400) rows of RUN/data/preferences.jsonl once (kto: the answers
                     of their pairs); RAFT and online DPO, in rounds of eight answers per prompt, and PPO sample as many
    equal time       each method gets as many rows or rounds as fit in the seconds of PPO's training, at its speed in
                     the first table

The demo's reward role scores RAFT, online DPO and PPO; their seconds do not include its training.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from onebase.config.losses import LOSSES
from onebase.config.preferences import DPOConfig
from onebase.config.rollouts import IterateConfig, PPOConfig
from onebase.data.chat import chat_format
from onebase.data.fit import Limits
from onebase.data.prepare import encode_prompts
from onebase.demo import demo
from onebase.engines.budget import TokenBudget
from onebase.engines.opening import load_base
from onebase.evaluation.held_out import evaluate_role
from onebase.models.role_files import load_role
from onebase.reading.formats import read_rows
from onebase.recipes import dpo, iterate, ppo
from onebase.reporting.intervals import paired_bootstrap
from onebase.rewards.functions import FunctionReward
from onebase.sampling.local import stop_ids
from onebase.sampling.sampler import Sampling

SETTINGS = {
    "sigmoid": (0.5, 2e-4),
    "sigmoid_norm": (5.0, 2e-4),
    "hinge": (0.5, 2e-4),
    "ipo": (2.0, 2e-4),
    "plackett_luce": (0.5, 2e-4),
    "kto": (0.5, 5e-4),
    "simpo": (2.0, 1e-4),
    "cpo": (0.1, 5e-4),
    "orpo": (0.1, 5e-4),
    "rrhf": (0.1, 5e-4),
}
"""Beta and learning rate of each loss, tuned on this task: at 0.1 and 5e-4 the losses with a reference drift 10 nats or
more away from it, and their gold score falls below SFT's."""
ANSWERS = 8
ROLLOUT_SAMPLES = 128


def main() -> None:
    folder, samples = Path(sys.argv[1]), int((sys.argv[2:] or ["6400"])[0])
    methods: dict[str, Callable[[Path, Path, int], None]] = {
        **{loss: learner(loss) for loss in SETTINGS},
        "RAFT": raft,
        "online DPO": online_dpo,
        "PPO": run_ppo,
    }
    equal = folder / "preference" / "samples"
    seconds = {name: timed(method, folder, equal / name, samples) for name, method in methods.items()}
    print(f"\nEqual samples: {samples}\n")
    table(folder, equal, seconds, dict.fromkeys(methods, samples))
    timely = folder / "preference" / "time"
    counts = {name: int(samples * seconds["PPO"] / seconds[name]) for name in methods if name != "PPO"}
    spent = {name: timed(methods[name], folder, timely / name, count) for name, count in counts.items()}
    print(f"\nEqual time: the {seconds['PPO']:.0f} seconds of PPO\n")
    table(folder, timely, spent, counts)


def timed(method: Callable[[Path, Path, int], None], folder: Path, out: Path, samples: int) -> float:
    started = time.monotonic()
    method(folder, out, samples)
    return time.monotonic() - started


def learner(loss: str) -> Callable[[Path, Path, int], None]:
    def learn(folder: Path, out: Path, samples: int) -> None:
        data = folder / "data" / "preferences.jsonl"
        if loss == "kto":
            data = pairs_only(data, folder / "preference" / "pairs.jsonl")
        there = len(read_rows(data))
        dpo.run(
            DPOConfig.model_validate(
                {
                    "output_dir": str(out),
                    "loss": loss,
                    "model": model(folder),
                    "start_from": str(folder / "sft" / "policy"),
                    "data": {"train": [str(data)], "limit": min(samples, there), "eval_fraction": 0.05},
                    "preference": {"beta": SETTINGS[loss][0]} if "beta" in LOSSES[loss].reads else {},
                    "optimizer": {
                        "learning_rate": SETTINGS[loss][1],
                        "schedule": "linear",
                        "num_epochs": max(1, round(samples / there)),
                    },
                    "batch": {"minibatch": 32, "microbatch_tokens": demo.TOKEN_BUDGET},
                }
            )
        )

    return learn


def rounds(folder: Path, out: Path, samples: int, prompts: int, more: dict[str, object]) -> None:
    iterate.run(
        IterateConfig.model_validate(
            {
                "output_dir": str(out),
                "start_from": str(folder / "sft" / "policy"),
                "model": model(folder),
                "rounds": max(1, round(samples / (prompts * ANSWERS))),
                "prompts_per_round": prompts,
                "data": {"train": [str(folder / "data" / "prompts.jsonl")]},
                "reward": {"role": str(folder / "reward" / "reward")},
                "generation": {"max_new_tokens": demo.MAX_NEW_TOKENS, "samples_per_prompt": ANSWERS},
                "batch": {"minibatch": 16, "microbatch_tokens": demo.TOKEN_BUDGET},
                **more,
            }
        )
    )


def raft(folder: Path, out: Path, samples: int) -> None:
    rounds(folder, out, samples, 400, {"learn": "sft", "optimizer": {"learning_rate": 5e-4}})


def online_dpo(folder: Path, out: Path, samples: int) -> None:
    rounds(
        folder,
        out,
        samples,
        80,
        {
            "reference": "kept",
            "preference": {"beta": 0.5},
            "optimizer": {"learning_rate": 2e-4, "num_epochs": 2},
        },
    )


def run_ppo(folder: Path, out: Path, samples: int) -> None:
    config = demo.make_configs(folder, seed=0)["ppo"]
    ppo.train(
        PPOConfig.model_validate(
            {
                **config.model_dump(),
                "output_dir": str(out),
                "max_steps": samples // ROLLOUT_SAMPLES,
            }
        )
    )


def model(folder: Path) -> dict[str, str]:
    base = str(folder / "pretrain" / "model")
    return {"model_name_or_path": base, "dtype": "float32", "chat_template": demo.TEMPLATE}


def pairs_only(source: Path, target: Path) -> Path:
    """Writes the rows with two answers as pairs, as kto reads one answer at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        {"prompt": row.messages[0].content, "chosen": row.answers[0], "rejected": row.answers[1]}
        for row in read_rows(source)
        if len(row.answers) == 2
    ]
    target.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return target


def table(folder: Path, out: Path, seconds: dict[str, float], samples: dict[str, int]) -> None:
    base = load_base(str(folder / "pretrain" / "model"), dtype="float32")
    chat = chat_format(base.tokenizer, demo.TEMPLATE)
    prompts = encode_prompts(
        read_rows(folder / "data" / "held_out.jsonl"),
        chat,
        Limits(base.context_length),
        max_new_tokens=demo.MAX_NEW_TOKENS,
        opening_tokens=1,
    )
    results = {}
    for name, run in {"SFT": folder / "sft", **{name: out / name for name in seconds}}.items():
        load_role(base, name.replace(" ", "-"), run / "policy", kinds=("policy",))
        results[name] = evaluate_role(
            base,
            chat,
            prompts,
            FunctionReward("onebase.demo.grammar:gold_reward"),
            role=name.replace(" ", "-"),
            reference="SFT",
            sampling=Sampling(demo.MAX_NEW_TOKENS, stop_ids=stop_ids(base)),
            samples_per_prompt=demo.HELD_OUT_SAMPLES,
            seed=0,
            budget=TokenBudget(demo.TOKEN_BUDGET),
        )
    print("| | gold | minus SFT | KL (nats/completion) | length (tokens) | samples | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, result in results.items():
        row, rise = result.row(), paired_bootstrap(results["SFT"].scores, result.scores)
        spent = f"{samples[name]:,} | {seconds[name]:.0f}" if name in seconds else " | "
        print(
            f"| {name} | {row['score'].text(2)} | {rise.text(3) if name != 'SFT' else ''} | {row['kl'].text(2)} | "
            f"{row['length'].text(1)} | {spent} |"
        )


if __name__ == "__main__":
    main()
