"""Averages weighted by the number of values, and a check that a figure is finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from onebase.errors import NonFiniteError


class Averages:
    """Means over all values added, however they were split into microbatches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Adds every element of `values`, or those where `mask` is True."""
        kept = values.detach() if mask is None else values.detach()[mask]
        if kept.numel():
            self._sums[name] = self._sums.get(name, 0.0) + float(kept.sum(dtype=torch.float64))
            self._counts[name] = self._counts.get(name, 0.0) + kept.numel()

    @staticmethod
    def merged(parts: Iterable[Averages]) -> Averages:
        """Merges several into one over all their values."""
        whole = Averages()
        for part in parts:
            for name, total in part._sums.items():
                whole._sums[name] = whole._sums.get(name, 0.0) + total
                whole._counts[name] = whole._counts.get(name, 0.0) + part._counts[name]
        return whole

    def means(self) -> dict[str, float]:
        return {name: total / self._counts[name] for name, total in self._sums.items()}


def require_finite(value: float, what: str, *, trained: bool = True) -> float:
    """Returns the value if it is finite.

    Args:
        trained: whether steps were taken; if not, the learning rate is not the cause.

    Raises:
        NonFiniteError: the value is NaN or infinite, so the role must not be saved as if it were trained.
    """
    if not math.isfinite(value):
        raise NonFiniteError(
            f"{what} is not finite ({value}), nothing was saved",
            remedy="not-finite" if trained else "never-finite",
        )
    return value
