"""The CPU threads of a run, and whether they may spin while they wait for each other.

Between two parallel loops OpenMP's threads spin for some milliseconds before they sleep. On an idle machine that makes
small steps faster. Where another program wants the cores, each spins away the time the other needs, and both take many
times as long. Only spinning changes here, never the number of threads, so results keep their bytes.
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
"""Other programs want the cores if our threads spend more than this share of their runnable time waiting for one."""
QUIET_SHARE = 0.03
QUIET_LOOKS = 6
"""Looks in a row below `QUIET_SHARE` after which the threads spin again."""


def use_threads(count: int | None) -> None:
    """Sets how many CPU threads torch uses (None: its own choice) and watches whether other programs want the cores."""
    if count is not None:
        torch.set_num_threads(count)
    if torch.get_num_threads() > 1:
        _watch()


class Waiting:
    """How long this process's threads wait for a core, by the scheduler's own count.

    Raises:
        OSError: the system does not count it.
    """

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """Share of the runnable time since the last call that was spent waiting for a core."""
        before, self._before = self._before, self._now()
        known = [(now, before[thread]) for thread, now in self._before.items() if thread in before]
        ran = sum(now[0] - then[0] for now, then in known)
        waited = sum(now[1] - then[1] for now, then in known)
        return waited / max(ran + waited, 1)

    @staticmethod
    def _now() -> dict[str, tuple[int, int]]:
        """Nanoseconds each thread has run, and has waited to run."""
        times = {}
        for thread in os.listdir("/proc/self/task"):
            try:
                ran, waited, _ = Path(f"/proc/self/task/{thread}/schedstat").read_text().split()
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                continue
            times[thread] = int(ran), int(waited)
        if not times:
            raise OSError("no scheduler statistics in /proc/self/task")
        return times


class Spinning:
    """Lets the threads of libgomp, torch's OpenMP on Linux, spin while they wait, or not.

    libgomp reads how long to spin from the environment when it is loaded. While it manages more threads than there are
    cores it hardly spins, and that can be brought about at any time: a thread of ours opens a parallel region one
    thread wider than the machine and holds on to its team, which sleeps.

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
        """From here on a thread that waits goes to sleep."""
        if self._release is None:
            self._release = threading.Event()
            threading.Thread(target=self._hold_team, args=(self._release,), daemon=True, name="openmp-team").start()

    def allow(self) -> None:
        """From here on a thread that waits spins first, as libgomp does by itself."""
        if self._release is not None:
            self._release.set()  # libgomp ends a thread's team with the thread
            self._release = None

    def _hold_team(self, release: threading.Event) -> None:
        does_nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        self._library.GOMP_parallel(does_nothing, None, self._library.omp_get_num_procs() + 1, 0)
        release.wait()


@cache
def _watch() -> None:
    """Starts the thread that watches, once per process, unless the environment says how to wait."""
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        return
    try:
        spinning, waiting = Spinning(), Waiting()
    except (OSError, AttributeError, ValueError):  # another system or another OpenMP: it waits in its own way
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
