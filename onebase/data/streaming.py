"""Rows of files larger than memory: found by their offsets, read and tokenized when they are needed.

One pass over a file finds where its lines begin (8 bytes a row) and hashes its content. An example that cannot be used
(an empty answer, a prompt too long to keep, the prompt of a held-out row) is replaced by the next usable one, so what
comes at a place depends on the file alone, and nothing is read before it is needed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Full, Queue
from typing import overload

import numpy

from onebase.data.fit import Cuts, Limits
from onebase.data.mixing import Order, Source
from onebase.data.selection import unusable
from onebase.data.tree import laid
from onebase.errors import DataError
from onebase.reading.files import expand
from onebase.reading.formats import RowReader
from onebase.reading.json_text import parse
from onebase.records import Example, Message, Row
from onebase.shown import shown

BLOCK = 1 << 24
MOST_IN_A_ROW = 1000
"""So many unusable rows behind one another are an error."""
DEPTH = 8
"""Minibatches that are prepared ahead."""
SAMPLED = 256
"""Examples that stand for all where all would have to be read: for the longest, and for the plan."""
JUDGED_FROM = 200
"""Rows read before their unusable share is judged."""
Encode = Callable[[Row, Cuts], Example | None]


class JsonLines:
    """Random access to the rows of a plain .jsonl file.

    Raises:
        DataError: it is another kind of file, or cannot be read.
    """

    def __init__(self, path: Path, reader: RowReader, *, limit: int | None = None) -> None:
        if not streams(path):
            raise DataError(f"{shown(path)}: only plain .jsonl files are streamed", remedy="not-streamed")
        self._path, self._reader = path, reader
        digest, starts, end = hashlib.sha256(), [numpy.zeros(1, dtype=numpy.int64)], 0
        try:
            self._file = path.open("rb")
            while block := self._file.read(BLOCK):
                digest.update(block)
                found = numpy.flatnonzero(numpy.frombuffer(block, dtype=numpy.uint8) == 10)
                starts.append(found.astype(numpy.int64) + end + 1)
                end += len(block)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}; check the disk and the permissions") from None
        lines = numpy.concatenate([*starts, [end]])
        self._starts, self._ends = lines[:-1], lines[1:]
        self._numbers = numpy.flatnonzero(self._ends - self._starts > 2)[:limit]
        """The lines that hold rows, without the empty ones."""
        self.fingerprint = digest.hexdigest()
        self._lock = threading.Lock()
        if not len(self._numbers):
            raise DataError(f"{path} is empty; at least one row is needed")
        self.row(0)  # tells the layout

    def __len__(self) -> int:
        return len(self._numbers)

    def row(self, index: int) -> Row:
        """One row. Raises DataError naming the file and the line."""
        line = int(self._numbers[index])
        with self._lock:  # the file's place is shared with the thread that reads ahead
            self._file.seek(int(self._starts[line]))
            raw = self._file.read(int(self._ends[line] - self._starts[line]))
        place = f"{self._path}:{line + 1}"
        try:
            text = raw.decode("utf-8-sig" if line == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: not UTF-8: byte {error.start} is 0x{raw[error.start]:02x}") from None
        values = parse(text, place)
        if not isinstance(values, dict):
            raise DataError(f"{place}: the row is no object; expected an object")
        return self._reader.read(values, place)


def streams(path: Path) -> bool:
    """Whether rows of this file can be found without reading it whole."""
    return path.name.lower().endswith(".jsonl")


class Streamed(Sequence[Example]):
    """Examples that are read, checked and encoded when they are asked for.

    Args:
        encode: row and where to note cuts -> example, or None to leave the row out.
    """

    def __init__(self, sources: Sequence[Source], encode: Encode, limits: Limits) -> None:
        self._encode, self._limits = encode, limits
        self._held_out: set[tuple[Message, ...] | tuple[str, ...]] = set()
        self._files: list[tuple[JsonLines, int]] = []
        self.counts = [0] * len(sources)
        """Rows of each source."""
        for number, source in enumerate(sources):
            reader = RowReader(source.columns)
            for path in [path for name in source.paths for path in expand(name)]:
                left = None if source.limit is None else source.limit - self.counts[number]
                if left == 0:
                    break
                file = JsonLines(path, reader, limit=left)
                self._files.append((file, number))
                self.counts[number] += len(file)
        self._sources = list(sources)
        self._ends = numpy.cumsum([len(file) for file, _ in self._files])
        self._sample: list[Example] | None = None
        self.left_out: Counter[str] = Counter()
        """Rows that were replaced by the next usable one, by reason; a row is counted each time it comes up."""
        self.read = 0
        self.seconds = 0.0
        """Time spent reading and encoding."""

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def fingerprint(self) -> str:
        """Identifies the rows, by the content of their files."""
        parts = [f"{file.fingerprint} {len(file)} {source}" for file, source in self._files]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def hold_out(self, fraction: float, *, most: int) -> list[Row]:
        """Rows spread evenly over all that are not replayed, whose prompts no example has from now on."""
        whole = sum(len(file) for file, source in self._files if not self._sources[source].replayed)
        count = min(most, round(fraction * whole))
        rows = [self.row(i * whole // count) for i in range(count)]
        self._held_out = {row.messages or row.answers for row in rows}
        return rows

    def row(self, index: int) -> Row:
        """One row as it is in its file."""
        file = int(numpy.searchsorted(self._ends, index, side="right"))
        found, source = self._files[file]
        row = found.row(index - (int(self._ends[file - 1]) if file else 0))
        return replace(row, source=source) if source else row

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """The example at this place, or the next usable one.

        Raises:
            DataError: too many rows cannot be used.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        began = time.monotonic()
        for step in range(min(MOST_IN_A_ROW, len(self))):
            row = self.row((index + step) % len(self))
            self.read += 1
            reason = unusable(row) or ("held out" if (row.messages or row.answers) in self._held_out else None)
            cuts = Cuts(self._limits)
            example = None if reason else self._encode(row, cuts)
            if example is not None and (example.counted is None or any(map(any, example.counted))):
                self.left_out["cut to fit"] += bool(cuts.turns or cuts.tokens or cuts.completions)
                self.seconds += time.monotonic() - began
                return example
            self.left_out[reason or "too long, or nothing to learn from"] += 1
            self._judge(row.place)
        raise DataError(f"{row.place}: {MOST_IN_A_ROW} rows up to here cannot be used", remedy="unusable-rows")

    def _judge(self, place: str) -> None:
        bad = sum(count for reason, count in self.left_out.items() if reason not in ("held out", "cut to fit"))
        if self.read >= JUDGED_FROM and bad > self._limits.max_dropped_share * self.read:
            raise DataError(
                f"{place}: {bad} of the {self.read} rows read so far cannot be used, more than the allowed share of "
                f"{self._limits.max_dropped_share:g}: {self.told()}",
                remedy="unusable-rows",
            )

    def told(self) -> str:
        """What was left out or cut so far, in words."""
        return ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)

    def sample(self) -> list[Example]:
        """Examples from places spread evenly over all rows, the same at each call."""
        if self._sample is None:
            count = min(SAMPLED, len(self))
            self._sample = [self[i * len(self) // count] for i in range(count)]
        return self._sample


class Minibatches:
    """The minibatches of a run in order; those of streamed examples are prepared ahead, in a thread of bounded depth.

    Use as a context manager: leaving it ends the thread.
    """

    def __init__(self, train: Sequence[Example], order: Order, size: int, *, total: int) -> None:
        self._train, self._order, self._size, self._total = train, order, size, total
        self._ready: Queue[tuple[int, list[Example] | BaseException]] = Queue(maxsize=DEPTH)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> Minibatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread is not None and self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(timeout=0.1)

    def indices(self, step: int) -> list[int]:
        return self._order.minibatch(step, self._size)

    def speed(self) -> dict[str, float]:
        """Rows read and tokenized in a second of the thread's own time, for the log; empty unless they are streamed."""
        if not isinstance(self._train, Streamed):
            return {}
        return {"perf/rows_per_second": self._train.read / max(1e-9, self._train.seconds)}

    def examples(self, step: int) -> list[Example]:
        """The examples of optimizer step `step`; steps come one after another, from wherever a run begins."""
        if not isinstance(self._train, Streamed):
            return [self._train[i] for i in self.indices(step)]
        if self._thread is None:
            self._thread = threading.Thread(target=self._prepare, args=(step,), daemon=True, name="read-ahead")
            self._thread.start()
        number, found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        assert number == step, f"step {step} was asked for, and {number} was prepared"
        return found

    def _prepare(self, first: int) -> None:
        for step in range(first, self._total):
            found: list[Example] | BaseException
            try:
                found = laid([self._train[i] for i in self.indices(step)])
            except BaseException as error:  # raised again where the step is asked for
                found = error
            while not self._stopped.is_set():
                with suppress(Full):  # and look again whether to stop
                    self._ready.put((step, found), timeout=0.1)
                    break
            if self._stopped.is_set() or isinstance(found, BaseException):
                return
