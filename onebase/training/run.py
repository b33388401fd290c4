"""A run's folder, its seed, its record, and stopping it without losing anything."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy
import torch

from onebase.errors import ConfigError, Interrupted, NonFiniteError, Stopped
from onebase.files import write_atomically
from onebase.training.metrics import MetricsFile


class Run:
    """`output_dir/` with `config.yaml`, `metrics.jsonl`, `summary.json` and the roles.

    Args:
        config_text: the resolved configuration, written as `config.yaml`.

    Raises:
        ConfigError: the folder holds a finished run, or cannot be written.
    """

    def __init__(self, output_dir: str | Path, *, seed: int, config_text: str) -> None:
        self.folder = Path(output_dir)
        try:
            if (self.folder / "summary.json").exists():
                raise ConfigError(
                    f"{self.folder} holds a finished run; choose another --output_dir, or remove that folder first"
                )
            stopped = sorted(path.name for path in self.folder.glob("checkpoint-*"))
            if stopped:
                raise ConfigError(
                    f"{self.folder} holds a run that was stopped, with its roles in {stopped[-1]}; choose another "
                    "--output_dir, or remove that folder first"
                )
            self.folder.mkdir(parents=True, exist_ok=True)
            if not os.access(self.folder, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be written ({error.strerror}); choose another --output_dir"
            ) from error
        self._config_text = config_text
        self._metrics: MetricsFile | None = None
        self._started = time.monotonic()
        self._signal: int | None = None
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a line to `metrics.jsonl`; the first opens the record, so that a failed start leaves an older one."""
        if self._metrics is None:
            write_atomically(self.folder / "config.yaml", self._config_text)
            self._metrics = MetricsFile(self.folder / "metrics.jsonl")
        self._metrics.write(step, values)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._started

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, which marks the run as complete; a number that is not finite is null."""
        values = _without_nan({**summary, "seconds": round(self.seconds, 1)})
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder / "summary.json", text + "\n")

    @contextmanager
    def stoppable(self, save: Callable[[Path], None]) -> Iterator[Callable[[int], None]]:
        """Ctrl-C and SIGTERM take effect between steps, after saving; a second Ctrl-C at once.

        Yields a function to call after each step with the number of steps done. On a request to stop it saves to
        `checkpoint-<step>/` and raises. It saves there too when a step fails, after the last one that did not.

        Raises:
            Interrupted: after Ctrl-C. Stopped: after SIGTERM.
        """

        def note(number: int, frame: FrameType | None) -> None:
            if self._signal == signal.SIGINT and number == signal.SIGINT:
                raise KeyboardInterrupt
            self._signal = number

        handled = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, note) for number in handled}

        done = 0

        def between_steps(step: int) -> None:
            nonlocal done
            done = step
            if self._signal is None:
                return
            folder = self.folder / f"checkpoint-{step}"
            save(folder)
            kind = Interrupted if self._signal == signal.SIGINT else Stopped
            raise kind(f"stopped after step {step}; the roles as they were then are in {folder}")

        try:
            yield between_steps
        except (Interrupted, Stopped, NonFiniteError):  # saved already, or not worth it
            raise
        except Exception:
            if done:  # what was trained so far is worth keeping, whatever went wrong
                save(self.folder / f"checkpoint-{done}")
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _without_nan(value: Any) -> Any:
    # JSON has no NaN, and other programs read the summary.
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
