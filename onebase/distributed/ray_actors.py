"""Blocks computed by Ray Data's actors: each makes its function once, say with a base in memory, and keeps it."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy

from onebase.errors import DoesNotFitError, MissingExtraError, OnebaseError

HERE = "local"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where actors run."""

    address: str
    """Of a Ray cluster; `local` starts one on this machine."""
    actors: int
    threads: int
    """CPU threads of each actor; the same number gives the same last digits."""
    gpus: bool
    """Whether each actor has a GPU."""


def cluster_of(address: str | None, actors: int, *, device: str) -> Cluster | None:
    """The cluster at this address, with actors that compute as this process would; None without an address."""
    if address is None:
        return None
    import torch

    return Cluster(address, actors, torch.get_num_threads(), device.startswith("cuda"))


class Applied:
    """The function in one actor.

    Args:
        make: returns the function; called once in every actor.
        threads: CPU threads it computes with.
        home: the folder that relative paths begin at.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], threads: int, home: str) -> None:
        import torch

        os.chdir(home)
        torch.set_num_threads(threads)
        self._function = make()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        found = [pickle.dumps(self._outcome(pickle.loads(block))) for block in batch["block"]]
        return {"number": batch["number"], "found": numpy.array(found, dtype=object)}

    def _outcome(self, block: Any) -> Any:
        """What the function returns, or the error of ours that it raised: Ray would hand on its text alone."""
        try:
            return self._function(block)
        except OnebaseError as error:
            return error


def over_blocks(
    blocks: Sequence[tuple[int, Any]], make: Callable[[], Callable[[Any], Any]], cluster: Cluster
) -> Iterator[tuple[int, Any]]:
    """Yields each block's number with what the function returns for it, as they are done.

    A block whose actor is lost is computed by another.

    Raises:
        MissingExtraError: Ray is not installed.
        DoesNotFitError: the cluster has no room for one actor.
        OnebaseError: the function raised one.
    """
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtraError('Ray is not installed; pip install "onebase[ray]"') from None
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if cluster.address == HERE:
        room = cluster.actors * cluster.threads + 1  # one for what Ray Data itself computes
        # Without "local" it would join whatever cluster was started on this machine last, even one that is gone.
        ray.init(address="local", num_cpus=max(room, os.cpu_count() or 1), include_dashboard=False, **quiet)
    else:
        ray.init(address=cluster.address, **quiet)
    for number, handler in before.items():  # Ray ends a process at SIGTERM, which may have something to save
        signal.signal(number, handler)
    try:
        needed = {"CPU": cluster.actors * cluster.threads, "GPU": cluster.actors * cluster.gpus}
        require_room(ray.cluster_resources(), needed, f"{cluster.actors} actors")
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells its plan, and waits of its own making
        items = [{"number": number, "block": pickle.dumps(block)} for number, block in blocks]
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Applied,
            fn_constructor_kwargs={"make": make, "threads": cluster.threads, "home": os.getcwd()},
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=cluster.actors),
            num_cpus=cluster.threads,
            num_gpus=1 if cluster.gpus else None,
        )
        # Ray tells of a lost actor on stdout, which is for results.
        with redirect_stdout(sys.stderr):
            for row in done.iter_rows():
                found = pickle.loads(row["found"])
                if isinstance(found, OnebaseError):
                    raise found
                yield int(row["number"]), found
    finally:
        ray.shutdown()


def in_order(found: Iterable[tuple[int, T]], numbers: Iterable[int]) -> Iterator[T]:
    """Yields what was found for these numbers, in their order; what comes before its turn is held."""
    early: dict[int, T] = {}
    waited = iter(numbers)
    wanted = next(waited, None)
    for number, value in found:
        early[number] = value
        while wanted in early:
            yield early.pop(wanted)
            wanted = next(waited, None)


def require_room(there: Mapping[str, float], needed: Mapping[str, int], who: str) -> None:
    """Checks that a cluster has what is needed.

    Raises:
        DoesNotFitError: it has not, and would wait for it for ever.
    """
    for name, count in needed.items():
        if there.get(name, 0) < count:
            raise DoesNotFitError(
                f"the Ray cluster has {there.get(name, 0):g} {name}s, and {who} need {count}; take fewer, or add "
                "machines to it"
            )
