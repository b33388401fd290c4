"""Worker processes that answer one JSON request at a time and can be killed: for code that may hang or fill memory."""

from __future__ import annotations

import atexit
import json
import math
import os
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from onebase.errors import VerifierError
from onebase.shown import shown

_MAX_REPLY = 1 << 20
_START_SECONDS = 60.0


class Workers:
    """As many processes `python -m <module>` as there are threads asking; started when needed, kept for the next.

    Whatever a request does (hang, crash, fork, fill memory, print), it costs that request a `VerifierError`; its
    process is killed with all of its session and the next request gets a new one. What a worker prints goes nowhere.

    Args:
        module: its `main` calls `serve`. It should import little: a process starts per thread, and per killed request.
        memory_mb: address space of each process.
    """

    def __init__(self, module: str, memory_mb: int) -> None:
        self.module, self.memory_mb = module, memory_mb
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Returns a worker's answer to a request. May be called from several threads.

        Raises:
            VerifierError: no answer within `timeout` seconds, or none at all; the text says why in a few words.
        """
        with self._lock:
            worker = self._idle.pop() if self._idle else None
        if worker is not None and worker.process.poll() is not None:
            worker.kill()
            worker = None
        worker = worker or _Worker(self.module, self.memory_mb)
        try:
            answer = worker.ask(request, timeout)
        except BaseException:
            worker.kill()
            raise
        with self._lock:
            self._idle.append(worker)
        return answer

    def close(self) -> None:
        """Ends the idle processes; a later request starts a new one."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.kill()


class _Worker:
    """One process with two pipes: requests on its stdin, replies on one of its own."""

    def __init__(self, module: str, memory_mb: int) -> None:
        self.replies, end = os.pipe()
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        # -P: a file in the current folder does not hide a module of the standard library.
        command = [sys.executable, "-P", "-c", _START, root, module, str(end), str(memory_mb)]
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(end,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(self.replies)
            raise VerifierError(f"its process does not start: {shown(error, 200)}") from error
        finally:
            os.close(end)
        assert self.process.stdin is not None
        os.set_blocking(self.process.stdin.fileno(), False)
        try:
            self._read(time.monotonic() + _START_SECONDS, "start within 60 s")
        except BaseException:
            self.kill()
            raise

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        late = f"took longer than {timeout:g} s"
        self._send(json.dumps({"timeout": timeout, "request": request}).encode() + b"\n", deadline, late)
        try:
            answer = json.loads(self._read(deadline, late))
            if answer.get("error"):
                raise VerifierError(shown(answer["error"], 200))
            return dict(answer["answer"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VerifierError("its process gave no answer that can be read") from error

    def _send(self, message: bytes, deadline: float, late: str) -> None:
        assert self.process.stdin is not None
        stdin, rest = self.process.stdin.fileno(), memoryview(message)
        while rest:
            if not _ready(stdin, selectors.EVENT_WRITE, deadline):
                raise VerifierError(late)
            try:
                rest = rest[os.write(stdin, rest) :]
            except BrokenPipeError:
                raise VerifierError(self._ended()) from None

    def _read(self, deadline: float, late: str) -> bytes:
        """One line from the process."""
        line = bytearray()
        while not line.endswith(b"\n"):
            if not _ready(self.replies, selectors.EVENT_READ, deadline):
                raise VerifierError(late)
            part = os.read(self.replies, 65536)
            if not part:
                raise VerifierError(self._ended())
            line += part
            if len(line) > _MAX_REPLY:
                raise VerifierError("its answer is over 1 MB")
        return bytes(line)

    def _ended(self) -> str:
        """Why the process is gone."""
        try:
            code = self.process.wait(1.0)
        except subprocess.TimeoutExpired:
            return "its process closed the reply"
        if code == -signal.SIGKILL or code == _OUT_OF_MEMORY:
            return "its process was killed (out of memory?)"
        return f"its process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"

    def kill(self) -> None:
        """Kills the process and what it started, and takes it off the system's list."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        os.close(self.replies)


def _ready(descriptor: int, event: int, deadline: float) -> bool:
    """Waits until a descriptor can be read or written; False if time is up first."""
    with selectors.DefaultSelector() as selector:  # unlike select.select, for descriptors above 1023 too
        selector.register(descriptor, event)
        return bool(selector.select(max(0.0, deadline - time.monotonic())))


_START = (
    "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); module = sys.argv[1]; "
    "runpy.run_module(module, run_name='__main__')"
)
_OUT_OF_MEMORY = 77


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> NoReturn:
    """A worker's main loop: answers requests from stdin until it closes, which it does when the asking process ends.

    A request that outlives the asking process ends by the processor time it may use.
    """
    replies, memory_mb = int(sys.argv[2]), int(sys.argv[3])
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.set_inheritable(replies, False)
    requests = os.fdopen(os.dup(0), "rb")
    os.dup2(1, 0)  # whatever answers has no business with the requests
    _reply(replies, {})
    for line in requests:
        message = json.loads(line)
        used = time.process_time()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used + 2 * message["timeout"]) + 1, hard))
        try:
            reply: dict[str, Any] = {"answer": answer(message["request"])}
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)  # what is left of this process cannot be trusted
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        _reply(replies, reply)
    sys.exit(0)


def _reply(replies: int, message: dict[str, Any]) -> None:
    rest = memoryview(json.dumps(message).encode() + b"\n")
    while rest:
        rest = rest[os.write(replies, rest) :]
