"""Several processes on one run, as torchrun or `accelerate launch` starts them; alone, everything here does nothing.

Every process holds the whole base and all roles, and does its share of every minibatch, evaluation and rollout. What
they found is put together before it is used, so that all take the same step, and the first process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

from onebase.errors import ConfigError
from onebase.shown import shown

T = TypeVar("T")


@cache
def _state() -> Any:
    told = os.environ.get("WORLD_SIZE", "1")
    if not told.isdecimal() or int(told) < 1:
        raise ConfigError(f"WORLD_SIZE is '{shown(told, 40)}', not a number of processes; start them with torchrun")
    if int(told) == 1:
        return None
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE is {told}, and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set; start "
            f"several processes with torchrun --nproc_per_node {told} -m onebase ..., or unset WORLD_SIZE"
        )
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """How many processes work on this run."""
    state = _state()
    return 1 if state is None else int(state.num_processes)


def index() -> int:
    """Which of them this is, from 0."""
    state = _state()
    return 0 if state is None else int(state.process_index)


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return index() == 0


def local_device() -> str | None:
    """The GPU of this process, where several share a machine."""
    state = _state()
    return str(state.device) if state is not None and state.device.type == "cuda" else None


def share(sizes: Sequence[int]) -> list[int]:
    """The indices of this process's items, dealt by size so that all have about as much to do.

    The deal depends on the sizes and the number of processes alone.
    """
    if count() == 1:
        return list(range(len(sizes)))
    totals = [0] * count()
    dealt: list[list[int]] = [[] for _ in totals]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = totals.index(min(totals))
        dealt[least].append(i)
        totals[least] += sizes[i]
    return sorted(dealt[index()])


def gather(mine: T) -> list[T]:
    """What every process has, in their order."""
    if count() == 1:
        return [mine]
    import torch.distributed

    found: list[Any] = [None] * count()
    torch.distributed.all_gather_object(found, mine)
    return found


def gather_items(mine: Sequence[T], indices: Sequence[int], total: int) -> list[T]:
    """The items of all processes in one list; `mine` are those at `indices`."""
    if count() == 1 and len(indices) == total:
        ordered: list[Any] = [None] * total
        for i, item in zip(indices, mine, strict=True):
            ordered[i] = item
        return ordered
    whole: list[Any] = [None] * total
    for part in gather(list(zip(indices, mine, strict=True))):
        for i, item in part:
            whole[i] = item
    return whole


def from_main(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, for all of them; an error there is raised in all."""
    if count() == 1:
        return make()
    found: tuple[Any, Exception | None] = (None, None)
    if is_main():
        try:
            found = (make(), None)
        except Exception as error:
            found = (None, error)
    value, failure = gather(found)[0]
    if failure is not None:
        raise failure
    return value


def sum_gradients(parameters: Sequence[Any]) -> None:
    """Adds up the gradients of all processes, in place; one that has none counts as zero."""
    if count() == 1:
        return
    import torch

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([parameter.grad.float().flatten() for parameter in parameters])
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad.copy_(part.view_as(parameter.grad))
