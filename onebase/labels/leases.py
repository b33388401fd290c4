"""Who gets which task next: places, leases, and the order in which answers are shown."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random

from sqlalchemy import ColumnElement, Connection, and_, exists, func, insert, or_, select, update

from onebase.labels.database import Database
from onebase.labels.judged import Lease, Task
from onebase.labels.people import check_active
from onebase.labels.schema import judgements, leases, tasks, withdrawals
from onebase.labels.tasks import read_task
from onebase.labels.values import hashed, moment_of

LEASE_SECONDS = 1800


class Leases:
    """Tasks held for one person until a moment. Times are in UTC; `now` is for tests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(
        self, person_id: int, *, seconds: float = LEASE_SECONDS, gold_share: float = 0.1, now: datetime | None = None
    ) -> Lease | None:
        """Returns a task for this person, theirs until the lease ends; None if there is none left for them.

        A task that they hold comes again, with a new end: two tabs show the same. Else it is the oldest with a place
        left, or a gold question with probability `gold_share`; when one kind runs out, the other.

        Raises:
            DataError: no such person, or not active.
        """

        def work(connection: Connection) -> Lease | None:
            moment = moment_of(now)
            until = moment + timedelta(seconds=seconds)
            check_active(connection, person_id)
            held = connection.scalar(
                select(leases.c.task_id)
                .where(leases.c.person_id == person_id, leases.c.until > moment)
                .order_by(leases.c.given.desc(), leases.c.id.desc())
                .limit(1)
            )
            if held is None:
                held = _next(connection, person_id, gold_share, moment)
                if held is None:
                    return None
                give(connection, person_id, held, moment, until)
            else:
                same = (leases.c.person_id == person_id, leases.c.task_id == held)
                connection.execute(update(leases).where(*same).values(until=until))
            task = read_task(connection, held)
            assert task is not None, "a lease refers to a task"
            return Lease(task, until, shown_order(task, person_id))

        return self._database.write(work)


def shown_order(task: Task, person_id: int) -> tuple[int, ...]:
    """An order of the answers that differs between people and is the same on every reload, in every version."""
    return tuple(sorted(range(len(task.answers)), key=lambda index: hashed(f"{task.key}:{person_id}:{index}")))


def in_force() -> ColumnElement[bool]:
    """Whether a judgement was not withdrawn."""
    return ~exists().where(withdrawals.c.judgement_id == judgements.c.id)


def open_to(person_id: int, now: datetime) -> ColumnElement[bool]:
    """Whether the person may get a task: they have not judged it, and it is gold or has a place left."""
    mine = exists().where(judgements.c.task_id == tasks.c.id, judgements.c.person_id == person_id, in_force())
    return and_(~mine, or_(tasks.c.gold.is_not(None), _taken(person_id, now) < tasks.c.overlap))


def places_taken(connection: Connection, task_id: int, person_id: int, now: datetime) -> bool:
    """Whether others have all places of a task that is no gold question."""
    which = (tasks.c.id == task_id, tasks.c.gold.is_(None), _taken(person_id, now) >= tasks.c.overlap)
    return connection.scalar(select(tasks.c.id).where(*which)) is not None


def give(connection: Connection, person_id: int, task_id: int, now: datetime, until: datetime) -> None:
    """Leases a task to a person, anew if they had it before."""
    same = and_(leases.c.person_id == person_id, leases.c.task_id == task_id)
    if not connection.execute(update(leases).where(same).values(given=now, until=until)).rowcount:
        values = {"person_id": person_id, "task_id": task_id, "given": now, "until": until}
        connection.execute(insert(leases).values(values))


def _taken(person_id: int, now: datetime) -> ColumnElement[int]:
    """How many places of a task others have: by judging it, or by a lease. A skipped place is free again."""
    judged = (
        select(func.count())
        .select_from(judgements)
        .where(
            judgements.c.task_id == tasks.c.id,
            judgements.c.person_id != person_id,
            judgements.c.kind != "skipped",
            in_force(),
        )
    )
    leased = (
        select(func.count())
        .select_from(leases)
        .where(leases.c.task_id == tasks.c.id, leases.c.person_id != person_id, leases.c.until > now)
    )
    return judged.scalar_subquery() + leased.scalar_subquery()


def _next(connection: Connection, person_id: int, gold_share: float, now: datetime) -> int | None:
    given = connection.scalar(select(func.count()).select_from(leases).where(leases.c.person_id == person_id))
    kinds: list[Callable[[], ColumnElement[bool]]] = [lambda: tasks.c.gold.is_(None), lambda: tasks.c.gold.is_not(None)]
    if Random(f"{person_id}:{given}").random() < gold_share:
        kinds.reverse()
    for kind in kinds:
        which = select(tasks.c.id).where(kind(), open_to(person_id, now)).order_by(tasks.c.id).limit(1)
        if (found := connection.scalar(which)) is not None:
            return int(found)
    return None
