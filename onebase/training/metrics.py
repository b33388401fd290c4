"""Averages weighted by what they average over, and their record on disk."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from onebase.errors import NonFiniteError
from onebase.files import write_atomically
from onebase.training.record import read_metrics


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

    @staticmethod
    def merged(parts: Iterable[Averages]) -> Averages:
        """One over all values of several."""
        whole = Averages()
        for part in parts:
            for name, total in part._sums.items():
                whole._sums[name] = whole._sums.get(name, 0.0) + total
                whole._counts[name] = whole._counts.get(name, 0.0) + part._counts[name]
        return whole

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


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


def require_finite(value: float, what: str, *, trained: bool = True) -> float:
    """Returns the value.

    Args:
        trained: whether steps were taken before: what is wrong without them does not come from the learning rate.

    Raises:
        NonFiniteError: it is NaN or infinite: the role must not be saved as if it were trained.
    """
    if not math.isfinite(value):
        advice = "Lower optimizer.learning_rate, or look at the data for extreme values"
        if not trained:
            advice = "No step was taken yet: look at the base's weights, and at the data"
        raise NonFiniteError(f"{what} is not finite ({value}), nothing was saved. {advice}")
    return value
