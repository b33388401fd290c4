"""From an exception to one line and an exit code. What is not ours is one line too; its traceback goes to a file."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from onebase.config.remedies import with_remedy
from onebase.errors import ConfigError, DoesNotFitError, OnebaseError
from onebase.shown import shown

PACKAGE = Path(__file__).parents[1]
MOST_OF_MESSAGE = 300
"""Characters of another's message that are shown; all of it is in the traceback."""
NO_MEMORY = ("failed to map segment", "cannot allocate memory", "can't allocate memory", "std::bad_alloc")
"""How libraries say that there is no memory, in errors of other kinds."""


def say(message: str) -> None:
    """Every line to stderr, marked as an error."""
    for line in message.splitlines() or [""]:
        try:
            print(f"error: {shown(line)}", file=sys.stderr)
        except (OSError, ValueError, AttributeError):
            return  # stderr is closed; the exit code still tells


def told(error: BaseException, verb: str, folder: Path | None) -> int:
    """Says in one line what went wrong, keeps the traceback where it is needed, and returns the exit code.

    Args:
        verb: what was asked for, "" where it is not known.
        folder: of the run that failed, where there is one.
    """
    if isinstance(error, OnebaseError):
        say(with_remedy(error) or type(error).__name__)
        return error.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" for '{error.filename}'" if error.filename else ""
        say(f"no space left on the disk{where}; free some and run the same command again")
        return DoesNotFitError.exit_code
    if isinstance(error, OSError) and error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
        say(f"{shown(error.filename, 200)}: {error.strerror}; name another file or folder")
        return ConfigError.exit_code
    if isinstance(error, OSError) and error.errno == errno.EROFS:  # a disk that failed is often still there to be read
        say(f"{error.filename}: {error.strerror}; make it writable, and run the same command again")
        return OnebaseError.exit_code
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        say("out of memory on the device; lower batch.microbatch_tokens or generation.samples_per_prompt")
        return DoesNotFitError.exit_code
    said = _message(error)
    if isinstance(error, MemoryError) or any(sign in said.lower() for sign in NO_MEMORY):
        say(f"{_what_failed(error, verb)}: out of memory ({said}); free some, or take a smaller model or batch")
        return DoesNotFitError.exit_code
    say(f"{_what_failed(error, verb)}: {said}; {_kept(error, folder)}")
    return OnebaseError.exit_code


def _what_failed(error: BaseException, verb: str) -> str:
    """`sft failed in save_role (models/role_files.py, line 95)`: the innermost of our own functions."""
    place = ""
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(PACKAGE) and path.parent.name != "cli" and path.name != "start.py":
            place = f" in {frame.name} ({path.relative_to(PACKAGE)}, line {frame.lineno})"
    return f"{verb or 'onebase'} failed{place}"


def _message(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        text = ": ".join(str(part) for part in (error.filename, error.strerror) if part)
    elif isinstance(error, SystemExit):
        text = f"something called sys.exit({error.code!r})"
    else:
        text = shown(error)
    return shown(f"{type(error).__name__}: {text}" if text else type(error).__name__, MOST_OF_MESSAGE)


def _kept(error: BaseException, folder: Path | None) -> str:
    """Writes the traceback behind those that are there already, and says where."""
    try:
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(sys.argv)}\n" + "".join(
            traceback.format_exception(error)
        )
        data = text.encode("utf-8", "backslashreplace") + b"\n"
    except Exception:  # no memory, or an exception that cannot be written
        return "its traceback could not be kept"
    for place in ([folder] if folder is not None and folder.is_dir() else []) + _temporary():
        path = place / ("traceback.txt" if place == folder else "onebase-traceback.txt")
        try:
            # No link of someone else is followed: the temporary folder is everyone's.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "ab") as file:
                file.write(data)
        except OSError:
            continue
        return f"the traceback is in {path}; please report it with the command you ran"
    return "its traceback could not be written anywhere"


def _temporary() -> list[Path]:
    try:
        return [Path(tempfile.gettempdir())]
    except OSError:  # none can be written
        return []
