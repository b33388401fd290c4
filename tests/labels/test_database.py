"""The database itself: rows that nobody changes, versions, and what names no database of ours."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from onebase.cli.main import main
from onebase.errors import DataError, DoesNotFitError
from onebase.labels import database
from onebase.labels.database import Database, Unreachable
from onebase.labels.schema import VERSION_TABLE, metadata
from onebase.labels.store import Store
from onebase.labels.urls import database_url, is_database, shown_url, sqlite_path
from tests.labels.conftest import new_tasks
from tests.labels.postgres import Server

CHANGES = [
    "UPDATE judgements SET grades = '[1, 2, 3]'",
    "DELETE FROM judgements",
    "DELETE FROM withdrawals",
    "UPDATE withdrawals SET judgement_id = 1",
]


@pytest.mark.parametrize("change", CHANGES)
def test_no_statement_changes_a_judgement(store: Store, change: str) -> None:
    judged_and_undone(store)
    with pytest.raises(DBAPIError, match="a judgement stays as it was given"):
        with store._database._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(text(change))
    assert len(store.judgements.all(withdrawn=True)) == 1


def test_no_other_program_replaces_a_judgement_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "label.db"
    store = Store.open(path, create=True)
    judged_and_undone(store)
    store.close()
    plain = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="a judgement stays as it was given"):
        plain.execute("INSERT OR REPLACE INTO judgements SELECT * FROM judgements")
    with pytest.raises(sqlite3.IntegrityError, match="a judgement stays as it was given"):
        plain.execute("REPLACE INTO judgements SELECT id + 1, task_id, person_id, attempt, key, kind, grades, reason, "
                      "note, seconds, late, at FROM judgements")  # fmt: skip
    plain.close()


def test_postgresql_empties_no_table_of_judgements(server: Server) -> None:
    store = Store.open(server.new_database(), create=True)
    with pytest.raises(DataError, match="a judgement stays as it was given"):
        store._database.write(lambda connection: connection.execute(text("TRUNCATE judgements CASCADE")))
    store.close()


def judged_and_undone(store: Store) -> None:
    store.tasks.add(new_tasks(1))
    ann = store.people.add("Ann")
    assert store.leases.take(ann.id)
    store.judgements.save(ann.id, 1, key="k", kind="ranked", grades=[3, 2, 1])
    store.judgements.undo(ann.id)


def test_the_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    def differences(connection: Any) -> list[Any]:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE, "compare_type": True})
        return list(compare_metadata(context, metadata))

    assert store._database.read(differences) == []


def test_sqlite_is_durable_and_lets_readers_read(tmp_path: Path) -> None:
    found = Database(tmp_path / "label.db", create=True)
    pragmas = {name: found.read(lambda c, n=name: c.execute(text(f"PRAGMA {n}")).scalar()) for name in (
        "journal_mode", "synchronous", "foreign_keys", "busy_timeout")}  # fmt: skip
    assert pragmas == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 30_000}
    found.close()


def test_several_openings_at_once_make_one_database(url: str) -> None:
    failed: list[BaseException] = []

    def opening() -> None:
        try:
            Store.open(url, create=True).close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=opening) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    store = Store.open(url)
    assert store.tasks.count() == 0
    store.close()


def test_a_newer_or_unfinished_version_is_named(url: str) -> None:
    store = Store.open(url, create=True)
    store._database.write(lambda connection: connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '99'")))
    for create in (False, True):
        with pytest.raises(DataError, match="has version 99, which a newer onebase wrote; .* update onebase"):
            Store.open(url, create=create)
    store._database.write(lambda connection: connection.execute(text(f"DELETE FROM {VERSION_TABLE}")))
    with pytest.raises(DataError, match="is of an older version; open it for labelling once"):
        Store.open(url)
    store.close()


def test_a_database_of_the_first_version_is_brought_up_to_date_with_all_that_is_in_it(url: str) -> None:
    made = database.Database.__new__(database.Database)  # as it is before it looks at the tables
    made.shown, made.path, made._engine = "label", None, database._engine(database_url(url), "label")

    def first(connection: Any) -> None:
        config = database._alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "1")
        columns = "(name, role, password, active, added) VALUES ('Ann', 'annotator', 'hash', :yes, :now)"
        connection.execute(text(f"INSERT INTO people {columns}"), {"yes": True, "now": "2026-01-01 00:00:00"})

    made.write(first)
    made.close()
    with pytest.raises(DataError, match="is of an older version; open it for labelling once"):
        Store.open(url)
    store = Store.open(url, create=True)
    assert [(one.name, one.password, one.session) for one in store.people.all()] == [("Ann", "hash", 0)]
    store.people.end_sessions("Ann")
    assert store.people.all()[0].session == 1
    store.close()


def test_what_is_no_database_of_ours_is_left_alone(tmp_path: Path, server: Server) -> None:
    other = tmp_path / "other.db"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    before = other.read_bytes()
    for create in (False, True):
        with pytest.raises(DataError, match=r"holds other tables \(recipes\); name another database"):
            Store.open(other, create=create)
    assert sqlite3.connect(other).execute("SELECT name FROM sqlite_master").fetchall() == [("recipes",)]
    assert before[:16] == other.read_bytes()[:16]
    (tmp_path / "text.db").write_text("This is a text, no database at all.\n" * 40)
    with pytest.raises(DataError, match="text.db is not an SQLite database, or is damaged"):
        Store.open(tmp_path / "text.db", create=True)
    (tmp_path / "empty.db").touch()
    with pytest.raises(DataError, match="empty.db is an empty database; nobody has put tasks into it"):
        Store.open(tmp_path / "empty.db")
    with pytest.raises(DataError, match="is a folder, not a database"):
        Store.open(f"sqlite:///{tmp_path}", create=True)
    with pytest.raises(DataError, match="there is no database .*none.db; check the path"):
        Store.open(tmp_path / "none.db")
    with pytest.raises(DataError, match="there is no folder .*nowhere for the database label.db"):
        Store.open(tmp_path / "nowhere" / "label.db", create=True)
    with pytest.raises(DataError, match="a database in memory is gone with its process"):
        Store.open("sqlite://", create=True)
    with pytest.raises(DataError, match='database "absent" does not exist; create it, or check the name'):
        Store.open(server.url("absent"))


def test_a_server_that_refuses_or_is_away_is_told_in_one_line(server: Server) -> None:
    with pytest.raises(DataError, match="does not let us in: .*password authentication failed") as refused:
        Store.open(server.url("postgres", "wrong secret"))
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(Unreachable, match="does not answer: .*Connection refused; check that it runs") as away:
        Store.open("postgresql://onebase:secret@127.0.0.1:1/label")
    assert "secret" not in str(away.value) and "\n" not in str(away.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://u:secret@h/x", "mysql://u:***@h/x: no database of the kind 'mysql' can be used"),
        ("postgresql+asyncpg://u:secret@h/x", "no database of the kind 'postgresql+asyncpg' can be used"),
        ("postgresql://u:secret@h:port/x", "is not the URL of a database"),
        ("postgresql://u:sec@ret@h/x", "its password has an '@' or another sign of URLs in it; write @ as %40"),
        ("sqlite:///missing.db", "missing.db"),
        ("postgresql://u:secret@127.0.0.1:1/x?password=secret", "does not answer"),
    ],
)
def test_a_wrong_url_ends_with_3_and_one_line_without_its_password(
    url: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "stats", url]) == 3
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and "secret" not in told and "sec@ret" not in told
    assert main(["label", "export", url, "out.jsonl", "--to", "pairs"]) == 3
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and "secret" not in told


def test_a_database_on_a_full_disk_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "label.db", create=True)

    def fill(connection: Any) -> None:
        connection.execute(text("PRAGMA max_page_count = 1"))  # grows no further, as on a full disk
        connection.execute(text("CREATE TABLE more (text)"))
        connection.execute(text("INSERT INTO more VALUES (zeroblob(1000000))"))

    with pytest.raises(DoesNotFitError, match="label.db: the disk is full; free some space"):
        store._database.write(fill)
    store.close()


def test_a_lock_that_another_program_holds_ends_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(database, "PATIENCE", 0.2)
    store = Store.open(tmp_path / "label.db", create=True)
    other = sqlite3.connect(tmp_path / "label.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Unreachable, match="label.db does not answer: database is locked"):
        store.people.add("Ann")
    other.execute("ROLLBACK")
    other.close()
    assert store.people.add("Ann").name == "Ann"
    store.close()


WITHOUT = """
import sys
for name in sys.argv[1].split():
    sys.modules[name] = None
