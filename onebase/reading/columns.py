r"""Maps the keys of any row to the keys that are read: `{prompt: question, completion: "{options}\n{answer}"}`.

A key on the right may lead inside (`meta.title`, `turns[0].text`). A text with braces is a template: each `{key}` is
replaced by the text at that key, a number as JSON writes it, a list by its entries on a line each, null by nothing;
`{{` and `}}` stand for braces. Keys that no mapping names become columns.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from onebase.errors import DataError
from onebase.reading.json_text import described, listed
from onebase.shown import shown

_STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TEXTS = ("prompt", "completion", "system", "text", "chosen", "rejected", "instruction", "input", "gold")
"""What is a text when it is read; a list of texts given for it is joined."""

_PROMPT_LIKE = ("question", "prompt", "query", "ask", "instruction", "input", "source", "title", "problem", "context",
                "post", "document", "article", "q", "en", "src", "user")  # fmt: skip
_ANSWER_LIKE = ("answer", "response", "completion", "output", "reply", "target", "solution", "summary", "highlights",
                "label_text", "a", "zh", "tgt", "assistant", "content")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mapped:
    """One row as a mapping reads it."""

    values: dict[str, Any]
    """By the names that are read."""
    columns: dict[str, Any]
    """The keys of the row that the mapping does not name."""


def apply(mapping: Mapping[str, str], row: Mapping[str, Any], place: str) -> Mapped:
    """The row under the mapping's names.

    Raises:
        DataError: the mapping names a key that the row does not have, or a template a value that is no text.
    """
    used: set[str] = set()
    values: dict[str, Any] = {}
    for name, given in mapping.items():
        if given not in row and _is_template(given):
            values[name] = _filled(given, row, name, place, used)
            continue
        value = _at(given, row, name, place, used)
        texts = isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)
        values[name] = "\n".join(value) if texts and name in _TEXTS else value
    return Mapped(values, {key: value for key, value in row.items() if key not in used})


def suggested(row: Mapping[str, Any]) -> str:
    """A mapping to start from, made from the keys of a row that no reader knows."""
    texts = list(_texts(row))
    if not texts:
        return "{prompt: KEY, completion: KEY}"
    asked = next((key for like in _PROMPT_LIKE for key in texts if key.rpartition(".")[2].lower() == like), texts[0])
    rest = [key for key in texts if key != asked]
    if not rest:
        return f"{{text: {shown(asked, 40)}}}"
    answered = next((key for like in _ANSWER_LIKE for key in rest if key.rpartition(".")[2].lower() == like), rest[-1])
    return f"{{prompt: {shown(asked, 40)}, completion: {shown(answered, 40)}}}"


def _texts(row: Mapping[str, Any]) -> Iterator[str]:
    """The keys of a row's texts, also of those in an object, that a mapping can name."""
    for key, value in row.items():
        if isinstance(value, dict):
            yield from (f"{key}.{inner}" for inner, text in value.items() if isinstance(text, str) and text.strip())
        elif (isinstance(value, str) and value.strip()) or (isinstance(value, list) and value):
            if not re.fullmatch(r"(?i).*id|url|source_id|date|lang(uage)?", key):
                yield key


def _is_template(given: str) -> bool:
    return "{" in given or "}" in given


def _filled(template: str, row: Mapping[str, Any], name: str, place: str, used: set[str]) -> str:
    def piece(found: re.Match[str]) -> str:
        if found[0] in ("{{", "}}"):
            return found[0][0]
        if found[1] is None or not found[1].strip():
            raise DataError(f"{place}: the template for '{name}' has a single '{found[0]}'; write it twice for a brace")
        key = found[1].strip()
        return _written(_at(key, row, name, place, used), key, name, place)

    return _PIECE.sub(piece, template)


def _written(value: Any, key: str, name: str, place: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and not any(isinstance(part, list | dict) for part in value):
        return "\n".join(_written(part, key, name, place) for part in value)
    if isinstance(value, list | dict):
        raise DataError(f"{place}: '{key}', for '{name}', is {described(value)}; name a text inside it")
    return json.dumps(value)


def _at(path: str, row: Mapping[str, Any], name: str, place: str, used: set[str]) -> Any:
    if path in row:
        used.add(path)
        return row[path]
    value: Any = row
    reached = ""
    for found in _STEP.finditer(path):
        step: Any = int(found[1]) if found[1] else found[2]
        if isinstance(value, list) and str(step).isdecimal():
            step = int(step)
        there = 0 <= step < len(value) if isinstance(value, list) and isinstance(step, int) else (
            isinstance(value, Mapping) and step in value
        )  # fmt: skip
        if not there:
            raise _missing(path, value, reached, str(step), name, place)
        if not reached:
            used.add(str(step))
        value = value[step]
        reached = f"{reached}[{step}]" if isinstance(step, int) else f"{reached}.{step}".lstrip(".")
    return value


def _missing(path: str, value: Any, reached: str, step: str, name: str, place: str) -> DataError:
    inside = f" in '{reached}'" if reached else ""
    wanted = f"{place}: there is no key '{shown(path, 60)}' to read '{shown(name, 40)}' from"
    if isinstance(value, list):
        return DataError(f"{wanted}: '{reached}' has {len(value)} entries, numbered from 0")
    if not isinstance(value, Mapping):
        return DataError(f"{wanted}: '{reached}' is {described(value)}")
    near = get_close_matches(step, map(str, value), n=1)
    hint = f"did you mean '{shown(near[0], 40)}'?" if near else f"found{inside} {listed(value)}"
    return DataError(f"{wanted}; {hint}")
