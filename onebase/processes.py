"""Several processes on one run: what each one does, and how their results are combined.

Everything that shares work takes a `Group`. `ALONE` is a single process, as in a server or a notebook; `launched()` is
the group that `--processes`, torchrun or `accelerate launch` started. Every process holds all roles and the whole base
(or a part of it, `distributed/sharding.py`), and does its share of every minibatch, evaluation and rollout. Only the
first process writes.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from onebase.errors import ConfigError

T = TypeVar("T")
START_BY = "start several processes with --processes or torchrun, and a single one with WORLD_SIZE unset"
PLACES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher sets in each process's environment, besides WORLD_SIZE."""
LAUNCHER = "ONEBASE_LAUNCHER"
"""Variable by which `distributed/launch.py` tells the processes it starts its own process number."""


class Group:
    """The processes that share a run. This base class is one process alone: it does everything and waits for nobody."""

    count: int = 1
    index: int = 0
    """This process's number, from 0."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and messages."""
        return self.index == 0

    def local_device(self) -> str | None:
        """This process's GPU if a launcher assigned one, else None."""
        return None

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The indices of this process's items, dealt by size so that all processes have about equal work.

        The deal depends only on the sizes and the number of processes.
        """
        if self.count == 1:
            return list(range(len(sizes)))
        totals = [0] * self.count
        dealt: list[list[int]] = [[] for _ in totals]
        for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
            least = totals.index(min(totals))
            dealt[least].append(i)
            totals[least] += sizes[i]
        return sorted(dealt[self.index])

    def gather(self, mine: T) -> list[T]:
        """Returns every process's value, in process order."""
        return [mine]

    def gather_items(self, mine: Sequence[T], indices: Sequence[int], total: int) -> list[T]:
        """Combines all processes' items in one list; `mine` go to `indices`.

        Every process must call this, even if its share is empty or is everything.
        """
        whole: list[Any] = [None] * total
        for found in self.gather(list(zip(indices, mine, strict=True))):
            for i, item in found:
                whole[i] = item
        return whole

    def from_main(self, make: Callable[[], T]) -> T:
        """Runs `make` in the first process and returns its result in all; an error there is raised in all."""
        if self.count == 1:
            return make()
        found: tuple[Any, Exception | None] = (None, None)
        if self.is_main:
            try:
                found = (make(), None)
            except Exception as error:
                found = (None, error)
        value, failure = self.gather(found)[0]
        if failure is not None:
            raise failure
        return value

    def any(self, here: bool) -> bool:
        """Whether this is so in some process."""
        return here

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """Sums the gradients of all processes, in place.

        A parameter without a gradient in one process counts as zero there. If no process has one it stays without,
        because AdamW counts a step for every parameter that has a gradient.
        """


ALONE = Group()


class Launched(Group):
    """The processes started by a launcher, joined through torch.distributed."""

    def __init__(self) -> None:
        import torch
        from accelerate import PartialState

        self._state = PartialState(cpu=not torch.cuda.is_available())
        self.count, self.index = int(self._state.num_processes), int(self._state.process_index)

    def local_device(self) -> str | None:
        return str(self._state.device) if self._state.device.type == "cuda" else None

    def gather(self, mine: T) -> list[T]:
        import torch.distributed

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, mine)
        return found

    def any(self, here: bool) -> bool:
        import torch.distributed

        found = torch.tensor(int(here), dtype=torch.int32, device=self._state.device)
        torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX)
        return bool(found.item())

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        if not parameters:
            return
        import torch

        there = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        torch.distributed.all_reduce(there, op=torch.distributed.ReduceOp.MAX)
        summed = [parameter for parameter, anywhere in zip(parameters, there.tolist(), strict=True) if anywhere]
        if not summed:
            return
        for parameter in summed:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.float().flatten() for parameter in summed])
        torch.distributed.all_reduce(flat)
        for parameter, gradient in zip(summed, flat.split([p.numel() for p in summed]), strict=True):
            parameter.grad.copy_(gradient.view_as(parameter.grad))


@cache
def launched() -> Group:
    """The group this process was started in; `ALONE` without a launcher.

    Raises:
        ConfigError: the launcher's variables in the environment contradict each other.
    """
    return ALONE if _world_size() < 2 else Launched()


def is_main() -> bool:
    """Whether this is the first process a launcher started; usable before the processes have joined."""
    return _world_size() < 2 or os.environ["RANK"] == "0"


def is_launched() -> bool:
    """Whether a launcher started this process as one of several.

    Raises:
        ConfigError: as `launched`.
    """
    return _world_size() > 1


def end_with_launcher() -> None:
    """Has the system stop this process when `distributed/launch.py`, which started it, is gone, even if killed."""
    launcher = os.environ.pop(LAUNCHER, None)  # not for the programs that this process starts
    if launcher is None or sys.platform != "linux":
        return
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if launcher != str(os.getppid()):  # it was gone before that
        os.kill(os.getpid(), signal.SIGTERM)


def _world_size() -> int:
    size = _number("WORLD_SIZE", "1", "a number of processes")
    if size < 1:
        raise ConfigError(f"WORLD_SIZE = {size} in the environment is not a number of processes; {START_BY}")
    if size == 1:
        return size
    missing = [name for name in PLACES if not os.environ.get(name)]
    if missing:
        raise ConfigError(f"WORLD_SIZE = {size} in the environment, without {', '.join(missing)}; {START_BY}")
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        _number(name, "", "a number")
    return size


def _number(name: str, default: str, what: str) -> int:
    value = os.environ.get(name, default)
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{name} = {value!r} in the environment is not {what}; {START_BY}") from None
