"""Rows dealt into blocks: what one computes does not depend on the others, so that they can be computed anywhere and
in any order, and kept as soon as they are done.

Files are read as often as they are needed and never held: this process reads the blocks in order, an actor elsewhere
reads the one that it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from onebase.distributed.ray_actors import Cluster, over_blocks
from onebase.errors import ConfigError, DataError
from onebase.files import write_atomically
from onebase.reading.formats import iter_rows, read_files
from onebase.records import Row
from onebase.shown import shown

BLOCK_ROWS = 1000
JOB_FILE = "job.json"


@dataclass(frozen=True)
class RowBlocks:
    """The rows of some files in order, `size` to a block."""

    files: tuple[str, ...]
    columns: Mapping[str, str] | None = None
    size: int = field(default_factory=lambda: BLOCK_ROWS)

    def __iter__(self) -> Iterator[list[Row]]:
        rows = chain.from_iterable(iter_rows(file, columns=self.columns) for file in self.files)
        while block := list(islice(rows, self.size)):
            yield block

    def __getitem__(self, number: int) -> Sequence[Row]:
        return self._indexed[number * self.size : (number + 1) * self.size]

    @cached_property
    def _indexed(self) -> Sequence[Row]:
        # Imported by who asks for a block by its number; the others need no torch.
        from onebase.data.mixing import Source
        from onebase.streaming.rows import StreamedRows

        try:
            return StreamedRows([Source(self.files, columns=self.columns)])
        except DataError as error:
            if error.remedy not in ("not-streamed", "no-cache"):
                raise
            return read_files(self.files, columns=self.columns)


@dataclass(frozen=True)
class Computing:
    """A function of blocks of rows, in this process or in an actor that reads the rows itself.

    Args:
        make: returns the function; called once in every process that computes.
    """

    blocks: RowBlocks
    make: Callable[[], Callable[[Sequence[Row]], Any]]

    def __call__(self) -> Callable[[tuple[int, str]], Any]:
        """What computes one block, given its number and the digest of its rows."""
        blocks, function = self.blocks, self.make()

        def compute(block: tuple[int, str]) -> Any:
            number, expected = block
            return function(unchanged(blocks[number], expected, number))

        return compute

    def over(
        self, digests: Sequence[str], numbers: Sequence[int], cluster: Cluster | None
    ) -> Iterator[tuple[int, Any]]:
        """Yields the number of each of these blocks with what was computed of it, as they are done.

        Args:
            digests: of all blocks, as they were read first.
            cluster: where actors compute; None: this process does, in the blocks' order.

        Raises:
            DataError: the files have changed since; or what the function raises.
        """
        if not numbers:
            return
        if cluster is not None:
            yield from over_blocks([(n, (n, digests[n])) for n in numbers], self, cluster)
            return
        function, wanted = self.make(), set(numbers)
        for number, rows in enumerate(self.blocks):
            if number in wanted:
                yield number, function(unchanged(rows, digests[number], number))


def unchanged(rows: Sequence[Row], expected: str, number: int) -> Sequence[Row]:
    """The rows, if they have this digest; raises DataError otherwise."""
    if digest_of(rows) != expected:
        first = number * BLOCK_ROWS
        place = rows[0].place if rows else f"row {first + 1}"
        raise DataError(
            f"{shown(place)}: the rows from {first + 1} to {first + BLOCK_ROWS} are not those that were read first; "
            "leave the file as it is while it is read, and have all machines see the same one"
        )
    return rows


def digest_of(rows: Sequence[Row]) -> str:
    """A hash over rows and all they hold, but for the notes, which depend on what was read before them."""
    found = hashlib.sha256()
    for row in rows:
        found.update(repr(replace(row, notes=())).encode("utf-8", "backslashreplace"))
    return found.hexdigest()


class KeptBlocks:
    """The lines of each block, in a folder that a later call goes on from.

    Args:
        folder: made if it is not there.
        digests: of the blocks' rows.
        job: what the lines depend on, besides the rows.

    Raises:
        ConfigError: the folder holds the blocks of something else.
    """

    def __init__(self, folder: Path, digests: Sequence[str], job: Mapping[str, Any]) -> None:
        self._folder, self._count = folder, len(digests)
        rows = hashlib.sha256("".join(digests).encode()).hexdigest()
        note = json.dumps({**job, "block_rows": BLOCK_ROWS, "rows": rows}, indent=2) + "\n"
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
        return [number for number in range(self._count) if not self._path(number).exists()]

    def keep(self, number: int, lines: Sequence[str]) -> None:
        """Keeps a block's lines, whole or not at all."""
        write_atomically(self._path(number), "".join(f"{line}\n" for line in lines))

    def text(self, number: int) -> str:
        """A block's lines, each with its line end."""
        return self._path(number).read_text(encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self._folder / f"block-{number:06d}.jsonl"


def fingerprint_of(folder: Path) -> str:
    """A hash over the names and contents of a folder's files."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(folder)}\n".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()
