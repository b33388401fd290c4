"""Progress shown during a run, always on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onebase import processes

PLAIN_LINE_SECONDS = 10.0
"""Minimum time between two plain lines."""


def say(text: str) -> None:
    """Prints one line to stderr, from the main process only; results go to stdout."""
    if not processes.is_main():
        return
    Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(text, markup=False)


class StepProgress:
    """A progress bar over a known number of steps, with a few figures beside it."""

    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._done = title, total, 0
        self._last_line = 0.0
        self._since: tuple[float, int] | None = None
        self._bar: Progress | None = None
        if sys.stderr.isatty() and processes.is_main():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(title, total=total, figures="")

    def __enter__(self) -> StepProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, figures: Mapping[str, float] | None = None, steps: int = 1) -> None:
        self._done += steps
        text = "  ".join(f"{name.rsplit('/', 1)[-1]} {value:.3g}" for name, value in (figures or {}).items())
        if self._bar is not None:
            self._bar.update(self._task, advance=steps, figures=text)
            return
        now = time.monotonic()
        if self._since is None:  # steps done before the resume took no time now
            self._since = (now, self._done)
        if now - self._last_line >= PLAIN_LINE_SECONDS or self._done >= self._total:
            self._last_line = now
            say("  ".join(filter(None, (f"{self._title}  {self._done}/{self._total}", text, self._time_left(now)))))

    def _time_left(self, now: float) -> str:
        """Returns the time left at the pace so far; "" before the first step and after the last."""
        began, before = self._since or (now, self._done)
        if self._done <= before or self._done >= self._total:
            return ""
        seconds = (now - began) / (self._done - before) * (self._total - self._done)
        if seconds < 90:
            return f"{seconds:.0f} s left"
        return f"{seconds / 60:.0f} min left" if seconds < 5400 else f"{seconds / 3600:.1f} h left"
