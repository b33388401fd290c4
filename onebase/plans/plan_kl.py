"""`onebase plan kl`: how far a policy may move from its start before the reward it learns from misleads it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy

from onebase.errors import ConfigError, DataError
from onebase.planning.overoptimization import RESAMPLES, Floats, Method, Peak, best_of_kl, best_of_scores, peak
from onebase.runs.finished import RunRecord, flattened, read_run
from onebase.runs.progress import say
from onebase.shown import json_shown, shown
from onebase.tools.tables import print_table

MOST_LINES = 12
"""Measurements shown of a run without a judge."""


@dataclass(frozen=True, slots=True)
class Point:
    """A policy on held-out prompts, or the best of so many samples."""

    run: str
    step: int
    """Rollouts learned from; the number of samples in best-of."""
    kl: float
    reward: float
    """The score that was trained on or chosen by."""
    judge: float | None
    """The score that was not."""


@dataclass(frozen=True, slots=True)
class Optimized:
    """Measurements that one law is fitted to."""

    verb: str
    points: tuple[Point, ...]
    redrawn: Floats | None = None
    """The judge's scores of the points from resampled prompts, `[B, M]`."""

    @property
    def judged(self) -> list[tuple[float, float]]:
        """KL and the judge's score."""
        return [(point.kl, point.judge) for point in self.points if point.judge is not None]


def run(folders: Sequence[Path], *, as_json: bool) -> None:
    """Prints each run's KL and scores, the law of the judge's score, where it is highest, and the budget to set.

    ppo and rft runs are fitted together, if they have the same start and judge; best-of runs one by one.

    Raises:
        ConfigError: there are too few measurements, or the runs do not go together.
        DataError: a folder holds no run of these verbs, or nothing was measured in it.
    """
    records = [_opened(folder) for folder in folders]
    trained = [record for record in records if record.verb != "best-of"]
    _check_alike(trained)
    found = [_of_samples(record) for record in records if record.verb == "best-of"]
    if trained:
        verbs = " and ".join(sorted({record.verb for record in trained}))
        found.insert(0, Optimized(verbs, tuple(point for record in trained for point in _of_training(record))))
    reports = []
    for optimized in found:
        fitted = _fitted(optimized)
        reports.append({"points": [asdict(p) for p in optimized.points], "law": fitted and asdict(fitted)})
        if not as_json:
            _print(optimized, fitted)
    if as_json:
        print(json_shown(reports, indent=2))


def _opened(folder: Path) -> RunRecord:
    record = read_run(folder)
    if record.verb not in ("ppo", "rft", "best-of"):
        raise DataError(f"{shown(folder, 200)} is no finished run of ppo, rft or best-of; name one that is")
    for problem in record.problems:
        say(problem)
    return record


def _check_alike(records: Sequence[RunRecord]) -> None:
    for key in ("start_from", "evaluation.judge"):
        values = [flattened(record.config).get(key) for record in records]
        for record, value in zip(records, values, strict=True):
            if value != values[0]:
                raise ConfigError(
                    f"{shown(record.folder, 200)} has '{key}' = {shown(str(value), 80)}, and "
                    f"{shown(records[0].folder, 200)} {shown(str(values[0]), 80)}; a law holds for one: name them apart"
                )


def _of_training(record: RunRecord) -> list[Point]:
    """The held-out measurements of a run, from its start to its end; without any, some of its rollouts."""
    name, summary = record.folder.name, record.summary
    rows = [
        Point(name, int(row["step"]), row["eval/kl"], row["eval/score"], row.get("eval/judge"))
        for row in record.rows
        if row.get("eval/kl") is not None and row.get("eval/score") is not None
    ]
    if "score_before" in summary and summary.get("kl") is not None:
        end = int(summary.get("rollouts", record.steps))
        rows.insert(0, Point(name, 0, 0.0, summary["score_before"], summary.get("judge_before")))
        rows.append(Point(name, end, summary["kl"], summary["score_after"], summary.get("judge_after")))
    if not any(row.judge is not None for row in rows):
        seen = [row for row in record.rows if row.get("objective/kl") is not None]
        seen = (
            [seen[i] for i in sorted({round(i) for i in numpy.linspace(0, len(seen) - 1, MOST_LINES)})] if seen else []
        )
        rows = [Point(name, int(row["step"]), row["objective/kl"], row["objective/scores"], None) for row in seen]
    if not rows:
        raise DataError(
            f"{shown(record.folder, 200)}: no KL was measured; rft keeps a reference only with rft.kl_coefficient "
            "above 0"
        )
    return rows


