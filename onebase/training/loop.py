"""The training loop's bookkeeping: counts and logs steps, saves checkpoints, handles stop signals, resumes."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NoReturn

from onebase.errors import (
    CheckpointError,
    ConfigError,
    DoesNotFitError,
    Interrupted,
    NonFiniteError,
    OnebaseError,
    Stopped,
    UnansweredError,
)
from onebase.files import atomic_folder
from onebase.runs.progress import StepProgress, say
from onebase.shown import number_of
from onebase.training.checkpoint import RandomStates, Stateful, TrainedWeights, remove_old, write_checkpoint
from onebase.training.run import Run
from onebase.training.update import Update

INPUTS = {
    "base": "the base model",
    "data": "the data",
    "roles": "a role that does not train",
    "reward": "the reward from elsewhere",
}
"""Inputs that must be unchanged for a run to resume, by their names in `Loop`'s `inputs`."""


class AtOnce(KeyboardInterrupt):
    """Raised by a signal once the last step is saved; not an Exception, as libraries catch those and carry on."""


class Loop:
    """Counts, logs and saves a run's steps, resuming from a checkpoint and stopping between steps.

    A context manager around the steps and the last evaluation. Ctrl-C and SIGTERM take effect between steps, after
    saving; after the last step, and at a second Ctrl-C, they take effect at once.

    Args:
        save: writes the roles to a folder, for use by other verbs.
        weights: what trains; `update`: its optimizer; `state`: whatever else changes from step to step.
        inputs: fingerprints of inputs that must be unchanged to resume, by their names in `INPUTS`.
        best: the metric whose best roles are kept in `best/`; `-name` if lower is better.

    Raises:
        Interrupted: after Ctrl-C. Stopped: after SIGTERM.
        NonFiniteError: every optimizer step was refused.
        CheckpointError: an input changed since the checkpoint.
        ConfigError: more steps are done than asked for.
    """

    def __init__(
        self,
        run: Run,
        title: str,
        total: int,
        *,
        save: Callable[[Path], None],
        weights: Stateful | None = None,
        update: Update | None = None,
        state: Stateful | None = None,
        inputs: Mapping[str, str] | None = None,
        best: str | None = None,
    ) -> None:
        self.done = 0
        self.progress = StepProgress(title, total)
        self._run, self._total, self._save = run, total, save
        self._weights, self._update, self._inputs = weights, update, dict(inputs or {})
        self._parts: dict[str, Stateful] = {"random": RandomStates()} | ({} if state is None else {"verb": state})
        self._best_metric, self._best_value = best, -math.inf
        self._signal: int | None = None
        self._ended = False
        self._last_step_saved = 0
        self._last_saved = self._step_began = time.monotonic()
        self._remember()

    def __enter__(self) -> Loop:
        run = self._run
        run.begin_steps()
        self._handlers = {number: signal.signal(number, self.note_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            if run.state is not None:
                self.restore(run.state)
            if run.finished_before and self.done >= self._total:
                raise ConfigError(
                    f"{run.folder} holds a finished run of {number_of(self.done, 'step')}, and no more are asked for",
                    remedy="no-more-steps",
                )
            if run.group.is_main:
                run.open_record()
            self.progress.__enter__()
        except BaseException:
            self._let_go()
            run.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.__exit__(kind, error, trace)
        try:
            if error is None:
                self.stop_if_asked()  # by a signal that came after the last step
            elif isinstance(error, AtOnce):
                raise self.stopped() from None
            elif isinstance(error, Exception) and not isinstance(error, Interrupted | Stopped | NonFiniteError):
                self.save_after_failure()  # the other errors have saved already, or have nothing worth saving
        except BaseException:
            self._run.close()
            raise
        finally:
            if error is not None:
                self._run.close()
            self._let_go()

    def _let_go(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def __iter__(self) -> Iterator[int]:
        """Yields the remaining steps, counted from 0."""
        self._step_began = time.monotonic()
        yield from range(self.done, self._total)

    def end_step(self, metrics: Mapping[str, float], *, shown: Iterable[str] = (), steps: int = 1) -> None:
        """Logs a step, keeps the best roles so far, and writes a checkpoint if one is due or a stop was requested.

        Args:
            shown: names of the metrics to print beside the progress bar.
            steps: how many steps were done at once.
        """
        seconds = time.monotonic() - self._step_began
        measured = {"perf/step_seconds": seconds, "perf/seconds": self._run.seconds}
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

    def measured(self, measure: Callable[[], Mapping[str, float]], metrics: Mapping[str, float]) -> dict[str, float]:
        """A finished step's metrics with what `measure` adds.

        Raises:
            UnansweredError: `measure` raised it. The step is then logged without it and kept, so that nothing is lost
                but this measurement.
        """
        try:
            return {**metrics, **measure()}
        except UnansweredError:
            self.end_step(metrics)
            raise

    def end_steps(self) -> None:
        """Saves what was trained, after the last step and before the last evaluation; from here on a signal stops at
        once.

        Raises:
            NonFiniteError: every step was refused.
        """
        if self._update is not None:
            self._update.require_a_step()
        try:
            self._write()
        except DoesNotFitError as error:  # the roles alone may still fit
            say(f"warning: {error}; the last evaluation continues without this checkpoint")
        self._ended = True
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """If a signal came, saves and raises `Interrupted` or `Stopped`."""
        # A signal may reach only one process, but all must stop after the same step. What they agree on is not written
        # back, or a signal that arrives during this very line would be lost.
        asked = max((number for number in self._run.group.gather(self._signal) if number), default=None)
        if asked is not None:
            self._write()
            raise self.stopped(asked)

    def stopped(self, number: int | None = None) -> OnebaseError:
        """The error to raise for a signal (by default the one that came) once everything is saved."""
        kind = Interrupted if (number or self._signal) == signal.SIGINT else Stopped
        folder = self._run.folder / f"checkpoint-{self.done}"
        saved = f" and saved {folder}" if folder.exists() else ""
        return kind(f"stopped after step {self.done}{saved}", remedy="stopped")

    def keep_best(self, metrics: Mapping[str, float]) -> None:
        """Saves the roles to `best/` if the chosen metric is better than ever before."""
        if self._best_metric is None:
            return
        name, sign = self._best_by()
        if name not in metrics or not sign * metrics[name] > self._best_value:
            return
        self._best_value = sign * metrics[name]
        with atomic_folder(self._run.folder / "best") as temporary:
            self._save(temporary)
            note = {"step": self.done, name: metrics[name]}
            (temporary / "best.json").write_text(json.dumps(note) + "\n", encoding="utf-8")

    def _best_by(self) -> tuple[str, int]:
        metric = self._best_metric or ""
        return metric.removeprefix("-"), -1 if metric.startswith("-") else 1

    def pause(self, why: str) -> NoReturn:
        """Writes a checkpoint, copies the best roles so far to the run's folder, and stops.

        Raises:
            Stopped: always.
        """
        checkpoint, folder, best = self._write(), self._run.folder, self._run.folder / "best"
        where = "nothing was evaluated yet, so no earlier roles are known to be better"
        if best.exists():
            note = json.loads((best / "best.json").read_text(encoding="utf-8"))
            roles = sorted(path.name for path in best.iterdir() if path.is_dir())
            for role in roles:
                with atomic_folder(folder / role) as temporary:
                    shutil.copytree(best / role, temporary, dirs_exist_ok=True)
            measured = ", ".join(f"{name} {value:.4g}" for name, value in note.items() if name != "step")
            named = " and ".join(str(folder / role) for role in roles)
            where = f"{named} are the best so far, from step {note['step']} ({measured})"
        raise Stopped(f"{why}\npaused after step {self.done}: {where}", remedy="paused", checkpoint=checkpoint.name)

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """Notes a request to stop and says so; a second Ctrl-C, or any signal after the last step, stops at once."""
        if self._signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self._signal = self._signal is None, number
        if first and self._ended:
            raise AtOnce
        if first and self._run.group.is_main:
            again = "; press Ctrl-C again to stop now" if number == signal.SIGINT else ""
            with suppress(OSError):  # not print: the signal may have interrupted one
                os.write(2, f"\nstopping after this step{again}\n".encode())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores everything from a checkpoint's state.

        Raises:
            CheckpointError: an input changed since, or the state does not belong to this verb.
            ConfigError: more steps are done than asked for.
        """
        before = state["inputs"]
        differ = [name for name in INPUTS if before.get(name) != self._inputs.get(name)]
        changed = [INPUTS[name] for name in differ]
        if "reward" in differ:  # a name and a version, which say something; the others are hashes
            changed[-1] += f" ({before.get('reward', 'none')}, now {self._inputs.get('reward', 'none')})"
        if changed:
            raise CheckpointError(
                f"{self._run.folder}: {' and '.join(changed)} changed since checkpoint-{state['step']} was written",
                remedy="inputs-changed",
            )
        if state["step"] > self._total:
            raise ConfigError(
                f"{self._run.folder}: {state['step']} steps are done and {self._total} are asked for",
                remedy="more-steps-done",
            )
        try:
            self._load(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self._run.folder}/checkpoint-{state['step']} does not fit this run ({type(error).__name__} as it "
                "was read)",
                remedy="unfit-checkpoint",
            ) from error
        self.done = self._last_step_saved = state["step"]
        self._best_value = max(state["best"], self._kept_best())
        self.progress.advance(steps=self.done)
        self._remember()

    def _load(self, state: Mapping[str, Any]) -> None:
        if self._weights is not None:
            self._weights.load_state_dict(state["weights"])
        if self._update is not None:
            self._update.load_state_dict(state["update"])
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])

    def _kept_best(self) -> float:
        # A finished run's last evaluation comes after its last checkpoint, and still counts if the run is extended.
        name, sign = self._best_by()
        try:
            note = json.loads((self._run.folder / "best" / "best.json").read_text(encoding="utf-8"))
            return sign * float(note[name])
        except (OSError, ValueError, TypeError, KeyError):
            return -math.inf

    def _counted(self) -> dict[str, int]:
        if self._update is None:
            return {}
        return {"optimizer_steps": self._update.steps_done, "refused_steps": self._update.steps_refused}

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Ends the run: writes its summary with the optimizer steps taken and refused, and keeps the last checkpoint so
        that the run can be extended."""
        counted = self._counted()
        self._run.write_summary({**summary, **counted})
        self._settle()
        self._run.end()
        if counted.get("refused_steps"):
            say(
                f"warning: {counted['refused_steps']} of {counted['optimizer_steps']} optimizer steps were refused, as "
                f"their loss or gradient was not finite; their examples are in {self._run.folder / 'refused'}"
            )

    def _settle(self) -> None:
        # In full-parameter training a checkpoint is four times the model, so it only stays if `every_steps` was set.
        in_full = isinstance(self._weights, TrainedWeights) and self._weights.in_full
        if in_full and self._run.schedule.every_steps is None and self._run.group.is_main:
            shutil.rmtree(self._run.folder / f"checkpoint-{self.done}", ignore_errors=True)

    def save_after_failure(self) -> None:
        """Saves what was trained after any failure: as a checkpoint if the failed step had not changed anything yet."""
        if not self.done:
            return
        try:
            if self._update is None or self._update.steps_done == self._steps_before:
                self._write()
            else:
                with atomic_folder(self._run.folder / f"failed-in-step-{self.done + 1}") as temporary:
                    self._save(temporary)
        except Exception as error:  # perhaps a full disk, the cause of the failure: only warn, so that it is reported
            say(f"warning: what was trained since the last checkpoint is lost: {error}")

    def _remember(self) -> None:
        # State that a failing step may change before it fails; weights and optimizer change last.
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
            if self._run.group.is_main:
                remove_old(self._run.folder, newest=folder, keep=self._run.schedule.keep)
            self._last_step_saved = self.done
        self._last_saved = time.monotonic()
        return folder
