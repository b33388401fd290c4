"""How far the people of a project agree, how reliable each of them is, and what they disagree on.

Everything comes from pairs of answers: a ranking of K answers says of each of its K (K - 1) / 2 pairs which is better,
or that they are tied. Pairs of one task depend on each other, so every interval counts by tasks. Each pair is counted
both ways round: which answer happens to stand first in a file moves no figure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy
from numpy.typing import NDArray

from onebase.labels.judged import Judgement, Task
from onebase.quality.agreement import (
    Ratings,
    Sums,
    agreement_sums,
    coincidences,
    confusions,
    drawn_interval,
    draws,
    fleiss_sums,
    group_sums,
    mid_ranks,
    of_agreement,
    of_alpha,
    of_fleiss,
    of_kappa,
    of_mean,
    of_ranks,
)
from onebase.quality.reliability import GAMMA_MEAN, Z, bradley_terry, dawid_skene, scores
from onebase.reporting.intervals import Interval

FEWEST_TASKS = 10
"""Tasks that a figure needs before it is shown: a bootstrap over fewer says little."""
MOST_DISPUTED = 20
OUTCOMES = numpy.array([0.0, 0.5, 1.0])
"""The second is better, a tie, the first is better."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95 % interval, or why there is none."""

    interval: Interval | None
    number: int
    """What it rests on: tasks, or judgements for a share of them."""
    why: str = ""
    """A key of `agreement_words.WORDS`, where there is no interval."""


@dataclass(frozen=True, slots=True)
class Between:
    """Two people with enough tasks in common."""

    first: str
    second: str
    kappa: Figure
    """Cohen's, on which answer of a pair is better."""
    agreement: Figure


@dataclass(frozen=True, slots=True)
class Annotator:
    """One person's record."""

    name: str
    judged: int
    ranked: int
    seconds: float | None
    """Median per ranking; None where no time is known."""
    skipped: Figure
    all_bad: Figure
    others: Figure
    """Share of pairs on which this person says what most of the others say; a tie counts half."""
    bradley_terry: Figure
    """Estimated share of pairs that this person orders right."""
    gamma: Figure
    """The same as a discrimination."""
    dawid_skene: Figure
    """Estimated chance that what this person says of a pair is the truth."""
    gold: Figure
    """Share of the pairs of gold questions in the order of their grades; a tie counts half."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one person said of a disputed task."""

    person: str
    order: str
    """The answers' letters from the best, as in `A > B = C`."""
    note: str