from onebase.cli.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("package", "words", "message"),
    [
        ("sqlalchemy", ["data", "stats", "label.db"], "a database of rankings needs sqlalchemy: pip install"),
        (
            "psycopg",
            ["data", "stats", "postgresql://u:secret@h/x"],
            "postgresql://u:***@h/x needs psycopg: pip install",
        ),
        (
            "sqlalchemy",
            ["label", "export", "label.db", "x.jsonl", "--to", "kto"],
            "label needs sqlalchemy: pip install",
        ),
    ],
)
def test_a_missing_package_ends_with_6_and_its_name(
    package: str, words: list[str], message: str, tmp_path: Path
) -> None:
    Store.open(tmp_path / "label.db", create=True).close()
    command = [sys.executable, "-c", WITHOUT, package, *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 6 and message in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_names_of_databases() -> None:
    assert all(map(is_database, ["sqlite:///x", "a/label.db", Path("L.SQLITE"), "postgresql://h/x", "mysql://h/x"]))
    assert not any(map(is_database, ["pairs.jsonl", "owner/name", "hub:train", "db"]))
    folder = Path("/srv/project")
    assert database_url("label.db", folder) == "sqlite:////srv/project/label.db"
    assert database_url("sqlite:///label.db", folder) == "sqlite:////srv/project/label.db"
    assert database_url("sqlite:////var/label.db", folder) == "sqlite:////var/label.db"
    assert database_url("postgresql://u@h/x", folder) == "postgresql://u@h/x"
    assert sqlite_path("sqlite:////var/my%20label.db?mode=rw") == Path("/var/my label.db")
    assert sqlite_path("postgresql://u@h/x") is None
    assert shown_url("postgresql://u:p@h/x?sslmode=require&sslpassword=s") == (
        "postgresql://u:***@h/x?sslmode=require&sslpassword=***"
    )
    assert shown_url("postgresql://u:p/q@r@h/x") == "postgresql://u:***@h/x"
    assert shown_url("postgresql://u@h/x") == "postgresql://u@h/x" and shown_url("label.db") == "label.db"
