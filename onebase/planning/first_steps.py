"""A run's first steps beside its plan: what was planned, what was measured, and what the machine keeps of it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from onebase.planning.calibration import MEMORY, Observation
from onebase.planning.rates import Rates
from onebase.planning.run import PlannedRun, Span
from onebase.planning.time import times_of

STEPS = 3
MEASURED = {
    "generate": ("perf/generate_seconds",),
    "score": ("perf/score_seconds", "perf/logprobs_seconds"),
    "update": ("perf/update_seconds",),
}
"""The seconds of each phase of a rollout; the other verbs log the whole step alone."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Planned and measured figures of a step."""

    planned: Mapping[str, float]
    """Seconds by phase, and of the whole `step`, as the plan said before the run."""
    measured: Mapping[str, float]
    """The medians of the first steps, which leave one slow first step out."""
    observations: tuple[Observation, ...]
    memory: float = 0.0
    """Planned, in MiB; 0 where it is not compared."""
    peak: float = 0.0
    """Measured, in MiB."""

    @property
    def figures(self) -> dict[str, float]:
        """As they are logged: `perf/planned/step_seconds` beside `perf/planned/step_seconds_measured`."""
        found: dict[str, float] = {}
        for phase in self.measured:
            found[f"perf/planned/{phase}_seconds"] = self.planned.get(phase, 0.0)
            found[f"perf/planned/{phase}_seconds_measured"] = self.measured[phase]
        if self.memory > 0 and self.peak > 0:
            found |= {"perf/planned/memory_mb": self.memory, "perf/planned/memory_mb_measured": self.peak}
        return found


def compare(
    run: PlannedRun,
    rates: Rates,
    corrections: Mapping[str, float],
    rows: Sequence[Mapping[str, float]],
    *,
    memory: float = 0.0,
    peak: float = 0.0,
) -> Compared | None:
    """Compares the rows of a run's first steps with its plan; None where they hold no seconds.

    Args:
        memory: planned, up to the first saving; 0: not compared. peak: measured so far. Both in MiB.

    What the machine keeps is worked out for the completions that were really sampled, and without corrections, so that
    neither a short answer nor an earlier correction counts as the machine's speed.
    """
    planned = times_of(run, rates, corrections)
    really = times_of(as_sampled(run, rows), rates)
    measured = {
        phase: seconds for phase in MEASURED if planned.of_step.get(phase) and (seconds := _seconds(phase, rows)) > 0
    }
    whole = _median(rows, "perf/step_seconds")
    if whole <= 0:
        return None
    if not measured:
        # The step is the update, or for dpo with a reference the update and the reference's pass.
        parts = {phase: seconds for phase, seconds in really.of_step.items() if seconds > 0}
        shares = {phase: whole * seconds / sum(parts.values()) for phase, seconds in parts.items()}
    else:
        shares = measured
    observations = [
        Observation(run.verb, phase, run.dtype, really.of_step[phase], seconds, rates.source)
        for phase, seconds in shares.items()
        if really.of_step.get(phase, 0.0) > 0
    ]
    if memory > 0 and peak > 0:
        observations.append(Observation(run.verb, MEMORY, run.dtype, memory, peak, MEMORY))
    return Compared(
        {**planned.of_step, "step": planned.step},
        {**measured, "step": whole},
        tuple(observations),
        memory,
        peak,
    )


def _seconds(phase: str, rows: Sequence[Mapping[str, float]]) -> float:
    return sum(_median(rows, name) for name in MEASURED[phase])


def _median(rows: Sequence[Mapping[str, float]], name: str) -> float:
    values = [row[name] for row in rows if name in row]
    return statistics.median(values) if values else 0.0


def as_sampled(run: PlannedRun, rows: Sequence[Mapping[str, float]]) -> PlannedRun:
    """The run with completions as long as those sampled, where rows say so, and not as long as they may be."""
    mean, longest = _median(rows, "completions/mean_length"), _median(rows, "completions/max_length")
    if not run.rollouts or mean <= 0:
        return run
    before, count = run.lengths, run.lengths.completions.mean
    tree = before.prompt.mean + count * mean
    lengths = replace(
        before,
        completion=Span(mean, round(longest)),
        tree=Span(tree, before.tree.longest),
        counted=before.counted * mean / max(1e-9, before.completion.mean),
    )
    drawn, read = mean / max(1e-9, before.completion.mean), tree / max(1e-9, before.tree.mean)
    factors = {"prefill": 1.0, "decode": drawn, "forward": read, "train": read}
    passes = tuple(replace(each, tokens=each.tokens * factors[each.kind]) for each in run.passes)
    return replace(run, lengths=lengths, passes=passes)
