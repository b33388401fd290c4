"""One thread owns the model: it takes turns between roles, each with a running batch that answers join and leave.

Everything that touches the model happens here, between two steps of decoding: reading a new prompt, scoring, loading a
role. A request that has to wait for a place waits here too, first come, first served.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from typing import Any, TypeVar

import torch

from onebase.engines.engine import engine_of
from onebase.models.hardware import free_memory
from onebase.runs.progress import say
from onebase.sampling.drawing import random_numbers
from onebase.sampling.running import SHARE_OF_FREE_MEMORY, Entrant, Row, RunningBatch, bytes_beside_keys
from onebase.sampling.sampler import Sample
from onebase.serving.choice import Choice
from onebase.serving.errors import Refusal
from onebase.serving.job import Job, Report
from onebase.serving.metrics import Metrics
from onebase.serving.roles import Roles, Served
from onebase.shown import number_of

MOST_ROWS = 64
MOST_TOKENS = 4096
PREFILL_TOKENS = 4096
"""Prompt tokens read between two steps: the answers that are being drawn wait for them."""

Post = Callable[[Sequence[tuple[Job, Sequence[Report]]]], None]
Result = TypeVar("Result")


class Worker:
    """The thread that owns the model.

    Args:
        open_roles: loads the model, in the thread.
        tokens: longest prompt and answer together; None: the context, up to `MOST_TOKENS`.
        rows: answers of one role at once; None: as many as fit, up to `MOST_ROWS`.
    """

    def __init__(
        self,
        open_roles: Callable[[], Roles],
        metrics: Metrics,
        *,
        tokens: int | None = None,
        rows: int | None = None,
    ) -> None:
        self._open, self._metrics = open_roles, metrics
        self.post: Post = lambda events: None
        """Takes what is new about answers to their clients' thread; to be set before the first one is asked for."""
        self._asked_tokens, self._asked_rows = tokens, rows
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._batches: dict[str, RunningBatch] = {}
        self._choices: dict[Row, Choice] = {}
        self._waiting: defaultdict[str, deque[Job]] = defaultdict(deque)
        self._entering: list[Job] = []
        self._leaving: list[Served] = []
        self._events: list[tuple[Job, Sequence[Report]]] = []
        self._in_force = ExitStack()
        self._role = ""
        self._lock = threading.Lock()
        self.num_waiting = 0
        self.num_running = 0
        self.most_tokens = 0
        """The longest prompt and answer together."""
        self.most_rows = 0
        """Answers of one role at once."""
        self._opened: Future[Roles] = Future()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # ------------------------------------------------------------------------------------- called by other threads

    def start(self) -> Roles:
        """Starts the thread and waits until the model is there; raises what loading it raised."""
        self._thread.start()
        self.roles = self._opened.result()
        return self.roles

    def submit(self, job: Job, *, most_waiting: int) -> None:
        """Asks for an answer; `job.report` gets it piece by piece.

        Raises:
            Refusal: too many are waiting.
        """
        count = len(job.seeds)
        with self._lock:
            if self.num_waiting + count > most_waiting and self.num_waiting:
                raise Refusal(
                    429,
                    f"{number_of(self.num_waiting, 'answer is', 'answers are')} waiting already; try again in a moment",
                )
            self.num_waiting += count
        self._inbox.put(lambda: self._queue(job))

    def drop(self, job: Job) -> None:
        """Says that nobody waits for this answer any more; does nothing if it is finished."""
        job.gone = True
        self._inbox.put(lambda: None)

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Runs a function in the model's thread, between two steps."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)

        self._inbox.put(run)
        return future

    def unload(self, name: str) -> Served:
        """Takes a role off the base once nobody is being answered by it; to be run with `call`."""
        served = self.roles.withdraw(name)
        self._leaving.append(served)
        return served

    def stop(self) -> None:
        """Ends the thread after the step it is in."""
        self._inbox.put(None)
        self._thread.join()

    # --------------------------------------------------------------------------------------------- the model's thread

    @torch.no_grad()
    def _run(self) -> None:
        try:
            self.roles = self._open()
            self.most_tokens = min(self.roles.base.context_length, self._asked_tokens or MOST_TOKENS)
            self.most_rows = self._rows_that_fit()
        except BaseException as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(self.roles)
        while self._take_orders():
            self._drop_the_gone()
            for role in {*self._batches, *self._waiting}:
                try:
                    self._turn(role)
                except Exception as error:
                    self._give_up(role, error)
            self._remove_the_leaving()
            self._flush()
        self._in_force.close()

    def _rows_that_fit(self) -> int:
        """Rows per role whose keys and values fit a share of the free memory, whatever their lengths."""
        base, policies = self.roles.base, self.roles.all("policy")
        kept = max(
            engine_of(base, s.role).slot_bytes(self.most_tokens // 2, self.most_tokens // 2, copies=1) for s in policies
        )
        row = kept + bytes_beside_keys(base)
        fit = int(free_memory(base.device) * SHARE_OF_FREE_MEMORY / len(policies) / row)
        return max(1, min(self._asked_rows or MOST_ROWS, fit))

    def _take_orders(self) -> bool:
        """Runs what other threads asked for, waiting for it if there is nothing to draw; False: the thread ends."""
        idle = not self._choices and not any(self._waiting.values()) and not self._leaving
        while True:
            try:
                order = self._inbox.get(block=idle)
            except queue.Empty:
                return True
            if order is None:
                return False
            order()
            idle = False

    def _queue(self, job: Job) -> None:
        if job.served.role in self.roles.base.roles:
            self._waiting[job.served.role].append(job)
            return
        with self._lock:
            self.num_waiting -= len(job.seeds)
        self._events.append((job, [Refusal(404, f"{job.served.name!r} was unloaded", param="model")]))

    def _give_up(self, role: str, error: Exception) -> None:
        """Ends a role's answers with an error; other roles go on, and so does this one with the next request."""
        say(f"serve: an answer failed:\n{''.join(traceback.format_exception(error))}")
        self._batches.pop(role, None)
        rows = [row for row, choice in self._choices.items() if choice.job.served.role == role]
        jobs = {self._choices.pop(row).job for row in rows} | set(self._entering)
        self._entering = []
        self._events += [(job, [error]) for job in jobs]
        self.num_running = len(self._choices)
        self._in_force.close()
        self._role = ""

    def _turn(self, role: str) -> None:
        """Admits the answers that there is room for, or else draws the next tokens of this role's batch."""
        batch, waiting = self._batches.get(role), self._waiting[role]
        room = self.most_rows - (len(batch.rows) if batch else 0)
        entering, tokens = self._entering, 0
        while waiting and len(waiting[0].seeds) <= room:
            # The prompts of a prefill have as many choices each, and few tokens together: others wait for it.
            alike = not entering or len(waiting[0].seeds) == len(entering[0].seeds)
            if entering and (not alike or tokens + len(waiting[0].prompt) > PREFILL_TOKENS):
                break
            entering.append(waiting.popleft())
            tokens += len(entering[-1].prompt)
            room -= len(entering[-1].seeds)
        if entering:
            with self._lock:
                self.num_waiting -= sum(len(job.seeds) for job in entering)
            self._enter(role)
            self._admit(role, entering)
            self._entering = []
        elif batch is not None and batch.rows:
            self._enter(role)
            self._tell(batch, batch.step())

    def _enter(self, role: str) -> None:
        """Puts a role in force, and leaves it so: switching takes as long as a small model's step."""
        if self._role != role:
            self._in_force.close()
            self._in_force.enter_context(self.roles.base.role(role))
            self._role = role

    def _admit(self, role: str, jobs: Sequence[Job]) -> None:
        batch = self._batches.get(role)
        if batch is None:
            batch = RunningBatch(self.roles.base, role, max_rows=self.most_rows, max_length=self.most_tokens)
            self._batches[role] = batch
        entrants = []
        for job in jobs:
            samples = [Sample(prompt=0) for _ in job.seeds]
            randoms = random_numbers(job.seeds, job.sampling.max_new_tokens)
            entrants.append(Entrant(job.prompt, samples, randoms, job.sampling, job.tops))
            self._metrics.count_tokens(job.served.name, prompt=len(job.prompt))
        rows = batch.admit(entrants)
        for job in jobs:
            job.began = time.monotonic()
        owners = [(job, number) for job in jobs for number in range(len(job.seeds))]
        for row, (job, number) in zip(rows, owners, strict=True):
            self._choices[row] = Choice(job, number)
        self._tell(batch, rows)

    def _tell(self, batch: RunningBatch, rows: Sequence[Row]) -> None:
        """Reports what these rows drew, and takes out those that are finished."""
        reports: dict[Job, list[Report]] = {}
        finished = []
        for row in rows:
            choice = self._choices[row]
            piece, drawn = choice.read(row)
            self._metrics.count_tokens(choice.job.served.name, completion=drawn)
            if piece is not None:
                reports.setdefault(choice.job, []).append(piece)
            if piece is not None and piece.finish is not None:
                finished.append(row)
                del self._choices[row]
        batch.drop([row for row in finished if not row.is_over])
        self._events += list(reports.items())
        self.num_running = len(self._choices)
        self._flush()

    def _drop_the_gone(self) -> None:
        """Takes out the rows and the waiting jobs of clients that went away, and ends the answers that are late."""
        rows = [row for row, choice in self._choices.items() if choice.job.gone]
        for batch in self._batches.values():
            batch.drop(rows)
        for row in rows:
            del self._choices[row]
        self.num_running = len(self._choices)
        for waiting in self._waiting.values():
            for job in [job for job in waiting if job.gone or job.is_late]:
                waiting.remove(job)
                with self._lock:
                    self.num_waiting -= len(job.seeds)
                if not job.gone:
                    self._events.append((job, [Refusal(503, "no place came free in time; try again later")]))

    def _remove_the_leaving(self) -> None:
        """Takes adapters off the base whose last answer is finished."""
        for served in list(self._leaving):
            batch = self._batches.get(served.role)
            if (batch is None or not batch.rows) and not self._waiting[served.role]:
                self._in_force.close()
                self._role = ""
                self._leaving.remove(served)
                self._batches.pop(served.role, None)
                del self._waiting[served.role]
                self.roles.base.remove_role(served.role)

    def _flush(self) -> None:
        if self._events:
            self.post(self._events)
            self._events = []

    def state(self) -> dict[str, Any]:
        """Rows and roles in use, for tests and /health; run with `call`."""
        return {
            "rows": sum(len(batch.rows) for batch in self._batches.values()),
            "choices": len(self._choices),
            "waiting": sum(map(len, self._waiting.values())),
            "num_waiting": self.num_waiting,
        }
