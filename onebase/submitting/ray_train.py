"""Runs a verb on a Ray cluster: one process a worker of Ray Train, which starts all again when one is lost.

Ray's workers do not compute themselves. Each starts `onebase` as a process of its own, as torchrun would, so that exit
codes, signals and the allocator's settings are those of any other run; Ray Train places the workers and notices when
one is lost. What the processes say goes to a board that the driver reads, and so does how each of them ended: the
process that failed first says why, the others only lost it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from onebase.distributed.ray_actors import require_room
from onebase.errors import SAYS_WHY, Interrupted, MissingExtraError, OnebaseError, Stopped
from onebase.runs.record import checkpoints
from onebase.shown import shown
from onebase.submitting.here import JobEnded, ended

MOST_RESTARTS = 20
FRUITLESS = 2
"""A failure after this many starts without a newer checkpoint is the end: it would only be repeated."""
SECONDS_BETWEEN_LOOKS = 0.5
SECONDS_FOR_THE_CAUSE = 5.0
"""How long a process that failed waits for another to say that it failed first, for a reason of its own."""
DIES_WITH_PARENT = 1
"""`PR_SET_PDEATHSIG` of prctl(2)."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a run."""

    count: int
    gpus: bool = False
    """Whether each has a GPU; each has one CPU."""


@dataclass(frozen=True, slots=True)
class End:
    """How one process ended."""

    start: int
    rank: int
    code: int
    said: str
    """Its last error line."""
    at: float
    """Seconds since the epoch."""


