"""Writes files and folders whole or not at all: a temporary name, fsync, then rename.

If several processes share a run, only the first one writes; what another fills is thrown away.

While a folder is replaced, two names stand beside it. `.NAME.PID.old` is always whole and is restored if NAME is
missing; `.NAME.PID.tmp` is never needed.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from onebase import processes
from onebase.errors import DoesNotFitError, OnebaseError


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder to fill, which replaces `folder` only once all of it is on disk.

    Wherever this is cut short, either the old folder or the new one is left whole.

    Raises:
        DoesNotFitError: the disk is full, or a file is larger than allowed. Nothing half-written is left behind.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _settle(folder, temporary, replaced)  # in containers, runs may share a process number
        temporary.mkdir(parents=True)
        yield temporary
        if not processes.is_main():
            return
        _sync_tree(temporary)
        if folder.exists():
            folder.rename(replaced)
        temporary.rename(folder)
        _sync(folder.parent)
    except Exception as error:
        said = _no_room(error, folder, temporary)
        if said is None:
            raise
        raise said from error
    finally:
        _settle(folder, temporary, replaced)


@contextmanager
def atomic_file(path: Path) -> Iterator[TextIO]:
    """Yields a text file to write, which takes its name only once all of it is on disk.

    Raises:
        DoesNotFitError: the disk is full, or the file is larger than allowed. Nothing half-written is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as handle:
            yield handle
        if processes.is_main():
            _sync(temporary)
            temporary.rename(path)
            _sync(path.parent)
    except OSError as error:
        said = _no_room(error, path, temporary)
        if said is None:
            raise
        raise said from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        DoesNotFitError: the disk is full, or the file is larger than allowed.
    """
    if not processes.is_main():
        return
    with atomic_file(path) as handle:
        handle.write(text)


def settle_leftovers(folder: Path) -> None:
    """Removes what a killed process was still writing in `folder`, and restores a folder it was replacing."""
    for path in sorted(folder.iterdir()):  # .old before .tmp
        match = re.fullmatch(r"\.(.+)\.\d+\.(old|tmp)", path.name)
        if match and match[2] == "old":
            _settle(folder / match[1], path.with_suffix(".tmp"), path)
        elif match and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif match:
            path.unlink(missing_ok=True)


def cannot_be_written(path: Path, error: OSError) -> OnebaseError:
    """Returns the error to raise when a file of a run in progress cannot be written."""
    return _no_room(error, path, path) or OnebaseError(
        f"{error.filename2 or path}: cannot be written ({error.strerror}); keep the run's folder in place and writable"
    )


def _settle(folder: Path, temporary: Path, replaced: Path) -> None:
    # May be cut short after any call, and is repeated at the next start. The old folder is first renamed to `.tmp`,
    # then deleted, so that a half-deleted one is never taken for a whole one.
    shutil.rmtree(temporary, ignore_errors=True)
    with suppress(OSError):  # left for the next start
        if replaced.exists():
            replaced.rename(temporary if folder.exists() else folder)
            shutil.rmtree(temporary, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors makes its files private to their owner
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_room(error: Exception, path: Path, temporary: Path) -> DoesNotFitError | None:
    """Returns the error to raise if `error` comes from a full disk or a file size limit, else None."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    # torch.save names no cause, only that it wrote less than it was given.
    if isinstance(error, RuntimeError) and "inline_container" in text and temporary.exists():
        if shutil.disk_usage(temporary).free < 1 << 20:
            number = errno.ENOSPC
        elif resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            number = errno.EFBIG
    # safetensors wraps the system's message in its own error.
    if number == errno.EFBIG or "File too large" in text:
        return DoesNotFitError(
            f"{path}: a file is larger than this process may write (ulimit -f); nothing was half-written. Raise the "
            "limit and run again"
        )
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return DoesNotFitError(f"{path}: the disk is full; nothing was half-written. Free some space and run again")
    return None
