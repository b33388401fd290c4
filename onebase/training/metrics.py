"""Averages weighted by what they average over, and their record on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from onebase.errors import NonFiniteError


class Averages:
    """Means over all values added, whatever the microbatches they came in."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Adds every element of `values` (where `mask` is True)."""
        kept = values.detach() if mask is None else values.detach()[mask]
        if kept.numel():
            self._sums[name] = self._sums.get(name, 0.0) + float(kept.sum(dtype=torch.float64))
            self._counts[name] = self._counts.get(name, 0.0) + kept.numel()

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


class MetricsFile:
    """`metrics.jsonl`: one JSON object a step, flushed as it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.write_text("")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **{name: _plain(value) for name, value in values.items()}}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _plain(value: float) -> float | int | None:
    # JSON has no NaN: a value that is not finite is null.
    if isinstance(value, int):
        return value
    # Digits that count, not decimals: a learning rate at the end of its schedule is no zero.
    return float(f"{float(value):.8g}") if math.isfinite(value) else None


def require_finite(value: float, what: str) -> float:
    """Returns the value.

    Raises:
        NonFiniteError: it is NaN or infinite: the role must not be saved as if it were trained.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{what} is not finite ({value}), nothing was saved. Lower optimizer.learning_rate, or look at the data "
            "for extreme values"
        )
    return value
