"""Scores from your own Python function: `(prompts, completions, **columns) -> list[float]`."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec, spec_from_file_location
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numpy
import torch
from torch import Tensor

from onebase.errors import ConfigError, RewardError
from onebase.processes import ALONE, Group
from onebase.records import RewardSource, ScoreRequest, Scores
from onebase.rewards.unchanged import CallFailed, TookTooLong, unchanged_process, unchanged_random_states, within
from onebase.shown import number_of, shown

RewardFunction = Callable[..., Sequence[float]]
LARGEST_SCORE = torch.finfo(torch.float32).max
OWN_FILES = (__file__, sys.modules[within.__module__].__file__)


class FunctionReward:
    """A function named `module:function` (module installed or in the working directory) or `file.py:function`.

    It is called with `prompts` and `completions` (texts, one per completion) and, by name, every column of the data
    rows, a list of the same length. TRL's GRPO trainer takes the same functions. The import and every call run in a
    thread of their own and leave the process unchanged.

    A class with a method `score(request) -> Scores` (`records.RewardSource`) will do as well: one is made at the first
    call, and may keep state and give parts and failures beside the total.

    Args:
        timeout: seconds that the import or a call may take; None for no limit. A timeout leaves the thread behind.
        key: what messages call it.
        group: the processes of the run; the first alone calls the function.

    Raises:
        ConfigError: the module or function cannot be imported, or not in time.
    """

    def __init__(
        self,
        path: str,
        *,
        timeout: float | None = None,
        key: str = "reward.callable",
        group: Group = ALONE,
    ) -> None:
        self.name = path
        self._timeout, self._key, self._group = timeout, key, group
        self._folder = import_folder(path)
        self._function = load_function(path, key, timeout=timeout)
        self._is_source = inspect.isclass(self._function) and callable(getattr(self._function, "score", None))
        self._source: RewardSource | None = None

    def check_columns(self, rows: Sequence[Collection[str]]) -> None:
        """Raises ConfigError unless the function can be called with the columns of these data rows."""
        if self._is_source:  # it is given the request as a whole
            return
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # a function written in C may have none
            return
        everywhere, anywhere = set(rows[0]).intersection(*rows), set().union(*rows)
        for columns in (everywhere, anywhere):
            taken = sorted(columns & {"prompts", "completions"})
            if taken:
                raise ConfigError(
                    f"{self._key}: the data has a column {taken[0]!r}, which is also an argument of {self.name}; "
                    "rename the column"
                )
            try:
                signature.bind(prompts=[], completions=[], **dict.fromkeys(columns))
            except TypeError as error:
                given = ", ".join(["prompts", "completions", *(shown(name, 40) for name in sorted(columns))])
                raise ConfigError(
                    f"{self._key}: {self.name} cannot be called with {given}: {shown(error, 100)}; a function that "
                    "ends in **columns takes any column, and every row needs the columns it names"
                ) from error

    def score(self, request: ScoreRequest) -> Scores:
        """The function's scores.

        Raises:
            RewardError: the function failed, or returned a wrong number of scores or one that is not finite.
        """
        return self._group.from_main(lambda: self._score(request))  # it may have state, so only one calls it

    def _score(self, request: ScoreRequest) -> Scores:
        found = self._call(request)
        if not self._is_source:
            return Scores(self._checked(found, request))
        if not isinstance(found, Scores):
            raise RewardError(f"{self._key} {self.name} returned {_repr(found)}; its score() has to return Scores")
        parts = {str(name): self._checked(_listed(part), request) for name, part in found.parts.items()}
        return Scores(self._checked(_listed(found.total), request), parts, dict(found.failures))

    def _checked(self, scores: Sequence[Any], request: ScoreRequest) -> Tensor:
        if len(scores) != len(request.completions):
            raise RewardError(
                f"{self._key} {self.name} returned {number_of(len(scores), 'score')} for "
                f"{number_of(len(request.completions), 'completion')}"
            )
        for i, score in enumerate(scores):
            if not _is_finite(score):
                raise RewardError(
                    f"{self._key} {self.name} returned {_repr(score)} for the completion "
                    f"{shown(repr(request.completions[i][:60]))}; expected a finite number"
                )
        return torch.tensor([float(score) for score in scores])

    def _call(self, request: ScoreRequest) -> Any:
        columns = {name: list(values) for name, values in request.columns.items()}
        texts = {"prompts": list(request.prompts), "completions": list(request.completions)}

        def call() -> Any:
            if not self._is_source:
                return _listed(self._function(**texts, **columns))
            if self._source is None:
                self._source = cast(RewardSource, self._function())
            return self._source.score(request)

        try:
            with unchanged_process(self._folder):
                return within(self._timeout, call)
        except TookTooLong:
            raise RewardError(
                f"{self._key} {self.name} returned no scores for "
                f"{number_of(len(request.completions), 'completion')} within "
                f"{self._timeout:g} seconds",
                remedy="reward-timeout",
            ) from None
        except CallFailed as failed:
            error = failed.__cause__
            assert error is not None
            # The user's own line, not one of a library it called; there is none if the call itself failed.
            below = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in OWN_FILES]
            own = [frame for frame in below if frame.filename == below[0].filename]
            place = f" at {shown(own[-1].filename)}:{own[-1].lineno}" if own else ""
            raise RewardError(f"{self._key} {self.name} failed{place}: {_in_one_line(error)}") from error


def _listed(scores: Any) -> list[Any]:
    return list(scores.tolist() if isinstance(scores, Tensor | numpy.ndarray) else scores)


def load_function(path: str, key: str = "reward.callable", *, timeout: float | None = None) -> RewardFunction:
    """Imports the function at `module:function` or `file.py:function`.

    Args:
        key: what messages call it.
        timeout: seconds that the import may take; None for no limit.

    Raises:
        ConfigError: there is no such function, or its module fails to import or takes too long.
    """
    module_name, _, name = path.rpartition(":") if ":" in path else (path, "", "")

    def find() -> Any:
        found: Any = _module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        return found

    try:
        with unchanged_process(import_folder(path)), unchanged_random_states():
            found = within(timeout, find)
    except TookTooLong:
        raise ConfigError(
            f"{key}: {path!r} was not imported within {timeout:g} seconds", remedy="reward-import-timeout"
        ) from None
    except CallFailed as failed:
        error = failed.__cause__
        assert error is not None
        raise ConfigError(
            f"{key}: {path!r} cannot be imported: {_in_one_line(error)}; write module:function, with the module in the "
            "working directory or installed, or path/to/file.py:function"
        ) from error
    if not callable(found):
        raise ConfigError(f"{key}: {path!r} is a {type(found).__name__}, not a function")
    return found


def import_folder(path: str) -> Path:
    """The folder that the function's module may import from: where its file is, or the working directory."""
    file = path.rpartition(":")[0]
    return Path(file).resolve().parent if file.endswith(".py") else Path.cwd()


