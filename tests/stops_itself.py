"""`python -m tests.stops_itself VERB ...`: onebase, with a SIGTERM to the last process in step STOP_AFTER."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from onebase import processes
from onebase.cli import main
from onebase.training.update import Update


def stopping_in(last: int, step: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """An `Update.step` that asks its own process to stop in the middle of step `last`."""

    def stopping(self: Update, *parts: Any) -> dict[str, float]:
        if self.steps_done + 1 == last and processes.index() == processes.count() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *parts)

    return stopping


if __name__ == "__main__":
    Update.step = stopping_in(int(os.environ["STOP_AFTER"]), Update.step)  # type: ignore[method-assign]
    sys.exit(main())
