"""`onebase plan`: peak memory of a planned run by part, in other layouts, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from onebase.config.run import RunConfig
from onebase.errors import DoesNotFitError
from onebase.models.hardware import free_memory
from onebase.models.loading import choose_device
from onebase.planning.alternatives import alternatives
from onebase.planning.memory import peak_memory
from onebase.planning.peak import Part, Peak
from onebase.planning.run import PlannedRun
from onebase.plans.plan_changes import Change, changes_that_fit
from onebase.plans.plan_time import machine_named
from onebase.shown import number_of
from onebase.tools.tables import print_table

BAR = 40
"""Characters of a bar."""


@dataclass(frozen=True, slots=True)
class Room:
    """The memory there is."""

    size: float
    """Bytes."""
    name: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """A run's peak beside the memory there is."""

    run: PlannedRun
    peak: Peak
    room: Room
    changes: tuple[Change, ...]
    """Where it does not fit: what would make it fit."""

    @property
    def fits(self) -> bool:
        return self.peak.size <= self.room.size

    def report(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return {
            "fits": self.fits,
            "peak_bytes": self.peak.size,
            "room_bytes": self.room.size,
            "room": self.room.name,
            "phase": self.peak.highest.name,
            "parts": [asdict(part) for part in self.peak.highest.parts],
            "phases": {phase.name: phase.size for phase in self.peak.phases},
            "microbatch_tokens": self.peak.microbatch_tokens,
            "rows_decoded": self.peak.rows,
            "lengths": asdict(self.run.lengths),
            "alternatives": [asdict(part) for part in alternatives(self.run)],
            "changes": [asdict(change) for change in self.changes],
        }


def room_of(run_device: str, *, memory: float | None, hardware: str | None) -> Room:
    """The memory that a run may use: as given, as the machine has, or what is free here.

    Raises:
        ConfigError: the hardware is not known.
    """
    if memory is not None:
        return Room(memory, "as given")
    if hardware is not None:
        machine = machine_named(hardware)
        return Room(1e9 * machine.memory_gb, f"on one {machine.name}")
    return Room(float(free_memory(choose_device("auto" if run_device == "cuda" else "cpu"))), "free on this machine")


def plan_memory(
    config: RunConfig, run: PlannedRun, *, memory: float | None = None, hardware: str | None = None
) -> MemoryPlan:
    """Plans a run's memory; where it does not fit, looks for changes that make it fit."""
    room = room_of(run.device, memory=memory, hardware=hardware)
    peak = peak_memory(run, room.size)
    changes: Sequence[Change] = ()
    if peak.size > room.size:
        changes = changes_that_fit(config, run, room.size, hardware=hardware)
    return MemoryPlan(run, peak, room, tuple(changes))


def print_memory(plan: MemoryPlan) -> None:
    """Prints the peak by part, the other phases, the alternatives, and the changes where there are any."""
    run, highest = plan.run, plan.peak.highest
    base = run.architecture
    print(f"base      {base.name}: {base.parameters / 1e6:,.1f} M parameters, {run.layout}, {_roles(run)}")
    print(f"lengths   {run.lengths.source}; {_lengths(run)}")
    print(f"at once   microbatches of {plan.peak.microbatch_tokens} tokens{_rows(plan)}")
    shown = sorted(_joined(highest.parts), key=lambda part: -part.size)
    scale = max(highest.size, 1.0)
    rows = [(part.name, _gb(part.size), _bar(part.size / scale), part.formula) for part in shown]
    print_table((f"peak ({highest.name})", "GB", "share", "formula"), [*rows, ("all", _gb(highest.size), "", "")])
    others = ", ".join(f"{phase.name} {_gb(phase.size)}" for phase in plan.peak.phases)
    print(f"phases    {others} GB")
    filled = min(1.0, plan.peak.size / max(1.0, plan.room.size))
    print(f"[{_bar(filled).ljust(BAR, '.')}] {_gb(plan.peak.size)} of {_gb(plan.room.size)} GB {plan.room.name}")
    told = [(part.name, _gb(part.size), part.formula) for part in alternatives(run)]
    print_table(("instead, without activations", "GB", "formula"), told)


def refuse_if_too_large(plan: MemoryPlan, *, as_json: bool = False) -> None:
    """Prints the changes that make a run fit, and raises.

    Raises:
        DoesNotFitError: the run does not fit.
    """
    if plan.fits:
        return
    if plan.changes and not as_json:
        print_table(
            ("changes that make it fit, each line by itself", "GB", "time", "why"),
            [(" ".join(each.words), _gb(each.size), _slower(each.time), each.about) for each in plan.changes],
        )
    what = "add one of these lines to the command"
    if not plan.changes:
        what = "no change known here makes it fit, nor do three together: take a smaller base"
    raise DoesNotFitError(
        f"{plan.run.verb} needs {_gb(plan.peak.size)} GB at its peak ({plan.peak.highest.name}), and there are "
        f"{_gb(plan.room.size)} GB {plan.room.name}; {what}"
    )


def _slower(ratio: float) -> str:
    return "as before" if abs(ratio - 1) < 0.005 else f"{ratio - 1:+.0%}"


def _joined(parts: Sequence[Part]) -> list[Part]:
    """Parts below a thousandth of all as one."""
    least = sum(part.size for part in parts) / 1000
    small = [part for part in parts if part.size < least]
    kept = [part for part in parts if part.size >= least]
    return (
        [*kept, Part("others", sum(part.size for part in small), ", ".join(p.name for p in small))] if small else kept
    )


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 99.95e9 else f"{size / 1e9:,.0f}"


def _bar(share: float) -> str:
    return "#" * max(1, round(BAR * share)) if share > 0 else ""


def _roles(run: PlannedRun) -> str:
    def said(role: Any) -> str:
        if role.in_full:
            return f"{role.name} (in full)"
        adapter = "base alone"
        if role.adapter is not None:
            adapter = f"rank {role.adapter.rank}, {number_of(len(role.adapter.layers), 'layer')}"
        return f"{role.name} ({adapter}{', trains' if role.trains else ''})"

    return ", ".join(said(role) for role in run.roles)


def _lengths(run: PlannedRun) -> str:
    lengths = run.lengths
    return (
        f"prompts {lengths.prompt.mean:.0f} tokens (longest {lengths.prompt.longest}), at most "
        f"{lengths.completions.longest} completions of {lengths.completion.mean:.0f} (longest "
        f"{lengths.completion.longest}) for each"
    )


def _rows(plan: MemoryPlan) -> str:
    return f", {number_of(plan.peak.rows, 'completion')} decoded" if plan.peak.rows else ""
