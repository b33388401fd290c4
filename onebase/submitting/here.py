"""`--to local`: the verb in a process of its own on this machine, started again when it stopped after saving."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from onebase.errors import OnebaseError, Stopped
from onebase.runs.progress import say
from onebase.runs.record import checkpoints
from onebase.submitting.job import Job


class JobEnded(OnebaseError):
    """A job that ended with an exit code of its own, which becomes ours."""

    def __init__(self, fact: str, code: int) -> None:
        super().__init__(fact)
        self.exit_code = code


def run(job: Job, words: Sequence[str], *, go: bool) -> None:
    """Prints the command, and with `go` runs it until it ends with anything but a stop after saving.

    Args:
        words: of the verb, as the user gave them.

    Raises:
        JobEnded: it did not end with 0.
    """
    several = ["--processes", str(job.processes)] if job.processes > 1 else []
    line = ["onebase", *words, *several]
    if not go:
        print(" ".join([*(f"{name}={shlex.quote(value)}" for name, value in job.environment), shlex.join(line)]))
        return
    code = keep_running([sys.executable, "-m", *line], Path(job.output_dir), dict(job.environment))
    if code:
        raise JobEnded(f"{job.verb} ended with exit code {code}", code)


class Handed:
    """One process at a time, to which Ctrl-C and SIGTERM are handed on, so that it can save; from `hands_on`."""

    def __init__(self) -> None:
        self.asked = False
        """Whether somebody asked to stop."""
        self._child: subprocess.Popen[bytes] | None = None

    def run(
        self, line: Sequence[str], *, folder: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> int:
        """Runs a command in a folder, with these variables beside our own; returns its exit code as a shell sees it."""
        # In a session of its own, so that Ctrl-C in a terminal reaches it once, through us.
        self._child = subprocess.Popen(
            line, cwd=folder, env={**os.environ, **(environment or {})}, start_new_session=True
        )
        return ended(self._child.wait())

    def hand_on(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(number)


@contextmanager
def hands_on() -> Iterator[Handed]:
    """While it is entered, signals to stop go to the process that is running."""
    handed = Handed()
    before = {number: signal.signal(number, handed.hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield handed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def keep_running(line: Sequence[str], folder: Path, environment: Mapping[str, str]) -> int:
    """Runs a command, again after each stop that left a newer checkpoint; returns its last exit code.

    Ctrl-C and SIGTERM are handed on, and then it is not started again.

    Args:
        folder: of the run, where the checkpoints are.
    """
    reached = _newest(folder)
    with hands_on() as process:
        while True:
            code = process.run(line, environment=environment)
            if code != Stopped.exit_code or process.asked:
                return code
            there = _newest(folder)
            if there == reached:
                say(f"stopped without a checkpoint newer than the last, so it is not started again: {folder}")
                return code
            say(f"stopped after saving {there}; starting again")
            reached = there


def ended(code: int) -> int:
    """The exit code as a shell sees it, from one that is negative where a signal killed the process."""
    return code if code >= 0 else 128 - code


def _newest(folder: Path) -> str:
    found = checkpoints(folder) if folder.is_dir() else []
    return found[0].name if found else ""
