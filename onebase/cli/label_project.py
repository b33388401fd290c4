"""What a command of `onebase label` is given: a project's file, or its database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from onebase.cli import modules
from onebase.errors import ConfigError, MissingExtraError
from onebase.labels.urls import database_url, is_database
from onebase.shown import shown


@dataclass(frozen=True, slots=True)
class Named:
    """A project as named on the command line."""

    url: str
    """Of its database."""
    overlap_share: float = 0.0
    """The share of its tasks that several people judge,"""
    people: int = 2
    """and how many they are."""
    columns: Any = None
    """How its files' keys are read."""


def named(project: str) -> Named:
    """The project behind a YAML file or a database: a URL or a path that ends in .db.

    Raises:
        ConfigError: the name is of neither kind, or the file has a fault.
    """
    if is_database(project):
        return Named(database_url(project))
    path = Path(project)
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(
            f"{shown(project, 200)} is no project; name its .yaml file, or its database: a URL or a path ending in .db"
        )
    from onebase.config.files import load_config
    from onebase.config.labeling import LabelConfig

    config = load_config(LabelConfig, path)
    url = database_url(config.database, path.absolute().parent)
    return Named(url, config.overlap.share, config.overlap.people, config.columns)


def load(module: str) -> ModuleType:
    """Imports a module that needs the extra `label`.

    Raises:
        MissingExtraError: one of its packages is missing.
    """
    try:
        return modules.load(module)
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise MissingExtraError(f'onebase label needs {package}: pip install "onebase[label]"') from error
