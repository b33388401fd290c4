"""A project: its file, the tasks its data files hold, its rubric, its secret and its database."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from onebase.config.files import load_config
from onebase.config.labeling import LabelConfig
from onebase.errors import ConfigError, DataError
from onebase.labels.judged import NewTask
from onebase.labels.store import Store
from onebase.labels.urls import database_url
from onebase.reading.formats import read_files
from onebase.reading.ranked import with_unranked
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown

MOST_RUBRIC = 50_000
"""Characters of a rubric."""


@dataclass(frozen=True, slots=True)
class Project:
    """What `PROJECT.yaml` says, with its paths found."""

    path: Path
    config: LabelConfig
    rubric: str
    """Markdown; empty if there is none."""

    @property
    def url(self) -> str:
        """The database's URL."""
        return database_url(self.config.database, self.path.absolute().parent)

    @property
    def secret_path(self) -> Path:
        """The file with the secret that signs sessions."""
        return self.path.with_name(f".{self.path.stem}.secret")

    def beside(self, names: Sequence[str]) -> list[str]:
        """The names with those that are beside the project's file as paths from here."""
        there = [self.path.parent / name for name in names]
        return [str(path) if path.exists() else name for path, name in zip(there, names, strict=True)]


def read_project(path: Path) -> Project:
    """The project in a file.

    Raises:
        ConfigError: a key or a value is wrong, or the rubric's file cannot be read.
    """
    config = load_config(LabelConfig, path)
    return Project(path, config, _rubric(config.rubric, path.parent))


def _rubric(said: str | None, folder: Path) -> str:
    if said is None:
        return ""
    if "\n" in said or not said.strip().endswith(".md"):
        return said
    path = folder / said.strip()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"'rubric' names {shown(path, 200)}: {reason}; correct the path, or write the text") from None
    if len(text) > MOST_RUBRIC:
        raise ConfigError(
            f"{shown(path, 200)}: a rubric of {number_of(len(text), 'character')}; people read {MOST_RUBRIC} at most"
        )
    return text


def add_tasks(project: Project, store: Store) -> int:
    """Adds what the project's files hold to the database, each task once; returns how many are new.

    Raises:
        DataError: a file cannot be read, or a row is no task.
    """
    config = project.config
    new = store.tasks.add(
        _tasks(read_files(project.beside(config.tasks), columns=config.columns)),
        overlap_share=config.overlap.share,
        people=config.overlap.people,
        seed=config.seed,
    )
    gold = list(_tasks(read_files(project.beside(config.gold), columns=config.columns), gold=True))
    return new + store.tasks.add(gold)


def _tasks(rows: Iterable[Row], *, gold: bool = False) -> Iterator[NewTask]:
    repeated = 0
    for row in map(with_unranked, rows):
        # An answer that stands there twice could not be told from itself.
        first = [k for k, answer in enumerate(row.answers) if answer not in row.answers[:k]]
        repeated += len(first) < len(row.answers)
        found = row.only(first)
        if gold and found.grades is None:
            raise DataError(f'{found.place}: a gold question needs grades, such as "grades": [2, 1]; add them')
        if len(found.answers) < 2:
            raise DataError(
                f"{found.place}: {number_of(len(found.answers), 'different answer')}; people rank 2 to 9: a list "
                "under 'answers', "
                "or map the row's keys by 'columns'"
            )
        yield NewTask(
            prompt=found.messages,
            answers=tuple(found.answer(k).text for k in range(len(found.answers))),
            gold=found.grades if gold else None,
            place=found.place,
            ended=found.ended,
            tools=found.tools,
        )
    if repeated:
        say(f"label: {number_of(repeated, 'row holds', 'rows hold')} an answer twice; it is asked about once")
