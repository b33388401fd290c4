"""What people said of the tasks: saved once and for good, withdrawn, counted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, get_args

from sqlalchemy import ColumnElement, Connection, exists, func, insert, select, update

from onebase.errors import DataError
from onebase.labels.database import Database
from onebase.labels.judged import Judgement, Kind, Progress, Saved, Task
from onebase.labels.leases import LEASE_SECONDS, give, in_force, open_to, places_taken
from onebase.labels.people import check_active, checked_name, new_person, person_where
from onebase.labels.schema import judgements, leases, people, tasks, withdrawals
from onebase.labels.tasks import read_task
from onebase.labels.values import moment_of, plain
from onebase.shown import number_of, shown

_LONGEST_KEY = 200
_RANKED_ELSEWHERE = {"kind": "ranked", "reason": "", "note": "", "seconds": 0.0, "late": False}


class AlreadyJudged(DataError):
    """This person judged this task before, under another key."""


class NotLeased(DataError):
    """This person was never given this task."""


@dataclass(frozen=True, slots=True)
class Brought:
    """A ranking that somebody gave in another program."""

    person: str
    task_key: str
    grades: tuple[int, ...]
    """As in a `Judgement`, in the order of the task in the database."""


@dataclass(frozen=True, slots=True)
class Arrived:
    """What became of rankings that were given elsewhere."""

    new: int
    undone: int
    """Came before and were undone here; they stay undone."""


class Judgements:
    """The judgements of a project. Times are in UTC; `now` is for tests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def save(
        self,
        person_id: int,
        task_id: int,
        *,
        key: str,
        kind: Kind,
        grades: Sequence[int] | None = None,
        reason: str = "",
        note: str = "",
        seconds: float = 0.0,
        now: datetime | None = None,
    ) -> Saved:
        """Keeps a judgement for good; on disk when this returns.

        Sent again under the same key, it is counted once. If the person's lease has ended, the judgement counts all the
        same, as `late` in the table, even if others have taken the places since.

        Raises:
            AlreadyJudged: this person judged the task under another key.
            NotLeased: this person was never given the task.
            Unreachable: the database went away; sending the same again is safe.
            DataError: what was sent is no judgement of this task.
        """

        def work(connection: Connection) -> Saved:
            moment = moment_of(now)
            known = _by_key(connection, person_id, task_id, key)
            if known is not None:
                return Saved(known, new=False)
            check_active(connection, person_id)
            lease = connection.execute(
                select(leases.c.until).where(leases.c.person_id == person_id, leases.c.task_id == task_id)
            ).one_or_none()
            if lease is None:
                raise NotLeased(f"task {task_id} was not given to this person; take the next one")
            late = lease.until <= moment and places_taken(connection, task_id, person_id, moment)
            said = {"kind": kind, "reason": reason, "note": note, "seconds": seconds, "late": late, "at": moment}
            return Saved(_judge(connection, person_id, task_id, key, grades, said), new=True)

        return self._database.write(work)

    def bring(self, rankings: Iterable[Brought]) -> Arrived:
        """Keeps rankings that were given elsewhere, whether or not their tasks have places left; returns how many.

        People who are not known yet are added, without a way to log in. A ranking that is there is left as it is, and
        one that came before and was undone here stays undone.

        Raises:
            DataError: there is no such task, or these are no grades for it; then none is kept.
        """
        given = list(rankings)

        def work(connection: Connection) -> Arrived:
            new = undone = 0
            for one in given:
                task_id = connection.scalar(select(tasks.c.id).where(tasks.c.key == one.task_key))
                if task_id is None:
                    raise DataError(f"{shown(one.person, 40)} ranked a task that is not in the database")
                name = checked_name(one.person)
                known = person_where(connection, people.c.name == name)
                person_id = (known or new_person(connection, name, "annotator", None)).id
                key = f"brought:{one.task_key}"
                if _by_key(connection, person_id, task_id, key) is not None:
                    undone += not connection.scalar(select(_stands(person_id, task_id)))
                    continue
                with suppress(AlreadyJudged):
                    _judge(connection, person_id, task_id, key, one.grades, _RANKED_ELSEWHERE | {"at": moment_of(None)})
                    new += 1
            return Arrived(new, undone)

        return self._database.write(work)

    def undo(self, person_id: int, *, seconds: float = LEASE_SECONDS, now: datetime | None = None) -> Task | None:
        """Withdraws the person's last judgement and gives them its task again; returns it, None if there was none."""
        withdrawn: list[int] = []  # by a try whose commit may have come through

        def work(connection: Connection) -> Task | None:
            moment = moment_of(now)
            check_active(connection, person_id)
            last = connection.execute(
                select(judgements.c.id, judgements.c.task_id)
                .where(
                    judgements.c.person_id == person_id, judgements.c.id == withdrawn[0] if withdrawn else in_force()
                )
                .order_by(judgements.c.id.desc())
                .limit(1)
            ).one_or_none()
            if last is None:
                return None
            withdrawn[:] = [last.id]
            if not connection.scalar(select(exists().where(withdrawals.c.judgement_id == last.id))):
                connection.execute(insert(withdrawals).values(judgement_id=last.id, at=moment))
            give(connection, person_id, last.task_id, moment, moment + timedelta(seconds=seconds))
            return read_task(connection, last.task_id)

        return self._database.write(work)

    def progress(self, person_id: int, *, since: datetime, now: datetime | None = None) -> Progress:
        """How many tasks the person ranked or called all bad, in all and since a moment, and how many are left."""

        def work(connection: Connection) -> Progress:
            mine = (judgements.c.person_id == person_id, judgements.c.kind != "skipped", in_force())
            done = connection.scalar(select(func.count()).select_from(judgements).where(*mine)) or 0
            today = connection.scalar(
                select(func.count()).select_from(judgements).where(*mine, judgements.c.at >= moment_of(since))
            )
            left = select(func.count()).select_from(tasks).where(open_to(person_id, moment_of(now)))
            return Progress(done, today or 0, connection.scalar(left) or 0)

        return self._database.read(work)

    def all(self, *, withdrawn: bool = False) -> list[Judgement]:
        """The judgements in force, oldest first; with `withdrawn`, those too that were withdrawn."""
        return self._database.read(lambda connection: read_judgements(connection, withdrawn=withdrawn))


