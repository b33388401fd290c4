"""A run's folder, its record, and the state it resumes from."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
import yaml

from onebase.errors import CheckpointError, ConfigError
from onebase.files import cannot_be_written, settle_leftovers, write_atomically
from onebase.processes import ALONE, Group
from onebase.runs import watching
from onebase.runs.folder import check_folder, require_same_config
from onebase.runs.metrics import MetricsFile
from onebase.runs.progress import say
from onebase.runs.record import read_metrics
from onebase.runs.trackers import numbers_of, open_trackers
from onebase.shown import number_of
from onebase.training.checkpoint import checkpoints, read_checkpoint, require_state


@dataclass(frozen=True, slots=True)
class Schedule:
    """When checkpoints are written and how many are kept."""

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2


class Run:
    """`output_dir/` with `config.yaml`, `metrics.jsonl`, `summary.json`, checkpoints and the roles.

    If the folder holds checkpoints, the run resumes from the newest intact one. So does a finished run, if the
    configuration asks for more steps.

    Args:
        config_text: the resolved configuration, written as `config.yaml`.
        group: the processes that share the run; only the first writes.
        finished_parts: for a run without its own checkpoints, a pattern of files in the folder that mark a part of the
            run as done.

    Raises:
        ConfigError: the folder holds a finished run or unrelated files, cannot be written, or another process is
            writing to it.
        CheckpointError: no checkpoint there can be read, or the newest has another configuration.
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        seed: int,
        config_text: str,
        schedule: Schedule = Schedule(),
        report_to: Sequence[str] = (),
        group: Group = ALONE,
        finished_parts: str | None = None,
    ) -> None:
        self.folder, self.group = Path(output_dir), group
        self.schedule = schedule
        self.config_text = config_text
        check_writable(self.folder, config_text, group)
        self.finished_before = (self.folder / "summary.json").exists()
        """Whether the folder held a finished run, which is now being extended."""
        self._finished_parts = finished_parts
        self._lock: int | None = None
        try:
            if self.group.is_main:
                self.folder.mkdir(parents=True, exist_ok=True)
                if not os.access(self.folder, os.W_OK):
                    raise PermissionError(errno.EACCES, "Permission denied")
                self._lock = _locked(self.folder)
                settle_leftovers(self.folder)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be written ({error.strerror})", remedy="another-folder"
            ) from error
        self.group.gather(None)  # the other processes read the folder from here on
        self._trackers = open_trackers(report_to if self.group.is_main else (), self.folder)
        self._metrics: MetricsFile | None = None
        try:
            self.state = self._find_state()
            """The checkpoint's state if the run resumes from one, else None."""
        except (CheckpointError, ConfigError):
            self.close()
            raise
        self._started = time.monotonic() - (self.state["seconds"] if self.state else 0.0)
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
                f"{self.folder}: none of its {number_of(len(there), 'checkpoint')} can be read",
                remedy="no-checkpoint-left",
            )
        if self._finished_parts is not None and any(self.folder.glob(self._finished_parts)):
            return None
        if self.finished_before:
            raise ConfigError(
                f"{self.folder} holds a finished run without its last checkpoint, so it cannot be made longer",
                remedy="no-last-checkpoint",
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
        """The microbatch budget saved in the checkpoint being resumed; a different split would change the last bits."""
        return self.state["update"]["token_budget"] if self.state and self.state["update"] else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to `metrics.jsonl`; the first opens the record, so a failed start leaves an older one alone."""
        self._phases["steps"] = self.seconds - self._phases.get("set_up", 0.0)
        if not self.group.is_main:
            return
        values = {**values, **watching.look(self.folder, values)}
        try:
            self.open_record().write(step, values)
        except OSError as error:
            raise cannot_be_written(self.folder / "metrics.jsonl", error) from error
        for tracker in self._trackers:
            tracker.log(numbers_of(values), step=step)

    def open_record(self) -> MetricsFile:
        """Writes `config.yaml`, and opens `metrics.jsonl` after the rows of the run being resumed."""
        if self._metrics is None:
            try:
                if self.group.is_main:  # left by the finished run being extended
                    (self.folder / "summary.json").unlink(missing_ok=True)
                write_atomically(self.folder / "config.yaml", self.config_text)
                kept = self.state["step"] if self.state else 0
                self._metrics = MetricsFile(self.folder / "metrics.jsonl", keep=kept)
            except OSError as error:
                raise cannot_be_written(self.folder, error) from error
        return self._metrics

    def sync(self) -> None:
        """Makes sure the record is on the disk."""
        if self._metrics is not None:
            try:
                self._metrics.sync()
            except OSError as error:
                raise cannot_be_written(self.folder / "metrics.jsonl", error) from error

    @property
    def seconds(self) -> float:
        """Seconds since the run began, without the time it was stopped."""
        return time.monotonic() - self._started

    def begin_steps(self) -> None:
        """Marks the end of setting up; from here on time counts as steps, including those run before it was stopped."""
        self._phases["set_up"] = time.monotonic() - self._opened
        self._phases["steps"] = self.seconds - self._phases["set_up"]

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as complete; numbers that are not finite become null.

        It adds `seconds`, and `phase_seconds`: until the first step (`set_up`), the `steps`, and the rest (`end`).
        """
        ended = {**self._phases, "end": self.seconds - sum(self._phases.values())}
        phases = {name: round(seconds, 1) for name, seconds in ended.items()}
        values = _without_nan({**summary, "seconds": round(self.seconds, 1), "phase_seconds": phases})
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "summary.json", text + "\n")

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Ends a run that has no loop."""
        self.write_summary(summary)
        self.end()

    def end(self) -> None:
        """Closes the run; from here on every process may read what it wrote."""
        self.close()
        self.group.gather(None)

    def close(self) -> None:
        """Ends the trackers and releases the folder for other processes."""
        for tracker in self._trackers:
            tracker.finish()
        self._trackers = []
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:  # a failed run releases its folder
            os.close(self._lock)  # type: ignore[arg-type]


def check_writable(folder: Path, config_text: str, group: Group = ALONE) -> None:
    """Checks that a run with this configuration can write to `folder`, without changing anything.

    Raises:
        ConfigError, CheckpointError: as `check_folder`; or the folder (or its parent) cannot be written, or another
            process is writing to it.
    """
    check_folder(folder, config_text)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder}: cannot be written (Permission denied)", remedy="another-folder")
    if folder.is_dir() and group.is_main:
        os.close(_locked(folder))


def _locked(folder: Path) -> int:
    """Locks the folder for this process until it ends, however it ends.

    Raises:
        ConfigError: another process holds the lock.
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
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