def _module(name: str) -> ModuleType:
    """Imports a module by its file, from the working directory, or as an installed one.

    The working directory is never first on the path: a file in it may share its name with a library imported later.
    """
    importlib.invalidate_caches()
    if name.endswith(".py"):
        file = Path(name).resolve()
        stem = file.stem
        if stem in sys.modules and getattr(sys.modules[stem], "__file__", None) != str(file):
            stem = f"{stem}_by_path"
        known = sys.modules.get(stem)
        if known is not None and known.__file__ == str(file):
            return known
        if not file.is_file():
            raise FileNotFoundError(f"there is no file {name}")
        return _run(spec_from_file_location(stem, file))
    top = name.partition(".")[0]
    if top and top not in sys.modules:
        spec = PathFinder.find_spec(top, [str(Path.cwd())])
        if spec is not None and spec.has_location:
            _run(spec)
    return importlib.import_module(name)


def _run(spec: ModuleSpec | None) -> ModuleType:
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(spec.name, None)
        raise
    return module


def _is_finite(score: Any) -> bool:
    try:
        # Compared, not converted: an int may be too large for a float.
        return isinstance(score, Real) and bool(abs(score) <= LARGEST_SCORE)  # type: ignore[operator]
    except Exception:
        return False


def _repr(value: Any) -> str:
    try:
        return shown(repr(value), 60)
    except Exception as error:
        return f"a {type(value).__name__} whose repr raises {type(error).__name__}"


def _in_one_line(error: BaseException) -> str:
    return " ".join(shown(f"{type(error).__name__}: {shown(error, 300, lines=True)}", lines=True).split()).rstrip(":")
