"""Reads YAML 1.2 safely: limits what a file may contain, and reports every fault in one line with its place.

`1e-4` is a number, `no` and `2026-01-01` are text. An alias may only stand for a single value: aliases of lists and
mappings can expand a few lines into billions of values, and no config needs them.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from onebase.errors import ConfigError
from onebase.shown import shown

MOST_BYTES = 200_000
"""A config has a few thousand."""
MOST_LEVELS = 12
"""Nested lists and mappings; a config has three levels."""


class Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: PyYAML's own 1.1 reads 1e-4 as text, no as false and 012 as ten."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            if isinstance(self.anchors.get(event.anchor), yaml.CollectionNode):
                said = f"*{shown(event.anchor, 40)} stands for a list or a mapping; write it out"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=event.start_mark)
        if self._level == MOST_LEVELS:
            said = f"more than {MOST_LEVELS} nested lists and mappings"
            raise yaml.MarkedYAMLError(problem=said, problem_mark=self.peek_event().start_mark)
        self._level += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._level -= 1

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                said = f"{shown(repr(key.value), 60)} is given twice, in lines {lines[name]} and {line}; remove one"
                raise yaml.MarkedYAMLError(problem=said, problem_mark=key.start_mark)
            lines[name] = line
        return super().construct_mapping(node, deep=deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError):
            # PyYAML's constructors assume that the value fits its tag: `!!int abc`, `!!bool maybe`, 5,000 digits.
            tag = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(
                problem=f"{shown(node.value, 40)} cannot be read as {shown(tag, 40)}", problem_mark=node.start_mark
            ) from None


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def read_text(path: Path) -> str:
    """The text of a config file.

    Raises:
        ConfigError: it is not a regular file (a pipe would hang), is too large, or cannot be read.
    """
    named = f"the config file '{shown(path, 200)}'"
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"cannot read {named}: it is not a regular file; write the config to a file")
        if found.st_size > MOST_BYTES:
            raise ConfigError(f"cannot read {named}: it has {found.st_size:,} bytes, too many for a config")
        with path.open("rb") as file:
            read = file.read(MOST_BYTES)  # files in /proc report no size
    except OSError as error:
        raise ConfigError(f"cannot read {named}: {(error.strerror or type(error).__name__).lower()}") from error
    except ValueError as error:  # a NUL in the name
        raise ConfigError(f"cannot read {named}: {error}") from error
    try:
        return read.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def fault(name: str, error: yaml.YAMLError) -> ConfigError:
    """The error for invalid YAML, in one line with its place."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return ConfigError(f"{name}: not valid YAML: {shown(' '.join(str(error).split()), 200)}")
    mark = error.problem_mark
    where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
    return ConfigError(f"{name}:{where} not valid YAML: {shown(error.problem or error.context, 200)}")
