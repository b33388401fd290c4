"""Simulated annotators of known reliability on the demo's gold scores: how often the report's intervals hold the truth.

usage: python -m bench.annotators [--seeds N] [--tasks N] [--share SHARE]

Each annotator ranks four answers by gold score / temperature + Gumbel noise (Plackett 1975), which orders a pair right
with the chance sigmoid(difference / temperature). Every seed draws other tasks. Prints a table in Markdown. The models
are not told how the gold scores are distributed: many pairs of the demo are equal, which normal differences never are.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations

import numpy

from onebase.demo.grammar import gold_score, preference_rows
from onebase.labeling.agreement import Report, agreement_of
from onebase.labels.judged import Judgement, Task
from onebase.quality.agreement import of_ranks

TEMPERATURES = {"careful": 0.05, "good": 0.1, "fair": 0.2, "hasty": 0.4, "careless": 1.0}
FIGURES = ("bradley_terry", "dawid_skene")


@dataclass(frozen=True, slots=True)
class Truth:
    """What a report on infinitely many tasks would say, without its models' assumptions."""

    accuracy: dict[str, float]
    """Share of pairs that each annotator orders right; equal answers count half."""
    overall: dict[str, float]


def population(count: int, *, seed: int = 0) -> list[Task]:
    """Tasks of four answers with their gold scores, as the demo asks them."""
    tasks: list[Task] = []
    for row in preference_rows(seed=seed, count=2 * count):
        if len(row.answers) == 4:
            gold = tuple(gold_score(row.columns["question"], answer) for answer in row.answers)
            number = len(tasks) + 1
            tasks.append(Task(row.messages, row.answers, gold=gold, id=number, key=str(number)))
    return tasks[:count]


def rankings(gold: numpy.ndarray, temperature: float, rng: numpy.random.Generator) -> numpy.ndarray:
    """One annotator's grades, 4 for the best: `[tasks, 4]`."""
    noisy = gold / temperature + rng.gumbel(size=gold.shape)
    return noisy.argsort(1).argsort(1) + 1


def truth_of(tasks: Sequence[Task], *, redraws: int = 20) -> Truth:
    """The truth about annotators on these tasks: chances in closed form, W from many draws."""
    gold = numpy.array([task.gold for task in tasks])
    apart = numpy.concatenate([gold[:, i] - gold[:, k] for i, k in combinations(range(4), 2)])
    first = {name: 1 / (1 + numpy.exp(-apart / degree)) for name, degree in TEMPERATURES.items()}
    right = {name: float(numpy.where(apart >= 0, chance, 1 - chance).mean()) for name, chance in first.items()}
    same = [float((a * b + (1 - a) * (1 - b)).mean()) for a, b in combinations(first.values(), 2)]
    rng = numpy.random.default_rng(0)
    concordance = [
        of_ranks(numpy.stack([rankings(gold, degree, rng) for degree in TEMPERATURES.values()], 1).astype(float)).mean()
        for _ in range(redraws)
    ]
    agreement = float(numpy.mean(same))
    # Counted both ways round, either answer is better half of the time, so chance agreement is 1/2.
    overall = {"pairwise_agreement": agreement, "alpha_nominal": 2 * agreement - 1}
    return Truth(right, overall | {"kendalls_w": float(numpy.mean(concordance))})


def simulated(tasks: Sequence[Task], *, share: float = 1.0, seed: int = 0) -> Report:
    """The report on what five annotators say of the tasks, each of which ranks this share of them."""
    rng = numpy.random.default_rng(seed)
    gold = numpy.array([task.gold for task in tasks])
    judgements: list[Judgement] = []
    for name, degree in TEMPERATURES.items():
        asked = rng.random(len(tasks)) < share
        for task, grades in zip(tasks, rankings(gold, degree, rng).tolist(), strict=True):
            if asked[task.id - tasks[0].id]:
                number = len(judgements) + 1
                judgements.append(
                    Judgement(number, task.id, name, "ranked", tuple(grades), "", "", 20.0, datetime.now(UTC))
                )
    return agreement_of(tasks, judgements, seed=seed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--share", type=float, default=1.0)
    options = parser.parse_args()
    tasks = population(options.tasks * options.seeds)
    truth = truth_of(tasks)
    parts = [tasks[n * options.tasks : (n + 1) * options.tasks] for n in range(options.seeds)]
    reports = [simulated(part, share=options.share, seed=seed) for seed, part in enumerate(parts)]
    print(table(reports, truth))


def table(reports: Sequence[Report], truth: Truth) -> str:
    """A line per figure: the truth, the mean estimate, the mean width of the interval, how often it held the truth."""
    lines = ["| figure | truth | estimate | width | held the truth |", "| --- | --- | --- | --- | --- |"]
    for name, true in truth.overall.items():
        lines.append(_line(name, true, [report.overall[name].interval for report in reports]))
    for figure in FIGURES:
        for name, true in truth.accuracy.items():
            found = [getattr(one, figure).interval for report in reports for one in report.people if one.name == name]
            lines.append(_line(f"{figure}, {name}", true, found))
    return "\n".join(lines)


def _line(name: str, true: float, intervals: Sequence) -> str:
    found = [interval for interval in intervals if interval is not None]
    held = sum(interval.low <= true <= interval.high for interval in found)
    mean, width = (
        numpy.mean([interval.mean for interval in found]),
        numpy.mean([interval.high - interval.low for interval in found]),
    )
    return f"| {name} | {true:.3f} | {mean:.3f} | {width:.3f} | {held} of {len(found)} |"


if __name__ == "__main__":
    main()
