"""Rendered files: the templates they come from, how they are shown, and how they are written over others."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from onebase.errors import ConfigError
from onebase.files import write_atomically
from onebase.shown import number_of, shown

FIRST_LINES = 3


@dataclass(frozen=True, slots=True)
class File:
    """A rendered file."""

    name: str
    text: str

    def state(self, folder: Path) -> str:
        """`new`, `unchanged`, or `differs` from what is there."""
        path = folder / self.name
        if not os.path.lexists(path):
            return "new"
        return "unchanged" if path.is_file() and path.read_bytes() == self.text.encode() else "differs"


def templates_of(package: str) -> Environment:
    """The templates of a package, which may include those of this one, with a filter for each language of quotes."""
    jinja = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, "onebase.deploying"))]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters |= {"shell": shlex.quote, "yaml": quoted, "python": repr}
    return jinja


def quoted(text: str) -> str:
    """A text as a YAML string in double quotes, on one line."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def write_files(files: Sequence[File], states: dict[str, str], into: Path, *, force: bool) -> None:
    """Writes the files that are not there yet.

    Raises:
        ConfigError: one is there with other contents, without `force`, or is a folder.
    """
    other = [name for name, state in states.items() if state == "differs"]
    if other and not force:
        raise ConfigError(
            f"{shown(into, 200)}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} there with other contents; "
            "add --force to replace, or name another folder with --into"
        )
    blocked = [name for name in other if (into / name).is_dir()]
    if blocked:
        raise ConfigError(f"{shown(into / blocked[0], 200)} is a folder; remove it, or name another with --into")
    for file in files:
        if states[file.name] != "unchanged":
            write_atomically(into / file.name, file.text)


def show_file(file: File, state: str) -> None:
    """Prints a file's name and state with its first lines."""
    print(f"\n{file.name}  {number_of(len(file.text.encode()), 'byte', form=',')}, {state}")
    lines = file.text.splitlines()
    for line in lines[:FIRST_LINES]:
        print(f"    {shown(line, 110)}")
    if len(lines) > FIRST_LINES:
        print(f"    ... {number_of(len(lines) - FIRST_LINES, 'more line')}")
