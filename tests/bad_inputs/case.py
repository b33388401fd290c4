"""What one bad input is: files to lay out, a command line, and how it has to end. Plain data; `ending` runs it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REFUSED = frozenset({1, 2, 3, 4, 5, 6})
"""Every exit code that says no; 1 with one line too."""

GOOD_REWARD = """
def score(prompts, completions, **columns):
    return [float(sum(letter in "aeiou" for letter in text)) for text in completions]
"""


@dataclass(frozen=True)
class Case:
    """A bad input. The ending is always: one error line at the end of stderr, no traceback, nothing half-written."""

    name: str
    command: str | Sequence[str]
    """Words after `onebase`; a text is split as a shell does."""
    files: Mapping[str, Any] = field(default_factory=dict)
    """Path in the case's folder -> what is there, see `lay_out`."""
    codes: frozenset[int] | set[int] = frozenset({2})
    """Exit codes that are right."""
    says: str = ""
    """What the error line has to match: what is wrong, and where."""
    warns: str = ""
    """What stderr has to match where exit 0 is right: a warning with its count, say."""
    fine: str = ""
    """Why exit 0 is right, where it is; then 0 is added to the codes."""
    lines: int | None = 1
    """Error lines; None: one or more, for a config with several mistakes."""
    first: Sequence[str] = ()
    """Commands that have to succeed before: a run to go on with, say."""
    then: Callable[[Path], None] | None = None
    """What happens to the folder between these and the command."""
    untouched: Sequence[str] = ()
    """Paths whose bytes stay as they are."""
    writes: Sequence[str] = ("out", "reference-logprobs")
    """What may be written to, as beginnings of paths in the case's folder."""
    shell: str = ""
    """Run by a real shell, where `onebase` is the command; `command` is then put in for `{}`."""
    env: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    limit: float = 60.0
    """Seconds, after which it hangs."""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.command) if isinstance(self.command, str) else list(self.command)

    @property
    def area(self) -> str:
        return self.name.partition("_")[0]


class Folder:
    """An empty folder."""


class Fifo:
    """A named pipe that nobody writes to."""


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Closed:
    """A file nobody may read."""

    text: str = "x"


@dataclass(frozen=True)
class Copy:
    """A copy of a prepared folder, damaged: file -> `Json`, `Cut`, `Flip`, bytes, text, None (deleted), a function."""

    source: str
    files: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Json:
    """A JSON file with some keys set, and some taken out."""

    values: Mapping[str, Any] = field(default_factory=dict)
    without: Sequence[str] = ()


@dataclass(frozen=True)
class Cut:
    """The first part of a file."""

    share: float = 0.5


@dataclass(frozen=True)
class Flip:
    """A file with one bit turned over in its midst."""


def lay_out(path: Path, content: Any, prepared: Path) -> None:
    """Puts one thing at a path: rows (a list), text, bytes, or one of the classes above."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Copy):
        shutil.copytree(prepared / content.source, path, dirs_exist_ok=True)
        for name, change in content.files.items():
            damage(path / name, change)
    elif isinstance(content, Fifo):
        os.mkfifo(path)
    elif isinstance(content, Link):
        path.symlink_to(content.target)
    elif isinstance(content, Folder):
        path.mkdir()
    elif isinstance(content, Closed):
        path.write_text(content.text)
        path.chmod(0)
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    elif callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8", newline="")


def damage(path: Path, change: Any) -> None:
    """Changes a file that is there."""
    if change is None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    elif isinstance(change, Json):
        values = json.loads(path.read_text(encoding="utf-8")) | dict(change.values)
        path.write_text(json.dumps({key: value for key, value in values.items() if key not in change.without}))
    elif isinstance(change, Cut):
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * change.share)])
    elif isinstance(change, Flip):
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 16
        path.write_bytes(bytes(whole))
    elif isinstance(change, Folder):
        path.unlink(missing_ok=True)
        path.mkdir()
    elif isinstance(change, Fifo):
        path.unlink(missing_ok=True)
        os.mkfifo(path)
    elif callable(change):
        change(path)
    elif isinstance(change, bytes):
        path.write_bytes(change)
    else:
        path.write_text(str(change), encoding="utf-8")
