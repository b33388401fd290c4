"""Prompts with their answers, each kept once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from random import Random
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from onebase.errors import DataError
from onebase.labels.database import Database
from onebase.labels.judged import NewTask, Task
from onebase.labels.schema import tasks
from onebase.labels.values import hashed, moment_of, plain
from onebase.records import Message, ToolCall
from onebase.shown import number_of, shown

MOST_ANSWERS = 9


class Tasks:
    """The tasks of a project."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(
        self,
        new: Iterable[NewTask],
        *,
        overlap: int = 1,
        overlap_share: float | None = None,
        people: int = 2,
        seed: int = 0,
    ) -> int:
        """Adds the tasks that are not there yet; returns how many.

        Args:
            overlap: how many people are to judge each.
            overlap_share: instead, this share of the tasks goes to `people` people each, the others to one; which, is
                drawn by the seed and the task itself.

        Raises:
            DataError: a task without a prompt, or with fewer than 2 or more than 9 answers.
        """
        if overlap < 1 or people < 1 or not 0 <= (overlap_share or 0.0) <= 1:
            raise DataError(f"tasks go to at least 1 person, not {min(overlap, people)}; a share is between 0 and 1")
        rows: dict[str, dict[str, Any]] = {}
        for task in new:
            key, values = task_values(task)
            several = overlap_share is not None and Random(f"{seed}:{key}").random() < overlap_share
            values["overlap"] = (people if several else 1) if overlap_share is not None else overlap
            rows.setdefault(key, values)

        def work(connection: Connection) -> int:
            there = {row.key for row in connection.execute(select(tasks.c.key))}
            added = [{**values, "added": moment_of(None)} for key, values in rows.items() if key not in there]
            if added:
                connection.execute(insert(tasks), added)
            return len(added)

        return self._database.write(work)

    def all(self) -> list[Task]:
        """All tasks, in the order in which they came."""
        return self._database.read(read_tasks)

    def by_id(self, task_id: int) -> Task | None:
        """The task with this number, None if there is none."""
        return self._database.read(lambda connection: read_task(connection, task_id))

    def count(self) -> int:
        """How many tasks there are."""
        return self._database.read(lambda connection: connection.scalar(select(func.count(tasks.c.id))) or 0)


def task_key(task: NewTask) -> str:
    """Hash of a task's prompt and answers, whatever their order: what is asked once."""
    return task_values(task)[0]


def read_tasks(connection: Connection) -> list[Task]:
    return [_as_task(row) for row in connection.execute(select(tasks).order_by(tasks.c.id))]


def read_task(connection: Connection, task_id: int) -> Task | None:
    row = connection.execute(select(tasks).where(tasks.c.id == task_id)).one_or_none()
    return None if row is None else _as_task(row)


def _as_task(row: Row[Any]) -> Task:
    prompt = tuple(
        Message(**{**message, "tool_calls": tuple(ToolCall(**call) for call in message["tool_calls"])})
        for message in json.loads(row.prompt)
    )
    return Task(
        prompt,
        tuple(json.loads(row.answers)),
        tuple(json.loads(row.sources)),
        None if row.gold is None else tuple(json.loads(row.gold)),
        row.chosen,
        row.round,
        row.place,
        None if row.ended is None else tuple(json.loads(row.ended)),
        tuple(json.loads(row.tools)),
        row.id,
        row.key,
        row.overlap,
    )


def task_values(task: NewTask) -> tuple[str, dict[str, Any]]:
    place = shown(task.place, 200) or "a task"
    if not task.prompt:
        raise DataError(f"{place} has no prompt; without one there is nothing to answer")
    if not 2 <= len(task.answers) <= MOST_ANSWERS:
        raise DataError(f"{place} has {number_of(len(task.answers), 'answer')}; people rank 2 to {MOST_ANSWERS}")
    for name, given in (("sources", task.sources or None), ("gold", task.gold), ("ended", task.ended)):
        if given is not None and len(given) != len(task.answers):
            raise DataError(
                f"{place} has {len(given)} {name} for {number_of(len(task.answers), 'answer')}; give one per answer"
            )
    prompt = json.dumps([asdict(message) for message in task.prompt])
    values = {
        "key": hashed(json.dumps([prompt, sorted(task.answers), task.tools])),
        "prompt": prompt,
        "answers": json.dumps(task.answers),
        "sources": json.dumps(task.sources),
        "ended": None if task.ended is None else json.dumps(task.ended),
        "tools": json.dumps(task.tools),
        "gold": None if task.gold is None else json.dumps(task.gold),
        "chosen": task.chosen,
        "round": task.round,
        "place": plain(task.place),
    }
    return str(values["key"]), values
