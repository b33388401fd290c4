"""A run's folder, its record, and its loop: a run that was stopped or killed goes on as if nothing had happened."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy
import torch
import yaml

from onebase import processes
from onebase.errors import CheckpointError, ConfigError, Interrupted, NonFiniteError, Stopped
from onebase.files import atomic_folder, write_atomically
from onebase.training.checkpoint import (
    RandomStates,
    Stateful,
    changed_keys,
    checkpoints,
    read_checkpoint,
    remove_leftovers,
    remove_old,
    write_checkpoint,
)
from onebase.training.metrics import MetricsFile
from onebase.training.progress import StepProgress, say
from onebase.training.trackers import numbers_of, open_trackers
from onebase.training.update import Update

FREE_KEYS = ("output_dir", "model.device", "batch.microbatch_tokens", "checkpoint.", "report_to", "rounds",
             "on_finding", "lang")  # fmt: skip
"""What may differ from the configuration of the checkpoint: it does not change what is computed."""
INPUTS = {"base": "the base model", "data": "the data", "roles": "a role that does not train"}


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
            inputs: fingerprints of what must not have changed since, by a name of `INPUTS`.
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


class Loop:
    """Counts the steps, logs them, and writes checkpoints; made by `Run.loop`."""

    def __init__(
        self,
        run: Run,
        title: str,
        total: int,
        save: Callable[[Path], None],
        weights: Stateful | None,
        update: Update | None,
        parts: dict[str, Stateful],
        inputs: dict[str, str],
        best: str | None,
    ) -> None:
        self.done = 0
        self.progress = StepProgress(title, total)
        self._run, self._total, self._save = run, total, save
        self._weights, self._update, self._inputs = weights, update, inputs
        self._parts: dict[str, Stateful] = {**parts, "random": RandomStates()}
        self._best_metric, self._best_value = best, -math.inf
        self._signal: int | None = None
        self._last_step_saved = 0
        self._last_saved = self._step_began = time.monotonic()
        self._remember()

    def __iter__(self) -> Iterator[int]:
        """The steps that are left, counted from 0."""
        self._step_began = time.monotonic()
        yield from range(self.done, self._total)

    def end_step(self, metrics: Mapping[str, float], *, shown: Iterable[str] = (), steps: int = 1) -> None:
        """Logs a step, keeps what is best so far, and writes a checkpoint when one is due or a stop was asked for.

        Args:
            shown: names of the metrics beside the progress bar.
            steps: how many steps were done at once.
        """
        seconds = time.monotonic() - self._step_began
        measured = {"perf/step_seconds": seconds}
        if "num_tokens" in metrics:
            measured["perf/tokens_per_second"] = metrics["num_tokens"] / seconds
        self._run.log(self.done + steps, {**metrics, **measured})
        self.done += steps
        self.progress.advance({name: metrics[name] for name in shown if name in metrics}, steps=steps)
        self._remember()
        self.keep_best(metrics)
        due = self._run.schedule
        by_steps = due.every_steps is not None and self.done % due.every_steps < steps
        by_time = due.every_minutes is not None and time.monotonic() - self._last_saved >= 60 * due.every_minutes
        self.stop_if_asked()
        if (by_steps or by_time) and self.done < self._total:
            self._write()
        self._step_began = time.monotonic()

    def stop_if_asked(self) -> None:
        """Saves, and raises `Interrupted` or `Stopped`, where a signal came."""
        # A signal may reach one process alone, and all of them have to stop behind the same step. What they agree on is
        # not written back: a signal that arrives in this very line would be lost.
        asked = max((number for number in processes.gather(self._signal) if number), default=None)
        if asked is not None:
            folder = self._write()
            kind = Interrupted if asked == signal.SIGINT else Stopped
            raise kind(f"stopped after step {self.done} and saved {folder}; the same command goes on from there")

    def keep_best(self, metrics: Mapping[str, float]) -> None:
        """Saves the roles to `best/` where the metric chosen for it is better than ever before."""
        if self._best_metric is None:
            return
        name, sign = self._best_metric.removeprefix("-"), -1 if self._best_metric.startswith("-") else 1
        if name not in metrics or not sign * metrics[name] > self._best_value:
            return
        self._best_value = sign * metrics[name]
        with atomic_folder(self._run.folder / "best") as temporary:
            self._save(temporary)
            note = {"step": self.done, name: metrics[name]}
            (temporary / "best.json").write_text(json.dumps(note) + "\n", encoding="utf-8")

    def pause(self, why: str) -> NoReturn:
        """Writes a checkpoint, puts the best roles so far in the run's folder, and stops.

        Raises:
            Stopped: always.
        """
        checkpoint, folder, best = self._write(), self._run.folder, self._run.folder / "best"
        where = "nothing was evaluated yet, so that none is known to be better"
        if best.exists():
            note = json.loads((best / "best.json").read_text(encoding="utf-8"))
            roles = sorted(path.name for path in best.iterdir() if path.is_dir())
            for role in roles:
                with atomic_folder(folder / role) as temporary:
                    shutil.copytree(best / role, temporary, dirs_exist_ok=True)
            measured = ", ".join(f"{name} {value:.4g}" for name, value in note.items() if name != "step")
            named = " and ".join(str(folder / role) for role in roles)
            where = f"{named} are the best so far, those of step {note['step']} ({measured})"
        raise Stopped(
            f"{why}\npaused after step {self.done}: {where}; the same command goes on from {checkpoint.name}, where it "
            "stopped"
        )

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """Remembers a request to stop; a second Ctrl-C stops at once."""
        if self._signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts everything back as it was.

        Raises:
            CheckpointError: an input changed since, or the state is not one of this verb.
        """
        changed = [INPUTS[name] for name, value in self._inputs.items() if state["inputs"].get(name) != value]
        if changed:
            raise CheckpointError(
                f"{self._run.folder}: {' and '.join(changed)} changed since checkpoint-{state['step']} was written; "
                "put it back, or choose another --output_dir"
            )
        if self._weights is not None:
            self._weights.load_state_dict(state["weights"])
        if self._update is not None:
            budget = self._update.token_budget  # as configured now; where it is found by trying, it is the old one
            self._update.load_state_dict(state["update"])
            self._update.token_budget = budget
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])
        self.done = self._last_step_saved = state["step"]
        self._best_value = state["best"]
        self.progress.advance(steps=self.done)
        self._remember()

    def save_after_failure(self) -> None:
        """Keeps what was trained, whatever went wrong: as a checkpoint where the failed step changed nothing yet."""
        if not self.done:
            return
        try:
            if self._update is None or self._update.steps_done == self._steps_before:
                self._write()
            else:
                with atomic_folder(self._run.folder / f"failed-in-step-{self.done + 1}") as temporary:
                    self._save(temporary)
        except Exception as error:  # a full disk, which may be what failed before: that is what is said
            say(f"warning: what was trained since the last checkpoint is lost: {error}")

    def _remember(self) -> None:
        # What a step that fails may have moved before it failed; weights and optimizer move last.
        self._small = {name: part.state_dict() for name, part in self._parts.items()}
        self._steps_before = self._update.steps_done if self._update is not None else 0

    def _write(self) -> Path:
        folder = self._run.folder / f"checkpoint-{self.done}"
        if self._last_step_saved != self.done:  # one there may be damaged
            state = {
                "step": self.done,
                "seconds": self._run.seconds,
                "config": self._run.config_text,
                "inputs": self._inputs,
                "best": self._best_value,
                "weights": None if self._weights is None else self._weights.state_dict(),
                "update": None if self._update is None else self._update.state_dict(),
                "parts": self._small,
            }
            self._run.sync()
            write_checkpoint(folder, state, self._save)
            if processes.is_main():
                remove_old(self._run.folder, newest=folder, keep=self._run.schedule.keep)
            self._last_step_saved = self.done
        self._last_saved = time.monotonic()
        return folder


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
