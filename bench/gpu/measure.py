"""Measures one size in one number format, both sides on the same weights.

usage: python -m bench.gpu.measure 1b|8b|tiny none|nf4 [--device cuda]

Prints a JSON line for each side and stage as soon as it is measured: seconds of the first run (which compiles and loads
kernels), samples (tokens, for decoding) per second of those after it, and the peak memory above the weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.gpu import ours
from bench.gpu.models import LOADS, random_model
from bench.gpu.theirs import Theirs

STAGES = ("sft", "reward", "dpo", "ppo", "decode")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=LOADS)
    parser.add_argument("quantization", choices=["none", "nf4"])
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    model = random_model(options.size, options.quantization, device, torch.bfloat16)
    free(device)
    weights = allocated(device)
    steps = LOADS[options.size].steps
    theirs = Theirs(model, options.size)
    for name, run in theirs.stages().items():
        tell("theirs", name, measured(run, steps, device, weights))
    model = theirs.unload().requires_grad_(False)
    del theirs, run
    free(device)
    started = time.monotonic()
    base = ours.open_base(model)
    engine = {"engine": ours.engine_name(base), "opening_seconds": round(time.monotonic() - started, 2)}
    for name, run in ours.stages(base, options.size).items():
        tell("ours", name, measured(run, steps, device, weights) | engine)


def measured(run: Callable[[], int], steps: int, device: torch.device, weights: int) -> dict[str, Any]:
    """Runs once, then `steps` times under the clock; an error takes the place of the figures."""
    try:
        free(device)
        started = time.monotonic()
        run()
        wait(device)
        first = time.monotonic() - started
        started = time.monotonic()
        samples = sum(run() for _ in range(steps))
        wait(device)
        seconds = time.monotonic() - started
    except Exception as error:  # one stage that fails should not cost the figures of the others
        return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"}
    found = {"first_seconds": round(first, 3), "seconds": round(seconds / steps, 4)}
    found["per_second"] = round(samples / seconds, 3)
    if device.type == "cuda":
        found["memory_mb"] = round((torch.cuda.max_memory_allocated(device) - weights) / 2**20)
    return found


def tell(side: str, stage: str, found: dict[str, Any]) -> None:
    print(json.dumps({"side": side, "stage": stage, **found}), flush=True)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


if __name__ == "__main__":
    main()
