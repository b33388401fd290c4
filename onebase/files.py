"""Writing that is whole or not there: a temporary name, fsync, then rename.

Of several processes on one run the first alone writes: what another one fills is thrown away.

Two names stand beside a folder while it is replaced. `.NAME.PID.old` is always whole, and comes back wherever NAME is
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

from onebase import processes
from onebase.errors import DoesNotFitError, OnebaseError


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes its name only when all of it is on the disk; an older one of that name goes then.

    Wherever it is cut short, the older folder or the new one is left whole.

    Raises:
        DoesNotFitError: the disk is full, or a file is larger than allowed. Nothing half-written stays behind.
    """
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    replaced = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        _settle(folder, temporary, replaced)  # in a container every run may have the same process number
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


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all.

    Raises:
        DoesNotFitError: the disk is full, or the file is larger than allowed.
    """
    if not processes.is_main():
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
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


def settle_leftovers(folder: Path) -> None:
    """Removes what a killed process was still writing in `folder`; an older folder it was replacing comes back."""
    for path in sorted(folder.iterdir()):  # .old before .tmp
        match = re.fullmatch(r"\.(.+)\.\d+\.(old|tmp)", path.name)
        if match and match[2] == "old":
            _settle(folder / match[1], path.with_suffix(".tmp"), path)
        elif match and path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif match:
            path.unlink(missing_ok=True)


def cannot_be_written(path: Path, error: OSError) -> OnebaseError:
    """What to raise where a file of a run in progress refuses to be written."""
    return _no_room(error, path, path) or OnebaseError(
        f"{error.filename2 or path}: cannot be written ({error.strerror}); a run's folder has to stay where it is, "
        "and writable"
    )


def _settle(folder: Path, temporary: Path, replaced: Path) -> None:
    # May be cut short behind any call, and is repeated at the next start. The older folder is deleted only under the
    # name of what nobody needs, as half of it must never be taken for the whole.
    shutil.rmtree(temporary, ignore_errors=True)
    with suppress(OSError):  # left for the next start too
        if replaced.exists():
            replaced.rename(temporary if folder.exists() else folder)
            shutil.rmtree(temporary, ignore_errors=True)


def _sync_tree(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in [folder, *folder.rglob("*")]:
        if path.is_file():
            path.chmod(0o666 & ~umask)  # safetensors leaves its files to their owner alone
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_room(error: Exception, path: Path, temporary: Path) -> DoesNotFitError | None:
    """What to say where `error` comes from a full disk or a limit on the size of files; None for another error."""
    number = error.errno if isinstance(error, OSError) else None
    text = str(error)
    # torch.save names no cause: only that it wrote less than it was given.
    if isinstance(error, RuntimeError) and "inline_container" in text and temporary.exists():
        if shutil.disk_usage(temporary).free < 1 << 20:
            number = errno.ENOSPC
        elif resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
            number = errno.EFBIG
    # safetensors puts the system's words into an error of its own.
    if number == errno.EFBIG or "File too large" in text:
        return DoesNotFitError(
            f"{path}: a file is larger than this process may write (ulimit -f); nothing was half-written. Raise the "
            "limit and run again"
        )
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in text:
        return DoesNotFitError(f"{path}: the disk is full; nothing was half-written. Free some space and run again")
    return None
