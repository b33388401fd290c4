"""Turns another tool's configuration into ours, and accounts for every key of it.

A tool's module takes the keys it knows and puts ours; here the rest is carried over by the table of usual names
(`config/hints.py`) or noted as dropped, and the result is read by our own config classes. Keys that these refuse
together (`lora.dropout` in ppo, say) are dropped too, with the sentence they gave.
"""

from __future__ import annotations

import re
import tempfile
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from onebase.config.files import config_keys, load_config
from onebase.config.hints import USUAL_NAMES
from onebase.config.verbs import config_class
from onebase.config.yaml_reader import Loader, fault, read_text
from onebase.errors import ConfigError
from onebase.shown import shown

OFF: tuple[Any, ...] = (None, False, "", [], {}, "none", "no", "off")
IN_OTHER_UNITS = ("per_device_eval_batch_size", "eval_batch_size", "micro_batch_size")
"""Keys whose usual counterpart counts something else (tokens, not rows), so that the value cannot be carried over."""
MOST_ROUNDS = 40
"""Each round of checking drops at least one key."""


class TheirLoader(Loader):
    """Other tools read YAML 1.1, where `no` is false."""


TheirLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)$"), list("yYnNoO")
)


@dataclass(frozen=True, slots=True)
class Note:
    """What happened to some keys of the file."""

    what: str
    """`changed`, `dropped`, `unknown`, or `default` for a key the file does not have."""
    keys: tuple[str, ...]
    why: str

    def line(self) -> str:
        return f"{self.what:<8}{', '.join(shown(key, 100) for key in self.keys)}: {self.why}"


