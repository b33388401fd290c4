"""Random access to the rows of a data file: a plain .jsonl file as it is, any other by a copy in the cache.

One pass over a file of lines finds where they begin (16 bytes a row) and hashes its content. Of other files (CSV,
Parquet, compressed) the rows are written once as JSON lines, each with its number; the copy's name is the hash of the
file's content and of the code that reads it.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy

import onebase.reading
from onebase.data.token_cache import code_of
from onebase.errors import DataError
from onebase.reading.containers import is_plain_lines, json_line, read_content
from onebase.reading.files import content_hash, kind_of, not_utf8
from onebase.reading.formats import RowReader
from onebase.records import Row
from onebase.shown import number_of, shown
from onebase.streaming.kept import kept_folder

BLOCK = 1 << 24
SHORT = 16
"""Bytes of a line that may be blank: whether it is, is looked up."""


class Lines:
    """The lines of a file that are not blank, each by its place among them.

    Raises:
        DataError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        digest, ends, size = hashlib.sha256(), [numpy.zeros(1, dtype=numpy.int64)], 0
        try:
            self._file = path.open("rb")
            while block := self._file.read(BLOCK):
                digest.update(block)
                found = numpy.flatnonzero(numpy.frombuffer(block, dtype=numpy.uint8) == 10)
                ends.append(found.astype(numpy.int64) + size + 1)
                size += len(block)
        except OSError as error:
            raise DataError(
                f"{shown(path)} cannot be read: {error.strerror}; check the disk and the permissions"
            ) from None
        self._bounds = numpy.concatenate([*ends, [size]])
        lengths = numpy.diff(self._bounds)
        filled = lengths > 0
        for line in numpy.flatnonzero(filled & (lengths <= SHORT)):
            filled[line] = bool(self._bytes(int(line)).removeprefix(b"\xef\xbb\xbf").strip())
        self._filled = numpy.flatnonzero(filled)
        self.content_hash = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._filled)

    def number(self, index: int) -> int:
        """The line's number in the file, from 1."""
        return int(self._filled[index]) + 1

    def raw(self, index: int) -> bytes:
        """The line's bytes, without a byte order mark."""
        line = int(self._filled[index])
        found = self._bytes(line)
        return found if line else found.removeprefix(b"\xef\xbb\xbf")

    def _bytes(self, line: int) -> bytes:
        # At an offset of its own, because a thread that reads ahead shares the file.
        start, end = self._bounds[line : line + 2].tolist()
        return os.pread(self._file.fileno(), end - start, start)


class IndexedRows:
    """The rows of one file, each by its place among them.

    Args:
        columns: reads every row by this mapping instead of by its own keys.
        limit: only so many rows, from the first.
        tell: called with a line when a copy was made.

    Raises:
        DataError: the file cannot be read, has no rows, or holds what is not streamed.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, str] | None = None,
        *,
        limit: int | None = None,
        tell: Callable[[str], object] = str,
    ) -> None:
        self._path = path
        if kind_of(path) == "database":  # its rows change while it is read, and fit into memory
            raise DataError(f"{shown(path)}: a database is not streamed", remedy="not-streamed")
        self._copied = not is_plain_lines(path)
        if self._copied:
            self.content_hash = content_hash(path)
            folder = _copy(path, self.content_hash, tell)
            about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
            self._lines = Lines(folder / "rows.jsonl")
            self._reader = RowReader(columns, typed=about["typed"], notes=about["notes"])
        else:
            self._lines = Lines(path)
            self.content_hash = self._lines.content_hash
            self._reader = RowReader(columns)
        self._count = len(self._lines) if limit is None else min(limit, len(self._lines))
        self.row(0)  # tells the layout

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Row:
        """One row. Raises DataError naming the file and the row."""
        raw = self._lines.raw(index)
        if self._copied:
            number, values = json.loads(raw)
            return self._reader.read(values, f"{self._path}:{number}")
        place = f"{self._path}:{self._lines.number(index)}"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(place, raw, error) from None
        return self._reader.read(json_line(text.rstrip("\r\n"), place), place)


def _copy(path: Path, content: str, tell: Callable[[str], object]) -> Path:
    """The folder with a file's rows as JSON lines, `[number, object]` each, and what its container says of them all."""

    def fill(folder: Path) -> None:
        began, count = time.monotonic(), 0
        found = read_content(path)
        if found.squad is not None:
            raise DataError(f"{shown(path)}: questions in the form of SQuAD are not streamed", remedy="not-streamed")
        with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
            for number, values in found.rows:
                file.write(json.dumps([number, values], ensure_ascii=False) + "\n")
                count += 1
        about: dict[str, Any] = {"typed": found.typed, "notes": found.notes}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        seconds = time.monotonic() - began
        tell(
            f"{shown(path)}: {number_of(count, 'row is', 'rows are')} kept as JSON lines in the cache, written "
            f"once ({seconds:.1f} s)"
        )

    digest = hashlib.sha256(f"{content} {kind_of(path)} {code_of(onebase.reading)}".encode())
    return kept_folder(f"kept-rows-{digest.hexdigest()[:24]}", fill)
