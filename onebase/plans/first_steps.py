"""Watches a run's first steps: prints the plan beside what was measured, logs both, and keeps the difference."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebase.config.run import RunConfig
from onebase.errors import OnebaseError
from onebase.models.hardware import free_memory, peak_memory_mb
from onebase.models.loading import choose_device
from onebase.planning.calibration import Here, corrections, here, observe, rates_here
from onebase.planning.first_steps import STEPS, compare
from onebase.planning.memory import peak_memory
from onebase.planning.rates import Rates
from onebase.planning.run import PlannedRun
from onebase.planning.time import times_of
from onebase.plans.planned_run import planned_run
from onebase.processes import launched
from onebase.runs.progress import say
from onebase.shown import shown

ROWS_READ = 512
"""Rows of the data that are read for their lengths: the run itself reads them all."""


@dataclass(slots=True)
class FirstSteps:
    """Looks at the rows of a run, or of the two runs of a first round, until it has seen enough."""

    plans: dict[Path, PlannedRun]
    """By the folder of the run."""
    where: Here
    rates: Rates
    factors: Mapping[str, float]
    memory: Mapping[Path, float] = field(default_factory=dict)
    """The planned peak in MiB up to the first saving."""
    seen: dict[Path, list[Mapping[str, float]]] = field(default_factory=dict)

    def __call__(self, folder: Path, values: Mapping[str, float]) -> Mapping[str, float]:
        """Returns what to log with a row: the comparison, with the third."""
        rows = self.seen.setdefault(folder, [])
        if folder not in self.plans or len(rows) >= STEPS:
            return {}
        rows.append(values)
        if len(rows) < STEPS:
            return {}
        try:
            return self._compared(folder, rows)
        except Exception as error:  # whatever it is, it is no reason to end a run
            say(f"the first steps are not compared with a plan: {_reason(error)}")
            return {}

    def _compared(self, folder: Path, rows: list[Mapping[str, float]]) -> Mapping[str, float]:
        run = self.plans[folder]
        peak = peak_memory_mb(choose_device(run.device))
        found = compare(run, self.rates, self.factors, rows, memory=self.memory.get(folder, 0.0), peak=peak)
        if found is None:
            return {}
        kept = observe(self.where.key, found.observations)
        planned, measured = found.planned["step"], found.measured["step"]
        corrected = "; the next plan on this machine counts with it" if kept is not None else ""
        memory = f" and {found.memory:,.0f} MB" if found.memory else ""
        of_memory = f" and {peak:,.0f} MB ({peak / found.memory - 1:+.0%})" if found.memory else ""
        say(
            f"{run.verb}: planned {planned:.3g} s a step{memory}, measured {measured:.3g} s "
            f"({measured / planned - 1:+.0%}){of_memory}{corrected}"
        )
        return found.figures


@dataclass(slots=True)
class Unplanned:
    """Says in the third row why there is no plan; a run that ends before has said what is wrong by itself."""

    why: str
    rows: int = 0

    def __call__(self, folder: Path, values: Mapping[str, float]) -> Mapping[str, float]:
        """Returns nothing to log."""
        self.rows += 1
        if self.rows == STEPS:
            say(f"the first steps are not compared with a plan: {self.why}")
        return {}


def first_steps(config: RunConfig) -> FirstSteps | Unplanned | None:
    """What watches a run with this configuration; None in a process that is not the first of several.

    It is planned before the run begins, so that nothing of the run's random numbers is touched.
    """
    group = launched()
    if not group.is_main:
        return None
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the run itself says what it reads
            run = planned_run(_of_few_rows(config), processes=group.count)
            keys: Any = config
            where = here(run.device if keys.model.device == "auto" else keys.model.device, config.threads)
            rates = rates_here(where, run.dtype)
            factors = corrections(where.key, rates, run.dtype, times_of(run, rates).of_step)
            folder = Path(config.output_dir)
            plans = {folder: run}
            if run.parts:
                plans = {folder / "round-1" / "samples": run.parts[0], folder / "round-1" / "learn": run.parts[1]}
            memory = {folder: planned_mb(run)} if not run.parts else {}
    except Exception as error:  # without a plan the run goes on as ever
        return Unplanned(_reason(error))
    return FirstSteps(plans, where, rates, factors, memory)


def planned_mb(run: PlannedRun) -> float:
    """The planned peak in MiB up to the first saving, where what sizes itself finds as much memory as is free now."""
    peak = peak_memory(run, free_memory(choose_device(run.device)))
    return max(phase.size for phase in peak.phases if not phase.name.endswith("save")) / 2**20


def _of_few_rows(config: RunConfig) -> RunConfig:
    keys: Any = config
    few = min(keys.data.limit or ROWS_READ, ROWS_READ)
    return config.model_copy(update={"data": keys.data.model_copy(update={"limit": few})})


def _reason(error: Exception) -> str:
    said = shown(error, 200) if isinstance(error, OnebaseError) else f"{type(error).__name__}: {shown(error, 160)}"
    return (said.splitlines() or [type(error).__name__])[0]