class Conversion:
    """One file on its way: the keys that are left to read, ours so far, and notes.

    Args:
        tool: its name, for notes.
        given: the file's top level.
        folder: where relative paths beside the file are looked up.
    """

    def __init__(self, tool: str, given: Mapping[str, Any], folder: Path) -> None:
        self.tool, self.folder = tool, folder
        self.left = dict(given)
        self.verb = ""
        self.keys: dict[str, Any] = {}
        self.notes: list[Note] = []
        self._defaults: list[str] = []
        self._named: dict[str, str] = {}

    def take(self, name: str, default: Any = None) -> Any:
        """The value of one of their keys, which is then accounted for; a default replaces a missing or null one."""
        value = self.left.pop(name, None)
        return default if value is None else value

    def number(self, name: str, default: Any = None) -> Any:
        """`take` for a number: their YAML readers leave `1e-4` as text and convert it later.

        Raises:
            ConfigError: it is no number.
        """
        value = self.take(name, default)
        if value is None or isinstance(value, bool):
            return default if value is None else self._no_number(name, value)
        try:
            number = float(value)
        except (TypeError, ValueError):
            return self._no_number(name, value)
        return int(number) if number.is_integer() and abs(number) >= 1 else number

    def _no_number(self, name: str, value: Any) -> Any:
        raise ConfigError(f"'{name}' is {shown(repr(value), 60)}, and should be a number")

    def mapping(self, name: str, value: Any) -> dict[str, Any]:
        """A value that should be a mapping, as one to take keys from.

        Raises:
            ConfigError: it is none.
        """
        if not isinstance(value, dict):
            raise ConfigError(f"'{name}' is {shown(repr(value), 60)}, and should be a mapping")
        return dict(value)

    def has(self, *names: str) -> bool:
        return any(self.left.get(name) is not None for name in names)

    def can(self, key: str) -> bool:
        """Whether the verb has this key."""
        return key in self._verb_keys()

    def _verb_keys(self) -> dict[str, Any]:
        return dict(config_keys(config_class(self.verb)))

    def put(self, key: str, value: Any) -> None:
        """Sets one of our keys. A key the verb does not have is a mistake of the tool's module."""
        assert self.can(key), f"{self.verb} has no key {key}"
        self.keys[key] = value

    def default(self, key: str, value: Any) -> None:
        """Sets one of our keys to the other tool's default, if the file said nothing and ours differs."""
        field = self._verb_keys()[key]
        if key not in self.keys and (field.is_required() or field.default != value):
            self.put(key, value)
            self._defaults.append(f"{key} {value}")

    def changed(self, name: str, why: str) -> None:
        self.notes.append(Note("changed", (name,), why))

    def dropped(self, name: str, why: str) -> None:
        self.notes.append(Note("dropped", (name,), why))

    def drop(self, *names: str, why: str) -> None:
        """Accounts for keys that have no counterpart; those that are off need no word of their own."""
        found = tuple(name for name in names if self.left.get(name) not in OFF)
        for name in found:
            self.left.pop(name)
        if found:
            self.notes.append(Note("dropped", found, why))

    def carry_the_rest(self) -> None:
        """Carries over what has the same name or a usual one, and notes everything else."""
        keys = self._verb_keys()
        for name, value in list(self.left.items()):
            usual = USUAL_NAMES.get(name) or ()
            same = [key for key in keys if key.rpartition(".")[2] == name and key not in self.keys]
            ours = next((key for key in (usual if isinstance(usual, tuple) else ()) if key in keys), None)
            ours = ours or (same[0] if len(same) == 1 else None)
            if value is not None and ours is not None and ours not in self.keys and name not in IN_OTHER_UNITS:
                self.put(ours, self.left.pop(name))
                self._named[ours] = name
        for name in [name for name, value in self.left.items() if value not in OFF]:
            self.left.pop(name)
            usual = USUAL_NAMES.get(name) or ()
            if isinstance(usual, str):
                self.notes.append(Note("dropped", (name,), usual))
            elif usual:
                ours = next((key for key in usual if key in self.keys), None)
                said = f"{ours} is set by another key of the file" if ours else f"onebase {self.verb} has no such key"
                self.notes.append(Note("dropped", (name,), said))
            else:
                self.notes.append(Note("unknown", (name,), "onebase has no such key; see whether the run needs it"))
        if self.left:
            self.notes.append(Note("dropped", tuple(self.left), "off or empty in the file"))
            self.left = {}
        if self._defaults:
            said = f"not in the file; {self.tool}'s defaults, which differ from ours, are written"
            self.notes.append(Note("default", tuple(self._defaults), said))

    def finish(self) -> BaseModel:
        """Carries over the rest and returns the config; keys it refuses are dropped with its reason.

        Raises:
            ConfigError: something is missing that only a person can add.
        """
        self.carry_the_rest()
        for _ in range(MOST_ROUNDS):
            try:
                return self._read()
            except ConfigError as error:
                self._drop_refused(error)
        raise ConfigError("no valid config came of this file; write one from `--help` of the verb")

    def _read(self) -> BaseModel:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "converted.yaml"
            path.write_text(self.yaml(), encoding="utf-8")
            return load_config(config_class(self.verb), path)

    def _drop_refused(self, error: ConfigError) -> None:
        lines = [line.partition(": ")[2] for line in str(error).splitlines()]
        refused = False
        for line in lines:
            # What a sentence complains of stands before its colon or semicolon; behind it is what to do.
            named = [key for key in re.findall(r"'([\w.]+)'", re.split(r"[:;]", line)[0]) if key in self.keys]
            for key in named:
                del self.keys[key]
                self.notes.append(Note("dropped", (self._named.get(key, key),), line))
                refused = True
        if not refused:
            raise ConfigError(f"what is left to write by hand: {'; '.join(lines)}") from error

    def yaml(self) -> str:
        """Our config, with the notes as comments above it."""
        nested: dict[str, Any] = {}
        for key in [key for key in self._verb_keys() if key in self.keys]:  # in the order of `--help`
            group, _, last = key.rpartition(".")
            (nested.setdefault(group, {}) if group else nested)[last] = self.keys[key]
        lines = [f"# onebase {self.verb}: converted from a config of {self.tool}"]
        for note in self.notes:
            lines += textwrap.wrap(note.line(), 116, initial_indent="#   ", subsequent_indent=" " * 12)
        lines = [line if line.startswith("#") else f"#{line[1:]}" for line in lines]
        return "\n".join(lines) + "\n" + yaml.safe_dump(nested, sort_keys=False, allow_unicode=True, width=120)


def read_theirs(path: Path) -> dict[str, Any]:
    """The top level of another tool's YAML file.

    Raises:
        ConfigError: the file cannot be read, is no mapping, or gives a key twice.
    """
    if path.is_dir() or not path.exists():
        raise ConfigError(f"no config file '{shown(path, 200)}'; name the other tool's YAML file")
    text = read_text(path)
    try:
        loader = TheirLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(f"{shown(path.name, 100)}: should hold 'key: value' lines")
        names = [str(loader.construct_object(key, deep=True)) for key, _ in root.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"{shown(path.name, 100)}: '{shown(twice[0], 100)}' is given twice; remove one")
        values = [loader.construct_object(value, deep=True) for _, value in root.value]
    except yaml.YAMLError as error:
        raise fault(shown(path.name, 100), error) from error
    return dict(zip(names, values, strict=True))
