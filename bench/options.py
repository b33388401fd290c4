"""The command line that the parts of the benchmark share, whether they run alone or in turn."""

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
"""Exit codes: a side failed; the peers' programs or the data are not there; slower than last time."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """A part of the benchmark: its name, and what measures and keeps it, and returns a line for each failure."""

    name: str
    measure: Callable[..., list[str]]


def folders_parser() -> argparse.ArgumentParser:
    """Where things are; the Makefile passes the same names in capitals."""
    found = argparse.ArgumentParser()
    found.add_argument("--peers", type=Path, default=Workload().peers, help="folder of the peers' programs")
    found.add_argument("--data", type=Path, default=Workload().data, help="folder with hh_rlhf/")
    found.add_argument("--work", type=Path, default=Workload().work, help="where models and runs are put")
    found.add_argument("--results", type=Path, default=RESULTS, help="the file of the results")
    return found


def parser() -> argparse.ArgumentParser:
    """What can be set of the workload."""
    found = folders_parser()
    found.add_argument("--envs", type=Path, default=Workload().environments, help="where the peers are installed")
    found.add_argument("--rounds", type=int, default=Workload().rounds, help="times each side runs")
    found.add_argument("--short", action="store_true", help="16 rows and 2 rollouts: to see that all of it runs")
    return found


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload that the options say."""
    workload = Workload(
        rounds=options.rounds,
        peers=options.peers.resolve(),
        data=options.data.resolve(),
        environments=options.envs.absolute(),
        work=options.work.absolute(),
    )
    return replace(workload, pairs=16, ppo_batches=2, new_tokens=16) if options.short else workload


def run_alone(part: Measurement, *, choices: Sequence[str] | None = None) -> None:
    """One part as a command of its own; `choices` are what `--only` may name."""
    arguments = parser()
    if choices:
        arguments.add_argument("--only", nargs="+", choices=choices, metavar="NAME", help="; ".join(choices))
    options = arguments.parse_args()
    more: dict[str, Any] = {"only": options.only} if choices else {}
    sys.exit(measured_by([part], workload_of(options), options.results, **more))


def measured_by(parts: Sequence[Measurement], workload: Workload, results: Path, **more: Any) -> int:
    """Measures part after part, says what failed at the end; returns the exit code."""
    try:
        workload.check()
    except Missing as error:
        print(f"error: {error}", file=sys.stderr)
        return MISSING
    failures: list[str] = []
    for part in parts:
        print(f"bench: {part.name}", flush=True)
        try:
            failures += part.measure(workload, results, **more)
        except SideFailed as error:
            failures.append(f"{part.name}: {error}")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return FAILED if failures else 0
