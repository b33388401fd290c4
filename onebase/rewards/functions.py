"""Scores from a Python function of your own: `(prompts, completions, **columns) -> list[float]`."""

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
from typing import Any

import numpy
import torch
from torch import Tensor

from onebase import processes
from onebase.errors import ConfigError, RewardError
from onebase.records import ScoreRequest
from onebase.rewards.unchanged import CallFailed, TookTooLong, unchanged_process, unchanged_random_states, within
from onebase.shown import shown

RewardFunction = Callable[..., Sequence[float]]
LARGEST_SCORE = torch.finfo(torch.float32).max
OWN_FILES = (__file__, sys.modules[within.__module__].__file__)


class FunctionReward:
    """A function named `module:function`, the module in the working directory or installed, or `file.py:function`.

    It is called with `prompts` and `completions` (text, one entry per completion) and every column of the data rows by
    name, each a list as long as they are. Takes the same functions as TRL's GRPO trainer. The import and every call run
    in a thread of their own, and leave the process as it was.

    Args:
        timeout: seconds that the import, or a call, may take; None: any. A timeout leaves the thread behind.
        key: the configuration's, for messages.

    Raises:
        ConfigError: the module or the function cannot be found, or not in time.
    """

    def __init__(self, path: str, *, timeout: float | None = None, key: str = "reward.callable") -> None:
        self.name = path
        self._timeout, self._key = timeout, key
        self._folder = import_folder(path)
        self._function = load_function(path, key, timeout=timeout)

    def check_columns(self, rows: Sequence[Collection[str]]) -> None:
        """Raises ConfigError unless the function can be called with the columns of these data rows."""
        try:
            signature = inspect.signature(self._function)
        except (TypeError, ValueError):  # a function in C need not have one
            return
        everywhere, anywhere = set(rows[0]).intersection(*rows), set().union(*rows)
        for columns in (everywhere, anywhere):
            taken = sorted(columns & {"prompts", "completions"})
            if taken:
                raise ConfigError(
                    f"{self._key}: a column of the data is called {taken[0]!r}, as what {self.name} is called with; "
                    "rename it"
                )
            try:
                signature.bind(prompts=[], completions=[], **dict.fromkeys(columns))
            except TypeError as error:
                given = ", ".join(["prompts", "completions", *(shown(name, 40) for name in sorted(columns))])
                raise ConfigError(
                    f"{self._key}: {self.name} cannot be called with {given}: {shown(error, 100)}; a function that "
                    "ends in **columns takes any, and every row needs the columns that it names"
                ) from error

    def score(self, request: ScoreRequest) -> Tensor:
        """`[N]`.

        Raises:
            RewardError: the function failed, or gave a wrong number of scores, or one that is not a finite number.
        """
        return processes.from_main(lambda: self._score(request))  # it may keep count of its calls

    def _score(self, request: ScoreRequest) -> Tensor:
        scores = self._call(request)
        if len(scores) != len(request.completions):
            raise RewardError(
                f"{self._key} {self.name} gave {len(scores)} scores for {len(request.completions)} completions"
            )
        for i, score in enumerate(scores):
            if not _is_finite(score):
                raise RewardError(
                    f"{self._key} {self.name} gave {_repr(score)} for the completion "
                    f"{shown(repr(request.completions[i][:60]))}; a finite number is needed"
                )
        return torch.tensor([float(score) for score in scores])

    def _call(self, request: ScoreRequest) -> list[Any]:
        columns = {name: list(values) for name, values in request.columns.items()}
        texts = {"prompts": list(request.prompts), "completions": list(request.completions)}

        def call() -> list[Any]:
            found = self._function(**texts, **columns)
            return list(found.tolist() if isinstance(found, Tensor | numpy.ndarray) else found)

        try:
            with unchanged_process(self._folder):
                return within(self._timeout, call)
        except TookTooLong:
            raise RewardError(
                f"{self._key} {self.name} gave no scores for {len(request.completions)} completions within "
                f"{self._timeout:g} seconds; look at what it waits for, or raise reward.timeout"
            ) from None
        except CallFailed as failed:
            error = failed.__cause__
            assert error is not None
            # The user's own line, not the library's that it called; there is none where the call itself failed.
            below = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in OWN_FILES]
            own = [frame for frame in below if frame.filename == below[0].filename]
            place = f" at {shown(own[-1].filename)}:{own[-1].lineno}" if own else ""
            raise RewardError(f"{self._key} {self.name} failed{place}: {_in_one_line(error)}") from error


def load_function(path: str, key: str = "reward.callable", *, timeout: float | None = None) -> RewardFunction:
    """Returns the function at `module:function` or `file.py:function`.

    Args:
        key: the configuration's, for messages.
        timeout: seconds that importing may take; None: any.

    Raises:
        ConfigError: there is none, its module fails as it is imported, or takes too long.
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
            f"{key}: {path!r} was not imported within {timeout:g} seconds; look at what its module waits for, or raise "
            "reward.timeout"
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
    """Where the modules lie that the function's own may import: beside its file, or in the working directory."""
    file = path.rpartition(":")[0]
    return Path(file).resolve().parent if file.endswith(".py") else Path.cwd()


def _module(name: str) -> ModuleType:
    """Imports a module by its file, or one of the working directory by the place of its file, else as any other.

    The working directory is never first on the path: a file there may be called like a library that is imported later.
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
        # Compared, not converted: an integer may be too large for a float.
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
