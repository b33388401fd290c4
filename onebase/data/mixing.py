"""Mixes sources: how often each is drawn, and which of its rows comes at every place of a run.

Without weights every example of every source comes once in an epoch. With weights an epoch ends when the first source
has been read once, so that no example comes twice in it; the others go on in the next epoch where they stopped. A
replayed source (general data against forgetting) has a share of the whole beside them:

    n_s = floor(E w_s / sum w)  draws of source s in an epoch of E,   r = round(E share / (1 - share)) replayed

The k-th example is a function of the seed and k alone: an epoch's places are permuted, a place belongs to a source, and
a source's own permutation, drawn anew each time it has been read through, tells its example.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor

from onebase.data.batches import minibatch_indices, num_minibatches
from onebase.errors import DataError
from onebase.reading.files import check_file, expand, file_id
from onebase.reading.formats import read_files
from onebase.records import Row
from onebase.seeds import mixed_seed
from onebase.shown import number_of, shown


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from, and how often."""

    paths: tuple[str, ...]
    weight: float | None = None
    """Its part among the weighted sources; None: by its number of rows."""
    limit: int | None = None
    """Read at most this many rows."""
    replayed: bool = False
    """Mixed in as a share of the whole, beside the other sources."""
    share: float = 0.0
    """The replayed source's share of all examples."""
    columns: Mapping[str, str] | None = None
    """Reads its rows by this mapping instead of by their own keys."""

    @property
    def name(self) -> str:
        return shown(", ".join(self.paths), 200)


def check_named_once(sources: Sequence[Source]) -> None:
    """Checks that every file is there, and in one source only.

    Raises:
        DataError: a file is missing, or is named twice.
    """
    seen: dict[tuple[int, int], str] = {}
    for name in [name for source in sources for name in source.paths]:
        check_file(name)
        for path in map(str, expand(name)):
            first = seen.get(identity := file_id(path))
            if first is not None:
                raise DataError(f"{shown(path)} and {shown(first)} are the same file", remedy="file-named-twice")
            seen[identity] = path


def read_sources(sources: Sequence[Source], *, limit: int | None = None) -> list[Row]:
    """The rows of all sources, in order, each with its source's number. `limit` counts rows of those not replayed.

    Raises:
        DataError: a file is missing, or is named twice.
    """
    check_named_once(sources)
    rows: list[Row] = []
    left = limit
    for number, source in enumerate(sources):
        most = min((n for n in (source.limit, None if source.replayed else left) if n is not None), default=None)
        if most == 0:
            continue
        found = read_files(source.paths, columns=source.columns, limit=most)
        if left is not None and not source.replayed:
            left -= len(found)
        rows += found if number == 0 else [replace(row, source=number) for row in found]
    return rows


class Order:
    """Which example comes at every place of a run.

    Args:
        sources: as in the configuration.
        counts: examples of each source; the examples lie source by source.
    """

    def __init__(self, sources: Sequence[Source], counts: Sequence[int], *, seed: int) -> None:
        assert len(sources) == len(counts)
        self._sources, self._counts, self._seed = list(sources), list(counts), seed
        self._quotas = _quotas(sources, counts)
        self._ends = list(accumulate(self._quotas))
        self._starts = [end - count for end, count in zip(accumulate(counts), counts, strict=True)]
        self.size = self._ends[-1] if self._ends else 0
        """Examples in an epoch."""

    @property
    def mixes(self) -> bool:
        """Whether an epoch is anything but every example once."""
        return self._quotas != self._counts

    def minibatch(self, step: int, size: int) -> list[int]:
        """The examples of optimizer step `step`, counted from 0."""
        places = minibatch_indices(step, num_examples=self.size, size=size, seed=self._seed)
        if not self.mixes:
            return places
        epoch = step // num_minibatches(self.size, size)
        return [self._example(epoch, place) for place in places]

    def _example(self, epoch: int, place: int) -> int:
        source = bisect_right(self._ends, place)
        visit = epoch * self._quotas[source] + place - self._ends[source] + self._quotas[source]
        again, position = divmod(visit, self._counts[source])
        return self._starts[source] + int(_permutation(self._counts[source], self._seed, source, again)[position])

    def drawn(self, steps: int, size: int) -> list[dict[str, object]]:
        """What so many minibatches of this size are drawn from, source by source: its name, its rows, and how many
        were drawn of them (in an epoch that is cut short, as its shares say)."""
        share = steps / max(1, num_minibatches(self.size, size))
        return [
            {"source": source.name, "rows": count, "drawn": round(quota * share)}
            for source, count, quota in zip(self._sources, self._counts, self._quotas, strict=True)
        ]

    def lines(self) -> list[str]:
        """The plan's lines on the mixture; none without one."""
        if len(self._sources) < 2:
            return []
        said = []
        for source, count, quota in zip(self._sources, self._counts, self._quotas, strict=True):
            again = f", each {quota / count:.2g} times" if quota > count else ""
            part = f"{quota / self.size:.1%} of an epoch{', replayed' if source.replayed else ''}"
            said.append(f"source      {source.name}: {quota} of {number_of(count, 'example')}{again} ({part})")
        return said


def _quotas(sources: Sequence[Source], counts: Sequence[int]) -> list[int]:
    """How often each source is drawn in an epoch.

    Raises:
        DataError: a weighted source, or the replayed one, has nothing to draw.
    """
    for source, count in zip(sources, counts, strict=True):
        if count == 0 and (source.weight is not None or source.replayed):
            raise DataError(f"{source.name}: no rows are left of this source, which has a share", remedy="no-rows-left")
    main = [n for n, source in enumerate(sources) if not source.replayed]
    quotas = list(counts)
    if any(sources[n].weight is not None for n in main):
        weights = {n: sources[n].weight or 0.0 for n in main}
        most = min(counts[n] / weights[n] for n in main)
        for n in main:
            # 1e-9: the source that is read once must not lose its last row to rounding.
            quotas[n] = max(1, min(counts[n], int(most * weights[n] + 1e-9)))
    total = sum(quotas[n] for n in main)
    for n, source in enumerate(sources):
        if source.replayed:
            quotas[n] = round(total * source.share / (1 - source.share))
    return quotas


@lru_cache(maxsize=8)
def _permutation(count: int, seed: int, source: int, again: int) -> Tensor:
    # A tensor, because a list of a hundred million numbers takes gigabytes.
    generator = torch.Generator().manual_seed(mixed_seed("source", seed, source, again))
    return torch.randperm(count, generator=generator)
