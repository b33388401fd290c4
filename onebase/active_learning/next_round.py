"""`onebase label next`: chooses from candidates what people rank next, and adds it to the database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy

from onebase.active_learning.choose import disagreement, expected_curvature, most_informative, spread_sample
from onebase.active_learning.features import answers_of, comparable
from onebase.active_learning.heads import (
    Floats,
    bootstrap_heads,
    evident_ridge,
    information,
    rankings_of,
)
from onebase.errors import DataError
from onebase.labels.judged import Judgement, NewTask, Task
from onebase.labels.store import Store
from onebase.labels.tasks import MOST_ANSWERS, task_key
from onebase.quality.near_duplicates import NUM_HASHES, near_duplicates, signature_of
from onebase.reading.formats import read_rows
from onebase.reading.ranked import with_unranked
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown

NUM_HEADS = 20
SIMILARITY = 0.8
"""Jaccard similarity of prompt and every answer from which two tasks are near-duplicates."""
FEWEST_RANKINGS = 20
"""With fewer, heads know too little to choose by."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a round holds."""

    tasks: list[NewTask]
    known: int
    """Candidates that are in the database already."""
    near: int
    """Candidates left out as near-duplicates of a task or of an earlier candidate."""
    split: dict[str, float]
    """How evenly the heads split on the pairs of the tasks, by how these were chosen; empty without heads."""


def run(
    *,
    url: str,
    candidates: Path,
    role: str | None,
    num: int,
    random_share: float = 0.25,
    seed: int = 0,
    columns: Mapping[str, str] | None = None,
    overlap_share: float = 0.0,
    people: int = 2,
    model: str | None = None,
    device: str = "auto",
) -> None:
    """Adds up to `num` of the file's tasks to the database as a new round, and says which and why.

    Args:
        role: the folder of a reward role; None: all tasks are random.
        overlap_share, people: how many of the new tasks go to several people, and to how many.

    Raises:
        DataError: the file or the database cannot be used, or no candidate is left.
    """
    found = read_candidates(candidates, columns)
    store = Store.open(url, create=True)
    try:
        snapshot = store.snapshot()
        left, known, near = unasked(found, snapshot.tasks)
        if not left:
            raise DataError(
                f"{shown(candidates)}: all {number_of(len(found), 'candidate is', 'candidates are')} in the "
                "database or near-duplicates of what is; give other candidates"
            )
        ranked = rankings_in(snapshot.tasks, snapshot.judgements)
        if role is not None and len(ranked) < FEWEST_RANKINGS:
            say(
                f"label next: {number_of(len(ranked), 'ranking')} so far, too few to choose by (at least "
                f"{FEWEST_RANKINGS})"
            )
            role = None
        if role is None:
            chosen = Chosen(at_random(left, num, seed), known, near, {})
        else:
            tasks, split = by_role(left, ranked, role, num, random_share, seed, model, device)
            chosen = Chosen(tasks, known, near, split)
        number = max((task.round for task in snapshot.tasks), default=-1) + 1
        store.tasks.add(
            [replace(task, round=number) for task in chosen.tasks],
            overlap_share=overlap_share,
            people=people,
            seed=seed,
        )
    finally:
        store.close()
    report(chosen, number, len(found), num)


def read_candidates(file: Path, columns: Mapping[str, str] | None) -> list[NewTask]:
    """The file's rows as tasks; the rows' own grades are not looked at.

    Raises:
        DataError: a row has no prompt, or not 2 to 9 different answers.
    """
    return [_task_of(with_unranked(row)) for row in read_rows(file, columns=columns)]


def _task_of(row: Row) -> NewTask:
    answers = tuple(row.answer(k).text for k in range(len(row.answers)))
    if not row.messages:
        raise DataError(f"{row.place}: a candidate has a prompt and its answers; this row is a plain text")
    if not 2 <= len(set(answers)) <= MOST_ANSWERS or len(set(answers)) < len(answers):
        raise DataError(
            f"{row.place}: {number_of(len(answers), 'answer')}, {len(set(answers))} of them different; people "
            "rank 2 to "
            f"{MOST_ANSWERS} different ones"
        )
    return NewTask(row.messages, answers, place=row.place, ended=row.ended, tools=row.tools)


def unasked(candidates: Sequence[NewTask], tasks: Sequence[Task]) -> tuple[list[NewTask], int, int]:
    """The candidates that are no task yet and no near-duplicate of one or of an earlier candidate; how many were a
    task, and how many a near-duplicate."""
    there = {task.key for task in tasks}
    new = [task for task in candidates if task_key(task) not in there]
    parts = [_parts(task) for task in [*tasks, *new]]
    signatures = numpy.array([signature_of(own) for own in parts], numpy.uint32).reshape(-1, NUM_HASHES)
    twins = near_duplicates(parts, signatures, SIMILARITY)
    left = [task for n, task in enumerate(new, start=len(tasks)) if n not in twins]
    return left, len(candidates) - len(new), len(new) - len(left)


def _parts(task: NewTask) -> list[str]:
    """The prompt, then the answers in an order that does not depend on the file's."""
    return [_text(task), *sorted(task.answers)]


