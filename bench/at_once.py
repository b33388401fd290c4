"""Times two runs at once on one machine, against one after the other.

usage: python -m bench.at_once [--task sft|dpo|demo] [--rounds N] [--patience SECONDS] [--data FOLDER] [--models FOLDER]

Each run is the command line in its own process, including start-up. `spinning` is how OpenMP waits by default;
`watched` is what onebase does: it spins only while the machine is idle. The two take turns. sft: 40 steps of a model
of 260 k parameters; dpo: 12 steps of one of 34 M; demo: the whole demo.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.options import folders_parser
from bench.workload import Workload, prepare

WAITS = {"spinning": {"GOMP_SPINCOUNT": "300000"}, "watched": {}}
"""Environments of the runs. Setting libgomp's own default turns the watching off."""


def main() -> int:
    parser = folders_parser()
    parser.add_argument("--task", choices=("sft", "dpo", "demo"), default="sft")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--patience", type=float, default=600.0, help="stop runs after this many seconds")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        words = command(options.task, options, Path(folder))
        seconds: dict[tuple[str, int], list[float]] = {(how, runs): [] for runs in (1, 2) for how in WAITS}
        for _ in range(options.rounds):
            for how, runs in seconds:
                seconds[how, runs].append(together(words, runs, how, Path(folder), options.patience))
    for (how, runs), found in seconds.items():
        spread = f"[{min(found):.1f}, {max(found):.1f}]"
        late = " (stopped)" if max(found) >= options.patience else ""
        print(f"{options.task:<5} {how:<9} {runs} at once  {statistics.median(found):7.1f} s {spread}{late}")
    alone, both = (statistics.median(seconds["watched", runs]) for runs in (1, 2))
    usual = statistics.median(seconds["spinning", 1])
    print(f"two at once take {both / (2 * alone):.2f} of the time of one after the other")
    print(f"one run alone: {alone / usual - 1:+.1%} against spinning")
    return 0


def command(task: str, options: object, folder: Path) -> list[str]:
    """Returns the command line of a task; `OUT` stands for its output folder."""
    if task == "demo":
        return ["demo", "--output-dir", "OUT"]
    data: Path = options.data.resolve()  # type: ignore[attr-defined]
    if task == "sft":
        return [
            "sft",
            "--output_dir",
            "OUT",
            "--max_steps",
            "40",
            "--batch.minibatch",
            "16",
            "--lora.r",
            "16",
            "--model.model_name_or_path",
            str(options.models.resolve() / "stories260K" / "hf"),  # type: ignore[attr-defined]
            "--model.dtype",
            "float32",
            "--model.chat_template",
            "hh",
            "--data.train",
            str(data / "text_en" / "tinystories_sample.txt.gz"),
            "--data.limit",
            "700",
        ]
    work = Workload(peers=options.peers.resolve(), data=data, work=options.work.absolute())  # type: ignore[attr-defined]
    base = prepare(work, Path(sys.executable), work.own_folder) / f"base-{work.size}"
    return [
        "dpo",
        "--output_dir",
        "OUT",
        "--max_steps",
        "12",
        "--batch.minibatch",
        "8",
        "--model.model_name_or_path",
        str(base),
        "--model.chat_template",
        "hh",
        "--data.train",
        str(work.transcripts),
        "--data.limit",
        "120",
        "--data.truncate_prompt",
        "left",
    ]


def together(words: list[str], runs: int, how: str, folder: Path, patience: float) -> float:
    """Starts `runs` equal runs at once and returns the seconds until the last has ended.

    Raises:
        subprocess.CalledProcessError: a run failed.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
    start = time.monotonic()
    running = []
    for number in range(runs):
        out = folder / f"{how}-{runs}-{number}-{start}"
        line = [sys.executable, "-m", "onebase", *(str(out) if word == "OUT" else word for word in words)]
        log = open(f"{out}.log", "w")
        running.append(subprocess.Popen(line, env={**environment, **WAITS[how]}, stdout=log, stderr=log))
    for process in running:
        try:
            process.wait(max(0.1, patience - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            process.kill()
            continue
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
    return time.monotonic() - start


if __name__ == "__main__":
    sys.exit(main())
