"""Measures how seconds and memory of a training pass grow with one of its dimensions.

usage: python -m bench.growth [--only CURVE ...] [options of the workload, see --help]
       python -m bench.growth point '{"prompt": 512, ...}'       one point, in this process; prints a JSON line

A pass is an optimizer step without the optimizer: log-probs of the completions' tokens, forward and backward, in
microbatches, with a LoRA adapter on all layers. Each point is a fresh process with a model made in memory.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench.machine import default_precision
from bench.options import Measurement, run_alone
from bench.point import Point
from bench.results import keep, stamp
from bench.side import measure_each, run_module
from bench.workload import Workload

Curve = dict[str, Any]
"""`x` is what grows; `series` maps names to one number per x; `xlabel` and `ylabel`."""


def rows(base: Point) -> Curve:
    """Prompts with one completion each; twice as many take twice as long."""
    x = [4, 8, 16, 32, 64]
    return curve(x, "prompts in the pass", seconds={"": [replace(base, examples=n) for n in x]})


def completions(base: Point) -> Curve:
    """K completions of 32 tokens per prompt of 256, which a tree computes once and separate rows K times."""
    x, of = [1, 2, 4, 8, 16], replace(base, examples=4, prompt=256, completion=32)
    return curve(
        x,
        "completions per prompt (K)",
        seconds={layout: [replace(of, completions=k, layout=layout) for k in x] for layout in ("tree", "separate")},
    )


def vocabulary(base: Point) -> Curve:
    """Only the output layer's weights should grow; the memory of all logits is computed for comparison."""
    x, of = [8192, 16384, 32768, 65536, 151936], replace(base, examples=16, completion=128, num_layers=2)
    points = [replace(of, vocab=size) for size in x]
    found = curve(x, "tokens in the vocabulary", seconds={"": points}, memory={"measured": points})
    found["memory"]["float32 logits of all tokens, by calculation"] = [
        round(of.examples * of.completion * size * 4 / 2**20, 1) for size in x
    ]
    return found


def prompt_length(base: Point) -> Curve:
    x = [64, 128, 256, 512, 1024]
    points = [replace(base, examples=4, prompt=length) for length in x]
    return curve(x, "tokens of the prompt", seconds={"": points}, memory={"": points})


def rank(base: Point) -> Curve:
    x = [1, 4, 16, 64, 128]
    return curve(x, "rank of LoRA, on all linear layers", seconds={"": [replace(base, rank=r) for r in x]})


def model_size(base: Point) -> Curve:
    """The model's parameters in matrix products."""
    sizes = [(256, 4), (384, 6), (512, 8), (768, 12), (1024, 16)]
    points = [replace(base, hidden=hidden, num_layers=layers) for hidden, layers in sizes]
    millions = [round((4 + 3 * 2.75) * h * h * n / 1e6 + h * base.vocab / 1e6, 1) for h, n in sizes]
    return curve(millions, "million parameters", seconds={"": points})


CURVES: dict[str, Callable[[Point], Curve]] = {
    "rows": rows,
    "completions": completions,
    "vocabulary": vocabulary,
    "prompt_length": prompt_length,
    "rank": rank,
    "model_size": model_size,
}


def curve(
    x: Sequence[float],
    xlabel: str,
    *,
    seconds: dict[str, list[Point]],
    memory: dict[str, list[Point]] | None = None,
) -> Curve:
    """Measures each point once and arranges the numbers as a curve."""
    measured: dict[Point, dict[str, float]] = {}

    def numbers(points: list[Point], key: str) -> list[float]:
        for point in points:
            if point not in measured:
                measured[point] = run_module("bench.growth", "point", json.dumps(asdict(point)))
        return [measured[point][key] for point in points]

    found = {
        "x": list(x),
        "xlabel": xlabel,
        "ylabel": "seconds of a pass",
        "series": {name: numbers(points, "seconds") for name, points in seconds.items()},
    }
    if memory:
        found["memory"] = {name: numbers(points, "peak_mb") for name, points in memory.items()}
    return found


def measure(workload: Workload, results: Path, only: list[str] | None = None) -> list[str]:
    base = Point(precision=default_precision())

    def one_curve(name: str) -> None:
        print(f"bench: growth, {name}", flush=True)
        keep(name, {**CURVES[name](base), "precision": base.precision, **stamp()}, results, within="growth")

    return measure_each(only or list(CURVES), one_curve)


if __name__ == "__main__":
    if sys.argv[1:2] == ["point"]:
        from bench.training_pass import measure_pass  # imports torch

        print(json.dumps(measure_pass(Point(**json.loads(sys.argv[2])))))
    else:
        run_alone(Measurement("growth", measure), choices=list(CURVES))
