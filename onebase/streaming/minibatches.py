"""The minibatches of a run, read and tokenized ahead of its steps where the examples are streamed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import Full, Queue

from onebase.data.mixing import Order
from onebase.data.tree import laid
from onebase.records import Example
from onebase.streaming.examples import Streamed

DEPTH = 8
"""Minibatches that are prepared ahead."""


class Minibatches:
    """The minibatches of a run in order; those of streamed examples are prepared ahead, in a thread of bounded depth.

    Use as a context manager: leaving it ends the thread.
    """

    def __init__(self, train: Sequence[Example], order: Order, size: int, *, total: int) -> None:
        self._train, self._order, self._size, self._total = train, order, size, total
        self._ready: Queue[tuple[int, list[Example] | BaseException]] = Queue(maxsize=DEPTH)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def __enter__(self) -> Minibatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread is not None and self._thread.is_alive():
            while not self._ready.empty():
                self._ready.get_nowait()
            self._thread.join(timeout=0.1)

    def indices(self, step: int) -> list[int]:
        return self._order.minibatch(step, self._size)

    def speed(self) -> dict[str, float]:
        """Rows read and tokenized in a second of the thread's own time, for the log; empty unless they are streamed."""
        if not isinstance(self._train, Streamed):
            return {}
        return {"perf/rows_per_second": self._train.read / max(1e-9, self._train.seconds)}

    def examples(self, step: int) -> list[Example]:
        """The examples of optimizer step `step`; steps come one after another, from wherever a run begins."""
        if not isinstance(self._train, Streamed):
            return [self._train[i] for i in self.indices(step)]
        if self._thread is None:
            self._thread = threading.Thread(target=self._prepare, args=(step,), daemon=True, name="read-ahead")
            self._thread.start()
        number, found = self._ready.get()
        if isinstance(found, BaseException):
            raise found
        assert number == step, f"step {step} was asked for, and {number} was prepared"
        return found

    def _prepare(self, first: int) -> None:
        for step in range(first, self._total):
            found: list[Example] | BaseException
            try:
                found = laid([self._train[i] for i in self.indices(step)])
            except BaseException as error:  # raised again where the step is asked for
                found = error
            while not self._stopped.is_set():
                with suppress(Full):  # and look again whether to stop
                    self._ready.put((step, found), timeout=0.1)
                    break
            if self._stopped.is_set() or isinstance(found, BaseException):
                return
