"""Tasks, people and what they said, in SQLite or PostgreSQL; safe from several threads and processes."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, func, insert, or_, select, update

from onebase.errors import DataError
from onebase.labels.database import Database, Unreachable
from onebase.labels.judged import Judgement, Kind, Lease, NewTask, Person, Progress, Saved, Task
from onebase.labels.schema import invitations, judgements, leases, people, tasks, withdrawals
from onebase.records import Message, ToolCall
from onebase.shown import shown

__all__ = [
    "AlreadyJudged",
    "Brought",
    "NotLeased",
    "Snapshot",
    "Store",
    "Unreachable",
    "checked_name",
    "shown_order",
    "task_key",
]

Role = Literal["annotator", "admin"]
LEASE_SECONDS = 1800
MOST_ANSWERS = 9
_LONGEST_NAME = 100
_LONGEST_KEY = 200


class AlreadyJudged(DataError):
    """This person judged this task before, under another key."""


class NotLeased(DataError):
    """This person was never given this task."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tasks and the judgements in force, as they were at one moment."""

    tasks: list[Task]
    judgements: list[Judgement]


@dataclass(frozen=True, slots=True)
class Brought:
    """A ranking that somebody gave in another program."""

    person: str
    task_key: str
    grades: tuple[int, ...]
    """As in a `Judgement`, in the order of the task in the database."""


