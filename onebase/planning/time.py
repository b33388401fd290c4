"""Seconds of a planned run by phase, and what they cost in money and energy. Pure functions of work and rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from onebase.planning.rates import Rates
from onebase.planning.run import PlannedRun
from onebase.planning.weights import NUMBER_BYTES
from onebase.planning.work import Item, phase_of, work_of

TimePhase = Literal["load", "generate", "score", "update", "evaluate", "save"]
PHASES: tuple[TimePhase, ...] = ("load", "generate", "score", "update", "evaluate", "save")

SAVED_TIMES = 2
"""Roles are written twice, in a checkpoint and in the run's folder; a checkpoint also holds two moments for each
trained parameter."""
JOULES_PER_KWH = 3.6e6


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of a run."""

    seconds: Mapping[TimePhase, float]
    of_step: Mapping[str, float]
    """Of one step as the run counts them (a rollout, a part of the prompts), by phase; empty for several parts."""
    corrections: Mapping[str, float] = field(default_factory=dict)
    """The factors that earlier runs on this machine brought, by phase; they are in the seconds already."""

    @property
    def total(self) -> float:
        """Seconds from start to end."""
        return sum(self.seconds.values())

    @property
    def step(self) -> float:
        """Seconds of one step."""
        return sum(self.of_step.values())


@dataclass(frozen=True, slots=True)
class Bill:
    """What some seconds cost, in the currency of the price."""

    total: float
    per_sample: float | None
    """None where there is no sample."""
    per_1k_tokens: float | None


def times_of(run: PlannedRun, rates: Rates, corrections: Mapping[str, float] | None = None) -> Times:
    """Seconds of a run by phase.

    load        start of the process + for each base that is opened (opening + bytes of its weights x seconds a byte)
    others      sum over passes of their work at the machine's rate (`rates.Rate`), x the phase's correction
    save        bytes written x seconds a byte
    each phase is divided by the processes that share it

    Args:
        corrections: factors from earlier runs on this machine, by phase: generate, score, update.
    """
    factors = dict(corrections or {})
    seconds: dict[TimePhase, float] = dict.fromkeys(PHASES, 0.0)
    of_step: dict[str, float] = {}
    steps = steps_of(run)
    for item in work_of(run):
        taken = seconds_of(item, run, rates) * factors.get(correction_of(item), 1.0)
        seconds[item.phase] += taken
        if item.in_steps and steps and not run.parts:  # the steps of parts are of different kinds
            of_step[item.phase] = of_step.get(item.phase, 0.0) + taken / steps
    opened = max(1, len(run.parts)) * rates.open_seconds
    seconds["load"] = rates.start_seconds + opened + loaded_bytes(run) * rates.of_loaded_byte
    seconds["save"] = saved_bytes(run) * rates.of_loaded_byte
    return Times(seconds, of_step, factors)


def correction_of(item: Item) -> str:
    """Which correction applies: an evaluation samples and scores like a rollout."""
    if item.phase != "evaluate":
        return item.phase
    return "generate" if item.kind == "decode" else "score"


def seconds_of(item: Item, run: PlannedRun, rates: Rates) -> float:
    """Seconds of one item, uncorrected; its work is shared by the run's processes."""
    return rates.of(item.kind, run.dtype).seconds(item.work) / run.processes


def steps_of(run: PlannedRun) -> int:
    """Steps as the run counts them: rollouts where there are any, else optimizer steps."""
    return run.rollouts or run.steps


def loaded_bytes(run: PlannedRun) -> float:
    """Bytes of weights that are read before the first step; 0 for a base that is made."""
    if run.parts:
        return sum(loaded_bytes(part) for part in run.parts)
    if run.starts_new:
        return 0.0
    stored = NUMBER_BYTES.get(run.architecture.stored, 2.0)
    scorer = run.classifier.parameters * NUMBER_BYTES.get(run.classifier.stored, 2.0) if run.classifier else 0.0
    return run.architecture.parameters * stored + scorer


def saved_bytes(run: PlannedRun) -> float:
    """Bytes written at the end: the trained parameters twice, and the optimizer's two moments, in 4 bytes each."""
    if run.parts:
        return sum(saved_bytes(part) for part in run.parts)
    return run.trained_parameters * 4.0 * (SAVED_TIMES + 2)


def bill(seconds: float, price_per_hour: float, *, samples: float = 0, tokens: float = 0) -> Bill:
    """Money for some seconds: seconds / 3600 x price, and its share of a sample and of a thousand tokens."""
    total = seconds / 3600 * price_per_hour
    return Bill(
        total,
        total / samples if samples else None,
        1000 * total / tokens if tokens else None,
    )


def kilowatt_hours(seconds: float, watts: float) -> float:
    """Energy: seconds x watts / 3.6e6."""
    return seconds * watts / JOULES_PER_KWH


def tokens_by_phase(run: PlannedRun) -> dict[TimePhase, float]:
    """Tokens that any role reads or writes, by phase, each pass counted; loading and saving have none."""
    found: dict[TimePhase, float] = {}
    for part in run.parts or (run,):
        for each in part.passes:
            phase: TimePhase = phase_of(part, each)
            found[phase] = found.get(phase, 0.0) + each.tokens
    return found


def samples_of(run: PlannedRun) -> float:
    """Completions that a run samples, or examples that it trains on, each visit counted."""
    return float(run.samples or run.steps * min(run.minibatch, max(1, run.lengths.examples)))
