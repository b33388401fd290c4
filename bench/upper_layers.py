"""Measures what adapters on only the upper layers cost in quality, with every stage of the demo's task.

usage: upper_layers.py RUN    RUN is a folder `onebase demo` left

Runs are written to RUN/layers/. Prints a Markdown table; seconds cover PPO's training.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from onebase.demo import demo
from onebase.evaluation.held_out import HeldOut
from onebase.recipes import dpo, ppo, reward, rft, sft
from onebase.reporting.intervals import paired_bootstrap

LAYERS = ("all", "upper-half", "upper-quarter")


def main() -> None:
    demo_run = Path(sys.argv[1])
    print("| adapters on | SFT gold | DPO gold | PPO gold | PPO minus SFT | KL (nats/completion) | PPO seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for layers in LAYERS:
        roles, seconds = train(demo_run, demo_run / "layers" / layers, layers)
        gold = {name: role.judged["gold"] for name, role in roles.items()}
        rise = paired_bootstrap(gold["SFT"], gold["PPO"])
        rows = {name: role.row() for name, role in roles.items()}
        scores = " | ".join(rows[name]["gold"].text(2) for name in ("SFT", "DPO", "PPO"))
        print(f"| {layers} | {scores} | {rise.text(3)} | {rows['PPO']['kl'].text(2)} | {seconds:.0f} |", flush=True)


def train(demo_run: Path, folder: Path, layers: str) -> tuple[dict[str, HeldOut], float]:
    """Trains SFT, reward, DPO, RFT and PPO on the demo's base and data; returns the evaluations and PPO's seconds."""
    folder.mkdir(parents=True)
    for name in ("data", "pretrain"):
        (folder / name).symlink_to((demo_run / name).resolve())
    configs: dict[str, Any] = {}
    for name, config in demo.make_configs(folder, seed=0).items():
        keys = config.model_dump()
        if "lora" in keys:
            keys["lora"]["layers"] = layers
        configs[name] = type(config).model_validate(keys)
    sft.run(configs["sft"])
    reward.run(configs["reward"])
    dpo.run(configs["dpo"])
    rft.train(configs["rft"])
    started = time.monotonic()
    ppo.train(configs["ppo"])
    seconds = time.monotonic() - started
    return demo.compare(folder, seed=0), seconds


if __name__ == "__main__":
    main()
