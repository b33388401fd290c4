"""Entry point of the `onebase` command: applies settings that a process must start with, then runs the command."""

from __future__ import annotations

import gc
import os
import sys

MALLOC = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
"""glibc caches small freed blocks. An aligned tensor leaves such a block at its end; once cached, it keeps
freed tensors apart for good, and new tensors no longer fit where old ones were. These settings turn the caches off."""
ANSWERED_AT_ONCE = {"--help", "-h", "--version"}
"""Words after which no weights are loaded."""


def main() -> int:
    """Runs this process's command line and returns the exit code."""
    start_again_where_needed()
    from onebase.cli.main import main as run

    code = run()
    # As it ends, the interpreter looks for cycles in all objects that were ever imported, several times over: seconds
    # of a busy machine once torch is among them. What is frozen is left out of that.
    gc.freeze()
    return code


def start_again_where_needed() -> None:
    """Restarts this process, under the same PID, with the settings it lacks.

    These are `MALLOC`, which glibc reads once at start, unless the user has set its own or only asks for help; and
    UTF-8 file names, if the locale would make them ASCII.
    """
    settings = {}
    told = os.environ.get("GLIBC_TUNABLES", "")
    weights = ANSWERED_AT_ONCE.isdisjoint(sys.argv[1:])
    if weights and sys.platform == "linux" and "glibc.malloc." not in told and _is_glibc():
        settings["GLIBC_TUNABLES"] = f"{told}:{MALLOC}".lstrip(":")
    if sys.getfilesystemencoding() != "utf-8":
        settings["PYTHONUTF8"] = "1"
    if not settings or not sys.executable:
        return
    os.environ.update(settings)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        pass  # memory fragments more, and file names stay ASCII


def _is_glibc() -> bool:
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (ValueError, OSError):  # other C libraries do not know the name
        return False