class Board:
    """What workers and driver tell each other; an actor, of which there is one in a run."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self._lines: list[tuple[int, str, str]] = []
        self._ends: list[End] = []
        self._reached: list[str] = []
        self._stop = False

    def begin(self, newest: str) -> int:
        """Notes a start from a checkpoint ("" without one); returns its number."""
        self._reached.append(newest)
        return len(self._reached)

    def environment(self) -> dict[str, str]:
        return self._environment

    def say(self, rank: int, stream: str, text: str) -> None:
        self._lines.append((rank, stream, text))

    def take(self) -> list[tuple[int, str, str]]:
        """The lines that were said since the last call."""
        taken, self._lines = self._lines, []
        return taken

    def end(self, end: End) -> None:
        self._ends.append(end)

    def stop(self) -> None:
        self._stop = True

    def is_stopping(self) -> bool:
        return self._stop

    def final(self) -> bool:
        """Whether the last start ended in a way that another would repeat, or was asked to end."""
        codes = {one.code for one in self._ends if one.start == len(self._reached)}
        last = self._reached[-FRUITLESS:]
        fruitless = len(last) == FRUITLESS and len(set(last)) == 1 and any(codes)
        return self._stop or fruitless or bool(codes & {*SAYS_WHY, Interrupted.exit_code})

    def cause(self) -> End | None:
        """The process whose failure ended the last start; None if none failed."""
        last = [one for one in self._ends if one.code and one.start == len(self._reached)]
        return min(last, key=lambda one: (not final_code(one.code), one.at), default=None)


def final_code(code: int) -> bool:
    """Whether a process that ended with this code says why a run ended."""
    return code in (*SAYS_WHY, Stopped.exit_code, Interrupted.exit_code)


def run(words: Sequence[str], workers: Workers, *, folder: Path, handed_on: Sequence[str] = ()) -> None:
    """Runs `onebase` with these words in all workers until it ends.

    Args:
        folder: of the run; all machines see it.
        handed_on: variables that the workers get from this environment.

    Raises:
        JobEnded: a worker failed; with its exit code, and its own last line.
        MissingExtraError: Ray is not installed.
        DoesNotFitError: the cluster is too small.
    """
    folder, environment = folder.resolve(), {name: os.environ[name] for name in handed_on}
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer
    except ImportError:
        raise MissingExtraError('Ray is not installed; pip install "onebase[ray]"') from None
    join_cluster(workers)
    board: Any = ray.remote(num_cpus=0)(Board).remote(environment)
    trainer = TorchTrainer(
        work,
        train_loop_config={"words": list(words), "folder": str(folder), "home": os.getcwd(), "board": board},
        scaling_config=ScalingConfig(
            num_workers=workers.count,
            use_gpu=workers.gpus,
            resources_per_worker={"CPU": 1, **({"GPU": 1} if workers.gpus else {})},
        ),
        run_config=RunConfig(
            name=f"{time.time():.0f}",
            storage_path=str(folder / "ray"),
            failure_config=FailureConfig(max_failures=MOST_RESTARTS),
        ),
    )
    failure: Exception | None = None
    # Ray tells of a lost worker on stdout, which is for results.
    with _Listening(ray, board, sys.stdout), redirect_stdout(sys.stderr):
        try:
            trainer.fit()
        except Exception as error:
            failure = error
    cause = ray.get(board.cause.remote())
    ray.shutdown()
    if ended_by := verdict(cause, failure, workers.count):
        raise ended_by


def verdict(cause: End | None, failure: Exception | None, count: int) -> OnebaseError | None:
    """The error that a run ended with, if any.

    Args:
        cause: how a process of the last start failed; None if none said so.
        failure: what Ray itself raised.
        count: workers of the run.
    """
    if cause is not None:
        said = cause.said or ("stopped after saving" if cause.code == Stopped.exit_code else "it said nothing")
        return JobEnded(f"worker {cause.rank} of {count} ended with exit code {cause.code}: {said}", cause.code)
    return OnebaseError(f"Ray ended the workers: {shown(failure, 500)}") if failure is not None else None


def join_cluster(workers: Workers) -> None:
    """Joins the cluster that RAY_ADDRESS names, or starts one here that has room for the workers; one that this process
    has joined already is kept.

    Raises:
        DoesNotFitError: the cluster is smaller than that.
    """
    import ray

    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if ray.is_initialized():
        pass
    elif address:
        ray.init(address=address, **quiet)
    else:
        # Without "local" it would join whatever cluster was started on this machine last, even one that is gone.
        room = max(os.cpu_count() or 1, workers.count + 1)
        ray.init(address="local", num_cpus=room, include_dashboard=False, **quiet)
    needed = {"CPU": workers.count, "GPU": workers.count * workers.gpus}
    require_room(ray.cluster_resources(), needed, f"{workers.count} workers")


class _Listening:
    """Prints what the workers say while it is entered, and hands Ctrl-C and SIGTERM on to them."""

    def __init__(self, ray: Any, board: Any, results: TextIO) -> None:
        self._ray, self._board, self._results = ray, board, results
        self._done = threading.Event()
        self._asked = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> None:
        def ask(number: int, frame: FrameType | None) -> None:
            self._asked = True

        self._before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _listen(self) -> None:
        told = False
        while True:
            last = self._done.wait(SECONDS_BETWEEN_LOOKS)
            if self._asked and not told:
                told = True
                self._ray.get(self._board.stop.remote())
            for rank, stream, text in self._ray.get(self._board.take.remote()):
                line = text if rank == 0 else f"worker {rank}: {text}"
                print(line, file=self._results if stream == "stdout" else sys.stderr, flush=True)
            if last:
                return


def work(given: Mapping[str, Any]) -> None:
    """One worker's part: its process, from start to end. Called by Ray Train, in a thread of the worker.

    Raises:
        OnebaseError: the process failed, and all should be started again.
    """
    import ray
    import ray.train
    import torch.distributed

    context, board = ray.train.get_context(), given["board"]
    rank = context.get_world_rank()
    agreed: list[Any] = [None]
    if rank == 0:
        found = checkpoints(Path(given["folder"]))
        start = ray.get(board.begin.remote(found[0].name if found else ""))
        agreed = [(ray.util.get_node_ip_address(), free_port(), start)]
    torch.distributed.broadcast_object_list(agreed)
    address, port, start = agreed[0]
    told = {
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
    }
    environment = {name: str(value) for name, value in told.items()} | ray.get(board.environment.remote())
    code, said = _process(given["words"], given["home"], environment, board, rank)
    ray.get(board.end.remote(End(start, rank, code, said, time.time())))
    if not code:
        return
    waited = time.monotonic() + SECONDS_FOR_THE_CAUSE
    while not ray.get(board.final.remote()):
        if code == Stopped.exit_code or time.monotonic() > waited:
            raise OnebaseError(f"worker {rank} ended with exit code {code}: {said}")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _process(words: Sequence[str], home: str, environment: Mapping[str, str], board: Any, rank: int) -> tuple[int, str]:
    """Runs the process and hands on what it says; returns its exit code and its last error line."""
    import ray

    libc = ctypes.CDLL(None)
    child = subprocess.Popen(
        [sys.executable, "-m", "onebase", *words],
        cwd=home,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        preexec_fn=lambda: libc.prctl(DIES_WITH_PARENT, signal.SIGKILL),  # Ray kills a worker without asking
    )
    errors: deque[str] = deque(maxlen=1)

    def read(stream: Any, name: str) -> None:
        for line in stream:
            if line.startswith("error: "):
                errors.append(line.strip().removeprefix("error: "))
            board.say.remote(rank, name, line.rstrip("\n"))

    readers = [
        threading.Thread(target=read, args=(stream, name), daemon=True)
        for stream, name in ((child.stdout, "stdout"), (child.stderr, "stderr"))
    ]
    for reader in readers:
        reader.start()
    asked = False
    while child.poll() is None:
        if not asked and ray.get(board.is_stopping.remote()):
            asked = True
            child.send_signal(signal.SIGTERM)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for reader in readers:
        reader.join()
    return ended(child.returncode), errors[-1] if errors else ""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])
