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

T = TypeVar("T")
START_BY = "start several processes with torchrun or accelerate launch, and a single one with WORLD_SIZE unset"
PLACES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What a launcher sets in the environment of each process, beside WORLD_SIZE."""


@cache
def _state() -> Any:
    if _world_size() < 2:
        return None
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


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
    """The items of all processes in one list; `mine` are those at `indices`.

    Every process has to come here, also one whose share is empty, or is everything.
    """
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
    """Adds up the gradients of all processes, in place.

    A parameter without a gradient in one process counts as zero there; without one anywhere it stays without, as AdamW
    counts a step for every parameter that has one.
    """
    if count() == 1 or not parameters:
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
    for parameter, part in zip(summed, flat.split([p.numel() for p in summed]), strict=True):
        parameter.grad.copy_(part.view_as(parameter.grad))
