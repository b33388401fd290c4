"""The `onebase` command's first lines: settings that a process can only be started with, then the command line."""

from __future__ import annotations

import os
import sys

MALLOC = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""The C library keeps small freed pieces of memory apart for reuse. A tensor is aligned, so one such piece is cut off
at its end; kept apart, it stands between two freed tensors for good, and the next ones find no room where they were."""


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    start_again_where_needed()
    from onebase.cli.commands import main as run

    return run()


def start_again_where_needed() -> None:
    """Starts this process again with the settings that it lacks; it keeps its number, and then finds them set.

    `MALLOC`, where the C library is glibc and was not told otherwise: it reads them once, as a process starts. And
    UTF-8 for the names of files, where the locale would have them in ASCII.
    """
    settings = {}
    told = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc." not in told and _is_glibc():
        settings["GLIBC_TUNABLES"] = f"{told}:{MALLOC}".lstrip(":")
    if sys.getfilesystemencoding() != "utf-8":
        settings["PYTHONUTF8"] = "1"
    if not settings or not sys.executable:
        return
    os.environ.update(settings)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        pass  # freed memory falls into pieces, and files are named in ASCII


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # another C library does not know the name
        return False
