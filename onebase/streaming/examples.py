"""Examples that are made of streamed rows when they are needed.

An example that cannot be used (an empty answer, a prompt too long to keep, the prompt of a held-out row) is replaced by
the next usable one, so what comes at a place depends on the files alone, and nothing is read before it is needed.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import overload

from onebase.data.fit import Cuts, Limits
from onebase.data.selection import unusable
from onebase.errors import DataError
from onebase.records import Example, Row
from onebase.shown import number_of
from onebase.streaming.rows import SAMPLED, StreamedRows

MOST_IN_A_ROW = 1000
"""So many unusable rows behind one another are an error."""
JUDGED_FROM = 200
"""Rows read before their unusable share is judged."""
Encode = Callable[[Row, Cuts], Example | None]


class OnDemand(Sequence[Example]):
    """Examples that are made when they are asked for."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Identifies all of them without making them."""

    @property
    @abstractmethod
    def counts(self) -> list[int]:
        """Examples of each source."""

    @abstractmethod
    def sample(self) -> list[Example]:
        """Some of them, which stand for all."""


class Streamed(OnDemand):
    """Examples that are read, checked and encoded when they are asked for.

    Args:
        encode: row and where to note cuts -> example, or None to leave the row out.
    """

    def __init__(self, rows: StreamedRows, encode: Encode, limits: Limits) -> None:
        self._rows, self._encode, self._limits = rows, encode, limits
        self._sample: list[Example] | None = None
        self.left_out: Counter[str] = Counter()
        """Rows that were replaced by the next usable one, by reason; a row is counted each time it comes up."""
        self.read = 0
        self.seconds = 0.0
        """Time spent reading and encoding."""

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def fingerprint(self) -> str:
        return self._rows.fingerprint

    @property
    def counts(self) -> list[int]:
        return self._rows.counts

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
            row = self._rows[(index + step) % len(self)]
            self.read += 1
            reason = unusable(row) or ("held out" if self._rows.is_held_out(row) else None)
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
                f"{place}: {bad} of the {number_of(self.read, 'row')} read so far cannot be used, more than the "
                "allowed share of "
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
