"""Starts one command in several processes on this machine, through torch's elastic launcher, and ends as they end.

The first process has the terminal; what the others print is kept until the end, and shown only where one of them
failed first. A signal is passed on to all of them, which then save and stop as a single process would.

Several machines share a run where each starts its processes and all name one place to meet:

    python -m onebase.distributed.launch --machines 2 --processes 8 --meet HOST:29400 --name ID ppo config.yaml

torchrun does the same, but ends with 1 whatever went wrong, so that whoever started it cannot tell a run that saved and
stopped (75), which goes on when it is started again, from one with a mistake in its config (2), which never will. And
it kills processes that take longer than half a minute to save.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from onebase.errors import SAYS_WHY, Interrupted, Stopped
from onebase.processes import LAUNCHER
from onebase.shown import shown

ON_REQUEST = (Stopped.exit_code, Interrupted.exit_code)
SECONDS_TO_MEET, SECONDS_TO_REACH = 600, 60
"""For all machines to come, and for the one where they meet to answer."""
SECONDS_TO_STOP = 600.0
"""After one process stopped on request: the others are saving."""
SECONDS_TO_FAIL = 5.0
"""After one process failed: most likely the others found the same, or lost touch with it, and say so."""
SECONDS_TO_END = 10.0
"""After a process that would not end was told to; then it is killed."""


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where several machines, each of which starts its own processes, find each other."""

    machines: int
    place: str
    """HOST:PORT of one of them."""
    name: str
    """The same on all, and another for every start."""


def run(
    command: Sequence[str], count: int, *, environment: Mapping[str, str] | None = None, meeting: Meeting | None = None
) -> int:
    """Runs a command in `count` processes on this machine and returns its exit code.

    The code is 0 if all of them end with 0, else that of the process that failed first (128 + n if signal n killed it),
    those that say why before those that may only have lost touch with another.

    Args:
        command: the program and its arguments, the same for every process.
        environment: variables to set for all of them.
        meeting: other machines that take part; None: this one alone.
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
        try:
            agent = _agent(command, count, meeting, Path(folder))
            with closing(agent):
                agent.run()
        except SignalException as error:  # before the processes were there
            return Interrupted.exit_code if error.sigval == signal.SIGINT else Stopped.exit_code
        except RendezvousError as error:
            where = f" at {meeting.place}" if meeting else ""
            _say(f"the machines did not meet{where} ({shown(error, 200)}); see that all name it and can reach it")
            return 1
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.clear()
            os.environ.update(before)
        return _ending(agent, Path(folder))


def _agent(command: Sequence[str], count: int, meeting: Meeting | None, folder: Path) -> _Agent:
    """What starts the processes and looks after them; their output goes below the folder."""
    own = "127.0.0.1" if meeting is None else None
    meeting = meeting or Meeting(1, "localhost:0", str(uuid.uuid4()))
    place = RendezvousParameters(
        "c10d",
        meeting.place,
        meeting.name,
        min_nodes=meeting.machines,
        max_nodes=meeting.machines,
        local_addr=own,
        join_timeout=SECONDS_TO_MEET,
        read_timeout=SECONDS_TO_REACH,
    )
    spec = WorkerSpec(
        role="onebase",
        local_world_size=count,
        entrypoint=command[0],
        args=tuple(word.replace("$", "$$") for word in command[1:]),  # else ${local_rank} would be filled in
        rdzv_handler=get_rendezvous_handler(place),
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=own,
    )
    return _Agent(spec, DefaultLogsSpecs(str(folder), redirects=dict.fromkeys(range(1, count), Std.ALL)))


class _Agent(LocalElasticAgent):
    """Passes signals on and waits for what follows, and gives processes the time to end by themselves."""

    def __init__(self, spec: WorkerSpec, logs_specs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs_specs)
        self.asked: int | None = None
        """The first signal that was passed on."""
        self.failed: dict[int, int] = {}
        """Exit codes other than 0 by place on this machine, in the order in which they were seen; -n: killed by n."""
        self.first, self.total = 0, 0
        """The number of this machine's first process, and how many there are on all machines."""
        self._first_failed = 0.0
        self._told_to_end: float | None = None

    def close(self) -> None:
        """Ends the meeting."""
        self._worker_group.spec.rdzv_handler.shutdown()

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        self.first, self.total = worker_group.workers[0].global_rank, worker_group.workers[0].world_size
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


def _ending(agent: _Agent, folder: Path) -> int:
    """The exit code of all, after saying what the first process did not."""
    if not agent.failed:
        return 0
    asked = {signal.SIGINT: Interrupted.exit_code, signal.SIGTERM: Stopped.exit_code}.get(agent.asked)  # type: ignore[call-overload]
    stopped = (*ON_REQUEST, -signal.SIGINT, -signal.SIGTERM)
    if asked is not None and any(code in stopped for code in agent.failed.values()):
        return int(asked)
    # Of equals the first that was seen.
    place, code = min(agent.failed.items(), key=lambda ended: ended[1] not in {*ON_REQUEST, *SAYS_WHY})
    process = f"process {agent.first + place} of {agent.total}"
    if code < 0:
        name = signal.Signals(-code).name
        _say(f"{process} was killed by {name}; run the same command to resume from the last checkpoint")
        return 128 - code
    if agent.failed.get(0) != code:  # else the first process has said it
        for line in _errors(folder, place):
            _say(f"{process}: {line}")
    return code


def _errors(folder: Path, rank: int) -> list[str]:
    """What a process said in its last lines to stderr."""
    for path in folder.rglob(f"{rank}/stderr.log"):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")] or lines[-1:]
    return []


def _say(text: str) -> None:
    print(f"error: {shown(text)}", file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Starts this machine's part of `onebase VERB ...` and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m onebase.distributed.launch", description="Start a verb in several processes, on every machine."
    )
    parser.add_argument("--machines", type=int, default=1, help="how many take part; 1: this one alone")
    parser.add_argument("--processes", type=int, required=True, help="on this machine")
    parser.add_argument("--meet", default="", metavar="HOST:PORT", help="where machines meet: one of them")
    parser.add_argument("--name", default="", help="of this start, the same on all machines")
    parser.add_argument("words", nargs=argparse.REMAINDER, help="the verb with its config and options")
    given = parser.parse_args(list(argv))
    if given.machines > 1 and not (given.meet and given.name):
        parser.error("several machines need a place to meet and a name of this start; add --meet and --name")
    meeting = Meeting(given.machines, given.meet, given.name) if given.machines > 1 else None
    return run([sys.executable, "-m", "onebase", *given.words], given.processes, meeting=meeting)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
