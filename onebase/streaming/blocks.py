"""Texts laid end to end and cut into blocks of equal length: in memory, or in a file of tokens that is made once.

A block's place in a text depends on every text before it, so all texts have to be tokenized before the first block of a
shuffled order can be read. That is done once, in order and one text at a time, into int32 files in the cache: a file
per source, because no block holds texts of two.
"""

from __future__ import annotations

import json
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

import numpy

import onebase.reading
import onebase.streaming
from onebase.data.chat import ChatFormat
from onebase.data.encoded import tokens_key
from onebase.data.selection import check_share, unusable
from onebase.data.texts import as_text, end_to_end
from onebase.data.token_cache import code_of
from onebase.records import Example, Row
from onebase.shown import number_of
from onebase.streaming.examples import OnDemand
from onebase.streaming.kept import kept_folder
from onebase.streaming.rows import SAMPLED, StreamedRows

WRITTEN_AT_ONCE = 1 << 20
"""Tokens that are held before they are written: 4 MB."""


class Blocks(OnDemand):
    """The blocks of texts that were tokenized into files, read when they are asked for.

    Args:
        files: a file of int32 tokens for each source.
        length: tokens of a block.
        fingerprint: identifies the texts and how they became tokens.
    """

    def __init__(self, files: Sequence[Path], length: int, fingerprint: str) -> None:
        self._files = [path.open("rb", buffering=0) for path in files]
        self._length, self._fingerprint = length, fingerprint
        tokens = [path.stat().st_size // 4 for path in files]
        # A block of a single token predicts nothing.
        self._counts = [count // length + (count % length > 1) for count in tokens]
        self._ends = list(accumulate(self._counts))
        self.num_counted = sum(count - (count % length == 1) for count in tokens) - self._ends[-1]
        """Tokens that are predicted in all blocks together."""

    @property
    def fingerprint(self) -> str:
        return f"{self._fingerprint} {self._length}"

    @property
    def counts(self) -> list[int]:
        return self._counts

    def __len__(self) -> int:
        return self._ends[-1]

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not 0 <= index < len(self):
            raise IndexError(index)
        source = bisect_right(self._ends, index)
        place = index - self._ends[source] + self._counts[source]
        size = 4 * self._length
        ids = numpy.frombuffer(os.pread(self._files[source].fileno(), size, place * size), dtype="<i4").tolist()
        return Example(ids[:1], [ids[1:]])

    def sample(self) -> list[Example]:
        count = min(SAMPLED, len(self))
        return [self[i * len(self) // count] for i in range(count)]


def tokenized(
    rows: StreamedRows,
    chat: ChatFormat,
    length: int,
    *,
    max_dropped_share: float,
    tell: Callable[[str], object] = str,
) -> tuple[Blocks, dict[str, list[str]]]:
    """The blocks of all rows that are not held out, and the places of the dropped rows by reason. Rows are tokenized
    unless they were before, by the same code with the same tokenizer and template.

    Raises:
        DataError: a row is no text, or too many rows cannot be used.
        DoesNotFitError: the disk is full.
    """

    def fill(folder: Path) -> None:
        began, dropped = time.monotonic(), dict[str, list[str]]()
        start = 0
        for source, count in enumerate(rows.counts):
            part = (rows[i] for i in range(start, start + count))
            texts = (as_text(row, chat) for row in _usable(part, rows, dropped))
            _write(folder / f"{source}.i32", end_to_end(texts))
            start += count
        check_share(dropped, len(rows), max_dropped_share)
        (folder / "dropped.json").write_text(json.dumps(dropped), encoding="utf-8")
        seconds = time.monotonic() - began
        tell(
            f"{number_of(len(rows), 'text is', 'texts are')} tokenized once, and kept in the cache ({seconds:.1f} s, "
            f"{len(rows) / max(1e-9, seconds):.0f} a second)"
        )

    key = tokens_key(chat, rows.fingerprint, code_of(onebase.reading, onebase.streaming), max_dropped_share)
    folder = kept_folder(f"kept-texts-{key}", fill)
    blocks = Blocks([folder / f"{source}.i32" for source in range(len(rows.counts))], length, key)
    return blocks, json.loads((folder / "dropped.json").read_text(encoding="utf-8"))


def _usable(part: Iterable[Row], rows: StreamedRows, dropped: dict[str, list[str]]) -> Iterator[Row]:
    for row in part:
        if reason := unusable(row):
            dropped.setdefault(reason, []).append(row.place)
        elif not rows.is_held_out(row):
            yield row


def _write(path: Path, parts: Iterable[list[int]]) -> None:
    held: list[int] = []
    with path.open("wb") as file:
        for ids in parts:
            held += ids
            if len(held) >= WRITTEN_AT_ONCE:
                file.write(numpy.asarray(held, dtype="<i4").tobytes())
                held = []
        file.write(numpy.asarray(held, dtype="<i4").tobytes())
