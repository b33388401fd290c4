"""`onebase label`: people rank answers in a browser."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import App

from onebase.cli import label_agreement, label_files, label_next, modules, streams
from onebase.cli.numbers import WHOLE
from onebase.errors import ConfigError, MissingExtraError

PACKAGES = {
    "alembic": "alembic",
    "argon2": "argon2-cffi",
    "fastapi": "fastapi",
    "itsdangerous": "itsdangerous",
    "markdown_it": "markdown-it-py",
    "nh3": "nh3",
    "sqlalchemy": "sqlalchemy",
    "uvicorn": "uvicorn",
}

label = App(name="label", help="Have people rank answers, and learn from what they say.", sort_key=52)


@label.command
def serve(project: Path, /) -> None:
    """Serve the pages on which people rank, and those to run the project.

    Args:
        project: A PROJECT.yaml with what to rank (docs/labeling.md).
    """
    check_installed()
    streams.say_first(f"label: opening {project}")
    modules.load("onebase.labeling.run").serve(project)


@label.command
def invite(project: Path, /, *, name: str | None = None, admin: bool = False, days: Annotated[int, WHOLE] = 14) -> None:
    """Print a link that lets somebody in.

    Args:
        project: The PROJECT.yaml.
        name: Who is invited; the link then works until it expires. Without, it works once, for whoever opens it.
        admin: Let them run the project, too.
        days: How long the link is good.
    """
    if not 1 <= days <= 365:
        raise ConfigError(f"--days is {days}; it should be between 1 and 365")
    check_installed()
    print(modules.load("onebase.labeling.run").invite(project, name=name, admin=admin, days=days))


label.command(label_files.import_file, name="import")
label.command(label_files.export_file, name="export")
label.command(label_agreement.agreement)
label.command(label_next.next_, name="next")
label.command(label_next.curve)


def check_installed() -> None:
    """Raises MissingExtraError unless the packages for labeling are installed."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise MissingExtraError(f"label needs {', '.join(missing)}: pip install 'onebase[label]'")
