"""Writing that is whole or not there: a temporary name, fsync, then rename."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onebase.errors import DoesNotFitError


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only when all of it is on the disk; an older one of that name goes then.

    Raises:
        DoesNotFitError: the disk is full. Nothing half-written stays behind.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _sync(path)
        _sync(temporary)
        if folder.exists():
            folder.rename(replaced)
        try:
            temporary.rename(folder)
        except OSError:
            if replaced.exists():
                replaced.rename(folder)
            raise
        _sync(folder.parent)
    except OSError as error:
        raise _disk_error(error, folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        DoesNotFitError: the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.rename(path)
    except OSError as error:
        raise _disk_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _disk_error(error: OSError, path: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DoesNotFitError(f"{path}: the disk is full; nothing was half-written. Free some space and run again")
    return error