def read_judgements(connection: Connection, *, withdrawn: bool) -> list[Judgement]:
    """The judgements, oldest first."""
    found = select(judgements, people.c.name).join(people, people.c.id == judgements.c.person_id)
    if not withdrawn:
        found = found.where(in_force())
    return [
        Judgement(
            row.id,
            row.task_id,
            row.name,
            row.kind,
            None if row.grades is None else tuple(json.loads(row.grades)),
            row.reason,
            row.note,
            row.seconds,
            row.at,
        )
        for row in connection.execute(found.order_by(judgements.c.at, judgements.c.id))
    ]


def _by_key(connection: Connection, person_id: int, task_id: int, key: str) -> int | None:
    """The number of the judgement that this person sent under a key, None if there is none."""
    if not 1 <= len(key) <= _LONGEST_KEY or plain(key) != key:
        raise DataError(f"the key of a judgement has 1 to {_LONGEST_KEY} characters, this one {len(key)}")
    row = connection.execute(
        select(judgements.c.id, judgements.c.task_id).where(
            judgements.c.person_id == person_id, judgements.c.key == key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.task_id != task_id:
        raise DataError(f"this key was sent with task {row.task_id}, now with task {task_id}; use a new one")
    return int(row.id)


def _stands(person_id: int, task_id: int) -> ColumnElement[bool]:
    """Whether a judgement of this person on this task is in force."""
    return exists().where(judgements.c.person_id == person_id, judgements.c.task_id == task_id, in_force())


def _judge(
    connection: Connection,
    person_id: int,
    task_id: int,
    key: str,
    grades: Sequence[int] | None,
    said: dict[str, Any],
) -> int:
    task = read_task(connection, task_id)
    assert task is not None, "a lease, or its key, led here"
    _check_said(task, grades, said)
    if connection.scalar(select(_stands(person_id, task_id))):
        raise AlreadyJudged(f"this person has judged task {task_id}; to change it, undo it first")
    earlier = select(func.count()).select_from(judgements)
    earlier = earlier.where(judgements.c.person_id == person_id, judgements.c.task_id == task_id)
    values = {
        **said,
        "reason": plain(said["reason"]),
        "note": plain(said["note"]),
        "person_id": person_id,
        "task_id": task_id,
        "attempt": connection.scalar(earlier),
        "key": key,
        "grades": None if grades is None else json.dumps(list(grades)),
    }
    row = connection.execute(insert(judgements).values(values).returning(judgements.c.id)).one()
    ended = update(leases).where(leases.c.person_id == person_id, leases.c.task_id == task_id)
    connection.execute(ended.where(leases.c.until > said["at"]).values(until=said["at"]))
    return int(row.id)


def _check_said(task: Task, grades: Sequence[int] | None, said: dict[str, Any]) -> None:
    count = len(task.answers)
    if said["kind"] not in get_args(Kind):
        raise DataError(f"'{shown(said['kind'], 40)}' is no judgement; it is ranked, all_bad or skipped")
    if (said["kind"] == "ranked") != (grades is not None):
        raise DataError(f"task {task.id}: a ranking has grades, and nothing else has")
    whole = grades is None or all(type(grade) is int and 1 <= grade <= count for grade in grades)
    if grades is not None and (len(grades) != count or not whole):
        raise DataError(
            f"task {task.id} has {number_of(count, 'answer')}: a grade from 1 to {count} for each, not {list(grades)}"
        )
    if not (math.isfinite(said["seconds"]) and said["seconds"] >= 0):
        raise DataError(f"task {task.id}: {said['seconds']} is no time in seconds")
