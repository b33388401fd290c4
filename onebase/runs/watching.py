"""Lets whoever starts a run look at its rows as they are logged, and add figures of their own under `perf/`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

Watch = Callable[[Path, Mapping[str, float]], Mapping[str, float]]
"""`(folder of the run, values of the row) -> values to add`, each named `perf/...`; it raises nothing."""

_WATCH: ContextVar[Watch | None] = ContextVar("watch", default=None)


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """Rows logged within are shown to `watch`, also those of the runs that a run starts."""
    before = _WATCH.set(watch)
    try:
        yield
    finally:
        _WATCH.reset(before)


def look(folder: Path, values: Mapping[str, float]) -> Mapping[str, float]:
    """What the watch adds to a row; nothing if nobody watches."""
    watch = _WATCH.get()
    return {} if watch is None else watch(folder, values)
