"""Time and memory limits for code that comes with someone else's files and should finish in a moment."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

if sys.platform != "win32":
    import resource

SECONDS = 2.0
MEGABYTES = 512


@contextmanager
def bounded() -> Iterator[None]:
    """Stops the code inside after `SECONDS` of CPU time, or once it takes `MEGABYTES` more memory.

    The time limit is a signal, so it works on the main thread only; the memory limit needs `/proc`. Neither keeps an
    attacker out: they turn an endless loop into an error.

    Raises:
        TimeoutError, MemoryError: inside, when a limit is reached.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, _stop)
    # CPU time, not wall-clock time: on a busy machine a template waits like everything else.
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (_most_memory(limits[0]), limits[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.signal(signal.SIGVTALRM, before)


def _stop(*_: object) -> None:
    raise TimeoutError(f"not done after {SECONDS:g} s")


def _most_memory(limit: int) -> int:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[0])
    except OSError:
        return limit
    most = pages * resource.getpagesize() + (MEGABYTES << 20)
    return most if limit == resource.RLIM_INFINITY else min(most, limit)
