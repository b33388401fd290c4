"""Measures how close training and decoding come to the machine's limits.

usage: python -m bench.utilisation [options of the workload, see --help]

training    useful operations per second of the optimizer steps over the best matrix product of the same precision,
            measured before and after the stage (model FLOP utilisation; `planning/operations.py` defines useful)
decoding    seconds against two lower limits: reading weights, keys and values once per new token; and the operations at
            the rate of the best matrix product
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.decode import LORA, NUM_PROMPTS
from bench.machine import DTYPES, precisions
from bench.options import Measurement, run_alone
from bench.results import keep, stamp
from bench.side import measure_each, run_module
from bench.workload import Workload, prepare, python_of
from onebase.planning.architecture import read_architecture
from onebase.planning.operations import Shape, Tokens, forward_operations
from onebase.planning.run import Adapter

STAGES = ("sft", "reward", "dpo", "ppo-head", "ppo")


def measure(workload: Workload, results: Path) -> list[str]:
    prepare(workload, python_of(workload, "classic"), workload.folder)

    def one_precision(precision: str) -> None:
        keep(precision, {**measure_precision(workload, precision), **stamp()}, results, within="utilisation")

    return measure_each(precisions(), one_precision)


def measure_precision(workload: Workload, precision: str) -> dict[str, Any]:
    """Returns each stage's share of the machine's best, and decoding with its limits."""
    speeds = [machine(precision)]
    stages = {}
    for stage in STAGES:
        measured = run_module("bench.ours", *workload.ours(stage, precision))
        speeds.append(machine(precision))
        best = max(speed["gflops"] for speed in speeds[-2:])
        seconds = measured["update"] if stage.startswith("ppo") else measured["seconds"]
        stages[stage] = {
            "gflops": round(measured["gigaoperations"] / seconds, 1),
            "best_gflops": best,
            "share": round(measured["gigaoperations"] / seconds / best, 4),
        }
    arguments = (workload.folder, workload.size, precision, "onebase", "--new-tokens", str(workload.new_tokens))
    decoded = run_module("bench.decode", *arguments)
    base = read_architecture(str(workload.folder / f"base-{workload.size}"))
    shape = Shape(base, Adapter(LORA["r"], tuple(range(base.layers)), tuple(LORA["target_modules"])))
    limits = decode_limits(
        shape,
        prompt_tokens=decoded["prompt_tokens"],
        rows=NUM_PROMPTS,
        new_tokens=workload.new_tokens,
        bytes_per_number=DTYPES[precision].itemsize,
        gflops=speeds[-1]["gflops"],
        gb_per_second=speeds[-1]["cached_gb_per_second"],
    )
    return {"machine": speeds[-1], "stages": stages, "decode": {"seconds": decoded["seconds"], **limits}}


def machine(precision: str) -> dict[str, Any]:
    return run_module("bench.machine", precision)


def decode_limits(
    shape: Shape,
    *,
    prompt_tokens: int,
    rows: int,
    new_tokens: int,
    bytes_per_number: int,
    gflops: float,
    gb_per_second: float,
) -> dict[str, float]:
    """Returns lower limits on decoding: `bytes_seconds` to read, `operations_seconds` to compute.

    The first new token comes from the pass over the prompts. Each further token reads all weights once for all rows,
    and each row's keys and values so far.

    Args:
        prompt_tokens: total over all rows.
    """
    steps = new_tokens - 1
    attended = sum(prompt_tokens + rows * (step + 1) for step in range(steps))  # by the new tokens in all steps
    weights = shape.trunk_parameters + shape.lora_parameters + shape.head_parameters
    keys_and_values = 2 * shape.base.layers * shape.base.kv_heads * shape.base.head_size
    read = bytes_per_number * (new_tokens * weights + attended * keys_and_values)
    # Prompts count as equally long, at their mean: their attention is a small part of the whole.
    length = prompt_tokens // rows
    prompts = Tokens(prompt_tokens, rows * length * (length + 1) // 2, rows)
    new = Tokens(rows * steps, attended, rows * steps)
    operations = forward_operations(shape, prompts + new, adapter=True, output_layer=True)
    return {
        "bytes_seconds": round(read / gb_per_second / 1e9, 4),
        "operations_seconds": round(operations / gflops / 1e9, 4),
    }


if __name__ == "__main__":
    run_alone(Measurement("utilisation", measure))