@dataclass(frozen=True, slots=True)
class Disputed:
    """A task that people disagree on."""

    task: Task
    agreement: float
    """Pairwise agreement on its pairs of answers."""
    consensus: str
    """The order of the answers' scores by Bradley-Terry, given how sharp each annotator is found to be."""
    said: tuple[Said, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What `agreement_of` found."""

    tasks: int
    judgements: int
    shared: int
    """Tasks that two or more people ranked."""
    overall: Mapping[str, Figure]
    between: tuple[Between, ...]
    people: tuple[Annotator, ...]
    disputed: tuple[Disputed, ...]


@dataclass(frozen=True, slots=True)
class _Pairs:
    """All rankings as judgements of pairs, for U pairs of answers and R people."""

    names: list[str]
    outcomes: Ratings
    """1 if the first answer was found better, 0.5 tied, 0 worse, NaN not ranked: `[U, R]`."""
    gold: Ratings
    """The same, by the task's gold grades; NaN where there are none, or they are equal: `[U]`."""
    tasks: NDArray[numpy.int64]
    """The task of each pair: `[U]`."""
    answers: Ratings
    """Each answer's place by each person, from 0 for the worst to 1 for the best: `[A, R]`."""
    answer_tasks: NDArray[numpy.int64]
    concordance: Sums
    """Kendall's W and 1 for each task; zeros if fewer than two people ranked it, or all tied everything: `[T, 2]`."""


def agreement_of(tasks: Sequence[Task], judgements: Sequence[Judgement], *, seed: int = 0) -> Report:
    """The report on judgements in force; of several by one person on one task, the last counts.

    Takes well under a second for 2,000 tasks with 4 answers ranked by 5 people.
    """
    known = {task.id: task for task in tasks}
    last = {(one.task_id, one.person): one for one in judgements if one.task_id in known}
    said = list(last.values())
    pairs = _pairs(known, said)
    shared = _tasks_with(pairs, (~numpy.isnan(pairs.outcomes)).sum(1) > 1)
    times = draws(len(shared), seed=seed)
    gamma, reliabilities = _reliabilities(pairs)
    return Report(
        tasks=len(tasks),
        judgements=len(said),
        shared=len(shared),
        overall=_overall(pairs, shared, times),
        between=_between(pairs, shared, times),
        people=tuple(
            _annotator(name, r, pairs, [one for one in said if one.person == name], reliabilities.get(r))
            for r, name in enumerate(pairs.names)
        ),
        disputed=_disputed(pairs, known, said, gamma),
    )


def _pairs(known: Mapping[int, Task], said: Sequence[Judgement]) -> _Pairs:
    names = sorted({one.person for one in said})
    column = {name: r for r, name in enumerate(names)}
    by_size: dict[int, dict[int, list[Judgement]]] = {}
    for one in said:
        if one.grades is not None:
            by_size.setdefault(len(one.grades), {}).setdefault(one.task_id, []).append(one)
    outcomes, gold, units, answers, answer_tasks, concordance = [], [], [], [], [], []
    for size, rankings in sorted(by_size.items()):
        grades = numpy.full((len(rankings), len(names), size), numpy.nan)
        truth = numpy.full((len(rankings), size), numpy.nan)
        for t, (task, ones) in enumerate(rankings.items()):
            for one in ones:
                grades[t, column[one.person]] = one.grades
            best = known[task].gold
            truth[t] = numpy.nan if best is None else best
        numbers = numpy.array(list(rankings))
        first, second = map(list, zip(*combinations(range(size), 2), strict=True))
        over = numpy.sign(grades[:, :, first] - grades[:, :, second]) / 2 + 0.5  # [T, R, pairs]
        outcomes.append(over.transpose(0, 2, 1).reshape(-1, len(names)))
        right = numpy.sign(truth[:, first] - truth[:, second]) / 2 + 0.5
        gold.append(numpy.where(right == 0.5, numpy.nan, right).reshape(-1))
        units.append(numpy.repeat(numbers, len(first)))
        ranks = mid_ranks(grades)
        answers.append(((ranks - 1) / (size - 1)).transpose(0, 2, 1).reshape(-1, len(names)))
        answer_tasks.append(numpy.repeat(numbers, size))
        found = of_ranks(ranks)
        concordance.append(numpy.stack([numbers, numpy.nan_to_num(found), ~numpy.isnan(found)], 1))
    by_task = numpy.concatenate([numpy.zeros((0, 3)), *concordance])
    none = numpy.zeros((0, len(names)))
    whole = numpy.zeros(0, dtype=numpy.int64)
    return _Pairs(
        names,
        numpy.concatenate([none, *outcomes]),
        numpy.concatenate([numpy.zeros(0), *gold]),
        numpy.concatenate([whole, *units]),
        numpy.concatenate([none, *answers]),
        numpy.concatenate([whole, *answer_tasks]),
        by_task[numpy.argsort(by_task[:, 0]), 1:],
    )


def _overall(pairs: _Pairs, shared: NDArray[numpy.int64], times: Sums) -> dict[str, Figure]:
    """Each coefficient over all people."""
    both_ways = numpy.concatenate([pairs.outcomes, 1 - pairs.outcomes])
    places = numpy.unique(pairs.answers[~numpy.isnan(pairs.answers)])
    alpha = partial(of_alpha, values=OUTCOMES)
    ordinal = partial(of_alpha, values=places, level="ordinal")
    tasks = pairs.tasks
    each_twice = numpy.concatenate([tasks, tasks])
    of_tasks: dict[str, tuple[Callable[[Sums], Sums], Sums]] = {
        "pairwise_agreement": (of_agreement, group_sums(agreement_sums(pairs.outcomes), tasks)),
        "alpha_nominal": (alpha, group_sums(coincidences(both_ways, OUTCOMES), each_twice)),
        "alpha_ordinal": (ordinal, group_sums(coincidences(pairs.answers, places), pairs.answer_tasks)),
        "kendalls_w": (of_mean, pairs.concordance),
        "fleiss_kappa": (of_fleiss, group_sums(fleiss_sums(both_ways), each_twice)),
    }
    found = {}
    for name, (value, sums) in of_tasks.items():
        sums = sums[numpy.isin(numpy.unique(tasks), shared)]
        number = int(sums.reshape(len(sums), math.prod(sums.shape[1:])).any(1).sum())
        few = Figure(None, number, "few-shared")
        found[name] = few if number < FEWEST_TASKS else _figure(drawn_interval(value, sums, times), number)
    return found


def _between(pairs: _Pairs, shared: NDArray[numpy.int64], times: Sums) -> tuple[Between, ...]:
    """Cohen's kappa of each two people who share enough tasks, the lowest first."""
    given = ~numpy.isnan(pairs.outcomes)
    found = []
    for a, b in combinations(range(len(pairs.names)), 2):
        both = given[:, a] & given[:, b]
        tasks = _tasks_with(pairs, both)
        if len(tasks) < FEWEST_TASKS:
            continue
        rated = pairs.outcomes[both][:, [a, b]]
        one_way = confusions(rated, OUTCOMES)
        sums = group_sums(one_way + one_way[:, ::-1, ::-1], pairs.tasks[both])
        kappa = drawn_interval(of_kappa, sums, times[:, numpy.searchsorted(shared, tasks)])
        share = _share_figure((rated[:, 0] == rated[:, 1]).astype(float), pairs.tasks[both])
        found.append(Between(pairs.names[a], pairs.names[b], _figure(kappa, len(tasks)), share))
    return tuple(sorted(found, key=lambda one: one.kappa.interval.mean if one.kappa.interval else 2.0))


def _reliabilities(pairs: _Pairs) -> tuple[dict[str, float], dict[int, tuple[Figure, Figure, Figure]]]:
    """Each person's gamma, and for those with enough shared tasks the figures of both models."""
    given = ~numpy.isnan(pairs.outcomes)
    shared = given & (given.sum(1) > 1)[:, None]
    number = {r: len(_tasks_with(pairs, shared[:, r])) for r in range(len(pairs.names))}
    enough = [r for r, count in number.items() if count >= FEWEST_TASKS]
    gamma = dict.fromkeys(pairs.names, GAMMA_MEAN)
    if len(enough) < 3:
        return gamma, {}
    outcomes = pairs.outcomes[:, enough]
    used = (~numpy.isnan(outcomes)).sum(1) > 1
    outcomes, groups = outcomes[used], pairs.tasks[used]
    sharpness = bradley_terry(outcomes, groups=groups)
    answers = numpy.concatenate([outcomes, 1 - outcomes])[:, :, None] == OUTCOMES
    truth = dawid_skene(answers.astype(float), groups=numpy.concatenate([groups, groups]))
    figures = {}
    for place, r in enumerate(enough):
        found = (sharpness.accuracy[place], sharpness.gamma[place], truth.accuracy[place])
        figures[r] = tuple(_figure(interval, number[r]) for interval in found)
        gamma[pairs.names[r]] = sharpness.gamma[place].mean
    return gamma, {r: (one, two, three) for r, (one, two, three) in figures.items()}


def _annotator(
    name: str,
    r: int,
    pairs: _Pairs,
    said: Sequence[Judgement],
    reliability: tuple[Figure, Figure, Figure] | None,
) -> Annotator:
    ranked = [one for one in said if one.kind == "ranked"]
    seconds = [one.seconds for one in ranked if one.seconds > 0]
    own = pairs.outcomes[:, r]
    given = ~numpy.isnan(own)
    leans = numpy.nan_to_num(pairs.outcomes - 0.5)
    others = numpy.sign(leans.sum(1) - leans[:, r])
    decided = given & (others != 0)
    agree = 0.5 + others * (own - 0.5)
    asked = given & ~numpy.isnan(pairs.gold)
    right = 0.5 + 2 * (pairs.gold - 0.5) * (own - 0.5)
    shared = len(_tasks_with(pairs, decided))
    few = Figure(None, shared, "few-people" if shared >= FEWEST_TASKS else "few-shared")
    bradley, gamma, dawid = reliability or (few, few, few)
    return Annotator(
        name=name,
        judged=len(said),
        ranked=len(ranked),
        seconds=statistics.median(seconds) if seconds else None,
        skipped=_share_of(said, "skipped"),
        all_bad=_share_of(said, "all_bad"),
        others=Figure(None, shared, "few-shared")
        if shared < FEWEST_TASKS
        else _share_figure(agree[decided], pairs.tasks[decided]),
        bradley_terry=bradley,
        gamma=gamma,
        dawid_skene=dawid,
        gold=_share_figure(right[asked], pairs.tasks[asked]) if asked.any() else Figure(None, 0, "no-gold"),
    )


def _disputed(
    pairs: _Pairs, known: Mapping[int, Task], said: Sequence[Judgement], gamma: Mapping[str, float]
) -> tuple[Disputed, ...]:
    """The tasks with the lowest agreement on their pairs; of equal ones, those that more people ranked come first."""
    sums = group_sums(agreement_sums(pairs.outcomes), pairs.tasks)
    numbers = numpy.unique(pairs.tasks)
    share = of_agreement(sums)
    order = numpy.lexsort((numbers, -sums[:, 0], share))
    chosen = [int(t) for t in order if share[t] < 1][:MOST_DISPUTED]  # NaN, of tasks that one person ranked, is not
    ranked: dict[int, list[Judgement]] = {int(numbers[t]): [] for t in chosen}
    for one in said:
        if one.grades is not None and one.task_id in ranked:
            ranked[one.task_id].append(one)
    found = []
    for t in chosen:
        ones = sorted(ranked[int(numbers[t])], key=lambda one: one.person)
        told = tuple(Said(one.person, order_of(one.grades or ()), one.note) for one in ones)
        found.append(Disputed(known[int(numbers[t])], float(share[t]), _consensus(ones, gamma), told))
    return tuple(found)


def _consensus(ones: Sequence[Judgement], gamma: Mapping[str, float]) -> str:
    compared = [
        (i, k, 0.5 + ((one.grades[i] > one.grades[k]) - (one.grades[i] < one.grades[k])) / 2, gamma[one.person])
        for one in ones
        if one.grades is not None
        for i, k in combinations(range(len(one.grades)), 2)
    ]
    first, second, outcome, sharp = (numpy.array(column) for column in zip(*compared, strict=True))
    # A difference of two scores has the variance 1, as in the model that found the gammas.
    return order_of(numpy.round(scores(first, second, outcome, sharp, sd=0.5**0.5), 6).tolist())


def order_of(grades: Sequence[float]) -> str:
    """The answers' letters from the best: `A > B = C`."""
    levels = sorted(set(grades), reverse=True)
    names = [[chr(ord("A") + i) for i, grade in enumerate(grades) if grade == level] for level in levels]
    return " > ".join(" = ".join(level) for level in names)


def _tasks_with(pairs: _Pairs, which: NDArray[numpy.bool_]) -> NDArray[numpy.int64]:
    return numpy.unique(pairs.tasks[which])


def _share_of(said: Sequence[Judgement], kind: str) -> Figure:
    values = numpy.array([one.kind == kind for one in said], dtype=float)
    return _share_figure(values, numpy.arange(len(values)))


def _share_figure(values: Ratings, groups: NDArray[numpy.int64]) -> Figure:
    """The mean of values in [0, 1] with Wilson's interval for as many independent ones as they are worth.

    n = p (1 - p) / Var(mean), with the variance between groups (Korn and Graubard 1998); fewer than ten groups, or all
    values alike, count as one value a group. Unlike a bootstrap, a record without a fault gets an interval too.
    """
    sums = group_sums(numpy.stack([values, numpy.ones_like(values)], 1), groups)
    number, total = len(sums), float(sums[:, 1].sum())
    share = float(values.mean())
    apart = sums[:, 0] - share * sums[:, 1]
    variance = float((apart**2).sum()) / total**2 * number / max(number - 1, 1)
    worth = float(number)
    if number >= FEWEST_TASKS and 0 < share < 1 and variance > 0:
        worth = min(share * (1 - share) / variance, total)
    middle = (share + Z**2 / (2 * worth)) / (1 + Z**2 / worth)
    half = Z / (1 + Z**2 / worth) * (share * (1 - share) / worth + Z**2 / (4 * worth**2)) ** 0.5
    return Figure(Interval(share, max(0.0, middle - half), min(1.0, middle + half)), number)


def _figure(interval: Interval, number: int) -> Figure:
    found = numpy.isfinite([interval.mean, interval.low, interval.high]).all()
    return Figure(interval, number) if found else Figure(None, number, "all-alike")
