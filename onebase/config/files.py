"""Reads and checks a config from a YAML file and command-line overrides; reports every problem at once.

YAML 1.2 rules apply: `1e-4` is a number, `no` and `2026-01-01` are text, a key given twice is an error. Dashes in keys
equal underscores, and `ppo.lam: 0.9` equals `lam: 0.9` under `ppo:`.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, NamedTuple, NoReturn, TypeGuard, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from onebase.config.hints import hint
from onebase.config.yaml_reader import Loader, fault, read_text
from onebase.errors import ConfigError
from onebase.shown import shown

Config = TypeVar("Config", bound=BaseModel)

COMMAND_LINE = "command line"
MOST_PROBLEMS = 20
"""At most this many wrong keys are reported; a file that is no config may have thousands."""


class _Entry(NamedTuple):
    value: Any
    place: str
    """File name or `command line`, for messages."""


def load_config(model_class: type[Config], path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies the overrides and checks the result.

    Args:
        model_class: one of the config models in `onebase.config.verbs`.
        path: the YAML file, or None for defaults and overrides only.
        overrides: command-line words: `--group.key value`, `--group.key=value`, `group.key=value`, or a bare
            `--group.key` for a boolean. Values are YAML scalars, lists and mappings.

    Raises:
        ConfigError: one line per problem in the file and the overrides.
    """
    problems: list[str] = []
    entries: dict[str, _Entry] = {}
    if path is not None:
        _read_file(path, model_class, entries, problems)
    entries = _written_out(entries, model_class)
    given = _written_out(_read_overrides(overrides, model_class, problems), model_class)
    problems += _only_on_command_line(entries, model_class)
    known = _known_only({**entries, **given}, model_class, problems)
    try:
        config = model_class.model_validate(_nested(known, model_class))
    except ValidationError as error:
        problems += _validation_problems(error, known, model_class, shown(path.name, 100) if path else COMMAND_LINE)
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def dump_config(config: BaseModel) -> str:
    """The resolved config as YAML, with every default; `load_config` reads it back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def config_keys(model_class: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key that takes a value, by dotted name."""
    for name, field in model_class.model_fields.items():
        if (group := _group_of(field)) is not None:
            yield from config_keys(group, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def defaults_of(model_class: type[BaseModel]) -> dict[str, Any]:
    """The default of every key that has one, by dotted name."""
    return {key: field.default for key, field in config_keys(model_class) if not field.is_required()}


def describe_config(model_class: type[BaseModel], width: int = 100) -> str:
    """Every key with its type, default and help line: what `onebase VERB --help` prints."""
    lines = []
    section = None
    for key, field in config_keys(model_class):
        if field.exclude:
            continue  # an option of its own
        group = key.rpartition(".")[0]
        if group != section:
            section = group
            title = _groups(model_class)[group].__doc__ if group else None
            lines += ["", *textwrap.wrap(f"{group}: {title}" if title else "top level:", width)]
        default = "(required)" if field.is_required() else f"= {_plain(field.default)}"
        named = f"  --{key} {_type_name(field.annotation)} {default}"
        lines += [named] if len(named) <= width else [f"  --{key}", f"      {_type_name(field.annotation)} {default}"]
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
    if hasattr(kind, "__metadata__"):  # Annotated: limits are reported when broken
        return _type_name(kind.__origin__)
    if get_origin(kind) is list and (group := _group_in(get_args(kind)[0])) is not None:
        first = next(iter(group.model_fields))
        return f"[{first}|{{{first}: .., ..}}, ...]"
    if get_origin(kind) is list:
        return f"[{_type_name(get_args(kind)[0])}, ...]"
    if get_origin(kind) is dict:
        return "{name: .., ..}"
    if get_args(kind) and get_origin(kind) in (Union, UnionType):
        return "|".join(dict.fromkeys(_type_name(choice) for choice in get_args(kind)))
    return {type(None): "null", str: "text", float: "number", int: "integer", bool: "true|false"}.get(kind, str(kind))


def _group_in(kind: Any) -> type[BaseModel] | None:
    parts = (kind, *get_args(kind))
    return next((part for part in parts if isinstance(part, type) and issubclass(part, BaseModel)), None)


def _plain(value: Any) -> str:
    """A value as a person would write it in the file, shortened for messages."""
    if isinstance(value, str):
        text = value
    else:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return shown(text, 80)


def _read_file(path: Path, model_class: type[BaseModel], entries: dict[str, _Entry], problems: list[str]) -> None:
    text = read_text(path) if os.path.lexists(path) and not os.path.isdir(path) else _no_such_file(path)
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        if root is None:
            return
        if not isinstance(root, yaml.MappingNode):
            kind = "list" if isinstance(root, yaml.SequenceNode) else "value"
            raise ConfigError(f"{shown(path.name, 100)}: should hold 'key: value' lines, but it is one {kind}")
        _flatten(loader, root, "", {}, shown(path.name, 100), entries, problems, whole=_whole_keys(model_class))
    except yaml.YAMLError as error:
        raise fault(shown(path.name, 100), error) from error


def _no_such_file(path: Path) -> NoReturn:
    named = f"'{shown(path, 200)}'"
    if os.path.isdir(path):
        raise ConfigError(f"{named} is a folder; name the YAML file in it")
    if not os.path.isdir(path.parent):
        raise ConfigError(f"no config file {named}: there is no folder '{shown(path.parent, 200)}'")
    try:
        there = sorted(name for name in os.listdir(path.parent) if name.endswith((".yaml", ".yml")))
    except OSError:  # a folder we may not list
        there = []
    near = difflib.get_close_matches(path.name[:300], there, n=1, cutoff=0.5)
    if near:
        raise ConfigError(f"no config file {named}; did you mean '{shown(path.parent / near[0])}'?")
    listed = shown(", ".join(there[:8]), 400)
    raise ConfigError(f"no config file {named}; the folder has {listed or 'no YAML file'}")


def _flatten(
    loader: Loader,
    node: yaml.MappingNode,
    prefix: str,
    lines: dict[str, int],
    place: str,
    entries: dict[str, _Entry],
    problems: list[str],
    *,
    whole: frozenset[str],
) -> None:
    """Adds the leaves of a mapping to `entries` by dotted name; `lines` records where each key was seen.

    A mapping under a key in `whole` is one value: the only item of a list, or names for a row's keys.
    """
    for key_node, value_node in node.value:
        key = prefix + shown(loader.construct_object(key_node, deep=True), 100).replace("-", "_")
        line = key_node.start_mark.line + 1
        if key in lines:
            problems.append(f"{place}: '{key}' is given twice, in lines {lines[key]} and {line}; remove one")
            continue
        lines[key] = line
        if _has_keys(value_node) and key not in whole:
            _flatten(loader, value_node, f"{key}.", lines, place, entries, problems, whole=whole)
        else:
            value = loader.construct_object(value_node, deep=True)
            entries[key] = _Entry(value, place)


def _written_out(entries: dict[str, _Entry], model_class: type[BaseModel]) -> dict[str, _Entry]:
    """The entries, with `model: folder` as `model.model_name_or_path: folder` where `model` is a group of keys."""
    short = "model" in _groups(model_class) and "model" in entries and isinstance(entries["model"].value, str)
    return {"model.model_name_or_path" if short and key == "model" else key: entry for key, entry in entries.items()}


def _has_keys(node: yaml.Node | None) -> TypeGuard[yaml.MappingNode]:
    return isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map" and bool(node.value)


def _read_overrides(words: Sequence[str], model_class: type[BaseModel], problems: list[str]) -> dict[str, _Entry]:
    keys = dict(config_keys(model_class))
    entries: dict[str, _Entry] = {}
    rest = list(words)

    def ends_values(word: str) -> bool:
        return word.startswith("--") or word.partition("=")[0].replace("-", "_") in keys

    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        takes_list = key in keys and _takes(keys[key].annotation, list)
        whole = key in keys and _takes(keys[key].annotation, list, dict)
        if not word.startswith("--") and not equals:
            problems.append(
                f"{COMMAND_LINE}: '{shown(word, 100)}' is neither the config file, which comes first, nor --key value, "
                "nor key=value; a list is written '[a, b]'"
            )
            continue
        values = [text]
        if not equals:
            follows = rest[0] if rest and not rest[0].startswith("--") else None
            is_switch = key in keys and keys[key].annotation is bool
            if is_switch and (follows is None or follows.lower() not in ("true", "false", "yes", "no", "1", "0")):
                values = ["true"]
            elif follows is None:
                problems.append(f"{COMMAND_LINE}: '--{shown(name, 100)}' needs a value")
                continue
            else:
                values = [rest.pop(0)]
                while takes_list and rest and not ends_values(rest[0]):
                    values.append(rest.pop(0))
        for value in values:
            _add_override(key, value, entries, problems, takes_list=takes_list, whole=whole)
    return entries


def _whole_keys(model_class: type[BaseModel]) -> frozenset[str]:
    """The keys whose value may be a mapping: one item of a list, or a mapping of names."""
    return frozenset(key for key, field in config_keys(model_class) if _takes(field.annotation, list, dict))


def _takes(kind: Any, *origins: type) -> bool:
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType, Annotated) else ()
    return get_origin(kind) in origins or any(_takes(part, *origins) for part in parts)


