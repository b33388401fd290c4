"""`python -m tests.stops_itself VERB ...`: onebase, with a SIGTERM to the last process in step STOP_AFTER, and there a
gradient that is not finite in the steps of SPOIL."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from onebase.cli.main import main
from onebase.processes import Group, Launched
from onebase.training.update import Update


def is_last(group: Group) -> bool:
    return group.index == group.count - 1


def stopping_in(last: int, step: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
    """An `Update.step` that asks its own process to stop in the middle of step `last`."""

    def stopping(self: Update, *parts: Any) -> dict[str, float]:
        if self.steps_done + 1 == last and is_last(self._group):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *parts)

    return stopping


def spoiling(steps: Collection[int], sum_gradients: Callable[..., None]) -> Callable[..., None]:
    """A `Group.sum_gradients` that in these optimizer steps adds a NaN in the last process, and in no other."""
    done = [0]

    def summing(self: Group, parameters: Sequence[Any]) -> None:
        done[0] += 1
        if done[0] in steps and is_last(self):
            parameters[-1].grad = torch.full_like(parameters[-1], torch.nan)
        sum_gradients(self, parameters)

    return summing


if __name__ == "__main__":
    Update.step = stopping_in(int(os.environ["STOP_AFTER"]), Update.step)  # type: ignore[method-assign]
    spoiled = [int(step) for step in os.environ["SPOIL"].split()]
    Launched.sum_gradients = spoiling(spoiled, Launched.sum_gradients)  # type: ignore[method-assign]
    sys.exit(main())
