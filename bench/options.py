"""The command line shared by the benchmark's measurements, whether they run alone or in turn."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.results import RESULTS
from bench.side import SideFailed
from bench.workload import Missing, Workload

FAILED, MISSING, SLOWER = 1, 2, 5
"""Exit codes: a side failed; the peers' programs or the data are missing; slower than last time."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A measurement: its name, and a function that measures, keeps the result and returns a line for each failure."""

    name: str
    measure: Callable[..., list[str]]


def folders_parser() -> argparse.ArgumentParser:
    """Options for the folders; the Makefile passes the same names in capitals."""
    found = argparse.ArgumentParser()
    found.add_argument("--peers", type=Path, default=Workload().peers, help="folder of the peers' programs")
    found.add_argument("--data", type=Path, default=Workload().data, help="folder with hh_rlhf/")
    found.add_argument("--work", type=Path, default=Workload().work, help="folder for models and runs")
    found.add_argument("--results", type=Path, default=RESULTS, help="results file")
    return found


def parser() -> argparse.ArgumentParser:
    """Options for the folders and the workload."""
    found = folders_parser()
    found.add_argument("--envs", type=Path, default=Workload().environments, help="folder of the peers' environments")
    found.add_argument("--rounds", type=int, default=Workload().rounds, help="how often each side runs")
    found.add_argument("--short", action="store_true", help="16 rows and 2 rollouts, to check that everything runs")
    return found


def workload_of(options: argparse.Namespace) -> Workload:
    """Returns the workload the options describe."""
    workload = Workload(
        rounds=options.rounds,
        peers=options.peers.resolve(),
        data=options.data.resolve(),
        environments=options.envs.absolute(),
        work=options.work.absolute(),
    )
    return replace(workload, pairs=16, ppo_batches=2, new_tokens=16) if options.short else workload


def run_alone(measurement: Measurement, *, choices: Sequence[str] | None = None) -> None:
    """Runs one measurement as a command; `choices` are what `--only` may name."""
    arguments = parser()
    if choices:
        arguments.add_argument("--only", nargs="+", choices=choices, metavar="NAME", help="; ".join(choices))
    options = arguments.parse_args()
    more: dict[str, Any] = {"only": options.only} if choices else {}
    sys.exit(measured_by([measurement], workload_of(options), options.results, **more))


def measured_by(measurements: Sequence[Measurement], workload: Workload, results: Path, **more: Any) -> int:
    """Runs the measurements in turn, prints the failures at the end, returns the exit code."""
    try:
        workload.check()
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return MISSING
    failures: list[str] = []
    for measurement in measurements:
        print(f"bench: {measurement.name}", flush=True)
        try:
            failures += measurement.measure(workload, results, **more)
        except SideFailed as error:
            failures.append(f"{measurement.name}: {error}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return FAILED if failures else 0
