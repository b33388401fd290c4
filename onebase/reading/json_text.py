"""Strict JSON: refuses whatever parsers disagree on, and what Python adds to the grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from itertools import islice
from typing import Any

from onebase.errors import DataError
from onebase.shown import number_of, shown

_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that may be half of a surrogate pair."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_ROW = re.compile(r":\d+\Z")
_BLANKS = re.compile(r"[ \t\n\r,]*")


def parse(text: str, place: str) -> Any:
    """Parses a text.

    Raises:
        DataError: invalid JSON, a key that appears twice in an object, NaN or Infinity, a number out of range, half of
            a surrogate pair, or nesting too deep to read. The message names `place` and, if it can, the row of a list.
    """
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number, parse_int=_whole_number
        )
        if _HALF_PAIR.search(text):
            _check_surrogates(value, "")
    except json.JSONDecodeError as error:
        # For a line of a .jsonl file, `place` already has the line number.
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        row = "" if _ROW.search(place) else _row_of(text)
        lines = error.msg == "Extra data"
        hint = "one object per line belongs in a file named .jsonl" if lines else "correct the file there"
        raise DataError(f"{place}{row}: invalid JSON at {where}: {error.msg}; {hint}") from None
    except _Refused as error:
        raise DataError(f"{place}{_row_of(text)}: {error}") from None
    except RecursionError:
        raise DataError(f"{place}{_row_of(text)}: JSON is nested too deeply; flatten it") from None
    return value


def listed(keys: Collection[str], most: int = 20) -> str:
    """The keys of an object for a message: long names are cut, and keys beyond the first `most` only counted."""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(shown(key, 40) for key in islice(keys, most)) + more or "(none)"


def described(value: object) -> str:
    """A value for a message: its JSON type, and the value itself if it is short."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "object"
        return f"{'a' if kind == 'list' else 'an'} {kind}" if value else f"an empty {kind}"
    name = {bool: "boolean", int: "number", float: "number", str: "string"}.get(type(value), type(value).__name__)
    text = json.dumps(value, ensure_ascii=True)
    return f"the {name} {text if len(text) <= 40 else text[:37] + '...'}"


class _Refused(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the key '{shown(key, 40)}' appears twice in one object; keep one")
    return values


def _constant(name: str) -> Any:
    raise _Refused(f"{name} is not a JSON number; use a finite number, or null")


def _number(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise _Refused(f"the number {shown(digits, 20)} is out of range; use a finite one")
    return number


def _whole_number(digits: str) -> int:
    if len(digits) > 400:  # too large for a float, and Python refuses to convert very long ones
        raise _Refused(
            f"the number {shown(digits, 20)} has {number_of(len(digits), 'digit')}; use a smaller one, or a string"
        )
    return int(digits)


def _check_surrogates(value: Any, key: str) -> None:
    if isinstance(value, str):
        if half := _SURROGATE.search(value):
            raise _Refused(
                f"'{shown(key, 60)}' holds half of a surrogate pair, U+{ord(half[0]):04X} at character "
                f"{half.start()}; remove it"
            )
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_surrogates(name, name)
            _check_surrogates(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check_surrogates(inner, f"{key}[{index}]")


def row_reached(text: str) -> int:
    """The number of the entry in which the beginning of a list breaks off; 0 if the text does not begin a list."""
    if not text.lstrip().startswith("["):
        return 0
    number = 0
    try:
        for number, _ in enumerate(_entries(text), start=1):  # noqa: B007
            pass
    except (json.JSONDecodeError, IndexError):
        pass
    return number + 1


def _row_of(text: str) -> str:
    """`:3` if the third entry of a list is the refused one; empty if the text is not a list."""
    if not text.lstrip().startswith("["):
        return ""
    number = 0
    try:
        for number, entry in enumerate(_entries(text), start=1):
            try:
                json.loads(
                    entry,
                    object_pairs_hook=_object,
                    parse_constant=_constant,
                    parse_float=_number,
                    parse_int=_whole_number,
                )
                _check_surrogates(json.loads(entry), "")
            except (_Refused, RecursionError):
                return f":{number}"
    except (json.JSONDecodeError, IndexError):
        return f":{number + 1}"
    return ""


def _entries(text: str) -> Iterator[str]:
    """The text of each entry of a list."""
    plain = json.JSONDecoder(parse_int=len)
    position = text.index("[") + 1
    while True:
        start = _BLANKS.match(text, position).end()  # type: ignore[union-attr]
        if text[start] == "]":
            return
        try:
            _, position = plain.raw_decode(text, start)
        except RecursionError:
            yield text[start:]
            return
        yield text[start:position]
