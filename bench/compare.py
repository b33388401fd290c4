"""Compares each stage with the usual library for it: both sides in turn, in one sitting, in fresh processes.

usage: python -m bench.compare [--only ROW ...] [options of the workload, see --help]

A row is a stage in one precision, e.g. `"dpo bf16"`. Its result is written as soon as it is measured.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bench.machine import precisions
from bench.options import Measurement, run_alone
from bench.ratios import ratio_in_turn, shown
from bench.results import keep, stamp
from bench.side import measure_each, run_module, run_side
from bench.stolen import least_stolen
from bench.workload import Workload, prepare, python_of


@dataclass(frozen=True, slots=True)
class Row:
    """One of our stages and its peer."""

    name: str
    stage: str
    """The stage's name in `bench.ours`."""
    peer: str
    """The peer's name in the table."""
    environment: str
    """The peer's environment; "" for our own."""
    faster: float
    """Target in bf16: samples per second as a multiple of the peer's."""
    memory: float | None
    """Target in bf16: highest fraction of the peer's peak memory."""
    counts_first: bool = False
    """Whether the peer counts its warm-up batch, so that ours is counted too."""
    completions: int | None = None
    """Completions of each prompt, for a stage that is measured with several."""
    size: str = "s"
    """Model size."""


ROWS = (
    Row("sft", "sft", "TRL 1.16", "pairs", 4.0, 0.6),
    Row("reward", "reward", "TRL 1.16", "pairs", 4.0, 0.5),
    Row("dpo", "dpo", "TRL 1.16", "pairs", 6.0, 0.5),
    Row("ppo-head", "ppo-head", "TRL 0.11.4, multi-adapter", "classic", 5.0, 1.0),
    Row("ppo", "ppo", "TRL 1.12", "last", 6.0, 0.6, counts_first=True),
    Row("ppo-head beside two models", "ppo-head", "TRL 1.12", "last", 6.0, 0.6, counts_first=True),
    Row("grpo", "grpo", "TRL 1.16", "pairs", 5.0, 0.25, completions=8),
    Row("grpo K=4", "grpo", "TRL 1.16", "pairs", 5.0, 0.25, completions=4),
    Row("grpo K=16", "grpo", "TRL 1.16", "pairs", 5.0, 0.25, completions=16),
    Row("grpo m", "grpo", "TRL 1.16", "pairs", 5.0, 0.25, completions=4, size="m"),
    Row("decode", "decode", "transformers generate", "", 2.5, None),
)
NAMES = [f"{row.name} {precision}" for precision in ("bf16", "fp32") for row in ROWS]


def measure(workload: Workload, results: Path, only: list[str] | None = None) -> list[str]:
    """Measures every row or those named, keeping other results; returns a line for each failure."""
    here = {f"{row.name} {precision}": (row, precision) for precision in precisions() for row in ROWS}

    def one_row(name: str) -> None:
        measured = measure_row(*here[name], workload)
        keep(name, measured, results, within="rows")
        print(f"bench: {line_of(name, measured)}", flush=True)

    return measure_each([name for name in here if not only or name in only], one_row)


def measure_row(row: Row, precision: str, workload: Workload) -> dict[str, Any]:
    """Measures a row in turn: ours, the peer's, ours, the peer's, ...; what is disturbed again, see `bench.stolen`."""
    workload = replace(workload, size=row.size)
    prepare(workload, python_of(workload, "classic"), workload.folder)
    sides = {"ours": our_side(row, precision, workload), "peer": peer_side(row, precision, workload)}
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for number in range(workload.rounds):
        for side, run in sides.items():
            print(f"bench: {row.name} {precision}, round {number + 1} of {workload.rounds}, {side}", flush=True)
            measured, stolen = least_stolen(run, side)
            runs[side].append({**measured, "stolen": round(stolen, 3)})
    return {
        "stage": row.stage,
        "peer_name": row.peer,
        "precision": precision,
        "model": workload.size,
        "target": {"faster": row.faster, "memory": row.memory} if precision == "bf16" else None,
        "counts_first": row.counts_first,
        **({"completions": row.completions} if row.completions else {}),
        **runs,
        **stamp(),
    }


def our_side(row: Row, precision: str, workload: Workload) -> Callable[[], dict[str, Any]]:
    if row.stage == "decode":
        return lambda: decode(workload, precision, "onebase")
    more = ["--completions", str(row.completions)] if row.completions else []
    return lambda: run_module("bench.ours", *workload.ours(row.stage, precision, *more))


def peer_side(row: Row, precision: str, workload: Workload) -> Callable[[], dict[str, Any]]:
    """Returns a call of the peer's program with the same rows, batches and lengths."""
    if row.stage == "decode":
        return lambda: decode(workload, precision, "transformers")
    python = python_of(workload, row.environment)
    script, *words = peer_words(row, workload)
    path = workload.peers / script
    return lambda: run_side(row.peer, [python, path, workload.folder, workload.size, precision, *words])


def peer_words(row: Row, workload: Workload) -> list[str]:
    """Returns the peer's program and what follows the precision on its command line."""
    batches, new_tokens = workload.ppo_batches, str(workload.new_tokens)
    if row.stage == "grpo":  # it adds its warm-up step to the steps it is told
        return ["trl_grpo.py", str(batches - 1), new_tokens, str(row.completions)]
    if row.environment == "pairs":
        return ["trl_pairs.py", row.stage, str(workload.pairs)]
    script = {"classic": "trl_classic_ppo.py", "last": "trl_last_ppo.py"}[row.environment]
    return [script, str(batches), new_tokens]


def decode(workload: Workload, precision: str, side: str) -> dict[str, Any]:
    words = (workload.folder, workload.size, precision, side, "--new-tokens", str(workload.new_tokens))
    return run_module("bench.decode", *words)


def ratios(measured: dict[str, Any]) -> dict[str, Any]:
    """Returns the ratios `samples` and `memory`, ours over the peer's."""
    ours = "samples_per_second_with_first" if measured["counts_first"] else "samples_per_second"

    def of(our_key: str, peer_key: str) -> Any:
        return ratio_in_turn([run[our_key] for run in measured["ours"]], [run[peer_key] for run in measured["peer"]])

    return {"samples": of(ours, "samples_per_second"), "memory": of("peak_rss_mb", "peak_rss_mb")}


def decoding(measured: dict[str, Any]) -> dict[str, float]:
    """Returns, for grpo, the seconds of our step, of decoding within it, and of the peer's step; and what they limit.

    `share` is decoding's share of our step. `limit` is the ratio to the peer if everything else took no time: changes
    outside decoding can bring it no higher.
    """
    step, generate = (median(run[key] for run in measured["ours"]) for key in ("seconds_per_step", "generate"))
    peer = median(run["seconds_per_step"] for run in measured["peer"])
    return {"step": step, "generate": generate, "peer": peer, "share": generate / step, "limit": peer / generate}


def line_of(name: str, measured: dict[str, Any]) -> str:
    """Formats the row as one line for the terminal."""
    found = ratios(measured)
    line = f"{name}: {found['samples']} times the samples/s of {measured['peer_name']}, {found['memory']} its memory"
    if measured["stage"] == "grpo":
        of = decoding(measured)
        line += f"; decoding is {of['share']:.0%} of a step, and alone would be {shown(of['limit'])} times as fast"
    return line


if __name__ == "__main__":
    run_alone(Measurement("rows", measure), choices=NAMES)
