"""Scores from a Python function of your own: `(prompts, completions, **columns) -> list[float]`."""

from __future__ import annotations

import importlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from onebase import processes
from onebase.errors import ConfigError, RewardError
from onebase.records import ScoreRequest

RewardFunction = Callable[..., Sequence[float]]
LARGEST_SCORE = torch.finfo(torch.float32).max


class FunctionReward:
    """A function named by its import path, `module:function`, looked for in the working directory too.

    It is called with `prompts` and `completions` (text, one entry per completion) and every column of the data rows by
    name, each a list as long as they are. Takes the same functions as TRL's GRPO trainer.

    Args:
        timeout: seconds a call may take; None: any. It runs in a thread of its own, which a timeout leaves behind.
        key: of the configuration, for messages.

    Raises:
        ConfigError: the module or the function cannot be found.
    """

    def __init__(self, path: str, *, timeout: float | None = None, key: str = "reward.callable") -> None:
        self.name = path
        self._timeout, self._key = timeout, key
        self._function = load_function(path, key)

    def score(self, request: ScoreRequest) -> Tensor:
        """`[N]`.

        Raises:
            RewardError: the function failed, or gave a wrong number of scores, or one that is not a finite number.
        """
        return processes.from_main(lambda: self._score(request))  # it may keep count of its calls

    def _score(self, request: ScoreRequest) -> Tensor:
        columns = {name: list(values) for name, values in request.columns.items()}
        try:
            texts = {"prompts": list(request.prompts), "completions": list(request.completions)}
            call = partial(self._function, **texts, **columns)
            found = call() if self._timeout is None else within(self._timeout, call)
            scores = list(found.tolist() if isinstance(found, Tensor | numpy.ndarray) else found)
        except TookTooLong:
            raise RewardError(
                f"{self._key} {self.name} gave no scores for {len(request.completions)} completions within "
                f"{self._timeout:g} seconds; look at what it waits for, or raise reward.timeout"
            ) from None
        except Exception as error:
            # The user's own line, not the library's that it called; there is none where the call itself failed.
            below = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
            own = [frame for frame in below if frame.filename == below[0].filename]
            place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
            raise RewardError(f"{self._key} {self.name} failed{place}: {_in_one_line(error)}") from error
        if len(scores) != len(request.completions):
            raise RewardError(
                f"{self._key} {self.name} gave {len(scores)} scores for {len(request.completions)} completions"
            )
        for i, score in enumerate(scores):
            # Compared, not converted: an integer may be too large for a float.
            size: Any = abs(score) if isinstance(score, Real) else None
            if size is None or not size <= LARGEST_SCORE:
                raise RewardError(
                    f"{self._key} {self.name} gave {score!r} for the completion {request.completions[i][:60]!r}; a "
                    "finite number is needed"
                )
        return torch.tensor([float(score) for score in scores])


class TookTooLong(Exception):
    """A call did not return in time."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """What `call` returns or raises; TookTooLong where it does neither in time."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:  # handed on to whoever waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="reward.callable")
    thread.start()
    deadline = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < deadline:
        thread.join(min(0.5, seconds))  # in short waits, so that Ctrl-C is heard
    if errors:
        raise errors[0]
    if not results:
        raise TookTooLong
    return results[0]


def load_function(path: str, key: str = "reward.callable") -> RewardFunction:
    """The function at `module:function`; `key` is that of the configuration, for messages.

    Raises:
        ConfigError: there is none, or its module fails as it is imported.
    """
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise ConfigError(
            f"{key}: {path!r} cannot be imported: {_in_one_line(error)}; write module:function, with the "
            "module in the working directory or installed"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}: {path!r} is a {type(found).__name__}, not a function")
    return found


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