class Store:
    """The database of one project. Times are in UTC; `now` is for tests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, url: str | Path, *, create: bool = False) -> Store:
        """Returns the store in a database, named by a URL or an SQLite file's path.

        Args:
            create: makes the database's tables where there are none, and brings older ones up to date.

        Raises:
            DataError: there is no such database, it is not one of judgements, a newer version wrote it, or it does not
                let us in; no password is shown.
            MissingExtraError: no package for this kind of database.
        """
        return cls(Database(url, create=create))

    def close(self) -> None:
        """Closes all connections."""
        self._database.close()

    @property
    def shown_url(self) -> str:
        """The database's URL, without its password."""
        return self._database.shown

    # People

    def add_person(self, name: str, role: Role = "annotator", password: str | None = None) -> Person:
        """Returns the new person; `password` is a hash. Raises DataError if the name is taken or no name."""
        name = checked_name(name)

        def work(connection: Connection) -> Person:
            if _person(connection, people.c.name == name) is not None:
                raise DataError(f"there is a person named '{shown(name)}' already; choose another name")
            return _add_person(connection, name, role, password)

        return self._database.write(work, again=False)

    def person(self, name: str) -> Person | None:
        """The person of this name, None if there is none."""
        return self._database.read(lambda connection: _person(connection, people.c.name == _normal(name)))

    def person_by_id(self, person_id: int) -> Person | None:
        """The person with this number, None if there is none."""
        return self._database.read(lambda connection: _person(connection, people.c.id == person_id))

    def people(self) -> list[Person]:
        """Everybody, in the order in which they came."""
        return self._database.read(
            lambda connection: [_as_person(row) for row in connection.execute(select(people).order_by(people.c.id))]
        )

    def set_password(self, name: str, password: str | None) -> None:
        """Keeps a person's new password hash. Raises DataError if there is no such person."""
        self._change_person(name, {"password": password})

    def set_active(self, name: str, active: bool) -> None:
        """Lets a person in or out; what they said stays. Raises DataError if there is no such person."""
        self._change_person(name, {"active": active})

    def _change_person(self, name: str, values: dict[str, Any]) -> None:
        def work(connection: Connection) -> None:
            if not connection.execute(update(people).where(people.c.name == _normal(name)).values(values)).rowcount:
                raise DataError(f"there is no person named '{shown(name, 100)}'")

        self._database.write(work)

    # Invitations

    def invite(
        self, role: Role = "annotator", name: str | None = None, days: float = 14, *, now: datetime | None = None
    ) -> str:
        """Returns the token of an invitation; only its SHA-256 is kept.

        With a name it lets that person in until it expires; without one, whoever comes first, once.

        Raises:
            DataError: a person of this name has another role.
        """
        token, until = secrets.token_urlsafe(32), _moment(now) + timedelta(days=days)
        name = None if name is None else checked_name(name)

        def work(connection: Connection) -> str:
            known = None if name is None else _person(connection, people.c.name == name)
            if known is not None and known.role != role:
                raise DataError(f"'{shown(name)}' is {known.role} already, not {role}; invite them as {known.role}")
            values = {"token_hash": _hash(token), "name": name, "role": role, "until": until}
            connection.execute(insert(invitations).values(values))
            return token

        return self._database.write(work)

    def invitation(self, token: str, *, now: datetime | None = None) -> tuple[str | None, Role] | None:
        """For whom an invitation is (None: whoever comes first) and as what; None if wrong, expired or used."""
        found = self._database.read(lambda connection: _invitation(connection, token, _moment(now)))
        return None if found is None else (found.name, found.role)

    def accept(self, token: str, name: str, *, now: datetime | None = None) -> Person:
        """Returns the person who comes with an invitation, who is new if nobody has the name.

        Raises:
            DataError: the invitation is wrong, expired, used or for someone else, or the name is taken.
        """
        name = checked_name(name)

        def work(connection: Connection) -> Person:
            found = _invitation(connection, token, _moment(now))
            if found is None:
                raise DataError("this invitation is wrong, expired or used; ask for a new one")
            if found.name is not None and found.name != name:
                raise DataError("this invitation is for someone else; ask for your own")
            person = _person(connection, people.c.name == name)
            if person is not None and found.name is None:
                raise DataError(f"there is a person named '{shown(name)}' already; choose another name")
            if person is not None and not person.active:
                raise DataError(f"'{shown(name)}' is no longer active; ask whoever runs the project")
            if person is None:
                person = _add_person(connection, name, found.role, None)
            used = update(invitations).where(invitations.c.id == found.id)
            connection.execute(used.values(used_by=person.id))
            return person

        return self._database.write(work, again=False)

    # Tasks

    def add_tasks(
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
            key, values = _task_values(task)
            several = overlap_share is not None and Random(f"{seed}:{key}").random() < overlap_share
            values["overlap"] = (people if several else 1) if overlap_share is not None else overlap
            rows.setdefault(key, values)

        def work(connection: Connection) -> int:
            there = {row.key for row in connection.execute(select(tasks.c.key))}
            added = [{**values, "added": _moment(None)} for key, values in rows.items() if key not in there]
            if added:
                connection.execute(insert(tasks), added)
            return len(added)

        return self._database.write(work)

    def tasks(self) -> list[Task]:
        """All tasks, in the order in which they came."""
        return self._database.read(_tasks)

    def task(self, task_id: int) -> Task | None:
        """The task with this number, None if there is none."""
        return self._database.read(lambda connection: _task(connection, task_id))

    def num_tasks(self) -> int:
        """How many tasks there are."""
        return self._database.read(lambda connection: connection.scalar(select(func.count(tasks.c.id))) or 0)

    # Ranking

    def lease(
        self, person_id: int, *, seconds: float = LEASE_SECONDS, gold_share: float = 0.1, now: datetime | None = None
    ) -> Lease | None:
        """Returns a task for this person, theirs until the lease ends; None if there is none left for them.

        A task that they hold comes again, with a new end: two tabs show the same. Else it is the oldest with a place
        left, or a gold question with probability `gold_share`; when one kind runs out, the other.

        Raises:
            DataError: no such person, or not active.
        """

        def work(connection: Connection) -> Lease | None:
            moment = _moment(now)
            until = moment + timedelta(seconds=seconds)
            _check_active(connection, person_id)
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
                _give(connection, person_id, held, moment, until)
            else:
                same = (leases.c.person_id == person_id, leases.c.task_id == held)
                connection.execute(update(leases).where(*same).values(until=until))
            task = _task(connection, held)
            assert task is not None, "a lease refers to a task"
            return Lease(task, until, shown_order(task, person_id))

        return self._database.write(work)

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
            moment = _moment(now)
            known = _by_key(connection, person_id, task_id, key)
            if known is not None:
                return Saved(known, new=False)
            _check_active(connection, person_id)
            lease = connection.execute(
                select(leases.c.until).where(leases.c.person_id == person_id, leases.c.task_id == task_id)
            ).one_or_none()
            if lease is None:
                raise NotLeased(f"task {task_id} was not given to this person; take the next one")
            late = lease.until <= moment and _places_taken(connection, task_id, person_id, moment)
            said = {"kind": kind, "reason": reason, "note": note, "seconds": seconds, "late": late, "at": moment}
            return Saved(_judge(connection, person_id, task_id, key, grades, said), new=True)

        return self._database.write(work)

    def bring(self, rankings: Iterable[Brought]) -> int:
        """Keeps rankings that were given elsewhere, whether or not their tasks have places left; returns how many.

        People who are not known yet are added, without a way to log in. A ranking that is there is left as it is.

        Raises:
            DataError: there is no such task, or these are no grades for it; then none is kept.
        """
        given = list(rankings)

        def work(connection: Connection) -> int:
            kept = 0
            for one in given:
                task_id = connection.scalar(select(tasks.c.id).where(tasks.c.key == one.task_key))
                if task_id is None:
                    raise DataError(f"{shown(one.person, 40)} ranked a task that is not in the database")
                name = checked_name(one.person)
                person = _person(connection, people.c.name == name) or _add_person(connection, name, "annotator", None)
                key = f"brought:{one.task_key}"
                if _by_key(connection, person.id, task_id, key) is not None:
                    continue
                said = {"kind": "ranked", "reason": "", "note": "", "seconds": 0.0, "late": False, "at": _moment(None)}
                with suppress(AlreadyJudged):
                    _judge(connection, person.id, task_id, key, one.grades, said)
                    kept += 1
            return kept

        return self._database.write(work)

    def undo(self, person_id: int, *, seconds: float = LEASE_SECONDS, now: datetime | None = None) -> Task | None:
        """Withdraws the person's last judgement and gives them its task again; returns it, None if there was none."""
        withdrawn: list[int] = []  # by a try whose commit may have come through

        def work(connection: Connection) -> Task | None:
            moment = _moment(now)
            _check_active(connection, person_id)
            last = connection.execute(
                select(judgements.c.id, judgements.c.task_id)
                .where(
                    judgements.c.person_id == person_id, judgements.c.id == withdrawn[0] if withdrawn else _in_force()
                )
                .order_by(judgements.c.id.desc())
                .limit(1)
            ).one_or_none()
            if last is None:
                return None
            withdrawn[:] = [last.id]
            if not connection.scalar(select(exists().where(withdrawals.c.judgement_id == last.id))):
                connection.execute(insert(withdrawals).values(judgement_id=last.id, at=moment))
            _give(connection, person_id, last.task_id, moment, moment + timedelta(seconds=seconds))
            return _task(connection, last.task_id)

        return self._database.write(work)

    def progress(self, person_id: int, *, since: datetime, now: datetime | None = None) -> Progress:
        """How many tasks the person ranked or called all bad, in all and since a moment, and how many are left."""

        def work(connection: Connection) -> Progress:
            mine = (judgements.c.person_id == person_id, judgements.c.kind != "skipped", _in_force())
            done = connection.scalar(select(func.count()).select_from(judgements).where(*mine)) or 0
            today = connection.scalar(
                select(func.count()).select_from(judgements).where(*mine, judgements.c.at >= _moment(since))
            )
            open_to = select(func.count()).select_from(tasks).where(_open_to(person_id, _moment(now)))
            return Progress(done, today or 0, connection.scalar(open_to) or 0)

        return self._database.read(work)

    def judgements(self, *, withdrawn: bool = False) -> list[Judgement]:
        """The judgements in force, oldest first; with `withdrawn`, those too that were withdrawn."""
        return self._database.read(lambda connection: _judgements(connection, withdrawn))

    def snapshot(self) -> Snapshot:
        """All tasks and the judgements in force, as they were at one moment."""
        return self._database.read(
            lambda connection: Snapshot(_tasks(connection), _judgements(connection, withdrawn=False))
        )


def checked_name(name: str) -> str:
    """A person's name without spaces around it. Raises DataError if it is empty, too long or cannot be printed."""
    found = _normal(name)
    if not found or len(found) > _LONGEST_NAME or shown(found) != found:
        raise DataError(f"'{shown(name, 40)}' is no name: 1 to {_LONGEST_NAME} characters that can be printed")
    return found


def task_key(task: NewTask) -> str:
    """Hash of a task's prompt and answers, whatever their order: what is asked once."""
    return _task_values(task)[0]


def shown_order(task: Task, person_id: int) -> tuple[int, ...]:
    """An order of the answers that differs between people and is the same on every reload, in every version."""
    return tuple(sorted(range(len(task.answers)), key=lambda index: _hash(f"{task.key}:{person_id}:{index}")))


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _moment(given: datetime | None) -> datetime:
    return datetime.now(UTC) if given is None else given.astimezone(UTC)


def _plain(text: str) -> str:
    """A text that every database keeps: without zero bytes and lone surrogates."""
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _as_person(row: Row[Any]) -> Person:
    return Person(row.id, row.name, row.role, row.password, row.active)


def _person(connection: Connection, which: ColumnElement[bool]) -> Person | None:
    row = connection.execute(select(people).where(which)).one_or_none()
    return None if row is None else _as_person(row)


def _add_person(connection: Connection, name: str, role: str, password: str | None) -> Person:
    if role not in get_args(Role):
        raise DataError(f"'{shown(role, 40)}' is no role; people are annotator or admin")
    values = {"name": name, "role": role, "password": password, "active": True, "added": _moment(None)}
    connection.execute(insert(people).values(values))
    person = _person(connection, people.c.name == name)
    assert person is not None, "just added"
    return person


def _check_active(connection: Connection, person_id: int) -> None:
    person = _person(connection, people.c.id == person_id)
    if person is None:
        raise DataError(f"there is no person with the number {person_id}")
    if not person.active:
        raise DataError(f"'{shown(person.name)}' is no longer active; ask whoever runs the project")


def _invitation(connection: Connection, token: str, now: datetime) -> Row[Any] | None:
    usable = or_(invitations.c.name.is_not(None), invitations.c.used_by.is_(None))
    which = (invitations.c.token_hash == _hash(token), invitations.c.until > now, usable)
    return connection.execute(select(invitations).where(*which)).one_or_none()


def _task_values(task: NewTask) -> tuple[str, dict[str, Any]]:
    place = shown(task.place, 200) or "a task"
    if not task.prompt:
        raise DataError(f"{place} has no prompt; without one there is nothing to answer")
    if not 2 <= len(task.answers) <= MOST_ANSWERS:
        raise DataError(f"{place} has {len(task.answers)} answers; people rank 2 to {MOST_ANSWERS}")
    for name, given in (("sources", task.sources or None), ("gold", task.gold), ("ended", task.ended)):
        if given is not None and len(given) != len(task.answers):
            raise DataError(f"{place} has {len(given)} {name} for {len(task.answers)} answers; give one per answer")
    prompt = json.dumps([asdict(message) for message in task.prompt])
    values = {
        "key": _hash(json.dumps([prompt, sorted(task.answers), task.tools])),
        "prompt": prompt,
        "answers": json.dumps(task.answers),
        "sources": json.dumps(task.sources),
        "ended": None if task.ended is None else json.dumps(task.ended),
        "tools": json.dumps(task.tools),
        "gold": None if task.gold is None else json.dumps(task.gold),
        "chosen": task.chosen,
        "round": task.round,
        "place": _plain(task.place),
    }
    return str(values["key"]), values


def _tasks(connection: Connection) -> list[Task]:
    return [_as_task(row) for row in connection.execute(select(tasks).order_by(tasks.c.id))]


def _task(connection: Connection, task_id: int) -> Task | None:
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


def _in_force() -> ColumnElement[bool]:
    return ~exists().where(withdrawals.c.judgement_id == judgements.c.id)


def _taken(person_id: int, now: datetime) -> ColumnElement[int]:
    """How many places of a task others have: by judging it, or by a lease. A skipped place is free again."""
    judged = (
        select(func.count())
        .select_from(judgements)
        .where(
            judgements.c.task_id == tasks.c.id,
            judgements.c.person_id != person_id,
            judgements.c.kind != "skipped",
            _in_force(),
        )
    )
    leased = (
        select(func.count())
        .select_from(leases)
        .where(leases.c.task_id == tasks.c.id, leases.c.person_id != person_id, leases.c.until > now)
    )
    return judged.scalar_subquery() + leased.scalar_subquery()


def _open_to(person_id: int, now: datetime) -> ColumnElement[bool]:
    """Whether the person may get a task: they have not judged it, and it is gold or has a place left."""
    mine = exists().where(judgements.c.task_id == tasks.c.id, judgements.c.person_id == person_id, _in_force())
    return and_(~mine, or_(tasks.c.gold.is_not(None), _taken(person_id, now) < tasks.c.overlap))


def _places_taken(connection: Connection, task_id: int, person_id: int, now: datetime) -> bool:
    which = (tasks.c.id == task_id, tasks.c.gold.is_(None), _taken(person_id, now) >= tasks.c.overlap)
    return connection.scalar(select(tasks.c.id).where(*which)) is not None


def _next(connection: Connection, person_id: int, gold_share: float, now: datetime) -> int | None:
    given = connection.scalar(select(func.count()).select_from(leases).where(leases.c.person_id == person_id))
    kinds: list[Callable[[], ColumnElement[bool]]] = [lambda: tasks.c.gold.is_(None), lambda: tasks.c.gold.is_not(None)]
    if Random(f"{person_id}:{given}").random() < gold_share:
        kinds.reverse()
    for kind in kinds:
        which = select(tasks.c.id).where(kind(), _open_to(person_id, now)).order_by(tasks.c.id).limit(1)
        if (found := connection.scalar(which)) is not None:
            return int(found)
    return None


def _give(connection: Connection, person_id: int, task_id: int, now: datetime, until: datetime) -> None:
    same = and_(leases.c.person_id == person_id, leases.c.task_id == task_id)
    if not connection.execute(update(leases).where(same).values(given=now, until=until)).rowcount:
        values = {"person_id": person_id, "task_id": task_id, "given": now, "until": until}
        connection.execute(insert(leases).values(values))


def _by_key(connection: Connection, person_id: int, task_id: int, key: str) -> int | None:
    """The number of the judgement that this person sent under a key, None if there is none."""
    if not 1 <= len(key) <= _LONGEST_KEY or _plain(key) != key:
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


def _judge(
    connection: Connection,
    person_id: int,
    task_id: int,
    key: str,
    grades: Sequence[int] | None,
    said: dict[str, Any],
) -> int:
    task = _task(connection, task_id)
    assert task is not None, "a lease, or its key, led here"
    _check_said(task, grades, said)
    earlier = select(func.count()).select_from(judgements)
    earlier = earlier.where(judgements.c.person_id == person_id, judgements.c.task_id == task_id)
    if connection.scalar(earlier.where(_in_force())):
        raise AlreadyJudged(f"this person has judged task {task_id}; to change it, undo it first")
    values = {
        **said,
        "reason": _plain(said["reason"]),
        "note": _plain(said["note"]),
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
        raise DataError(f"task {task.id} has {count} answers: a grade from 1 to {count} for each, not {list(grades)}")
    if not (math.isfinite(said["seconds"]) and said["seconds"] >= 0):
        raise DataError(f"task {task.id}: {said['seconds']} is no time in seconds")


def _judgements(connection: Connection, withdrawn: bool) -> list[Judgement]:
    found = select(judgements, people.c.name).join(people, people.c.id == judgements.c.person_id)
    if not withdrawn:
        found = found.where(_in_force())
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
