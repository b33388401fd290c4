"""Sets a run's CPU threads, and lets them spin while they wait only if the machine is otherwise idle.

Between two parallel loops, OpenMP threads spin for some milliseconds before they sleep. On an idle machine this makes
small steps faster. If another program wants the cores, each spins away time the other needs, and both take many times
as long. Only spinning is switched, never the number of threads, so results keep their bytes.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from functools import cache
from pathlib import Path

import torch

from onebase.runs.progress import say

SECONDS_BETWEEN_LOOKS = 0.5
BUSY_SHARE = 0.08
"""Above this share of runnable time spent waiting for a core, other programs are taken to want the cores."""
QUIET_SHARE = 0.03
QUIET_LOOKS = 6
"""Threads may spin again after this many looks in a row below `QUIET_SHARE`."""


def use_threads(count: int | None) -> None:
    """Sets the number of CPU threads (None: torch's choice) and starts watching for other programs."""
    if count is not None:
        torch.set_num_threads(count)
    if torch.get_num_threads() > 1:
        _watch()


class Waiting:
    """Measures how long this process's threads wait for a core, from the scheduler's statistics.

    Raises:
        OSError: the system keeps no such statistics.
    """

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Returns the share of runnable time since the last call that was spent waiting for a core."""
        before, self._before = self._before, self._now()
        known = [(now, before[thread]) for thread, now in self._before.items() if thread in before]
        ran = sum(now[0] - then[0] for now, then in known)
        waited = sum(now[1] - then[1] for now, then in known)
        return waited / max(ran + waited, 1)

    @staticmethod
    def _now() -> dict[str, tuple[int, int]]:
        """Returns the nanoseconds each thread has run, and has waited to run."""
        times = {}
        for thread in os.listdir("/proc/self/task"):
            try:
                ran, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
            except (FileNotFoundError, ProcessLookupError):  # the thread has ended
                continue
            times[thread] = int(ran), int(waited)
        if not times:
            raise OSError("no scheduler statistics in /proc/self/task")
        return times


class Spinning:
    """Switches spinning on and off for the threads of libgomp, torch's OpenMP on Linux.

    libgomp reads its spin time from the environment when it is loaded, but hardly spins while it manages more threads
    than there are cores. That can be arranged at any time: a thread of ours opens a parallel region one thread wider
    than the machine and keeps its team, which sleeps.

    Raises:
        OSError: this process runs without libgomp.
    """

    def __init__(self) -> None:
        maps = Path("/proc/self/maps").read_text().splitlines()
        paths = [line.split(maxsplit=5)[5] for line in maps if "libgomp" in line]
        if not paths:
            raise OSError("libgomp is not loaded")
        self._library = ctypes.CDLL(paths[0])
        self._library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._release: threading.Event | None = None

    def stop(self) -> None:
        """From now on, waiting threads go to sleep."""
        if self._release is None:
            self._release = threading.Event()
            threading.Thread(target=self._hold_team, args=(self._release,), daemon=True, name="openmp-team").start()

    def allow(self) -> None:
        """From now on, waiting threads spin first, as libgomp does by default."""
        if self._release is not None:
            self._release.set()  # libgomp ends a team with its thread
            self._release = None

    def _hold_team(self, release: threading.Event) -> None:
        does_nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        self._library.GOMP_parallel(does_nothing, None, self._library.omp_get_num_procs() + 1, 0)
        release.wait()


@cache
def _watch() -> None:
    """Starts the watching thread, once per process, unless the environment sets the wait policy."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    try:
        spinning, waiting = Spinning(), Waiting()
    except (OSError, AttributeError, ValueError):  # another system or OpenMP: it keeps its own policy
        return
    threading.Thread(target=_follow_the_load, args=(spinning, waiting), daemon=True, name="load").start()


def _follow_the_load(spinning: Spinning, waiting: Waiting) -> None:
    said, quiet = False, QUIET_LOOKS
    while True:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        try:
            share = waiting.share()
        except OSError:
            return
        if share > BUSY_SHARE:
            quiet = 0
            spinning.stop()
            if not said:
                said = True
                say(f"other programs are using this machine's cores: this run waits for one {share:.0%} of its time")
        elif share < QUIET_SHARE:
            quiet += 1
            if quiet == QUIET_LOOKS:
                spinning.allow()
        else:
            quiet = 0
