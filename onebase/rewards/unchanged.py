"""Runs other people's Python inside our process, and leaves the process as it was."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from onebase.errors import RewardError


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_num_threads, torch.set_num_threads),
    (_umask, os.umask),
    (lambda: sys.excepthook, lambda hook: setattr(sys, "excepthook", hook)),
)
"""What could change a run's numbers, files or end, except per-thread state (grad mode, the default device)."""


class TookTooLong(Exception):
    """A call did not return in time."""


class CallFailed(Exception):
    """A call raised its `__cause__`, which need not be an Exception: it may be SystemExit."""


def within(seconds: float | None, call: Callable[[], Any]) -> Any:
    """Runs `call` in its own thread and returns its result; the thread is abandoned after `seconds` (None: never).

    In its own thread, anything `call` raises is its own and not our Ctrl-C, and per-thread settings stay there.

    Raises:
        TookTooLong: it did not return in time. CallFailed: it raised something.
    """
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # passed to the waiting thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="reward function")
    thread.start()
    deadline = None if seconds is None else time.monotonic() + seconds
    while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
        thread.join(0.5 if seconds is None else min(0.5, seconds))  # short waits, so that Ctrl-C gets through
    if errors:
        raise CallFailed from errors[0]
    if not results:
        raise TookTooLong
    return results[0]


@contextmanager
def unchanged_process(folder: Path) -> Iterator[None]:
    """On exit, restores the working directory, standard streams, warning filters and the process's settings.

    Random states are not restored: once set up, a run draws from its own generators, and a function that draws should
    not draw the same every time. Checkpoints keep them.

    Args:
        folder: last on the import path inside the context.

    Raises:
        RewardError: the working directory is gone, or a standard stream was closed for good.
    """
    directory = os.getcwd()
    settings = [get() for get, _ in _SETTINGS]
    filters, kept_filters = warnings.filters, list(warnings.filters)
    streams = {name: getattr(sys, name) for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        setattr(sys, name, stream if stream is None else _Unclosable(stream))
    added = str(folder) not in sys.path
    if added:
        sys.path.append(str(folder))
    try:
        yield
    finally:
        if added and str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name, stream in streams.items():
            setattr(sys, name, stream)
        filters[:] = kept_filters  # type: ignore[index]
        warnings.filters = filters
        for (get, put), value in zip(_SETTINGS, settings, strict=True):
            if get() != value:
                put(value)
        _go_back(directory)
    closed = [name for name, stream in streams.items() if stream is not None and stream.closed]
    if closed:
        raise RewardError(f"a reward function closed sys.{closed[0]}, which the run writes to; leave it open")


@contextmanager
def unchanged_random_states() -> Iterator[None]:
    """On exit, restores the random states of Python, numpy and torch."""
    python, arrays, tensors = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        numpy.random.set_state(arrays)
        torch.set_rng_state(tensors)


class _Unclosable:
    """A stream whose `close` does nothing."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def close(self) -> None:
        self._stream.flush()


def _go_back(directory: str) -> None:
    try:
        os.chdir(directory)
    except OSError as error:
        raise RewardError(
            f"{directory}: the working directory is gone after a reward function ran ({error.strerror})"
        ) from error
