"""Measures again what other machines on the same host disturbed.

A virtual machine shares processors with others. Linux counts the time that a processor of ours was ready to run and
did not get to (`steal` in /proc/stat). A run during which much was stolen says little about the program that ran.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

MOST = 0.05
"""Share of the processor time asked for that may be stolen during a measurement."""
TRIES = 3
"""How often a measurement is made in all, as long as too much is stolen."""
_STAT = Path("/proc/stat")
Measured = TypeVar("Measured")


def least_stolen(measure: Callable[[], Measured], name: str) -> tuple[Measured, float]:
    """Measures until little was stolen, at most `TRIES` times; which try counts never depends on what it gave.

    Returns:
        The measurement during which least was stolen, and that share of the processor time asked for.
    """
    tries: list[tuple[float, int, Measured]] = []
    while not tries or (tries[-1][0] > MOST and len(tries) < TRIES):
        before = times()
        found = measure()
        tries.append((share_between(before, times()), len(tries), found))
        if tries[-1][0] > MOST:
            print(f"bench: {name}: other machines took {tries[-1][0]:.0%} of the processor time", flush=True)
    share, _, found = min(tries, key=lambda one: one[:2])
    return found, share


def times() -> tuple[int, int]:
    """Returns the processor time used and the time stolen since the start, in ticks; zeros where nobody counts them."""
    if not _STAT.exists():
        return 0, 0
    fields = [int(word) for word in _STAT.read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, interrupt, soft_interrupt, stolen = fields[:8]
    return user + nice + system + interrupt + soft_interrupt, stolen


def share_between(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Returns what was stolen as a share of the processor time asked for, from 0 to 1."""
    used, stolen = after[0] - before[0], after[1] - before[1]
    return stolen / (used + stolen) if used + stolen else 0.0
