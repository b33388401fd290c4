"""The demo's PPO on a Ray cluster of three workers, one of which is killed, against three processes that all live.

    python -m bench.ray_demo FOLDER [--rollouts 6] [--base MODEL]

Makes the demo's data and its stages up to PPO, each with fewer steps than the demo's own (stages that are there already
are kept), then runs the PPO stage twice: by `onebase ppo --processes 3`, and by `onebase submit --to ray` on a cluster
that is started here, where a worker is killed after the second checkpoint. Prints how far the two results are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from safetensors.torch import load_file

from onebase.config.files import dump_config
from onebase.demo.demo import make_configs, write_data
from onebase.files import write_atomically

WORKERS = 3
SHORT = {
    "pretrain": ["--max_steps", "150"],
    "sft": ["--max_steps", "40"],
    "reward": ["--max_steps", "40"],
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ray_demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rollouts", type=int, default=6)
    parser.add_argument("--base", type=Path, help="a model that an earlier demo pretrained, instead of a short one")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    prepare(folder, options.base)
    words = ["--max_steps", str(options.rollouts), "--evaluation.prompts", "16", "--checkpoint.every_steps", "1"]
    timed(
        "three processes", lambda: run(["ppo", "ppo.yaml", *words, "--output_dir", "alive", "--processes", "3"], folder)
    )
    timed("three workers, one killed", lambda: killed(folder, words))
    return compare(folder / "alive", folder / "killed")


def prepare(folder: Path, base: Path | None) -> None:
    """The demo's data and the stages before PPO."""
    if not (folder / "data").is_dir():
        write_data(folder / "data", 0)
    for name, config in make_configs(folder, 0).items():
        write_atomically(folder / f"{name}.yaml", dump_config(config))
    if base is not None and not (folder / "pretrain" / "model").exists():
        (folder / "pretrain").mkdir(exist_ok=True)
        (folder / "pretrain" / "model").symlink_to(base.resolve())
    for verb, more in SHORT.items():
        done = folder / verb / ("model" if verb == "pretrain" else "summary.json")
        if not done.exists():
            timed(verb, lambda verb=verb, more=more: run([verb, f"{verb}.yaml", *more], folder))


def timed(name: str, run: object) -> None:
    began = time.monotonic()
    run()  # type: ignore[operator]
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def run(words: list[str], folder: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-m", "onebase", *words], cwd=folder, env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")


def killed(folder: Path, words: list[str]) -> None:
    """The PPO stage on Ray, with one of its workers killed."""
    line = [sys.executable, "-m", "onebase", "submit", "--to", "ray", "--nodes", str(WORKERS), "--go", "--force", "ppo"]
    line += ["ppo.yaml", "--into", "job", *words, "--output_dir", "killed"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    environment.pop("RAY_ADDRESS", None)
    log = folder / "ray.log"
    with log.open("w") as output:
        started = subprocess.Popen(line, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
        victim = None
        while started.poll() is None:
            time.sleep(0.1)
            if victim is None and (folder / "killed" / "checkpoint-2").is_dir() and (found := of_rank(started.pid, 1)):
                victim = found.parent()
                os.kill(victim.pid, signal.SIGKILL)  # Ray's worker, and with it the process it started
                print(f"killed worker 1 after checkpoint-2 (process {victim.pid})", flush=True)
    said = log.read_text()
    resumed = [text for text in said.splitlines() if "found checkpoint-" in text]
    if started.returncode or victim is None or not resumed:
        raise SystemExit(f"the run on Ray ended with {started.returncode}, killed {victim}: {said[-2000:]}")
    print(f"it went on: {resumed[-1].strip()}")


def of_rank(pid: int, rank: int) -> psutil.Process | None:
    """The process of `onebase` that a worker started."""
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if "onebase" in child.cmdline() and child.environ().get("RANK") == str(rank):
                return child
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return None


def compare(alive: Path, after: Path) -> int:
    """Prints how far two runs' roles and metrics are apart; returns 0 if not at all, else 5."""
    most = 0.0
    for role in ("policy", "critic"):
        a, b = (load_file(run / role / "adapter_model.safetensors") for run in (alive, after))
        most = max(most, *(float((a[key] - b[key]).abs().max()) for key in a))
    rows = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (alive, after)]
    names = ("objective/scores", "completions/num_tokens", "loss/policy", "loss/value")
    found = [[[row.get(name) for name in names] for row in run] for run in rows]
    for step, (one, other) in enumerate(zip(*found, strict=True), start=1):
        print(f"rollout {step}: {one} {'equal' if one == other else other}")
    print(f"policy and critic differ by at most {most:g}; {len(found[0])} rollouts, all equal: {found[0] == found[1]}")
    return 0 if most == 0 and found[0] == found[1] else 5


if __name__ == "__main__":
    sys.exit(main())
