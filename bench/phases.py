"""Splits the seconds of a PPO batch by phase, by operator in the longest phase, and by which layers have LoRA.

usage: python -m bench.phases [options of the workload, see --help]
       python -m bench.phases operators PHASE <arguments of bench.ours>     one profile; prints a JSON line
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

from bench.machine import default_precision
from bench.options import Measurement, run_alone
from bench.results import keep, stamp
from bench.side import run_module
from bench.workload import Workload, prepare, python_of

PHASES = {
    "generate": ("onebase.sampling.local.LocalSampler", "sample"),
    "score": ("onebase.rewards.learned.RoleReward", "score"),
    "logprobs": ("onebase.rollouts.collect", "measure"),
    "update": ("onebase.recipes.ppo", "update_on"),
}
"""The function of each phase; a batch calls each once."""
LAYERS = ("all", "upper-half", "upper-quarter")
MOST_OPERATORS = 10


def measure(workload: Workload, results: Path) -> list[str]:
    precision = default_precision()
    prepare(workload, python_of(workload, "classic"), workload.folder)
    keep("layers", {**by_layers(workload, precision), **stamp()}, results)
    measured = run_module("bench.ours", *workload.ours("ppo", precision))
    phases = {phase: measured[phase] for phase in PHASES}
    longest = max(phases, key=lambda phase: phases[phase])
    profile = run_module("bench.phases", "operators", longest, *workload.ours("ppo", precision))
    seconds = measured["seconds_per_batch"]
    keep(
        "phases",
        {
            "precision": precision,
            "seconds_per_batch": seconds,
            "phases": phases,
            "longest": longest,
            **profile,
            **stamp(),
        },
        results,
    )
    print("bench: phases: " + ", ".join(f"{k} {v / seconds:.0%}" for k, v in phases.items()), flush=True)
    return []


def by_layers(workload: Workload, precision: str) -> dict[str, Any]:
    """Returns the seconds of a PPO batch with adapters on all layers, the upper half and the upper quarter, in turn."""
    runs: dict[str, list[dict[str, float]]] = {layers: [] for layers in LAYERS}
    for _ in range(workload.rounds):
        for layers, measured in runs.items():
            # The critic is set like the policy; by default it starts as the reward role, with adapters on all layers.
            keys = f"lora.layers={layers}", "ppo.critic_start=policy"
            measured.append(run_module("bench.ours", *workload.ours("ppo", precision, *keys)))
    print(
        "bench: lora.layers: "
        + ", ".join(f"{k} {median(r['seconds_per_batch'] for r in v):.2f} s" for k, v in runs.items()),
        flush=True,
    )
    return {"precision": precision, "runs": runs}


def operators(phase: str, arguments: list[str]) -> dict[str, Any]:
    """Returns the operators with the most self time in a phase's last call, as shares of all operators' time."""
    from torch.profiler import ProfilerActivity, profile

    from bench import ours

    place, name = PHASES[phase]
    try:
        owner: Any = importlib.import_module(place)
    except ModuleNotFoundError:  # the module path ends in a class
        module, _, kind = place.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    called = getattr(owner, name)
    last: list[profile] = []

    def profiled(*positional: Any, **named: Any) -> Any:
        with profile(activities=[ProfilerActivity.CPU]) as watched:
            returned = called(*positional, **named)
        last[:] = [watched]
        return returned

    with patch.object(owner, name, profiled), patch.object(sys, "argv", ["bench.ours", *arguments]):
        with contextlib.redirect_stdout(io.StringIO()):
            ours.main()
    events = sorted(last[0].key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    return {
        "operators": [
            {"name": event.key, "share": round(event.self_cpu_time_total / total, 4), "calls": event.count}
            for event in events[:MOST_OPERATORS]
        ]
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["operators"]:
        print(json.dumps(operators(sys.argv[2], sys.argv[3:])))
    else:
        run_alone(Measurement("phases", measure))
