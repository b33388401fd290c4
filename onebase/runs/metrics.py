"""The record of a run's figures on disk, a line per step."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from onebase.files import write_atomically
from onebase.runs.record import read_metrics


class MetricsFile:
    """`metrics.jsonl`: one JSON object a step, flushed as it is written.

    Args:
        keep: rows of steps up to this one stay, those of a run that went further before it was killed do not.
    """

    def __init__(self, path: Path, *, keep: int = 0) -> None:
        self._path = path
        rows = read_metrics(path) if keep and path.exists() else []
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= keep))

    def sync(self) -> None:
        """Makes sure that what was written is on the disk: a checkpoint must not know more than the record."""
        with self._path.open("a", encoding="utf-8") as file:
            os.fsync(file.fileno())

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{name: plain(value) for name, value in values.items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def plain(value: float) -> float | int | None:
    """A value as the record keeps it: eight digits; JSON has no NaN, so what is not finite is None."""
    if isinstance(value, int):
        return value
    # Digits that count, not decimals: a learning rate at the end of its schedule is no zero.
    return float(f"{float(value):.8g}") if math.isfinite(value) else None
