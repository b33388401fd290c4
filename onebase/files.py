"""Writing that is whole or not there: a temporary name, fsync, then rename.

Of several processes on one run the first alone writes: what another one fills is thrown away.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onebase import processes
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
        _clear_leftovers(folder, temporary, replaced)
        temporary.mkdir(parents=True)
        yield temporary
        if not processes.is_main():
            return
        umask = os.umask(0)
        os.umask(umask)
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(0o666 & ~umask)  # safetensors leaves its files to their owner alone
                _sync(path)
        _sync(temporary)
        if folder.exists():
            folder.rename(replaced)
        try:
            temporary.rename(folder)
        except BaseException:  # Ctrl-C too
            if replaced.exists() and not folder.exists():
                replaced.rename(folder)
            raise
        _sync(folder.parent)
    except Exception as error:
        if not _is_full(error, temporary):
            raise
        raise _full(folder) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        DoesNotFitError: the disk is full.
    """
    if not processes.is_main():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.rename(path)
    except OSError as error:
        if not _is_full(error, path.parent):
            raise
        raise _full(path) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear_leftovers(folder: Path, temporary: Path, replaced: Path) -> None:
    # Of a killed process with the same number: in a container every run may have it.
    shutil.rmtree(temporary, ignore_errors=True)
    if replaced.exists() and not folder.exists():
        replaced.rename(folder)  # it was killed between the two renames
    shutil.rmtree(replaced, ignore_errors=True)


def _is_full(error: Exception, folder: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if "No space left on device" in str(error):  # safetensors
        return True
    # torch.save names no cause: only that it wrote less than it was given.
    short_write = isinstance(error, RuntimeError) and "inline_container" in str(error)
    return short_write and folder.exists() and shutil.disk_usage(folder).free < 1 << 20


def _full(path: Path) -> DoesNotFitError:
    return DoesNotFitError(f"{path}: the disk is full; nothing was half-written. Free some space and run again")
