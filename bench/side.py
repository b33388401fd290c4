"""Runs one side of a comparison: a program in its own process that ends with a JSON line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.machine import num_threads

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 3600
"""Seconds after which a side counts as hanging."""


class SideFailed(Exception):
    """A side ended without a measurement."""


def run_side(
    name: str, command: Sequence[str | Path], *, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Runs a program on the CPU, with the same threads as all sides, and returns its last line as JSON.

    Raises:
        SideFailed: says in one line what failed, how, and the end of its output.
    """
    variables = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "OMP_NUM_THREADS": str(num_threads()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        **(environment or {}),
    }
    try:
        done = subprocess.run(
            [str(word) for word in command], env=variables, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise SideFailed(f"{name}: still running after {PATIENCE} s, and stopped") from error
    if done.returncode:
        raise SideFailed(f"{name}: exit code {done.returncode}: {tail(done.stderr or done.stdout)}")
    try:
        measured = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise SideFailed(f"{name}: no JSON in its last line: {tail(done.stdout or done.stderr)}") from error
    return measured


def run_module(module: str, *arguments: str | Path) -> dict[str, Any]:
    """Runs a module of this benchmark in a fresh process."""
    words = [sys.executable, "-m", module, *arguments]
    return run_side(" ".join([module, *(str(a) for a in arguments[1:4])]), words, environment={"PYTHONPATH": str(ROOT)})


def measure_each(names: Iterable[str], measure: Callable[[str], None]) -> list[str]:
    """Measures one after the other despite failures; returns a line for each failure."""
    failures: list[str] = []
    for name in names:
        try:
            measure(name)
        except SideFailed as error:
            failures.append(f"{name}: {error}")
            print(f"bench: failed: {failures[-1]}", flush=True)
    return failures


def tail(text: str) -> str:
    """Returns the end of a program's output in one line; for a traceback, the error."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:] or "it said nothing"
