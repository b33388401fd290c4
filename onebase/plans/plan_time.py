"""`onebase plan`: time by phase, money and energy of a planned run; and `--calibrate`, which measures this machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from onebase.errors import ConfigError
from onebase.models.loading import choose_device
from onebase.planning.calibration import MEMORY, Here, corrections, here, keep_rates, rates_here
from onebase.planning.machines import MACHINES, Machine
from onebase.planning.probe import probe
from onebase.planning.rates import Rates, stated_rates
from onebase.planning.run import PlannedRun
from onebase.planning.time import (
    PHASES,
    Bill,
    TimePhase,
    Times,
    bill,
    kilowatt_hours,
    samples_of,
    times_of,
    tokens_by_phase,
)
from onebase.plans.first_steps import planned_mb
from onebase.runs.finished import duration
from onebase.runs.progress import say
from onebase.shown import json_shown, shown
from onebase.tools.tables import print_table

WORDS = {
    "load": "starting, loading the base",
    "generate": "generate",
    "score": "score (reward, log-probs, values)",
    "update": "update",
    "evaluate": "evaluations",
    "save": "saving",
}


@dataclass(frozen=True, slots=True)
class Costs:
    """Time, money and energy of a planned run."""

    times: Times
    rates: Rates
    samples: float
    tokens: Mapping[TimePhase, float]
    """Read or written, by phase."""
    price_per_hour: float | None
    watts: float
    processes: int
    memory: float | None = None
    """How many times the planned memory earlier runs took; None where there was none like it."""

    def report(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        seconds = self.times.total
        found: dict[str, Any] = {
            "machine": self.rates.name,
            "rates": self.rates.source,
            "seconds": {**self.times.seconds, "total": seconds},
            "seconds_per_step": {**self.times.of_step, "total": self.times.step},
            "corrections": dict(self.times.corrections),
            "samples": self.samples,
            "tokens": {**self.tokens, "total": sum(self.tokens.values())},
            "kwh": kilowatt_hours(seconds, self.watts * self.processes),
        }
        if self.price_per_hour is not None:
            found["cost"] = asdict(self.bill())
            found["cost_by_phase"] = {phase: asdict(self.bill(phase)) for phase in PHASES}
        return found

    def bill(self, phase: TimePhase | None = None) -> Bill:
        """What the run costs, or one of its phases with its own tokens; all samples need every phase."""
        assert self.price_per_hour is not None
        if phase is None:
            seconds, tokens = self.times.total, sum(self.tokens.values())
        else:
            seconds, tokens = self.times.seconds[phase], self.tokens.get(phase, 0.0)
        return bill(seconds, self.price_per_hour, samples=self.samples, tokens=tokens)

    def lines(self) -> list[str]:
        """As text below the phases."""
        seconds = self.times.total
        step = f"a step takes {duration(self.times.step)}; " if self.times.of_step else ""
        read = f"{sum(self.tokens.values()):,.0f} tokens read or written by any role"
        told = [f"{step}{self.samples:,.0f} samples, {read}"]
        if self.price_per_hour is not None:
            cost = self.bill()
            parts = [f"{cost.total:.4g} at {self.price_per_hour:g} an hour"]
            parts += [] if cost.per_sample is None else [f"{_plain(cost.per_sample)} a sample"]
            parts += [] if cost.per_1k_tokens is None else [f"{_plain(cost.per_1k_tokens)} for a thousand tokens"]
            told.append(f"money: {', '.join(parts)}")
        kwh = kilowatt_hours(seconds, self.watts * self.processes)
        told.append(f"energy: {kwh:.3g} kWh, if {self.watts * self.processes:g} W are drawn throughout")
        if self.memory is not None:
            told.append(f"memory: earlier runs like it on this machine took {self.memory:.2f} times what was planned")
        told.append(f"rates: {self.rates.name}, {self.rates.source}{self._corrected()}")
        return told

    def _corrected(self) -> str:
        factors = ", ".join(f"{phase} x {factor:.2f}" for phase, factor in self.times.corrections.items())
        return f"; corrected by earlier runs on this machine: {factors}" if factors else ""


def _plain(amount: float) -> str:
    """An amount of money with two significant digits at least, without an exponent."""
    digits = max(2, 1 - math.floor(math.log10(amount))) if amount > 0 else 2
    return f"{amount:.{digits}f}"


def check_options(*, hardware: str | None, price_per_hour: float | None, watts: float | None) -> None:
    """Checks what can be checked before any data is read.

    Raises:
        ConfigError: the hardware is not known, or a price or a power is not above 0.
    """
    if hardware is not None:
        machine_named(hardware)
    for value, what in ((price_per_hour, "--price-per-hour"), (watts, "--watts")):
        if value is not None and not 0 < value < 1e9:
            raise ConfigError(f"{what} is {value:g}; it should be above 0, or left out")


def costs_of(
    run: PlannedRun,
    *,
    hardware: str | None = None,
    threads: int | None = None,
    price_per_hour: float | None = None,
    watts: float | None = None,
) -> Costs:
    """The costs of a planned run on this machine, or on one from the table.

    Args:
        hardware: a name in the table; None: this machine, by what was measured on it if anything was.
        watts: of one device; None: as the table says.

    Raises:
        ConfigError: the hardware is not known, or this GPU is neither in the table nor measured.
    """
    factors: Mapping[str, float] = {}
    memory: Mapping[str, float] = {}
    if hardware is not None:
        rates = stated_rates(machine_named(hardware), run.dtype)
    else:
        where = here(run.device, threads)
        rates = rates_here(where, run.dtype)
        factors = corrections(where.key, rates, run.dtype, times_of(run, rates).of_step)
        memory = corrections(where.key, rates, run.dtype, {MEMORY: planned_mb(run)} if not run.parts else {})
    times = times_of(run, rates, factors)
    return Costs(
        times,
        rates,
        samples_of(run),
        tokens_by_phase(run),
        price_per_hour,
        watts or rates.watts,
        run.processes,
        memory.get(MEMORY),
    )


def machine_named(name: str) -> Machine:
    """A machine of the table.

    Raises:
        ConfigError: it is not there.
    """
    if name.lower() not in MACHINES:
        names = ", ".join(known.name for known in MACHINES.values())
        raise ConfigError(f"--hardware {shown(name, 40)} is not known; choose one of {names}")
    return MACHINES[name.lower()]


def print_costs(costs: Costs) -> None:
    """Prints seconds by phase, money and energy."""
    total = max(1e-9, costs.times.total)
    rows = []
    for phase in PHASES:
        if (seconds := costs.times.seconds[phase]) > 0:
            rows.append((WORDS[phase], duration(seconds), f"{seconds / total:.0%}", *_money(costs, phase)))
    priced = ("cost", "per 1,000 tokens") if costs.price_per_hour is not None else ()
    print_table(("phase", "time", "share", *priced), [*rows, ("all", duration(total), "", *_money(costs, None))])
    for line in costs.lines():
        print(line)


def _money(costs: Costs, phase: TimePhase | None) -> tuple[str, ...]:
    if costs.price_per_hour is None:
        return ()
    cost = costs.bill(phase)
    return f"{cost.total:.4g}", "" if cost.per_1k_tokens is None else _plain(cost.per_1k_tokens)


def calibrate(*, as_json: bool = False) -> None:
    """Measures this machine for at most a minute, keeps its rates and prints them."""
    device = choose_device("auto")
    where: Here = here(device.type)
    rates = probe(where, torch.device(device), say)
    kept = keep_rates(where.key, rates)
    if as_json:
        print(json_shown(asdict(rates), indent=2))
        return
    rows = [(f"matrix product, {name}", f"{rate / 1e9:,.1f} GFLOP/s", "") for name, rate in rates.products.items()]
    rows.append(("reading memory", f"{rates.bandwidth / 1e9:,.1f} GB/s", ""))
    for kind, rate in rates.rates.items():
        parts = [
            f"{1e3 * rate.of_pass:.3g} ms a pass" if rate.of_pass else "",
            f"{1e3 * rate.of_layer:.3g} ms a layer" if rate.of_layer else "",
            f"{1e-9 / rate.of_operation:,.1f} GFLOP/s" if rate.of_operation else "",
            f"{1e-9 / rate.of_byte:,.1f} GB/s" if rate.of_byte else "",
        ]
        spread = rates.spread[kind]
        far = f"{spread.passes} passes, fit within {spread.misfit:.0%}, repeats within {spread.repeats:.0%}"
        rows.append((f"{kind}, {rates.dtype}", " + ".join(filter(None, parts)), far))
    rows.append(("starting", f"{rates.start_seconds:.1f} s", ""))
    rows.append(("opening a base", f"{rates.open_seconds:.1f} s", ""))
    rows.append(("loading weights", f"{1e-9 / rates.of_loaded_byte:,.2f} GB/s", ""))
    print_table(("what", "rate", "spread"), rows)
    print(f"kept in {kept}" if kept else "not kept, as ONEBASE_CACHE is empty: plans go on with the stated rates")
