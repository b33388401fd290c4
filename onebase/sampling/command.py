"""Another program that runs as long as this one: started by a command, waited for, and stopped at the end."""

from __future__ import annotations

import atexit
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from onebase.asking import Refused
from onebase.errors import ConfigError, UnansweredError
from onebase.shown import shown

MOST_SECONDS = 900.0
"""How long a program may take until it answers: a large model is read from a disk first."""
SECONDS_TO_STOP = 30.0
PR_SET_PDEATHSIG = 1


class Started:
    """A program in a session of its own, so that Ctrl-C reaches it only through `stop`, after this one has saved.

    Args:
        command: as in a shell, but nothing is expanded.
        answers: asked until it returns; raises UnansweredError as long as the program does not answer.
        log: gets what the program writes.
        environment: added to this process's.

    Raises:
        ConfigError: there is no such program, it ended before it answered, or it never did.
    """

    def __init__(
        self,
        command: str,
        *,
        answers: Callable[[], bool],
        log: Path,
        environment: Mapping[str, str] | None = None,
        seconds: float = MOST_SECONDS,
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        try:
            words = shlex.split(command)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={**os.environ, **(environment or {})},
                    preexec_fn=_die_with_parent if sys.platform == "linux" else None,
                )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise self._failure(f"{shown(command, 200)}: cannot be started ({shown(reason, 100)})") from error
        atexit.register(self.stop)
        try:
            self._wait(command, answers, time.monotonic() + seconds, seconds)
        except BaseException:
            self.stop()
            raise

    def _wait(self, command: str, answers: Callable[[], bool], deadline: float, seconds: float) -> None:
        while True:
            if (code := self._process.poll()) is not None:
                raise self._failure(f"{shown(command, 200)}: ended with exit code {code} before it answered")
            with suppress(UnansweredError, Refused):
                if answers():
                    return
            if time.monotonic() > deadline:
                raise self._failure(f"{shown(command, 200)}: did not answer within {seconds:g} seconds")
            time.sleep(0.2)

    def _failure(self, said: str) -> ConfigError:
        return ConfigError(said, remedy="engine-start", log=self._log)

    def stop(self) -> None:
        """Asks it to end, and kills it with all it started if it has not after a while."""
        atexit.unregister(self.stop)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(self._process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(SECONDS_TO_STOP)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
