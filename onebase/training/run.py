"""A run's folder and its record: a run that was stopped or killed goes on as if nothing had happened."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

from onebase import processes
from onebase.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError, Stopped
from onebase.files import cannot_be_written, settle_leftovers, write_atomically
from onebase.runs.folder import check_folder, require_same_config
from onebase.runs.metrics import MetricsFile
from onebase.runs.progress import say
from onebase.runs.record import read_metrics
from onebase.runs.trackers import numbers_of, open_trackers
from onebase.training.checkpoint import Stateful, checkpoints, read_checkpoint
from onebase.training.loop import AtOnce, Loop, require_state
from onebase.training.update import Update


@dataclass(frozen=True, slots=True)
class Schedule:
    """When checkpoints are written, and how many stay."""

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2


class Run:
    """`output_dir/` with `config.yaml`, `metrics.jsonl`, `summary.json`, checkpoints and the roles.

    If the folder holds checkpoints, the run resumes from the newest intact one; a finished run too, where the
    configuration asks for more steps.

    Args:
        config_text: the resolved configuration, written as `config.yaml`.

    Raises:
        ConfigError: the folder holds a finished run or files of others, cannot be written, or another process is
            writing to it.
        CheckpointError: no checkpoint there can be read, or the newest is of another configuration.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        seed: int,
        config_text: str,
        schedule: Schedule = Schedule(),
        report_to: Sequence[str] = (),
    ) -> None:
        self.folder = Path(output_dir)
        self.schedule = schedule
        self.config_text = config_text
        check_writable(self.folder, config_text)
        self._finished = (self.folder / "summary.json").exists()
        self._lock: int | None = None
        try:
            if processes.is_main():
                self.folder.mkdir(parents=True, exist_ok=True)
                if not os.access(self.folder, os.W_OK):
                    raise PermissionError(errno.EACCES, "Permission denied")
                self._lock = _locked(self.folder)
                settle_leftovers(self.folder)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another --output_dir"
            ) from error
        processes.gather(None)  # the others look into it from here on
        self._trackers = open_trackers(report_to if processes.is_main() else (), self.folder)
        self._metrics: MetricsFile | None = None
        self._loop: Loop | None = None
        try:
            self._state = self._find_state()
        except (CheckpointError, ConfigError):
            self.close()
            raise
        self._started = time.monotonic() - (self._state["seconds"] if self._state else 0.0)
        self._opened, self._phases = time.monotonic(), dict[str, float]()
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _find_state(self) -> dict[str, Any] | None:
        there, config = checkpoints(self.folder), yaml.safe_load(self.config_text)
        kept = self.folder / "config.yaml"
        for path in there:
            try:
                state = read_checkpoint(path)
                require_state(state, path)
            except CheckpointError as error:
                say(f"warning: {error}; trying the one before")
                continue
            require_same_config(yaml.safe_load(state["config"]), config, where=path, kept=kept)
            self._require_record()
            say(f"{self.folder}: found {path.name}, resuming after step {state['step']}")
            return state
        if there:
            raise CheckpointError(
                f"{self.folder}: none of its {len(there)} checkpoints can be read; remove them to start from the "
                "beginning, or choose another --output_dir"
            )
        if any(self.folder.glob("round-*/*/summary.json")):
            return None  # finished rounds are not redone
        if self._finished:
            raise ConfigError(
                f"{self.folder} holds a finished run without its last checkpoint, so that it cannot be made longer "
                "(where the base trains in full, it is kept only with checkpoint.every_steps); choose "
                "another --output_dir"
            )
        return None

    def _require_record(self) -> None:
        path = self.folder / "metrics.jsonl"
        try:
            rows = read_metrics(path) if path.exists() else []
            if all(isinstance(row, dict) and isinstance(row.get("step"), int) for row in rows):
                return
            reason = "a line is not a step's"
        except OSError as error:
            reason = str(error.strerror)
        except UnicodeDecodeError:
            reason = "it is not text"
        raise CheckpointError(
            f"{path} cannot be read ({reason}); put it back or remove it to resume without what was measured so far"
        )

    @property
    def token_budget(self) -> int | None:
        """Of the run that is resumed: another split of the minibatches changes the last bits."""
        return self._state["update"]["token_budget"] if self._state and self._state["update"] else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to `metrics.jsonl`; the first opens the record, so that a failed start leaves an older one."""
        self._phases["steps"] = self.seconds - self._phases.get("set_up", 0.0)
        if not processes.is_main():
            return
        try:
            self.open_record().write(step, values)
        except OSError as error:
            raise cannot_be_written(self.folder / "metrics.jsonl", error) from error
        for tracker in self._trackers:
            tracker.log(numbers_of(values), step=step)

    def open_record(self) -> MetricsFile:
        """Writes `config.yaml`, and opens `metrics.jsonl` behind the rows of the run that is resumed."""
        if self._metrics is None:
            try:
                if processes.is_main():  # left by the finished run that is made longer
                    (self.folder / "summary.json").unlink(missing_ok=True)
                write_atomically(self.folder / "config.yaml", self.config_text)
                kept = self._state["step"] if self._state else 0
                self._metrics = MetricsFile(self.folder / "metrics.jsonl", keep=kept)
            except OSError as error:
                raise cannot_be_written(self.folder, error) from error
        return self._metrics

    def sync(self) -> None:
        """Makes sure that the record is on the disk."""
        if self._metrics is not None:
            try:
                self._metrics.sync()
            except OSError as error:
                raise cannot_be_written(self.folder / "metrics.jsonl", error) from error

    @property
    def seconds(self) -> float:
        """Since the run began, without the time it stood still."""
        return time.monotonic() - self._started

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as complete; a number that is not finite is null.

        With `seconds`; `phase_seconds`: until the first step (`set_up`), the `steps`, and what came after (`end`); and
        how many optimizer steps there were and how many of them were refused.
        """
        ended = {**self._phases, "end": self.seconds - sum(self._phases.values())}
        phases = {name: round(seconds, 1) for name, seconds in ended.items()}
        refused = self._loop.count_steps() if self._loop else {}
        values = _without_nan({**summary, **refused, "seconds": round(self.seconds, 1), "phase_seconds": phases})
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "summary.json", text + "\n")
        if self._loop is not None:
            self._loop.settle()
        self.close()
        processes.gather(None)  # what the run wrote is there for all of them
        if refused.get("refused_steps"):
            say(
                f"warning: {refused['refused_steps']} of {refused['optimizer_steps']} optimizer steps were refused, as "
                f"their loss or gradient was not finite; their examples are in {self.folder / 'refused'}"
            )

    def close(self) -> None:
        """Ends the trackers, and lets another process write to the folder."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:  # a run that failed lets go of its folder
            os.close(self._lock)  # type: ignore[arg-type]

    @contextmanager
    def loop(
        self,
        title: str,
        total: int,
        *,
        save: Callable[[Path], None],
        weights: Stateful | None = None,
        update: Update | None = None,
        parts: Mapping[str, Stateful] | None = None,
        inputs: Mapping[str, str] | None = None,
        best: str | None = None,
    ) -> Iterator[Loop]:
        """The steps of a run, from where a checkpoint left it. Ctrl-C and SIGTERM take effect between steps, after
        saving; behind the last step, and at a second Ctrl-C, at once.

        Args:
            save: writes the roles to a folder, for use by other verbs.
            weights: what trains; `update`: its optimizer; `parts`: whatever else changes from step to step.
            inputs: fingerprints of what must not have changed since, by a name of `loop.INPUTS`.
            best: the metric whose best value's roles are kept in `best/`, `-name` where less is better.

        Raises:
            Interrupted: after Ctrl-C. Stopped: after SIGTERM.
            NonFiniteError: every optimizer step was refused.
            CheckpointError: an input changed since the checkpoint.
            ConfigError: more steps are done than asked for.
        """
        self._phases["set_up"] = time.monotonic() - self._opened
        self._phases["steps"] = self.seconds - self._phases["set_up"]  # those of before it was stopped
        loop = Loop(self, title, total, save, weights, update, dict(parts or {}), dict(inputs or {}), best)
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, loop.note_signal) for number in handled}
        try:
            if self._state is not None:
                loop.restore(self._state)
            if self._finished and loop.done >= total:
                raise ConfigError(
                    f"{self.folder} holds a finished run of {loop.done} steps, and no more are asked for; raise "
                    "max_steps, or choose another --output_dir"
                )
            self._loop = loop
            if processes.is_main():
                self.open_record()
            with loop.progress:
                yield loop
            loop.stop_if_asked()  # by a signal that came behind the last step
        except AtOnce:
            self.close()
            raise loop.stopped() from None
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, Interrupted | Stopped | NonFiniteError):
                loop.save_after_failure()  # the others have saved already, or it is not worth it
            self.close()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def check_writable(folder: Path, config_text: str) -> None:
    """Looks whether a run of this configuration can write to `folder`, and changes nothing.

    Raises:
        ConfigError, CheckpointError: as `check_folder`; or the folder, or where it would be made, cannot be written, or
            another process writes to it.
    """
    check_folder(folder, config_text)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be written (Permission denied); choose another --output_dir")
    if folder.is_dir() and processes.is_main():
        os.close(_locked(folder))


def _locked(folder: Path) -> int:
    """Holds the folder for this process, until it ends however it ends.

    Raises:
        ConfigError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ConfigError(f"{folder}: another process is writing this run; wait for it, or stop it first") from None
    return descriptor


def _without_nan(value: Any) -> Any:
    # JSON has no NaN, and other programs read the summary.
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
