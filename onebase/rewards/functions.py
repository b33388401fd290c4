"""Scores from a Python function of your own: `(prompts, completions, **columns) -> list[float]`."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Sequence
from numbers import Real
from pathlib import Path

import numpy
import torch
from torch import Tensor

from onebase.errors import ConfigError, RewardError
from onebase.records import ScoreRequest

RewardFunction = Callable[..., Sequence[float]]
LARGEST_SCORE = torch.finfo(torch.float32).max


class FunctionReward:
    """A function named by its import path, `module:function`, looked for in the working directory too.

    It is called with `prompts` and `completions` (text, one entry per completion) and every column of the data rows by
    name, each a list as long as they are. Takes the same functions as TRL's GRPO trainer.

    Raises:
        ConfigError: the module or the function cannot be found.
    """

    def __init__(self, path: str) -> None:
        self.name = path
        self._function = load_function(path)

    def score(self, request: ScoreRequest) -> Tensor:
        """`[N]`.

        Raises:
            RewardError: the function failed, or gave a wrong number of scores, or one that is not a finite number.
        """
        columns = {name: list(values) for name, values in request.columns.items()}
        try:
            found = self._function(prompts=list(request.prompts), completions=list(request.completions), **columns)
            scores = list(found.tolist() if isinstance(found, Tensor | numpy.ndarray) else found)
        except Exception as error:
            # The user's own line, not the library's that it called; there is none where the call itself failed.
            below = traceback.extract_tb(error.__traceback__)[1:]
            own = [frame for frame in below if frame.filename == below[0].filename]
            place = f" at {own[-1].filename}:{own[-1].lineno}" if own else ""
            raise RewardError(f"reward.callable {self.name} failed{place}: {_in_one_line(error)}") from error
        if len(scores) != len(request.completions):
            raise RewardError(
                f"reward.callable {self.name} gave {len(scores)} scores for {len(request.completions)} completions"
            )
        for i, score in enumerate(scores):
            # Compared, not converted: an integer may be too large for a float.
            if not isinstance(score, Real) or not abs(score) <= LARGEST_SCORE:
                raise RewardError(
                    f"reward.callable {self.name} gave {score!r} for the completion {request.completions[i][:60]!r}; a "
                    "finite number is needed"
                )
        return torch.tensor([float(score) for score in scores])


def load_function(path: str) -> RewardFunction:
    """The function at `module:function`.

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
            f"reward.callable: {path!r} cannot be imported: {_in_one_line(error)}; write module:function, with the "
            "module in the working directory or installed"
        ) from error
    if not callable(found):
        raise ConfigError(f"reward.callable: {path!r} is a {type(found).__name__}, not a function")
    return found


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
