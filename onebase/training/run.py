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
from onebase.files import write_atomically
from onebase.training.checkpoint import Stateful, changed_keys, checkpoints, read_checkpoint, remove_leftovers
from onebase.training.loop import Loop
from onebase.training.metrics import MetricsFile
from onebase.training.progress import say
from onebase.training.trackers import numbers_of, open_trackers
from onebase.training.update import Update

FREE_KEYS = ("output_dir", "model.device", "model.gradient_checkpointing", "batch.microbatch_tokens", "checkpoint.",
             "report_to", "rounds", "on_finding", "lang")  # fmt: skip
"""What may differ from the configuration of the checkpoint: it does not change what is computed."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When checkpoints are written, and how many stay."""

    every_steps: int | None = None
    every_minutes: float | None = None
    keep: int = 2


class Run:
    """`output_dir/` with `config.yaml`, `metrics.jsonl`, `summary.json`, checkpoints and the roles.

    A folder that holds a checkpoint is gone on with, from the newest one that is whole.

    Args:
        config_text: the resolved configuration, written as `config.yaml`.

    Raises:
        ConfigError: the folder holds a finished run, cannot be written, or another process is writing to it.
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
        try:
            if (self.folder / "summary.json").exists():
                raise ConfigError(
                    f"{self.folder} holds a finished run; choose another --output_dir, or remove that folder first"
                )
            if processes.is_main():
                self.folder.mkdir(parents=True, exist_ok=True)
            processes.gather(None)  # the others look into it from here on
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
            self._lock: int | None = _locked(self.folder) if processes.is_main() else None
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another --output_dir"
            ) from error
        if processes.is_main():
            remove_leftovers(self.folder)
        self.schedule = schedule
        self.config_text = config_text
        self._trackers = open_trackers(report_to if processes.is_main() else (), self.folder)
        self._metrics: MetricsFile | None = None
        try:
            self._state = self._find_state()
        except CheckpointError:
            self.close()
            raise
        self._started = time.monotonic() - (self._state["seconds"] if self._state else 0.0)
        self._opened, self._phases = time.monotonic(), dict[str, float]()
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def _find_state(self) -> dict[str, Any] | None:
        there = checkpoints(self.folder)
        for path in there:
            try:
                state = read_checkpoint(path)
            except CheckpointError as error:
                say(f"warning: {error}; trying the one before")
                continue
            self._require_same_config(state["config"], path)
            say(f"{self.folder}: found {path.name}, going on after step {state['step']}")
            return state
        if there:
            raise CheckpointError(
                f"{self.folder}: none of its {len(there)} checkpoints can be read; remove them to start from the "
                "beginning, or choose another --output_dir"
            )
        kept = self.folder / "config.yaml"
        if any(self.folder.glob("round-*/*/summary.json")) and kept.exists():
            self._require_same_config(kept.read_text(encoding="utf-8"), self.folder)  # finished rounds are not redone
        return None

    def _require_same_config(self, known: str, where: Path) -> None:
        changed = [key for key in changed_keys(yaml.safe_load(known), yaml.safe_load(self.config_text))
                   if not key.startswith(FREE_KEYS)]  # fmt: skip
        if changed:
            raise CheckpointError(
                f"{where} was written with another configuration: {', '.join(changed)} differ; go on with that of "
                f"{self.folder / 'config.yaml'}, choose another --output_dir, or remove that folder first"
            )

    @property
    def token_budget(self) -> int | None:
        """Of the run that is gone on with: another split of the minibatches changes the last bits."""
        return self._state["update"]["token_budget"] if self._state and self._state["update"] else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to `metrics.jsonl`; the first opens the record, so that a failed start leaves an older one."""
        self._phases["steps"] = self.seconds - self._phases.get("set_up", 0.0)
        if not processes.is_main():
            return
        self.open_record().write(step, values)
        for tracker in self._trackers:
            tracker.log(numbers_of(values), step=step)

    def open_record(self) -> MetricsFile:
        """Writes `config.yaml`, and opens `metrics.jsonl` behind the rows of the run that is gone on with."""
        if self._metrics is None:
            write_atomically(self.folder / "config.yaml", self.config_text)
            self._metrics = MetricsFile(self.folder / "metrics.jsonl", keep=self._state["step"] if self._state else 0)
        return self._metrics

    def sync(self) -> None:
        """Makes sure that the record is on the disk."""
        if self._metrics is not None:
            self._metrics.sync()

    @property
    def seconds(self) -> float:
        """Since the run began, without the time it stood still."""
        return time.monotonic() - self._started

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as complete; a number that is not finite is null.

        With `seconds`, and `phase_seconds`: until the first step (`set_up`), the `steps`, and what came after (`end`).
        """
        ended = {**self._phases, "end": self.seconds - sum(self._phases.values())}
        phases = {name: round(seconds, 1) for name, seconds in ended.items()}
        values = _without_nan({**summary, "seconds": round(self.seconds, 1), "phase_seconds": phases})
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "summary.json", text + "\n")
        self.close()
        processes.gather(None)  # what the run wrote is there for all of them

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
        saving; a second Ctrl-C at once.

        Args:
            save: writes the roles to a folder, for use by other verbs.
            weights: what trains; `update`: its optimizer; `parts`: whatever else changes from step to step.
            inputs: fingerprints of what must not have changed since, by a name of `loop.INPUTS`.
            best: the metric whose best value's roles are kept in `best/`, `-name` where less is better.

        Raises:
            Interrupted: after Ctrl-C. Stopped: after SIGTERM.
            CheckpointError: an input changed since the checkpoint.
        """
        self._phases["set_up"] = time.monotonic() - self._opened
        self._phases["steps"] = self.seconds - self._phases["set_up"]  # those of before it was stopped
        loop = Loop(self, title, total, save, weights, update, dict(parts or {}), dict(inputs or {}), best)
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, loop.note_signal) for number in handled}
        try:
            if self._state is not None:
                loop.restore(self._state)
            with loop.progress:
                yield loop
            loop.stop_if_asked()  # by a signal that came behind the last step
        except BaseException as error:
            if isinstance(error, Exception) and not isinstance(error, Interrupted | Stopped | NonFiniteError):
                loop.save_after_failure()  # the others have saved already, or it is not worth it
            self.close()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


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
