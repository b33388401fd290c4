"""The tables, as the newest migration leaves them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)

VERSION_TABLE = "onebase_labels"
"""Where Alembic keeps the version; its name says whose database it is."""


class Moment(TypeDecorator[datetime]):
    """A moment in UTC: SQLite, which keeps no zones, gets and returns it without."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        given = value.astimezone(UTC)
        return given.replace(tzinfo=None) if dialect.name == "sqlite" else given

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


metadata = MetaData()

people = Table(
    "people",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("role", String(20), nullable=False),
    Column("password", Text),
    Column("active", Boolean, nullable=False),
    Column("added", Moment, nullable=False),
    Column("session", Integer, nullable=False, server_default="0"),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),
    Column("name", String(100)),
    Column("role", String(20), nullable=False),
    Column("until", Moment, nullable=False),
    Column("used_by", ForeignKey("people.id")),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),
    # JSON in ASCII: a text may hold zero bytes and lone surrogates, which PostgreSQL's texts may not.
    Column("prompt", Text, nullable=False),
    Column("answers", Text, nullable=False),
    Column("sources", Text, nullable=False),
    Column("ended", Text),
    Column("tools", Text, nullable=False),
    Column("gold", Text),
    Column("chosen", String(20), nullable=False),
    Column("round", Integer, nullable=False),
    Column("place", Text, nullable=False),
    Column("overlap", Integer, nullable=False),
    Column("added", Moment, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("given", Moment, nullable=False),
    Column("until", Moment, nullable=False),
    UniqueConstraint("person_id", "task_id", name="one_lease_each"),
    Index("leases_by_task", "task_id", "until"),
)

judgements = Table(
    "judgements",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("task_id", ForeignKey("tasks.id"), nullable=False),
    Column("person_id", ForeignKey("people.id"), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("key", String(200), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("grades", Text),
    Column("reason", Text, nullable=False),
    Column("note", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("late", Boolean, nullable=False),
    Column("at", Moment, nullable=False),
    UniqueConstraint("person_id", "key", name="one_judgement_per_key"),
    # Counts the same person's judgements of the same task: whoever gets past all checks still cannot judge twice.
    UniqueConstraint("person_id", "task_id", "attempt", name="one_judgement_per_attempt"),
    Index("judgements_by_task", "task_id"),
)

withdrawals = Table(
    "withdrawals",
    metadata,
    Column("judgement_id", ForeignKey("judgements.id"), primary_key=True),
    Column("at", Moment, nullable=False),
)