def _of_samples(record: RunRecord) -> Optimized:
    """The best of n of a best-of run's samples, for every n up to all of them."""
    path = record.folder / "best.jsonl"
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        scores = numpy.array([row["scores"] for row in rows], numpy.float64)
        others = numpy.array([row["judged"] for row in rows], numpy.float64) if "judged" in rows[0] else None
        if scores.ndim != 2 or (others is not None and others.shape != scores.shape):
            raise ValueError("rows differ in how many samples they have")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(
            f"{shown(path, 200)}: not the scored samples of a best-of run: {shown(str(error), 100)}; run it again"
        ) from None
    reward = best_of_scores(scores, scores)
    judge = None if others is None else best_of_scores(scores, others)
    means = None if judge is None else judge.mean(0)
    points = [
        Point(
            record.folder.name,
            n,
            best_of_kl(n),
            float(reward[:, n - 1].mean()),
            None if means is None else float(means[n - 1]),
        )
        for n in range(1, scores.shape[1] + 1)
    ]
    return Optimized("best-of", tuple(points), None if judge is None else _redrawn(judge))


def _redrawn(judge: Floats) -> Floats:
    """The means of `[P, K]` over prompts drawn with replacement: `[B, K]`."""
    count = len(judge)
    drawn = numpy.random.default_rng(0).multinomial(count, numpy.full(count, 1 / count), size=RESAMPLES)
    return numpy.asarray(drawn @ judge / count)


def _fitted(optimized: Optimized) -> Peak | None:
    """The law of the judge's score; None if there is no judge."""
    if not optimized.judged:
        return None
    method: Method = "best-of" if optimized.verb == "best-of" else "rl"
    try:
        return peak(optimized.judged, method, redrawn=optimized.redrawn)
    except ValueError as error:
        more = (
            "raise generation.samples_per_prompt"
            if method == "best-of"
            else "lower evaluation.every_steps, or name more runs"
        )
        raise ConfigError(f"{error}; {more}") from None


def _print(optimized: Optimized, fitted: Peak | None) -> None:
    counted = "samples" if optimized.verb == "best-of" else "rollout"
    print_table(
        ("run", counted, "KL", "reward", "judge"),
        [
            (p.run, str(p.step), f"{p.kl:.3f}", f"{p.reward:.3f}", "–" if p.judge is None else f"{p.judge:.3f}")
            for p in optimized.points
        ],
    )
    for line in no_judge(optimized) if fitted is None else verdict(optimized, fitted):
        print(line)


def no_judge(optimized: Optimized) -> list[str]:
    """What runs without a judge tell: nothing about over-optimisation."""
    first, last = optimized.points[0], optimized.points[-1]
    key = "judge" if optimized.verb == "best-of" else "evaluation.judge, and evaluation.every_steps"
    return [
        f"the reward went from {first.reward:.3f} to {last.reward:.3f} at KL {last.kl:.2f}: it is what was optimised, "
        "and says nothing about over-optimisation",
        f"for that, name a score that is never trained on: set {key}",
    ]


def verdict(optimized: Optimized, fitted: Peak) -> list[str]:
    """The law, where it is highest, how sure that is, and the budget."""
    falling = "d" if fitted.method == "best-of" else "log d"
    lines = [
        f"judge = {fitted.start:.3f} + d ({fitted.alpha:.3f} {'-' if fitted.beta >= 0 else '+'} {abs(fitted.beta):.3f} "
        f"{falling}), d = sqrt(KL)  (Gao et al. 2022)"
    ]
    ends = ", ".join(f"{end:.2f}" if end <= 100 * fitted.seen else "no turn" for end in (fitted.low, fitted.high))
    beyond = fitted.kl > fitted.seen
    if fitted.kl > 100 * fitted.seen:
        lines.append(f"no turn up to KL {fitted.seen:.2f}: the judge's score still rises [{ends}]")
    else:
        rise = f"{fitted.reward:.3f} above the start"
        lines.append(f"highest at KL {fitted.kl:.2f} [{ends}] nats per completion: {rise}")
    if beyond:
        lines.append(
            f"warning: that lies beyond KL {fitted.seen:.2f}, the most that was measured; how the score goes on is a "
            "guess, so measure a longer run before going further"
        )
    elif fitted.reward <= 0 or fitted.kl < 1e-3:
        lines.append("the judge's score falls from the start: this reward is not worth optimising")
        return lines
    elif fitted.high > fitted.seen:
        lines.append("warning: the interval reaches beyond what was measured; a longer run would narrow it")
    lines.append(_budget(optimized, min(fitted.kl, fitted.seen)))
    return lines


def _budget(optimized: Optimized, kl: float) -> str:
    if optimized.verb == "best-of":
        most = max(point.step for point in optimized.points if point.kl <= kl)
        return f"set generation.samples_per_prompt: {most}"
    past = [point for point in optimized.points if point.kl > kl]
    reached = f"; {past[0].run} was past it at rollout {past[0].step}" if past else ""
    rounded = math.floor(kl * 100) / 100
    if "ppo" in optimized.verb:
        return f"set ppo.kl_budget: {rounded:g}{reached}"
    return f"stop there with max_steps, or hold it with a larger rft.kl_coefficient{reached}"
