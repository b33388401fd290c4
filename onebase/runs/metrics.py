"""Writes `metrics.jsonl`, a line per step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from onebase.files import write_atomically
from onebase.runs.record import read_metrics


class MetricsFile:
    """Appends to `metrics.jsonl` one JSON object per step, flushed as it is written.

    Args:
        keep: the step resumed from; rows of later steps, written before the run was killed, are dropped.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self._path = path
        rows = read_metrics(path) if keep and path.exists() else []
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= keep))

    def sync(self) -> None:
        """Forces the rows to disk: the record must never lag behind a checkpoint."""
        with self._path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{name: plain(value) for name, value in values.items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def plain(value: float) -> float | int | None:
    """Returns a value as it is recorded: eight significant digits, and None if not finite, as JSON has no NaN."""
    if isinstance(value, int):
        return value
    # Significant digits, not decimals: a learning rate at the end of its schedule must not round to zero.
    return float(f"{float(value):.8g}") if math.isfinite(value) else None
