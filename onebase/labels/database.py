"""A database of judgements: connects, brings the tables up to date, runs transactions, and words what goes wrong.

Writers go one at a time, on SQLite through `BEGIN IMMEDIATE`, on PostgreSQL through an advisory lock that ends with
the transaction: what one transaction checks stays true until it commits, on both for the same reason. People rank in
seconds, a write takes milliseconds.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from onebase.errors import DataError, DoesNotFitError, MissingExtraError, OnebaseError
from onebase.labels.schema import VERSION_TABLE
from onebase.labels.urls import database_url, shown_url, sqlite_path
from onebase.shown import shown

Result = TypeVar("Result")
PATIENCE = 20.0
"""Seconds for which a transaction is tried again while the server is away: a restart takes a few."""
LOCK_SECONDS = 30
_WRITERS = 0x6F6E6562617365
"""The advisory lock that PostgreSQL's writers hold."""
_DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
_GONE = ("57P01", "57P02", "57P03", "08000", "08001", "08003", "08004", "08006", "53300", "55P03")
"""PostgreSQL's codes for a server that stops or starts, a lost connection, no free place, and a lock held too long."""


class Unreachable(DataError):
    """The database does not answer now; what was sent may be sent again under the same key."""


class Database:
    """Connections to one database, and its transactions.

    Args:
        name: a URL, or the path of an SQLite file.
        create: makes the database's tables where there are none, and brings older ones up to date.

    Raises:
        DataError: there is no such database, it is not one of judgements, a newer version wrote it, or it does not
            let us in.
        MissingExtraError: no package for this kind of database.
    """

    def __init__(self, name: str | Path, *, create: bool = False) -> None:
        url = database_url(name)
        self.shown = shown(shown_url(url))
        self.path = sqlite_path(url)
        if self.path is not None:
            self._check_path(self.path, create)
        self._engine = _engine(url, self.shown)
        try:
            self._try(lambda: self._settle(create), patience=0.0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()

    def read(self, work: Callable[[Connection], Result]) -> Result:
        """What `work` returns; all it reads is of one moment."""
        return self._try(lambda: self._in_transaction(work, write=False), patience=PATIENCE)

    def write(self, work: Callable[[Connection], Result], *, again: bool = True) -> Result:
        """What `work` returns, in a transaction that no other writer disturbs; committed when this returns.

        Args:
            again: `work` may run again when the connection is lost, perhaps after its commit: doing it twice is as good
                as once.
        """
        return self._try(lambda: self._in_transaction(work, write=True), patience=PATIENCE if again else 0.0)

    def _in_transaction(self, work: Callable[[Connection], Result], *, write: bool) -> Result:
        with self._engine.connect().execution_options(writes=write) as connection:
            if self._engine.dialect.name != "sqlite" and not write:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                if self._engine.dialect.name != "sqlite" and write:
                    connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_WRITERS})"))
                return work(connection)

    def _try(self, work: Callable[[], Result], *, patience: float) -> Result:
        give_up, pause = time.monotonic() + patience, 0.05
        while True:
            try:
                return work()
            except (DBAPIError, PoolTimeout) as error:
                said = self._said(error)
                if not isinstance(said, Unreachable) or time.monotonic() + pause > give_up:
                    raise said from None
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def _said(self, error: DBAPIError | PoolTimeout) -> OnebaseError:
        """The error of a driver in one line."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        line = shown(
            lines[-1] if lines and lines[0].startswith("connection is bad") else lines[0] if lines else "", 300
        )
        password = self._engine.url.password
        if password:
            line = line.replace(str(password), "***")
        if "disk is full" in line or getattr(cause, "sqlstate", None) == "53100":
            return DoesNotFitError(f"{self.shown}: the disk is full; free some space and try again")
        if "file is not a database" in line or "malformed" in line:
            return DataError(f"{self.shown} is not an SQLite database, or is damaged ({line}); check the path")
        if "readonly database" in line or "unable to open" in line:
            return DataError(f"{self.shown}: {line}; check the path and the permissions of the file and its folder")
        if "password authentication" in line or "no password supplied" in line or "authentication failed" in line:
            return DataError(f"{self.shown} does not let us in: {line}; check user and password")
        if "does not exist" in line and isinstance(error, DBAPIError) and _while_connecting(cause):
            return DataError(f"{self.shown}: {line}; create it, or check the name")
        if isinstance(error, PoolTimeout) or _is_gone(error, cause, line):
            return Unreachable(f"{self.shown} does not answer: {line}; check that it runs, and try again")
        return DataError(f"{self.shown}: {line}")

    def _check_path(self, path: Path, create: bool) -> None:
        place = shown(path)
        if str(path) in ("", ".", ":memory:"):
            raise DataError("a database in memory is gone with its process; name a file, as in sqlite:///label.db")
        if os.path.isdir(path):
            raise DataError(f"{place} is a folder, not a database; name a file in it")
        if not os.path.exists(path):
            if not create:
                raise DataError(f"there is no database {place}; check the path")
            if not os.path.isdir(path.parent):
                raise DataError(f"there is no folder {shown(path.parent)} for the database {path.name}; create it")

    def _settle(self, create: bool) -> None:
        """Checks that the tables are ours and of this version; with `create`, makes them so."""
        state = self._in_transaction(self._state, write=False)
        if state == "ready":
            return
        if not create:
            raise DataError(self._unfit(state))
        self._in_transaction(self._migrate, write=True)

    def _state(self, connection: Connection) -> str:
        found = inspect(connection).get_table_names()
        if VERSION_TABLE not in found:
            if found:
                raise DataError(
                    f"{self.shown} holds other tables ({shown(', '.join(sorted(found)), 80)}); name another database"
                )
            return "empty"
        version = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
        script = ScriptDirectory.from_config(_alembic())
        if version == script.get_current_head():
            return "ready"
        if version is not None and version not in {revision.revision for revision in script.walk_revisions()}:
            raise DataError(
                f"{self.shown} has version {shown(version, 20)}, which a newer onebase wrote; this one reads up to "
                f"{script.get_current_head()}: update onebase"
            )
        return "older"

    def _unfit(self, state: str) -> str:
        if state == "empty":
            return f"{self.shown} is an empty database; nobody has put tasks into it"
        return f"{self.shown} is of an older version; open it for labelling once, which brings it up to date"

    def _migrate(self, connection: Connection) -> None:
        if self._state(connection) != "ready":  # another process was faster
            config = _alembic()
            config.attributes["connection"] = connection
            command.upgrade(config, "head")


def _alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _engine(url: str, place: str) -> Engine:
    parsed = _parsed(url, place)
    options: dict[str, Any] = {}
    if parsed.get_backend_name() == "sqlite":
        options["connect_args"] = {"timeout": float(LOCK_SECONDS)}
    else:
        options["pool_pre_ping"] = True
        options["connect_args"] = {"connect_timeout": parsed.query.get("connect_timeout", "10")}
    try:
        engine = create_engine(parsed, pool_size=8, max_overflow=24, **options)
    except ImportError as error:
        raise MissingExtraError(f'{place} needs psycopg: pip install "onebase[label]"') from error
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _parsed(url: str, place: str) -> URL:
    try:
        parsed = make_url(url)
        driver = _DRIVERS.get(parsed.drivername)
    except (ArgumentError, ValueError, NoSuchModuleError):
        raise DataError(
            f"{place} is not the URL of a database; write sqlite:///label.db or postgresql://user@host/name"
        ) from None
    if driver is None:
        raise DataError(
            f"{place}: no database of the kind '{shown(parsed.drivername, 40)}' can be used; only sqlite and postgresql"
        )
    if "@" in (parsed.host or ""):
        raise DataError(f"{place}: its password has an '@' or another sign of URLs in it; write @ as %40, / as %2F")
    return parsed.set(drivername=driver)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    for pragma in ("synchronous=FULL", "foreign_keys=ON", "recursive_triggers=ON"):
        connection.execute(f"PRAGMA {pragma}")
    # Only where it is not set: changing it needs the file alone.
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _use_wal(connection)


def _use_wal(connection: Any) -> None:
    import sqlite3

    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:  # two processes change it at once: this one does not wait by itself
            if "locked" not in str(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _while_connecting(cause: BaseException | None) -> bool:
    return getattr(cause, "sqlstate", None) in (None, "3D000", "28000")


def _is_gone(error: DBAPIError | PoolTimeout, cause: BaseException | None, line: str) -> bool:
    if "database is locked" in line:
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    code = getattr(cause, "sqlstate", None)
    return code in _GONE or (
        code is None and type(cause).__module__.startswith("psycopg") and type(cause).__name__ == "OperationalError"
    )
