"""Keeps tokenized rows for the next run: a folder of segments, each written once and never changed.

A row's key is the hash of its words; what else decides its tokens (tokenizer, template, limits, this code) names the
folder. A segment takes its name when all of it is on disk, so that runs may share a folder: each reads what was there
when it began, and adds its own segments. The oldest are removed when all together grow too large.

    keys.npy     `[n, 2]` uint64, sorted          ends.npy   `[n]` int64, where each entry ends in
    tokens.npy   `[t]` int32
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
from numpy.typing import NDArray

from onebase.files import atomic_folder
from onebase.records import Row

FLUSHED_AT = 8_000_000
"""Tokens that are held before they are written as a segment: 32 MB."""
MOST_BYTES = 4 << 30
"""What all folders of the cache may take together."""
FEWEST_ROWS = 2_000
"""Fewer rows are tokenized faster than they are looked up and written."""

Array = NDArray[Any]
_WORDS = tuple(
    field.name
    for field in fields(Row)
    if field.name not in ("grades", "margin", "columns", "place", "notes", "source", "layout")
)


def cache_root() -> Path | None:
    """Where caches are kept: $ONEBASE_CACHE, or onebase in the user's cache folder; None if ONEBASE_CACHE is empty."""
    given = os.environ.get("ONEBASE_CACHE")
    if given is not None:
        return Path(given) if given.strip() else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "onebase"


def code_of(*packages: ModuleType) -> str:
    """SHA-256 of the code in these packages' folders: what it made is made anew when the code changes."""
    digest = hashlib.sha256()
    for package in packages:
        for path in sorted(Path(package.__path__[0]).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def row_key(row: Row) -> bytes:
    """16 bytes that identify a row's words; grades and other columns do not decide its tokens."""
    words = repr([getattr(row, name) for name in _WORDS])
    return hashlib.blake2b(words.encode("utf-8", "backslashreplace"), digest_size=16).digest()


class TokenCache:
    """Entries of int32 numbers by 16-byte keys, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._segments = [found for path in sorted(folder.glob("segment-*")) if (found := _opened(path)) is not None]
        self._pending: dict[bytes, Array] = {}
        self._held = 0
        self.hits = self.misses = 0

    def get(self, key: bytes) -> Array | None:
        """The entry, or None."""
        first, second = numpy.frombuffer(key, dtype=numpy.uint64)
        for keys, ends, tokens in self._segments:
            place = int(numpy.searchsorted(keys[:, 0], first))
            while place < len(keys) and keys[place, 0] == first:
                if keys[place, 1] == second:
                    self.hits += 1
                    return numpy.asarray(tokens[ends[place - 1] if place else 0 : ends[place]])
                place += 1
        self.misses += 1
        return self._pending.get(key)

    def put(self, key: bytes, entry: Sequence[int]) -> None:
        if key not in self._pending:
            self._pending[key] = numpy.asarray(entry, dtype=numpy.int32)
            self._held += len(entry)
        if self._held >= FLUSHED_AT:
            self.flush()

    def flush(self) -> None:
        """Writes what is pending as a segment. A full disk costs the cache only: it is left out then."""
        pending, self._pending, self._held = self._pending, {}, 0
        if not pending:
            return
        keys = numpy.frombuffer(b"".join(pending), dtype=numpy.uint64).reshape(-1, 2)
        order = numpy.lexsort((keys[:, 1], keys[:, 0]))
        entries = list(pending.values())
        sorted_entries = [entries[i] for i in order]
        path = self._folder / f"segment-{uuid.uuid4().hex}"
        with suppress(Exception), atomic_folder(path) as temporary:
            numpy.save(temporary / "keys.npy", keys[order])
            numpy.save(
                temporary / "ends.npy", numpy.cumsum([len(entry) for entry in sorted_entries], dtype=numpy.int64)
            )
            numpy.save(temporary / "tokens.npy", numpy.concatenate(sorted_entries))
        if (found := _opened(path)) is not None:
            self._segments.append(found)
        _trim(self._folder.parent)


def _opened(path: Path) -> tuple[Array, Array, Array] | None:
    """A segment's arrays, mapped and not read; None if it is damaged or was removed meanwhile."""
    try:
        keys, ends, tokens = (
            numpy.load(path / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("keys", "ends", "tokens")
        )
    except (OSError, ValueError, EOFError):
        return None
    kinds = (keys.dtype, ends.dtype, tokens.dtype) == (numpy.uint64, numpy.int64, numpy.int32)
    fits = kinds and keys.shape == (len(ends), 2) and len(ends) > 0 and int(ends[-1]) == len(tokens)
    return (keys, ends, tokens) if fits else None


def _trim(root: Path) -> None:
    """Removes the oldest segments until all folders of the cache together keep the limit."""
    sizes: list[tuple[float, int, Path]] = []
    for path in root.glob("*/segment-*"):
        with suppress(OSError):
            sizes.append((path.stat().st_mtime, sum(part.stat().st_size for part in path.iterdir()), path))
    total = sum(size for _, size, _ in sizes)
    for _, size, path in sorted(sizes):
        if total <= MOST_BYTES:
            return
        gone = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with suppress(OSError):
            path.rename(gone)  # at once, so that nobody opens half of it
            shutil.rmtree(gone, ignore_errors=True)
            total -= size
