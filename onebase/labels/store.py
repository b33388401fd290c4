"""The database of one project, in SQLite or PostgreSQL; safe from several threads and processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onebase.labels.database import Database
from onebase.labels.judged import Judgement, Task
from onebase.labels.judgements import Judgements, read_judgements
from onebase.labels.leases import Leases
from onebase.labels.people import People
from onebase.labels.tasks import Tasks, read_tasks


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All tasks and the judgements in force, as they were at one moment."""

    tasks: list[Task]
    judgements: list[Judgement]


class Store:
    """People, tasks, leases and judgements of one project."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.people = People(database)
        self.tasks = Tasks(database)
        self.leases = Leases(database)
        self.judgements = Judgements(database)

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

    def snapshot(self) -> Snapshot:
        """All tasks and the judgements in force, as they were at one moment."""
        return self._database.read(
            lambda connection: Snapshot(read_tasks(connection), read_judgements(connection, withdrawn=False))
        )
