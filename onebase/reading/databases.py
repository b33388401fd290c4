"""Reads the rankings in a database of `onebase label`: a task that people ranked is a row of the layout `scored`.

A server's database has no file, and a path with two slashes is none either, so the rest of `reading` sees a path that
stands for it: its URL without the password. Which URL that is, is kept here for as long as the process lives.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from onebase.errors import DataError, MissingExtraError
from onebase.labels.urls import database_url, is_database, shown_url, sqlite_path
from onebase.shown import number_of, shown

if TYPE_CHECKING:  # brings SQLAlchemy, which files can do without
    from onebase.labels.judged import Judgement, Task
    from onebase.labels.store import Snapshot

MAGIC = b"SQLite format 3\0"
_SERVERS: dict[str, str] = {}
"""The path that stands for a server's database -> its URL."""


def as_path(name: str | Path) -> Path:
    """The path that stands for what a name means: of a database the one that its rows are read by."""
    if isinstance(name, Path) or not is_database(name):
        return Path(name)
    url = database_url(name)
    path = sqlite_path(url)
    if path is None:
        path = Path(shown_url(url))
        _SERVERS[str(path)] = url
    return path


def is_server(path: Path) -> bool:
    """Whether a path stands for a database on a server."""
    return str(path) in _SERVERS


def name_of(path: Path) -> str:
    """What a path stands for, as it may be printed: a database's URL without its password, else the path."""
    return shown_url(_SERVERS[str(path)]) if is_server(path) else str(path)


def stem_of(path: Path) -> str:
    """A name for files made of a database: its own, without what says where or in which format it is."""
    name = urlsplit(_SERVERS[str(path)]).path.strip("/") if is_server(path) else path.stem
    return name.replace("/", "-") or "database"


def server_id(path: Path) -> tuple[int, int]:
    """Identifies a database on a server, as a device and an inode identify a file."""
    return -1, list(_SERVERS).index(str(path))


def check(path: Path) -> None:
    """Raises DataError unless the database is there and holds judgements; MissingExtraError without its packages."""
    try:
        from onebase.labels.database import Database
    except ImportError as error:
        raise _needs_packages(error) from None
    Database(_url(path)).close()


def read(path: Path) -> tuple[str, list[tuple[int, dict[str, Any]]], list[str]]:
    """What places begin with, the rankings in force at one moment as numbered objects, and notes on what is left out.

    Raises:
        DataError: the database cannot be read, or nothing in it is ranked.
    """
    try:
        from onebase.labels.store import Store
    except ImportError as error:
        raise _needs_packages(error) from None
    store = Store.open(_url(path))
    try:
        found, name = store.snapshot(), store.shown_url
    finally:
        store.close()
    rows = list(rankings(found))
    notes = left_out(found, len(rows))
    if not rows:
        raise DataError(f"{shown(name)} holds no rankings yet{': ' + notes[0] if notes else ''}; rank some tasks first")
    return f"{name}:task ", rows, notes


def content_hash(path: Path) -> str:
    """SHA-256 of the rankings, in hexadecimal: of two reads with the same hash the rows are the same."""
    return hashlib.sha256(json.dumps(read(path)[1]).encode()).hexdigest()


def rankings(found: Snapshot) -> Iterator[tuple[int, dict[str, Any]]]:
    """The tasks that are ranked and no gold questions, by their numbers: objects as `ranked.read_scored` reads them.

    Beside prompt, answers and scores: `task` (its number), `annotators`, `orders` (of each annotator the answers'
    numbers from 1, best first, ties together), `agreement` (`agreement_of`), `chosen` and `sources` as in the task.
    """
    by_task: dict[int, list[Judgement]] = {}
    for judgement in found.judgements:
        if judgement.kind == "ranked":
            by_task.setdefault(judgement.task_id, []).append(judgement)
    for task in found.tasks:
        given = by_task.get(task.id, [])
        if given and task.gold is None:
            yield task.id, ranking(task, given)


def ranking(task: Task, given: Sequence[Judgement]) -> dict[str, Any]:
    """One task and its rankings as an object; keys as in `rankings`."""
    grades = [list(judgement.grades or ()) for judgement in given]
    # Several annotators' lists are combined where they are read; one annotator's grades stay as they are.
    more: dict[str, Any] = {"ended": list(task.ended)} if task.ended is not None and not all(task.ended) else {}
    return {
        **asked(task),
        "responses": list(task.answers),
        "scores": grades[0] if len(grades) == 1 else grades,
        **more,
        **beside(task, given),
    }


def asked(task: Task) -> dict[str, Any]:
    """A task's prompt, and the functions it offers, as an object."""
    from onebase.reading.tools import for_file  # brings torch, which checking a name can do without

    alone = [message.role for message in task.prompt] == ["user"]
    prompt = task.prompt[0].content if alone else [for_file(message) for message in task.prompt]
    return {"prompt": prompt, **({"tools": [json.loads(tool) for tool in task.tools]} if task.tools else {})}


def beside(task: Task, given: Sequence[Judgement]) -> dict[str, Any]:
    """What an object says of a task and its rankings beside its prompt, answers and scores; keys as in `rankings`."""
    grades = [judgement.grades or () for judgement in given]
    return {
        "task": task.id,
        "annotators": [judgement.person for judgement in given],
        "orders": [_order(own) for own in grades],
        "agreement": agreement_of(grades),
        "chosen_by": task.chosen,
        **({"sources": list(task.sources)} if task.sources else {}),
    }


def agreement_of(grades: Sequence[Sequence[float]]) -> float | None:
    """Of all pairs of answers and of annotators the share ordered alike, ties included; None for one annotator."""
    same = [
        _sign(one[i] - one[j]) == _sign(other[i] - other[j])
        for one, other in combinations(grades, 2)
        for i, j in combinations(range(len(one)), 2)
    ]
    return round(sum(same) / len(same), 6) if same else None


def left_out(found: Snapshot, rows: int) -> list[str]:
    """What of a database is no row, in words."""
    gold = sum(task.gold is not None for task in found.tasks)
    judged = {judgement.task_id for judgement in found.judgements}
    unranked = sum(task.gold is None and task.id in judged for task in found.tasks) - rows
    waiting = len(found.tasks) - gold - rows - unranked
    told = {
        f"{unranked} called all bad or skipped by everybody": unranked,
        f"{waiting} judged by nobody yet": waiting,
        number_of(gold, "gold question"): gold,
    }
    words = ", ".join(said for said, count in told.items() if count)
    return [f"tasks of the database that are no rows: {words}"] if words else []


def _order(grades: Sequence[int]) -> list[list[int]]:
    return [[n for n, own in enumerate(grades, start=1) if own == grade] for grade in sorted(set(grades), reverse=True)]


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)


def _url(path: Path) -> str:
    return _SERVERS.get(str(path)) or f"sqlite:///{os.fspath(path)}"


def _needs_packages(error: ImportError) -> MissingExtraError:
    package = str(error.name).partition(".")[0]
    return MissingExtraError(f'a database of rankings needs {package}: pip install "onebase[label]"')
