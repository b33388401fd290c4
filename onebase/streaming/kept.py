"""Folders in the cache that are made once: whole or not at all, by one process while the others wait for it.

Unlike segments of tokens, which are worth a second, these hold what a streamed run reads while it trains: every row of
a file that cannot be read at any place as it is, or all tokens of its texts. A run that has opened their files can read
them to its end even if another run removes the folder.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from onebase.data.token_cache import cache_root
from onebase.errors import DataError, DoesNotFitError
from onebase.shown import shown

MOST_KEPT = 64 << 30
"""Bytes that all of them may take together; the one in use stays even if it is larger."""


def kept_folder(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder of this name in the cache; `fill` makes its files where it is not there yet.

    Raises:
        DataError: there is no cache, or it cannot be written.
        DoesNotFitError: the disk is full. Nothing half-written is left behind.
    """
    root = cache_root()
    if root is None:
        raise DataError("streaming these rows needs a place to keep them, and the cache is off", remedy="no-cache")
    folder, temporary = root / name, root / f".{name}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        with open(root / f".{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
                try:
                    temporary.mkdir()
                    fill(temporary)
                    for path in temporary.iterdir():
                        with path.open("rb") as file:
                            os.fsync(file.fileno())
                    temporary.rename(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            os.utime(folder)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise DoesNotFitError(
                f"{shown(folder)}: the disk is full, or a file larger than allowed; nothing is half-written. Free some "
                "space, or set ONEBASE_CACHE to a folder on another disk"
            ) from None
        raise DataError(f"{shown(root)} cannot be written ({error.strerror})", remedy="no-cache") from None
    _trim(root, folder)
    return folder


def _trim(root: Path, used: Path) -> None:
    """Removes those that were not used for the longest time until all together keep the limit."""
    found: list[tuple[float, int, Path]] = []
    for path in root.glob("kept-*"):
        with suppress(OSError):
            found.append((path.stat().st_mtime, sum(part.stat().st_size for part in path.iterdir()), path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= MOST_KEPT:
            return
        if path != used:
            shutil.rmtree(path, ignore_errors=True)
            total -= size
