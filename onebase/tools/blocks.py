"""Rows dealt into blocks: what one computes does not depend on the others, so that they can be computed anywhere and
in any order, and kept as soon as they are done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onebase.errors import ConfigError
from onebase.files import write_atomically
from onebase.records import Row
from onebase.shown import shown

BLOCK_ROWS = 1000
JOB_FILE = "job.json"


def blocks_of(rows: Sequence[Row]) -> list[Sequence[Row]]:
    """The rows in order, `BLOCK_ROWS` to a block."""
    return [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]


class KeptBlocks:
    """The lines of each block: in a folder that a later call goes on from, or in memory alone.

    Args:
        folder: made if it is not there; None keeps nothing on disk.
        job: what the lines depend on, besides the rows.

    Raises:
        ConfigError: the folder holds the blocks of something else.
    """

    def __init__(self, folder: Path | None, blocks: Sequence[Sequence[Row]], job: Mapping[str, Any]) -> None:
        self._folder, self._texts = folder, dict[int, str]()
        self._count = len(blocks)
        if folder is None:
            return
        rows = hashlib.sha256()
        for block in blocks:
            for row in block:
                rows.update(repr(row).encode("utf-8", "backslashreplace"))
        note = json.dumps({**job, "block_rows": BLOCK_ROWS, "rows": rows.hexdigest()}, indent=2) + "\n"
        known = folder / JOB_FILE
        if known.exists():
            before, now = (json.loads(text) for text in (known.read_text(encoding="utf-8"), note))
            if changed := [key for key in now if before.get(key) != now[key]]:
                raise ConfigError(
                    f"{shown(folder, 200)} holds the blocks of another job: {', '.join(changed)} differ; name another "
                    "folder with --output, or remove it"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"{shown(folder, 200)} is not empty and holds no blocks; name another with --output")
        write_atomically(known, note)

    def missing(self) -> list[int]:
        """The numbers of the blocks that are still to be computed."""
        return [number for number in range(self._count) if not self._is_there(number)]

    def keep(self, number: int, lines: Sequence[str]) -> None:
        """Keeps a block's lines; on disk whole or not at all."""
        text = "".join(f"{line}\n" for line in lines)
        if self._folder is None:
            self._texts[number] = text
        else:
            write_atomically(self._path(number), text)

    def text(self, number: int) -> str:
        """A block's lines, each with its line end."""
        return self._texts[number] if self._folder is None else self._path(number).read_text(encoding="utf-8")

    def _is_there(self, number: int) -> bool:
        return number in self._texts if self._folder is None else self._path(number).exists()

    def _path(self, number: int) -> Path:
        assert self._folder is not None
        return self._folder / f"block-{number:06d}.jsonl"


def fingerprint_of(folder: Path) -> str:
    """A hash over the names and contents of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\n".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
