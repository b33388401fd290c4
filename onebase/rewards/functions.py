"""Scores from a Python function of your own: `(prompts, completions, **columns) -> list[float]`."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from onebase.errors import ConfigError, RewardError
from onebase.records import ScoreRequest

RewardFunction = Callable[..., Sequence[float]]


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
            scores = list(
                self._function(prompts=list(request.prompts), completions=list(request.completions), **columns)
            )
        except Exception as error:
            place = f"{type(error).__name__}: {error}"
            raise RewardError(f"reward.callable {self.name} failed: {place}") from error
        if len(scores) != len(request.completions):
            raise RewardError(
                f"reward.callable {self.name} gave {len(scores)} scores for {len(request.completions)} completions"
            )
        for i, score in enumerate(scores):
            if not isinstance(score, int | float) or not math.isfinite(score):
                raise RewardError(
                    f"reward.callable {self.name} gave {score!r} for the completion {request.completions[i][:60]!r}; a "
                    "finite number is needed"
                )
        return torch.tensor([float(score) for score in scores])


def load_function(path: str) -> RewardFunction:
    """The function at `module:function`."""
    module_name, _, name = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"reward.callable: {path!r} cannot be imported: {error}; write module:function, with the module in the "
            "working directory or installed"
        ) from error
    if not callable(found):
        raise ConfigError(f"reward.callable: {path!r} is a {type(found).__name__}, not a function")
    return found
