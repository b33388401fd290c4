"""The rows of a run's sources in order, each read from its file when it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import overload

import numpy

from onebase.data.mixing import Source, check_named_once
from onebase.reading.files import expand
from onebase.records import Message, Row
from onebase.streaming.indexed import IndexedRows

SAMPLED = 256
"""Rows or examples that stand for all where all would have to be read: for remarks, for the longest, for the plan."""


class StreamedRows(Sequence[Row]):
    """The rows of all sources in order, each read from its file when it is asked for.

    Args:
        limit: counts rows of the sources that are not replayed.
        tell: called with a line for each file that was copied (`indexed`).

    Raises:
        DataError: a file is missing, is named twice, or cannot be streamed.
    """

    def __init__(
        self, sources: Sequence[Source], *, limit: int | None = None, tell: Callable[[str], object] = str
    ) -> None:
        check_named_once(sources)
        self._share_held_out = (0.0, 0)
        self._held_out: set[tuple[Message, ...] | tuple[str, ...]] = set()
        self._files: list[tuple[IndexedRows, int]] = []
        self.sources = list(sources)
        self.counts = [0] * len(sources)
        """Rows of each source."""
        for number, source in enumerate(sources):
            allowed = [n for n in (source.limit, None if source.replayed else limit) if n is not None]
            left = min(allowed, default=None)
            for path in [path for name in source.paths for path in expand(name)]:
                if left == 0:
                    break
                file = IndexedRows(path, source.columns, limit=left, tell=tell)
                self._files.append((file, number))
                self.counts[number] += len(file)
                left = None if left is None else left - len(file)
            if limit is not None and not source.replayed:
                limit -= self.counts[number]
        self._ends = numpy.cumsum([len(file) for file, _ in self._files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fingerprint(self) -> str:
        """Identifies the rows, by the content of their files and how they are read, and which of them are held out."""
        parts = [f"{file.content_hash} {len(file)} {n} {self.sources[n].columns}" for file, n in self._files]
        return hashlib.sha256("\n".join([*parts, str(self._share_held_out)]).encode()).hexdigest()

    def hold_out(self, fraction: float, *, most: int) -> list[Row]:
        """Rows spread evenly over all that are not replayed; `is_held_out` knows their prompts from now on."""
        whole = sum(len(file) for file, source in self._files if not self.sources[source].replayed)
        count = min(most, round(fraction * whole))
        rows = [self[i * whole // count] for i in range(count)]
        self._share_held_out = (fraction, most)
        self._held_out = {row.messages or row.answers for row in rows}
        return rows

    def is_held_out(self, row: Row) -> bool:
        return (row.messages or row.answers) in self._held_out

    def learned(self) -> Iterator[Row]:
        """The rows that are not held out, one at a time."""
        return (row for row in self if not self.is_held_out(row))

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """One row as it is in its file, with its source's number."""
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        file = int(numpy.searchsorted(self._ends, index, side="right"))
        found, source = self._files[file]
        row = found.row(index - (int(self._ends[file - 1]) if file else 0))
        return replace(row, source=source) if source else row

    def sample(self) -> list[Row]:
        """Rows from places spread evenly over all, the same at each call."""
        count = min(SAMPLED, len(self))
        return [self[i * len(self) // count] for i in range(count)]