def _text(task: NewTask) -> str:
    return "\n".join(message.text for message in task.prompt)


def rankings_in(tasks: Sequence[Task], judgements: Sequence[Judgement]) -> list[tuple[Task, tuple[float, ...]]]:
    """Every ranking in force, with its task; gold questions are left out, for their answers are known."""
    by_id = {task.id: task for task in tasks if task.gold is None}
    return [
        (by_id[judgement.task_id], tuple(map(float, judgement.grades)))
        for judgement in judgements
        if judgement.grades is not None and judgement.task_id in by_id
    ]


def at_random(left: Sequence[NewTask], num: int, seed: int) -> list[NewTask]:
    """Up to `num` random tasks, spread over what the candidates are about."""
    texts = ["\n".join(_parts(task)) for task in left]
    return [replace(left[n], chosen="random") for n in spread_sample(texts, num, seed=seed)]


def by_role(
    left: Sequence[NewTask],
    ranked: Sequence[tuple[Task, tuple[float, ...]]],
    role: str,
    num: int,
    random_share: float,
    seed: int,
    model: str | None,
    device: str,
) -> tuple[list[NewTask], dict[str, float]]:
    """A random share of the candidates, and of the others those that tell the role most; with how heads split on them.

    The random ones are drawn first, from all candidates, so that they stand for all of them.

    Raises:
        DataError: no ranked task, or no candidate, fits the role's context.
    """
    random = at_random(left, min(len(left), round(random_share * num)), seed)
    keys = {task_key(task) for task in random}
    others = [task for task in left if task_key(task) not in keys]
    say(
        f"label next: features of {number_of(len(left), 'candidate')} and "
        f"{number_of(len({task.id for task, _ in ranked}), 'ranked task')}"
    )
    named = {f"candidate {n}": task for n, task in enumerate([*random, *others])}
    named |= {f"task {task.id}": task for task, _ in ranked}
    seen = answers_of(named, role, model=model, device=device)
    features = dict(zip(seen, comparable([own.features for own in seen.values()]), strict=True))
    rankings = rankings_of(
        [(features[f"task {task.id}"], grades) for task, grades in ranked if f"task {task.id}" in features]
    )
    pool = [name for name in features if name.startswith("candidate")]
    if not len(rankings) or not pool:
        raise DataError(f"{shown(role)}: no {'candidate' if len(rankings) else 'ranked task'} fits its context")
    ridge, weights = evident_ridge(rankings)
    heads = bootstrap_heads(rankings, ridge, num_heads=NUM_HEADS, seed=seed, start=weights)
    table, there = _padded([features[name] for name in pool])
    opinions = [table @ head for head in heads]
    own = [seen[name].scores for name in pool]
    by_own = _padded([given[:, None] for given in own if given is not None])[0][:, :, 0]
    curvature = (expected_curvature(opinions, there) + expected_curvature([by_own], there)) / 2
    covariance: Floats = numpy.asarray(
        numpy.linalg.inv(information(rankings, weights) + ridge * numpy.eye(len(weights))), numpy.float64
    )
    split = dict(zip(pool, disagreement(opinions, there).tolist(), strict=True))
    free = [n for n, name in enumerate(pool) if int(name.split()[1]) >= len(random)]
    wanted = min(num, len(left)) - len(random)
    taken = [free[n] for n in most_informative(table[free], curvature[free], covariance, wanted)]
    active = [replace(named[pool[n]], chosen="active") for n in taken]
    parts = {"active": [pool[n] for n in taken], "random": [f"candidate {n}" for n in range(len(random))]}
    return [*random, *active], {
        how: float(numpy.mean([split[name] for name in names if name in split]))
        for how, names in parts.items()
        if any(name in split for name in names)
    }


def _padded(features: Sequence[Floats]) -> tuple[Floats, numpy.typing.NDArray[numpy.bool_]]:
    """The tasks' features as one table `[N, K, F]`, and where in it there is an answer."""
    table = rankings_of([(own, [0.0] * len(own)) for own in features])
    return table.features, ~numpy.isnan(table.grades)


def report(chosen: Chosen, number: int, candidates: int, num: int) -> None:
    """Says what the round holds."""
    counts = {how: sum(task.chosen == how for task in chosen.tasks) for how in ("active", "random")}
    print(
        f"round {number}: {number_of(len(chosen.tasks), 'task')} of {number_of(candidates, 'candidate')}, "
        f"{counts['active']} active and "
        f"{counts['random']} random; left out: {chosen.known} known, {chosen.near} near-duplicates"
    )
    if not chosen.split:
        print("all random, spread over what the candidates are about: there is no role to be unsure yet")
    for how, split in chosen.split.items():
        print(f"heads split on the pairs of the {how} tasks: {split:.2f} (0 they agree, 1 one half against the other)")
    if len(chosen.tasks) < num:
        say(
            f"label next: {number_of(len(chosen.tasks), 'task is', 'tasks are')} left, fewer than {num}; give "
            "more candidates"
        )
