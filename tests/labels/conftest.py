"""Stores in both databases, and tasks to put into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from onebase.labels.judged import NewTask
from onebase.labels.store import Store
from onebase.records import Message
from tests.labels.postgres import Server, binaries


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server of this process alone."""
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin or on the path")
    server = Server(programs)
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that is not there yet (SQLite) or empty (PostgreSQL)."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/label.db"
    server: Server = request.getfixturevalue("server")
    return server.new_database()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = Store.open(url, create=True)
    yield store
    store.close()


def new_tasks(count: int, *, answers: int = 3, gold: bool = False) -> list[NewTask]:
    letters = "abcdefghi"[:answers]
    return [
        NewTask(
            (Message("user", f"{'Known' if gold else 'Open'} question {number}?"),),
            tuple(f"{letter}{number}" for letter in letters),
            gold=tuple(float(k) for k in range(answers)) if gold else None,
            place=f"tasks.jsonl:{number + 1}",
        )
        for number in range(count)
    ]
