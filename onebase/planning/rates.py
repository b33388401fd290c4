"""How fast a machine does a run's work: from its data sheet, or fitted to a few timed passes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy

from onebase.planning.machines import EFFICIENCY, SECONDS_PER_LAYER, Machine
from onebase.planning.work import KINDS, Kind, Work

START_SECONDS = 14.0
"""Stated: a process that imports torch and transformers."""
OPEN_SECONDS = 1.0
"""Stated: opening a base beside reading its weights: tokenizer, modules, the check of its layout."""
LOAD_GB = 1.0
"""Stated: 10^9 bytes of weights a second from a local disk or its cache."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Seconds of work of one kind.

    seconds = passes x each pass + layers x each layer + operations / rate + bytes / rate
    """

    of_pass: float
    """Seconds."""
    of_layer: float
    """Seconds."""
    of_operation: float
    """Seconds: one over the operations a second."""
    of_byte: float
    """Seconds: one over the bytes a second."""

    def seconds(self, work: Work) -> float:
        """Returns the seconds that this work takes."""
        return (
            work.passes * self.of_pass
            + work.layers * self.of_layer
            + work.operations * self.of_operation
            + work.moved * self.of_byte
        )


@dataclass(frozen=True, slots=True)
class Spread:
    """How far a kind's timings lie from its rate, and from themselves."""

    misfit: float
    """The largest deviation of a timed pass from the fitted rate, as a share."""
    repeats: float
    """The largest difference between repeats of one pass, as a share of the fastest."""
    passes: int = 0
    """How many different passes were timed; with four or fewer the fit says nothing."""


@dataclass(frozen=True, slots=True)
class Rates:
    """A machine's rates."""

    name: str
    watts: float
    rates: Mapping[Kind, Rate]
    start_seconds: float = START_SECONDS
    """Of a process, up to its first base and from its last step to its report."""
    open_seconds: float = OPEN_SECONDS
    """Of opening a base, apart from the bytes of its weights."""
    of_loaded_byte: float = 1 / (LOAD_GB * 1e9)
    """Seconds."""
    source: str = "data sheet"
    """Where the rates come from, in words."""
    dtype: str = ""
    """The number format the passes were timed in; empty where the rates are for any."""
    products: Mapping[str, float] = field(default_factory=dict)
    """Operations a second of the best matrix product, by number format."""
    bandwidth: float = 0.0
    """Bytes a second read from memory."""
    spread: Mapping[Kind, Spread] = field(default_factory=dict)

    def of(self, kind: Kind, dtype: str) -> Rate:
        """The rate for a kind of work in a number format; from another format's by the ratio of matrix products."""
        rate = self.rates[kind]
        if not self.dtype or dtype == self.dtype or not (self.products.get(dtype) and self.products.get(self.dtype)):
            return rate
        return replace(rate, of_operation=rate.of_operation * self.products[self.dtype] / self.products[dtype])


def stated_rates(machine: Machine, dtype: str) -> Rates:
    """Rates from a data sheet: shares of its peaks, as `machines.py` states them.

    Training and passes without gradient: operations / (share x peak). Decoding: bytes / (share x bandwidth), and
    operations at the rate of passes without gradient. Each layer takes a little however small it is.
    """
    peak = 1e12 * (machine.teraflops if dtype == "bfloat16" else machine.float32_teraflops)
    layers = SECONDS_PER_LAYER["gpu" if machine.is_gpu else "cpu"]
    train = Rate(0.0, layers["update"], 1 / (EFFICIENCY["update"] * peak), 0.0)
    forward = Rate(0.0, layers["score"], 1 / (EFFICIENCY["score"] * peak), 0.0)
    decode = Rate(
        0.0, layers["decode"], 1 / (EFFICIENCY["score"] * peak), 1 / (EFFICIENCY["decode"] * machine.bandwidth_gb * 1e9)
    )
    rates: dict[Kind, Rate] = {
        "train": train,
        "train in full": train,
        "forward": forward,
        "forward in full": forward,
        "decode": decode,
    }
    return Rates(machine.name, machine.watts, rates, bandwidth=machine.bandwidth_gb * 1e9)


@dataclass(frozen=True, slots=True)
class Timed:
    """A pass whose work is known, and the seconds of its repeats."""

    work: Work
    seconds: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median of the repeats."""
        ordered = sorted(self.seconds)
        return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2


def fit_rate(timed: Sequence[Timed], best: float = math.inf) -> tuple[Rate, Spread]:
    """The rate nearest to some timings, none of its four parts negative, and how far they lie from it.

    min over r >= floor of sum_i ((w_i . r) / t_i - 1)^2, solved exactly: of all subsets of the four parts, that with
    the least error whose least-squares solution is nowhere below the floor. The floor is 0, and for an operation what
    it takes in the best matrix product: without it, a few small passes could seem to cost nothing for each operation.

    Args:
        best: operations a second of the best matrix product.

    Raises:
        ValueError: there is nothing to fit.
    """
    if not timed:
        raise ValueError("no pass was timed")
    rows = numpy.array(
        [(each.work.passes, each.work.layers, each.work.operations, each.work.moved) for each in timed], dtype=float
    )
    rows /= numpy.array([each.middle for each in timed])[:, None]
    scale = numpy.maximum(rows.max(0), 1e-300)
    wanted = 1 - rows[:, 2] / best
    found, least = numpy.zeros(4), float((wanted**2).sum())
    for size in range(1, 5):
        for chosen in itertools.combinations(range(4), size):
            part = list(chosen)
            solved, *_ = numpy.linalg.lstsq(rows[:, part] / scale[part], wanted, rcond=None)
            error = float(((rows[:, part] / scale[part] @ solved - wanted) ** 2).sum())
            if (solved >= 0).all() and error < least - 1e-12:
                least, found = error, numpy.zeros(4)
                found[part] = solved / scale[part]
    rate = Rate(float(found[0]), float(found[1]), float(found[2]) + 1 / best, float(found[3]))
    misfit = max(abs(rate.seconds(each.work) / each.middle - 1) for each in timed)
    repeats = max(max(each.seconds) / min(each.seconds) - 1 for each in timed)
    return rate, Spread(misfit, repeats, len(timed))


def known_kinds(rates: Mapping[Kind, Rate]) -> bool:
    """Whether there is a rate for every kind of work."""
    return all(kind in rates for kind in KINDS)
