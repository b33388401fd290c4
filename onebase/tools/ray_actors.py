"""Blocks computed by Ray Data's actors: each makes its function once, say with a base in memory, and keeps it."""

from __future__ import annotations

import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy
import torch

from onebase.errors import DoesNotFitError, MissingExtraError, OnebaseError

HERE = "local"


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


class Applied:
    """The function in one actor.

    Args:
        make: returns the function; called once in every actor.
        threads: CPU threads it computes with.
    """

    def __init__(self, make: Callable[[], Callable[[Any], Any]], threads: int) -> None:
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
    if cluster.address == HERE:
        needed = cluster.actors * cluster.threads + 1  # one for what Ray Data itself computes
        ray.init(num_cpus=max(needed, torch.get_num_threads()), include_dashboard=False, **quiet)
    else:
        ray.init(address=cluster.address, **quiet)
    try:
        _check_room(ray.cluster_resources(), cluster)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # it tells its plan, and waits of its own making
        items = [{"number": number, "block": pickle.dumps(block)} for number, block in blocks]
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Applied,
            fn_constructor_kwargs={"make": make, "threads": cluster.threads},
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


def _check_room(there: dict[str, float], cluster: Cluster) -> None:
    needed = {"CPU": cluster.actors * cluster.threads, "GPU": cluster.actors * cluster.gpus}
    for name, count in needed.items():
        if there.get(name, 0) < count:
            raise DoesNotFitError(
                f"the Ray cluster has {there.get(name, 0):g} {name}s, and {cluster.actors} actors need {count}; take "
                "fewer actors, or add machines to it"
            )
