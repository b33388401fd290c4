"""Averages weighted by the number of values, and a check that a figure is finite."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from onebase.errors import NonFiniteError


class Averages:
    """Means over all values added, however they were split into microbatches.

    Sums stay on their device until they are read, so that noting a metric does not make the host wait for a GPU.
    """

    def __init__(self) -> None:
        self._added: dict[str, list[tuple[Tensor, Tensor | int]]] = {}
        """A sum and a count for each time values were added under a name."""

    def add(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Adds every element of `values`, or those where `mask` is True."""
        values = values.detach() if values.device.type != "mps" else values.detach().cpu()  # Apple GPUs: no float64
        if not values.numel():
            return
        count: Tensor | int = values.numel()
        if mask is not None:
            mask = mask.to(values.device)
            values, count = torch.where(mask, values, 0), mask.sum(dtype=torch.float64)
        self._added.setdefault(name, []).append((values.sum(dtype=torch.float64), count))

    def totals(self) -> dict[str, tuple[float, float]]:
        """The sum and the count under each name, as plain numbers; waits once for each device."""
        pairs = [pair for added in self._added.values() for pair in added]
        numbers = iter(on_host([x for pair in pairs for x in pair if isinstance(x, Tensor)]))
        found = {}
        for name, added in self._added.items():
            total = count = 0.0
            for pair in added:
                of_pair = [next(numbers) if isinstance(x, Tensor) else float(x) for x in pair]
                total, count = total + of_pair[0], count + of_pair[1]
            if count:
                found[name] = total, count
        return found

    @staticmethod
    def means_of(parts: Iterable[Mapping[str, tuple[float, float]]]) -> dict[str, float]:
        """The means over all values of several `totals()`."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        for part in parts:
            for name, (total, count) in part.items():
                sums[name], counts[name] = sums.get(name, 0.0) + total, counts.get(name, 0.0) + count
        return {name: total / counts[name] for name, total in sums.items()}

    def means(self) -> dict[str, float]:
        return self.means_of([self.totals()])


def on_host(tensors: Sequence[Tensor]) -> list[Any]:
    """Tensors of one shape as plain numbers, fetched from each device at once."""
    if len({tensor.device for tensor in tensors}) > 1:
        tensors = [tensor.cpu() for tensor in tensors]
    return torch.stack(list(tensors)).cpu().tolist() if tensors else []


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
