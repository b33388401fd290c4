"""Who ranks and who runs the project: names, passwords, invitations, and whose sessions still count."""

from __future__ import annotations

import secrets
import unicodedata
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, insert, or_, select, update

from onebase.errors import DataError
from onebase.labels.database import Database
from onebase.labels.judged import Person
from onebase.labels.schema import invitations, people
from onebase.labels.values import hashed, moment_of
from onebase.shown import shown

Role = Literal["annotator", "admin"]
_LONGEST_NAME = 100


class People:
    """The people of a project. Times are in UTC; `now` is for tests."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, name: str, role: Role = "annotator", password: str | None = None) -> Person:
        """Returns the new person; `password` is a hash. Raises DataError if the name is taken or no name."""
        name = checked_name(name)

        def work(connection: Connection) -> Person:
            if person_where(connection, people.c.name == name) is not None:
                raise DataError(f"there is a person named '{shown(name)}' already; choose another name")
            return new_person(connection, name, role, password)

        return self._database.write(work, again=False)

    def named(self, name: str) -> Person | None:
        """The person of this name, None if there is none."""
        return self._database.read(lambda connection: person_where(connection, people.c.name == _normal(name)))

    def by_id(self, person_id: int) -> Person | None:
        """The person with this number, None if there is none."""
        return self._database.read(lambda connection: person_where(connection, people.c.id == person_id))

    def all(self) -> list[Person]:
        """Everybody, in the order in which they came."""
        return self._database.read(
            lambda connection: [_as_person(row) for row in connection.execute(select(people).order_by(people.c.id))]
        )

    def set_password(self, name: str, password: str | None) -> None:
        """Keeps a person's new password hash and ends their sessions. Raises DataError if there is no such person."""
        self._change_person(name, {"password": password}, ends_sessions=True)

    def set_active(self, name: str, active: bool) -> None:
        """Lets a person in, or out at once; what they said stays. Raises DataError if there is no such person."""
        self._change_person(name, {"active": active}, ends_sessions=not active)

    def end_sessions(self, name: str) -> None:
        """No cookie lets this person in that was made before. Raises DataError if there is no such person."""
        self._change_person(name, {}, ends_sessions=True)

    def _change_person(self, name: str, values: dict[str, Any], *, ends_sessions: bool) -> None:
        if ends_sessions:
            values = {**values, "session": people.c.session + 1}

        def work(connection: Connection) -> None:
            if not connection.execute(update(people).where(people.c.name == _normal(name)).values(values)).rowcount:
                raise DataError(f"there is no person named '{shown(name, 100)}'")

        self._database.write(work)

    def invite(
        self, role: Role = "annotator", name: str | None = None, days: float = 14, *, now: datetime | None = None
    ) -> str:
        """Returns the token of an invitation; only its SHA-256 is kept.

        With a name it lets that person in until it expires; without one, whoever comes first, once.

        Raises:
            DataError: a person of this name has another role.
        """
        token, until = secrets.token_urlsafe(32), moment_of(now) + timedelta(days=days)
        name = None if name is None else checked_name(name)

        def work(connection: Connection) -> str:
            known = None if name is None else person_where(connection, people.c.name == name)
            if known is not None and known.role != role:
                raise DataError(f"'{shown(name)}' is {known.role} already, not {role}; invite them as {known.role}")
            values = {"token_hash": hashed(token), "name": name, "role": role, "until": until}
            connection.execute(insert(invitations).values(values))
            return token

        return self._database.write(work)

    def invitation(self, token: str, *, now: datetime | None = None) -> tuple[str | None, Role] | None:
        """For whom an invitation is (None: whoever comes first) and as what; None if wrong, expired or used."""
        found = self._database.read(lambda connection: _invitation(connection, token, moment_of(now)))
        return None if found is None else (found.name, found.role)

    def accept(self, token: str, name: str, *, now: datetime | None = None) -> Person:
        """Returns the person who comes with an invitation, who is new if nobody has the name.

        Raises:
            DataError: the invitation is wrong, expired, used or for someone else, or the name is taken.
        """
        name = checked_name(name)

        def work(connection: Connection) -> Person:
            found = _invitation(connection, token, moment_of(now))
            if found is None:
                raise DataError("this invitation is wrong, expired or used; ask for a new one")
            if found.name is not None and found.name != name:
                raise DataError("this invitation is for someone else; ask for your own")
            person = person_where(connection, people.c.name == name)
            if person is not None and found.name is None:
                raise DataError(f"there is a person named '{shown(name)}' already; choose another name")
            if person is not None and not person.active:
                raise DataError(f"'{shown(name)}' is no longer active; ask whoever runs the project")
            if person is None:
                person = new_person(connection, name, found.role, None)
            used = update(invitations).where(invitations.c.id == found.id)
            connection.execute(used.values(used_by=person.id))
            return person

        return self._database.write(work, again=False)


def checked_name(name: str) -> str:
    """A person's name without spaces around it. Raises DataError if it is empty, too long or cannot be printed."""
    found = _normal(name)
    if not found or len(found) > _LONGEST_NAME or shown(found) != found:
        raise DataError(f"'{shown(name, 40)}' is no name: 1 to {_LONGEST_NAME} characters that can be printed")
    return found


def person_where(connection: Connection, which: ColumnElement[bool]) -> Person | None:
    """The person for whom a condition holds, None if there is none."""
    row = connection.execute(select(people).where(which)).one_or_none()
    return None if row is None else _as_person(row)


def _as_person(row: Row[Any]) -> Person:
    return Person(row.id, row.name, row.role, row.password, row.active, row.session)


def new_person(connection: Connection, name: str, role: str, password: str | None) -> Person:
    """Returns a person who is added now. Raises DataError if there is no such role."""
    if role not in get_args(Role):
        raise DataError(f"'{shown(role, 40)}' is no role; people are annotator or admin")
    values = {"name": name, "role": role, "password": password, "active": True, "added": moment_of(None)}
    connection.execute(insert(people).values(values))
    person = person_where(connection, people.c.name == name)
    assert person is not None, "just added"
    return person


def check_active(connection: Connection, person_id: int) -> None:
    """Raises DataError if there is no such person, or they were shut out."""
    person = person_where(connection, people.c.id == person_id)
    if person is None:
        raise DataError(f"there is no person with the number {person_id}")
    if not person.active:
        raise DataError(f"'{shown(person.name)}' is no longer active; ask whoever runs the project")


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()


def _invitation(connection: Connection, token: str, now: datetime) -> Row[Any] | None:
    usable = or_(invitations.c.name.is_not(None), invitations.c.used_by.is_(None))
    which = (invitations.c.token_hash == hashed(token), invitations.c.until > now, usable)
    return connection.execute(select(invitations).where(*which)).one_or_none()