def _add_override(
    key: str,
    text: str,
    entries: dict[str, _Entry],
    problems: list[str],
    *,
    takes_list: bool = False,
    whole: bool = False,
) -> None:
    found: dict[str, _Entry] = {}
    try:
        loader = Loader(text)
        # YAML only if it opens with a bracket or a quote: text like "Human:" or "- " stays text.
        marked = loader.get_single_node() if text[:1] in ("[", "{", '"', "'") else None
        node = marked or yaml.ScalarNode(loader.resolve(yaml.ScalarNode, text, (True, False)), text)
        if _has_keys(node) and not whole:
            _flatten(loader, node, f"{key}.", {}, COMMAND_LINE, found, problems, whole=frozenset())
        else:
            value = loader.construct_object(node, deep=True)
            found[key] = _Entry(value, COMMAND_LINE)
    except yaml.YAMLError:
        problems.append(f"{COMMAND_LINE}: the value of '--{shown(key, 100)}' is not valid YAML: {shown(text, 100)}")
    for name, entry in found.items():
        before = entries.get(name)
        if before is not None and takes_list:
            parts = [part.value if isinstance(part.value, list) else [part.value] for part in (before, entry)]
            entry = _Entry([*parts[0], *parts[1]], COMMAND_LINE)
        elif before is not None:
            problems.append(f"{COMMAND_LINE}: '--{shown(name, 100)}' is given twice; give it once")
        entries[name] = entry


