"""Starts one command in several processes on this machine, through torch's elastic launcher, and ends as they end.

The first process has the terminal; what the others print is kept until the end, and shown only where one of them
failed first. A signal is passed on to all of them, which then save and stop as a single process would.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from onebase.errors import Interrupted, Stopped
from onebase.processes import LAUNCHER
from onebase.shown import shown

ON_REQUEST = (Stopped.exit_code, Interrupted.exit_code)
SECONDS_TO_STOP = 600.0
"""After one process stopped on request: the others are saving."""
SECONDS_TO_FAIL = 5.0
"""After one process failed: most likely the others found the same, or lost touch with it, and say so."""
SECONDS_TO_END = 10.0
"""After a process that would not end was told to; then it is killed."""


def run(command: Sequence[str], count: int, *, environment: Mapping[str, str] | None = None) -> int:
    """Runs a command in `count` processes on this machine and returns its exit code.

    The code is 0 if all of them end with 0, else that of the process that failed first (128 + n if signal n killed it).

    Args:
        command: the program and its arguments, the same for every process.
        environment: variables to set for all of them.
    """
    logger = logging.getLogger("torch.distributed.elastic")  # reports every exit code but 0 as its own error
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // count)))
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": threads, **(environment or {}), LAUNCHER: str(os.getpid())})  # inherited
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with tempfile.TemporaryDirectory(prefix="onebase-") as folder:
        place = RendezvousParameters(
            "c10d", "localhost:0", str(uuid.uuid4()), min_nodes=1, max_nodes=1, local_addr="127.0.0.1"
        )
        spec = WorkerSpec(
            role="onebase",
            local_world_size=count,
            entrypoint=command[0],
            args=tuple(word.replace("$", "$$") for word in command[1:]),  # else ${local_rank} would be filled in
            rdzv_handler=get_rendezvous_handler(place),
            max_restarts=0,
            monitor_interval=0.1,
            local_addr="127.0.0.1",
        )
        agent = _Agent(spec, DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, count), Std.ALL)))
        try:
            agent.run()
        except SignalException as error:  # before the processes were there
            return Interrupted.exit_code if error.sigval == signal.SIGINT else Stopped.exit_code
        finally:
            spec.rdzv_handler.shutdown()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(before)
        return _ending(agent, count, Path(folder))


class _Agent(LocalElasticAgent):
    """Passes signals on and waits for what follows, and gives processes the time to end by themselves."""

    def __init__(self, spec: WorkerSpec, logs_specs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs_specs)
        self.asked: int | None = None
        """The first signal that was passed on."""
        self.failed: dict[int, int] = {}
        """Exit codes other than 0 by process number, in the order in which they were seen; -n: killed by signal n."""
        self._first_failed = 0.0
        self._told_to_end: float | None = None

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started = super()._start_workers(worker_group)
        # torch's own handlers end the processes, killing those that take longer than 30 seconds to save.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._pass_on)
        return started

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        number = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        self.asked = self.asked or number
        for rank in self._running():
            with suppress(ProcessLookupError):
                os.kill(self._processes()[rank].pid, number)

    def _processes(self) -> dict[int, Any]:
        handlers: Mapping[int, Any] = getattr(self._pcontext, "subprocess_handlers", {})
        return {rank: handler.proc for rank, handler in handlers.items()}

    def _running(self) -> list[int]:
        return [rank for rank, process in self._processes().items() if process.poll() is None]

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        running, now = self._running(), time.monotonic()
        for rank, process in self._processes().items():
            if process.returncode and rank not in self.failed:
                self._first_failed = self._first_failed or now
                self.failed[rank] = process.returncode
        if not self.failed or not running:
            return super()._monitor_workers(worker_group)
        on_request = all(code in ON_REQUEST for code in self.failed.values())
        patience = SECONDS_TO_STOP if on_request else SECONDS_TO_FAIL
        if self._told_to_end is None and now - self._first_failed > patience:
            self._told_to_end = now
            self._signal(running, signal.SIGTERM)
        elif self._told_to_end is not None and now - self._told_to_end > SECONDS_TO_END:
            self._signal(running, signal.SIGKILL)
        return RunResult(WorkerState.HEALTHY)

    def _signal(self, ranks: Sequence[int], number: int) -> None:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(self._processes()[rank].pid, number)  # each process leads a session of its own


def _ending(agent: _Agent, count: int, folder: Path) -> int:
    """The exit code of all, after saying what the first process did not."""
    if not agent.failed:
        return 0
    asked = {signal.SIGINT: Interrupted.exit_code, signal.SIGTERM: Stopped.exit_code}.get(agent.asked)  # type: ignore[call-overload]
    stopped = (*ON_REQUEST, -signal.SIGINT, -signal.SIGTERM)
    if asked is not None and any(code in stopped for code in agent.failed.values()):
        return int(asked)
    rank, code = next(iter(agent.failed.items()))
    if code < 0:
        name = signal.Signals(-code).name
        _say(f"process {rank} of {count} was killed by {name}; run the same command to resume from the last checkpoint")
        return 128 - code
    if agent.failed.get(0) != code:  # else the first process has said it
        for line in _errors(folder, rank):
            _say(f"process {rank} of {count}: {line}")
    return code


def _errors(folder: Path, rank: int) -> list[str]:
    """What a process said in its last lines to stderr."""
    for path in folder.rglob(f"{rank}/stderr.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-1:]
    return []


def _say(text: str) -> None:
    print(f"error: {shown(text)}", file=sys.stderr, flush=True)
