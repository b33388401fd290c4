"""The steps of a run, one after the other: counted, logged, saved, stopped between two of them and resumed."""

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
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from onebase import processes
from onebase.errors import CheckpointError, ConfigError, DoesNotFitError, Interrupted, OnebaseError, Stopped
from onebase.files import atomic_folder
from onebase.runs.progress import StepProgress, say
from onebase.training.checkpoint import RandomStates, Stateful, TrainedWeights, remove_old, write_checkpoint
from onebase.training.update import Update

if TYPE_CHECKING:
    from onebase.training.run import Run

INPUTS = {"base": "the base model", "data": "the data", "roles": "a role that does not train"}
"""What must not have changed when a run is resumed, by the names of `inputs` in `Run.loop`."""
STATE: dict[str, Any] = {
    "step": int,
    "seconds": int | float,
    "config": str,
    "inputs": dict,
    "best": int | float,
    "weights": dict | None,
    "update": dict | None,
    "parts": dict,
}
"""What a checkpoint's state has, and of which types."""


class AtOnce(KeyboardInterrupt):
    """Raised by a signal once the last step is saved; no Exception, as libraries catch those and would go on."""


def require_state(state: Mapping[str, Any], path: Path) -> None:
    """
    Raises:
        CheckpointError: it is not the state that a loop writes.
    """
    wrong = [name for name, kind in STATE.items() if name not in state or not isinstance(state[name], kind)]
    wrong += [] if wrong or state["step"] == int(path.name.rpartition("-")[2]) else ["step"]
    wrong += [] if wrong or _is_mapping(state["config"]) else ["config"]
    if wrong or (state["update"] is not None and not isinstance(state["update"].get("token_budget"), int)):
        raise CheckpointError(f"{path} is not what a run writes: {', '.join(wrong) or 'update'} is missing or wrong")


def _is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


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
        self._ended = False
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

    def end_steps(self) -> None:
        """Behind the last step, before the last evaluation: what was trained is saved, and a signal ends the rest at
        once.

        Raises:
            NonFiniteError: every step was refused.
        """
        if self._update is not None:
            self._update.require_a_step()
        try:
            self._write()
        except DoesNotFitError as error:  # the roles alone may still fit
            say(f"warning: {error}; the last evaluation goes on without this checkpoint")
        self._ended = True
        self.stop_if_asked()

    def stop_if_asked(self) -> None:
        """Saves, and raises `Interrupted` or `Stopped`, where a signal came."""
        # A signal may reach one process alone, and all of them have to stop behind the same step. What they agree on is
        # not written back: a signal that arrives in this very line would be lost.
        asked = max((number for number in processes.gather(self._signal) if number), default=None)
        if asked is not None:
            self._write()
            raise self.stopped(asked)

    def stopped(self, number: int | None = None) -> OnebaseError:
        """What to raise at a signal, by default the one that came, when everything is saved."""
        kind = Interrupted if (number or self._signal) == signal.SIGINT else Stopped
        folder = self._run.folder / f"checkpoint-{self.done}"
        saved = f" and saved {folder}" if folder.exists() else ""
        return kind(f"stopped after step {self.done}{saved}; run the same command to resume")

    def keep_best(self, metrics: Mapping[str, float]) -> None:
        """Saves the roles to `best/` where the metric chosen for it is better than ever before."""
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
            f"{why}\npaused after step {self.done}: {where}; run the same command to resume from {checkpoint.name}"
        )

    def note_signal(self, number: int, frame: FrameType | None) -> None:
        """Remembers a request to stop, and says so; a second Ctrl-C, or one behind the last step, stops at once."""
        if self._signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        first, self._signal = self._signal is None, number
        if first and self._ended:
            raise AtOnce
        if first and processes.is_main():
            again = "; press Ctrl-C again to stop now" if number == signal.SIGINT else ""
            with suppress(OSError):  # not print, which may be what the signal broke into
                os.write(2, f"\nstopping after this step{again}\n".encode())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts everything back as it was.

        Raises:
            CheckpointError: an input changed since, or the state is not one of this verb.
            ConfigError: more steps are done than asked for.
        """
        changed = [INPUTS[name] for name, value in self._inputs.items() if state["inputs"].get(name) != value]
        if changed:
            raise CheckpointError(
                f"{self._run.folder}: {' and '.join(changed)} changed since checkpoint-{state['step']} was written; "
                "put it back, or choose another --output_dir"
            )
        if state["step"] > self._total:
            raise ConfigError(
                f"{self._run.folder}: {state['step']} steps are done and {self._total} are asked for; raise max_steps "
                "(or optimizer.num_epochs), or choose another --output_dir"
            )
        try:
            self._load(state)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"{self._run.folder}/checkpoint-{state['step']} does not fit this run ({type(error).__name__} as it "
                "was read); remove it to resume from the one before, or choose another --output_dir"
            ) from error
        self.done = self._last_step_saved = state["step"]
        self._best_value = max(state["best"], self._kept_best())
        self.progress.advance(steps=self.done)
        self._remember()

    def _load(self, state: Mapping[str, Any]) -> None:
        if self._weights is not None:
            self._weights.load_state_dict(state["weights"])
        if self._update is not None:
            budget = self._update.token_budget  # as configured now; where it is found by trying, it is the old one
            self._update.load_state_dict(state["update"])
            self._update.token_budget = budget
        for name, part in self._parts.items():
            part.load_state_dict(state["parts"][name])

    def _kept_best(self) -> float:
        # The last evaluation of a run that ended comes behind its last checkpoint, and counts where the run goes on.
        name, sign = self._best_by()
        try:
            note = json.loads((self._run.folder / "best" / "best.json").read_text(encoding="utf-8"))
            return sign * float(note[name])
        except (OSError, ValueError, TypeError, KeyError):
            return -math.inf

    def count_steps(self) -> dict[str, int]:
        """How many optimizer steps there were, and how many of them were refused."""
        if self._update is None:
            return {}
        return {"optimizer_steps": self._update.steps_done, "refused_steps": self._update.steps_refused}

    def settle(self) -> None:
        """Behind the end of the run: its last checkpoint stays, to make it longer.

        Not where the base trains in full and nobody asked for checkpoints by steps, as one is four times the model.
        """
        in_full = isinstance(self._weights, TrainedWeights) and self._weights.in_full
        if in_full and self._run.schedule.every_steps is None:
            if processes.is_main():
                shutil.rmtree(self._run.folder / f"checkpoint-{self.done}", ignore_errors=True)

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