def _known_only(entries: dict[str, _Entry], model_class: type[BaseModel], problems: list[str]) -> dict[str, _Entry]:
    """The entries whose key takes a value; reports the others as problems."""
    keys = dict(config_keys(model_class))
    groups = {name: list(group.model_fields) for name, group in _groups(model_class).items()}
    known: dict[str, _Entry] = {}
    wrong: list[str] = []
    for key, entry in entries.items():
        above = next((k for k in keys if key.startswith(f"{k}.")), None)
        if key in keys:
            known[key] = entry
        elif key in groups and entry.value in (None, {}):
            pass  # `lora:` with every line under it commented out is no mistake
        elif len(wrong) >= MOST_PROBLEMS:
            wrong[MOST_PROBLEMS:] = [f"{entry.place}: '{shown(key, 100)}' is unknown too, and there may be more"]
        elif key in groups:
            near = f"; did you mean '{key}.train'?" if "train" in groups[key] else ""
            value, members = _plain(entry.value), ", ".join(groups[key])
            wrong.append(f"{entry.place}: '{key}' = {value}: it is a group of keys: {members}{near}")
        elif above is not None:
            wrong.append(f"{entry.place}: '{above}' takes one value, not keys of its own: '{shown(key, 100)}'")
        else:
            meant = hint(key, keys, groups, list(model_class.model_fields))
            wrong.append(f"{entry.place}: '{shown(key, 100)}' is unknown; {meant}")
    problems += wrong
    return known


def _only_on_command_line(entries: dict[str, _Entry], model_class: type[BaseModel]) -> list[str]:
    """A problem for each key of a file that only the command line may give: those that are not dumped either."""
    return [
        f"{entries[key].place}: '{key}' is given on the command line alone, as "
        f"--{key.rpartition('.')[2].replace('_', '-')}; take it out of the file"
        for key, field in config_keys(model_class)
        if field.exclude and key in entries
    ]


def _nested(entries: dict[str, _Entry], model_class: type[BaseModel]) -> dict[str, Any]:
    """The entries as nested groups; all groups are present, so a missing key is reported by its full name."""
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
        # After the key, the location continues with list positions and union members.
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
