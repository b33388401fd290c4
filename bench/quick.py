"""Checks within minutes, against the last kept numbers, whether a change has made onebase slower.

usage: python -m bench.quick [--save] [--peers FOLDER] [--data FOLDER] [--work FOLDER] [--results FILE]

Each stage's seconds are multiplied by the speed of a matrix product, the better of one timed just before and one just
after. This gives a cost in 1e9 operations that does not depend on the machine's speed; the lower of two runs counts.
Exits with 5 if a stage costs over 15 % more than `--save` kept last. Of the peers' programs, it only needs the one
that makes the workload.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from bench.machine import default_precision
from bench.options import FAILED, MISSING, SLOWER, folders_parser
from bench.results import keep, read_results, stamp
from bench.side import SideFailed, run_module
from bench.workload import Missing, Workload, prepare

STAGES = ("sft", "reward", "dpo", "ppo-head", "ppo", "decode")
SLOWER_BY = 1.15
RUNS = 2
PAIRS, PPO_BATCHES = 48, 2


def main() -> int:
    arguments = folders_parser()
    arguments.add_argument("--save", action="store_true", help="keep these numbers for the next comparison")
    options = arguments.parse_args()
    workload = Workload(peers=options.peers.resolve(), data=options.data.resolve(), work=options.work.absolute())
    started = time.monotonic()
    try:
        workload.check()
        now = measure(workload)
    except (Missing, SideFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISSING if isinstance(error, Missing) else FAILED
    last = read_results(options.results).get("quick", {})
    lines, slower = compared(now, last)
    print("\n".join(lines))
    print(f"{now['precision']}, {now['threads']} threads, {time.monotonic() - started:.0f} s")
    if options.save:
        keep("quick", now, options.results)
        return 0
    if slower:
        print(
            f"error: over {SLOWER_BY - 1:.0%} slower than last: {', '.join(slower)}; run again on an idle machine; if "
            "it stays so, find the change, or accept it with --save",
            file=sys.stderr,
        )
    return SLOWER if slower else 0


def measure(workload: Workload) -> dict[str, Any]:
    """Returns cost and seconds of every stage, from the run with the lower cost."""
    precision = default_precision()
    folder = prepare(workload, Path(sys.executable), workload.own_folder)
    stages: dict[str, dict[str, float]] = {}
    for _ in range(RUNS):
        speed = matrix_product(precision)
        for stage in STAGES:
            seconds = seconds_of(stage, folder, workload, precision)
            before, speed = speed, matrix_product(precision)
            cost = seconds * max(before, speed)  # a disturbance slows a product down, never speeds it up
            if stage not in stages or cost < stages[stage]["cost"]:
                stages[stage] = {"cost": round(cost, 2), "seconds": round(seconds, 3)}
    return {"precision": precision, "stages": stages, **stamp()}


def seconds_of(stage: str, folder: Path, workload: Workload, precision: str) -> float:
    if stage == "decode":
        return run_module("bench.decode", folder, workload.size, precision, "onebase")["seconds"]
    measured = run_module(
        "bench.ours",
        folder,
        workload.size,
        precision,
        stage,
        "--data",
        workload.transcripts,
        "--rows",
        str(PAIRS),
        "--batches",
        str(PPO_BATCHES),
    )
    return measured["seconds_per_batch"] if stage.startswith("ppo") else measured["seconds"]


def matrix_product(precision: str) -> float:
    """Returns the speed of a matrix product in 1e9 operations per second."""
    return run_module("bench.machine", precision, "quick")["gflops"]


def compared(now: dict[str, Any], last: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the table, and the stages over 15 % costlier than last at the same precision and number of threads."""
    alike = all(last.get(key) == now[key] for key in ("precision", "threads"))
    before = last.get("stages", {}) if alike else {}
    lines = [f"{'stage':<10} {'seconds':>8} {'cost now':>10} {'cost last':>10}  ratio"]
    slower = []
    for stage, measured in now["stages"].items():
        line = f"{stage:<10} {measured['seconds']:>8.2f} {measured['cost']:>10.0f} "
        if stage not in before:
            lines.append(line + f"{'-':>10}      -")
            continue
        ratio = measured["cost"] / before[stage]["cost"]
        if ratio > SLOWER_BY:
            slower.append(f"{stage} ({ratio:.2f}x)")
        lines.append(line + f"{before[stage]['cost']:>10.0f}  {ratio:5.2f}{'  SLOWER' if ratio > SLOWER_BY else ''}")
    if not before:
        what = "at this precision and number of threads; " if last else "to compare with; "
        lines.append(f"no earlier numbers {what}--save keeps these")
    return lines, slower


if __name__ == "__main__":
    sys.exit(main())
