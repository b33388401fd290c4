"""The `onebase` command's first lines: settings that a process can only be started with, then the command line."""

from __future__ import annotations

import os
import sys

MALLOC = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""The C library keeps small freed pieces of memory apart for reuse. A tensor is aligned, so one such piece is cut off
at its end; kept apart, it stands between two freed tensors for good, and the next ones find no room where they were."""


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    keep_freed_memory_whole()
    from onebase.cli import main as run

    return run()


def keep_freed_memory_whole() -> None:
    """Starts this process again with `MALLOC`, where its C library is glibc and was not told otherwise.

    glibc reads these settings from the environment, once, as a process starts. The process keeps its number, and the
    second start finds them set.
    """
    told = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform != "linux" or "glibc.malloc." in told or not sys.executable or not _is_glibc():
        return
    os.environ["GLIBC_TUNABLES"] = f"{told}:{MALLOC}".lstrip(":")
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        pass  # nothing is wrong but that freed memory falls into pieces


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # another C library does not know the name
        return False
