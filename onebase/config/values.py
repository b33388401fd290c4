"""Types of the values that keys may have, and the group that all groups of keys are."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Group(BaseModel):
    """A group of keys. Immutable; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # a folder may be called 2026
        protected_namespaces=(),  # people know `model` and `model_name_or_path`
    )


def one_or_more(value: Any) -> Any:
    """Returns a list: a single value is a list of one."""
    return value if isinstance(value, list | tuple) or value is None else [value]


def _whole_number(value: Any) -> Any:
    # Python takes True for 1 and "1_000" for 1000; in YAML neither is a number.
    if isinstance(value, bool | str | bytes) or (isinstance(value, float) and value % 1):
        raise ValueError("it should be a whole number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise ValueError("it should be a number")
    return value


def _path(value: str) -> str:
    if not value.strip():
        raise ValueError("it should be a path, but it is blank")
    if _CONTROL.search(value):
        raise ValueError("it should be a path, but it contains control characters")
    if len(value.encode()) > 4000 or any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError("it should be a path, but it is longer than a file system allows")
    if re.match(r"\w[\w+.-]*://[^/]*:[^/]*@", value):  # a run keeps its configuration, and reports show it
        raise ValueError("it should name a database without a password; set PGPASSWORD, or write it into ~/.pgpass")
    return value


def _written(pattern: str, how: str) -> AfterValidator:
    """A check that the whole text matches `pattern`; its error says `how` to write it."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"it should be {how}")
        return value

    return AfterValidator(check)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Int = Annotated[int, BeforeValidator(_whole_number), Field(lt=2**63)]
"""The type of every integer key: takes `1e3`, but neither `true` nor text."""
Float = Annotated[float, BeforeValidator(_number)]
"""The type of every other numeric key: takes neither `true` nor text."""
Said = Annotated[str, _written(r"(?s).*\S.*", "a text that is not blank")]
"""A text for the model to read."""
PathText = Annotated[str, AfterValidator(_path)]
"""A file or folder; for some keys also a hub name."""

Url = Annotated[
    str,
    _written(
        r"https?://([^\s/@?#:]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[^\s@?#]*)?",
        "a place such as http://127.0.0.1:8000, without a user, a key or a query; a key is named as an environment "
        "variable",
    ),
]
"""Where another program answers; no secret is in it, as configs and logs show it."""
Variable = Annotated[str, _written(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable, not its value")]
"""The name of an environment variable that holds a secret."""

Strings = Annotated[list[str], BeforeValidator(one_or_more)]
"""A list of strings; a single string is a list of one."""
Paths = Annotated[list[PathText], BeforeValidator(one_or_more)]
"""A list of files; a single file is a list of one."""

Columns = Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""What a row's keys are read as: the name that is read -> a key of the file, or a template of keys in braces."""

Trackers = Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(one_or_more)]

FUNCTION = r"([\w.]+|.+\.py):[\w.]+"
"""How a key names a Python function."""

FunctionName = Annotated[str, _written(FUNCTION, "written module:function or path/to/file.py:function")]

DEVICES = r"auto|cpu|mps|(cuda|xpu|npu)(:\d{1,3})?"
Device = Annotated[str, _written(DEVICES, "auto, cpu, cuda or cuda:1")]
ModuleName = Annotated[str, _written(r"[^\s\x00-\x1f]+", "the name of a module, such as q_proj")]

Count = Annotated[Int, Field(ge=1)]
Whole = Annotated[Int, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, lt=1)]
NonNegative = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Probability = Annotated[Float, Field(ge=0, le=1)]


def fail_on(problems: list[str]) -> None:
    """Raises the problems, one line each; `load_config` puts the file name before every line."""
    if problems:
        raise ValueError("\n".join(problems))
