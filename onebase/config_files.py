"""From a YAML file and overrides on the command line to a checked config, with every problem named at once.

The YAML is read by the rules of YAML 1.2: `1e-4` is a number, `no` and `2026-01-01` are text, a key given twice is an
error. Dashes in keys equal underscores, and `ppo.lam: 0.9` equals `lam: 0.9` under `ppo:`.
"""

from __future__ import annotations

import difflib
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from onebase.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

COMMAND_LINE = "command line"


class _Entry(NamedTuple):
    value: Any
    place: str
    """File name or `command line`, for messages."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: PyYAML's own 1.1 reads 1e-4 as text, no as false and 012 as ten."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def load_config(model_class: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, lays the overrides over it and checks all of it.

    Args:
        model_class: one of the models of `onebase.config`.
        path: the YAML file, or None for defaults and overrides alone.
        overrides: command-line words: `--group.key value`, `--group.key=value`, `group.key=value`, or a bare
            `--group.key` for a key that is true or false. Values are YAML scalars, lists and mappings.

    Raises:
        ConfigError: with one line per problem of the file and the overrides.
    """
    problems: list[str] = []
    entries: dict[str, _Entry] = {}
    if path is not None:
        _read_file(path, entries, problems)
    given = _read_overrides(overrides, model_class, problems)
    known = _known_only({**entries, **given}, model_class, problems)
    try:
        config = model_class.model_validate(_nested(known, model_class))
    except ValidationError as error:
        problems += _validation_problems(error, known, model_class, path.name if path else COMMAND_LINE)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def dump_config(config: BaseModel) -> str:
    """The resolved config as YAML, every default written out; `load_config` reads it back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def config_keys(model_class: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that takes a value, by its dotted name."""
    for name, field in model_class.model_fields.items():
        if (group := _group_of(field)) is not None:
            yield from config_keys(group, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def defaults_of(model_class: type[BaseModel]) -> dict[str, Any]:
    """The default of every key that has one, by its dotted name."""
    return {key: field.default for key, field in config_keys(model_class) if not field.is_required()}


def describe_config(model_class: type[BaseModel], width: int = 100) -> str:
    """Every key with its type, default and help line: what `onebase VERB --help` prints."""
    lines = []
    section = None
    for key, field in config_keys(model_class):
        group = key.rpartition(".")[0]
        if group != section:
            section = group
            title = _groups(model_class)[group].__doc__ if group else None
            lines += ["", f"{group}: {title}" if title else "top level:"]
        default = "(required)" if field.is_required() else f"= {_plain(field.default)}"
        lines.append(f"  --{key} {_type_name(field.annotation)} {default}")
        lines += textwrap.wrap(field.description or "", width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines).lstrip("\n")


def _group_of(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _groups(model_class: type[BaseModel], prefix: str = "") -> dict[str, type[BaseModel]]:
    found: dict[str, type[BaseModel]] = {}
    for name, field in model_class.model_fields.items():
        if (group := _group_of(field)) is not None:
            found[prefix + name] = group
            found |= _groups(group, f"{prefix}{name}.")
    return found


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    if hasattr(kind, "__metadata__"):  # Annotated: the limits are told when they are broken
        return _type_name(kind.__origin__)
    if get_origin(kind) is list:
        return f"[{_type_name(get_args(kind)[0])}, ...]"
    if get_args(kind) and get_origin(kind) in (Union, UnionType):
        return "|".join(_type_name(choice) for choice in get_args(kind))
    return {type(None): "null", str: "text", float: "number", int: "integer", bool: "true|false"}.get(kind, str(kind))


def _plain(value: Any) -> str:
    """A value as a person would write it in the file, shortened for messages."""
    if isinstance(value, str):
        text = value
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return text if len(text) <= 80 else text[:77] + "..."


def _read_file(path: Path, entries: dict[str, _Entry], problems: list[str]) -> None:
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise ConfigError(_no_such_file(path)) from error
    except PermissionError as error:
        raise ConfigError(f"cannot read the config file '{path}': permission denied") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            kind = "list" if isinstance(root, yaml.SequenceNode) else "value"
            raise ConfigError(f"{path.name}: should hold 'key: value' lines, but it is one {kind}")
        _flatten(loader, root, "", {}, path.name, entries, problems)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise ConfigError(f"{path.name}:{where} not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from error


def _no_such_file(path: Path) -> str:
    if path.is_dir():
        return f"'{path}' is a folder; give the YAML file in it"
    if not path.parent.is_dir():
        return f"no config file '{path}': there is no folder '{path.parent}'"
    there = sorted(file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml"))
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.5)
    if near:
        return f"no config file '{path}'; did you mean '{path.parent / near[0]}'?"
    return f"no config file '{path}'; " + (f"there are {', '.join(there[:8])}" if there else "no YAML file is there")


def _flatten(
    loader: _Loader,
    node: yaml.MappingNode,
    prefix: str,
    lines: dict[str, int],
    place: str,
    entries: dict[str, _Entry],
    problems: list[str],
) -> None:
    """Adds the leaves of a mapping to `entries` by dotted name; `lines` remembers where each key was met."""
    for key_node, value_node in node.value:
        key = prefix + str(loader.construct_object(key_node, deep=True)).replace("-", "_")
        line = key_node.start_mark.line + 1
        if key in lines:
            problems.append(f"{place}: '{key}' is given twice, in lines {lines[key]} and {line}; remove one")
            continue
        lines[key] = line
        if _has_keys(value_node):
            _flatten(loader, value_node, f"{key}.", lines, place, entries, problems)
        else:
            entries[key] = _Entry(loader.construct_object(value_node, deep=True), place)


def _has_keys(node: yaml.Node | None) -> TypeGuard[yaml.MappingNode]:
    return isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map" and bool(node.value)


def _read_overrides(words: Sequence[str], model_class: type[BaseModel], problems: list[str]) -> dict[str, _Entry]:
    switches = {key for key, field in config_keys(model_class) if field.annotation is bool}
    entries: dict[str, _Entry] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        if not word.startswith("--") and not equals:
            problems.append(
                f"{COMMAND_LINE}: '{word}' is neither the config file, which comes first, nor --key value, "
                "nor key=value; a list is written '[a, b]'"
            )
            continue
        if not equals:
            follows = rest[0] if rest and not rest[0].startswith("--") else None
            if key in switches and (follows is None or follows.lower() not in ("true", "false", "yes", "no", "1", "0")):
                text = "true"
            elif follows is None:
                problems.append(f"{COMMAND_LINE}: '--{name}' needs a value")
                continue
            else:
                text = rest.pop(0)
        _add_override(key, text, entries, problems)
    return entries


def _add_override(key: str, text: str, entries: dict[str, _Entry], problems: list[str]) -> None:
    found: dict[str, _Entry] = {}
    try:
        loader = _Loader(text)
        # Only what is marked as YAML is read as YAML: text like "Human:" or "- " stays text.
        if text[:1] in ("[", "{", '"', "'"):
            node = loader.get_single_node()
        else:
            node = yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
        if _has_keys(node):
            _flatten(loader, node, f"{key}.", {}, COMMAND_LINE, found, problems)
        else:
            found[key] = _Entry(loader.construct_object(node, deep=True), COMMAND_LINE)
    except yaml.YAMLError:
        problems.append(f"{COMMAND_LINE}: the value of '--{key}' is not valid YAML: {text}")
    for name, entry in found.items():
        if name in entries:
            problems.append(f"{COMMAND_LINE}: '--{name}' is given twice; a list is written --{name} '[a, b]'")
        entries[name] = entry


def _known_only(entries: dict[str, _Entry], model_class: type[BaseModel], problems: list[str]) -> dict[str, _Entry]:
    """Leaves out, and reports, what is not a key that takes a value."""
    keys = dict(config_keys(model_class))
    groups = _groups(model_class)
    known = {}
    for key, entry in entries.items():
        above = next((k for k in keys if key.startswith(f"{k}.")), None)
        if key in keys:
            known[key] = entry
        elif key in groups:
            if entry.value not in (None, {}):  # `lora:` with every line under it commented out is no mistake
                members = ", ".join(groups[key].model_fields)
                problems.append(f"{entry.place}: '{key}' = {_plain(entry.value)}: it is a group of keys: {members}")
        elif above is not None:
            problems.append(f"{entry.place}: '{above}' takes one value, not keys of its own: '{key}'")
        else:
            problems.append(f"{entry.place}: '{key}' is unknown; {_hint(key, [*keys, *groups], groups, model_class)}")
    return known


def _hint(key: str, names: list[str], groups: dict[str, type[BaseModel]], model_class: type[BaseModel]) -> str:
    def closeness(name: str) -> tuple[float, float]:
        whole = difflib.SequenceMatcher(None, key, name).ratio()
        last = difflib.SequenceMatcher(None, key.rpartition(".")[2], name.rpartition(".")[2]).ratio()
        return max(last, (whole + last) / 2), whole

    nearest = max(names, key=closeness)
    if closeness(nearest)[0] >= 0.6:
        return f"did you mean '{nearest}'?"
    group = key.rpartition(".")[0]
    members = groups[group].model_fields if group in groups else model_class.model_fields
    return f"the keys of {group if group in groups else 'the config'} are {', '.join(members)}"


def _nested(entries: dict[str, _Entry], model_class: type[BaseModel]) -> dict[str, Any]:
    """Every group is there, empty if need be, so that a missing key is reported by its full name."""
    root: dict[str, Any] = {}
    by_name: dict[str, dict[str, Any]] = {"": root}
    for name in _groups(model_class):
        parent, _, last = name.rpartition(".")
        by_name[name] = by_name[parent].setdefault(last, {})
    for key, entry in entries.items():
        group, _, last = key.rpartition(".")
        by_name[group][last] = entry.value
    return root


def _validation_problems(
    error: ValidationError, entries: dict[str, _Entry], model_class: type[BaseModel], default_place: str
) -> list[str]:
    keys = dict(config_keys(model_class))
    reasons: dict[str, list[str]] = {}
    lines = []
    for item in error.errors(include_url=False, include_context=False):
        loc = [str(part) for part in item["loc"]]
        # The location goes on past the key with list positions and the members of a union.
        key = next((name for n in range(len(loc), 0, -1) if (name := ".".join(loc[:n])) in keys), None)
        if item["type"] == "missing" and key is not None:
            about = (keys[key].description or "").rstrip(".")
            lines.append(f"{default_place}: '{key}' is missing: {about[:1].lower()}{about[1:]}")
            continue
        message = re.sub(r"^(Input|Value|List) should", "it should", item["msg"].removeprefix("Value error, "))
        if key is None:  # a check across keys names them itself, one line each
            for line in message.splitlines():
                named = [entries[name].place for name in re.findall(r"'([\w.]+)'", line) if name in entries]
                lines.append(f"{named[-1] if named else default_place}: {line}")
            continue
        position = next((f"item {part}: " for part in item["loc"] if isinstance(part, int)), "")
        reasons.setdefault(key, []).append(position + message)
    for key, messages in reasons.items():
        place, value = entries[key].place, _plain(entries[key].value)
        lines.append(f"{place}: '{key}' = {value}: {', or '.join(dict.fromkeys(messages))}")
    return lines
