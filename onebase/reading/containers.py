"""Reads containers: from a file to its objects, one at a time, each with its number.

JSON lines, CSV, Parquet, Arrow and text are streamed; a `.json` file is one value and is held whole. A row's number is
its line (JSON lines), its row in a spreadsheet, where the header is row 1 (CSV), or counts from 1 (all others).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from onebase.errors import DataError
from onebase.reading import databases, tables
from onebase.reading.files import (
    LONGEST_FIELD,
    is_packed,
    kind_of,
    lines,
    naming_the_row,
    not_utf8,
    opened,
    whole_text,
)
from onebase.reading.json_text import described, listed, parse
from onebase.shown import number_of, shown

Numbered = Iterable[tuple[int, dict[str, Any]]]


@dataclass(slots=True)
class Content:
    """What a file holds."""

    rows: Numbered
    squad: dict[str, Any] | None = None
    """The whole file, if its rows lie three levels deep as in SQuAD; `rows` is then empty."""
    typed: bool = True
    """False for CSV, where every value is a text and may stand for a number or a list."""
    notes: list[str] = field(default_factory=list)
    """What was read differently from how it is named, or left out, so far."""
    place: str = ""
    """What stands before a row's number in messages; empty: the file's path and a colon."""


def read_content(path: Path) -> Content:
    """The objects of a file. Errors in its later rows are raised as they are reached.

    Raises:
        DataError: the file is of no known type, empty or damaged, or a row is no object.
        MissingExtraError: it needs a package that is not installed.
    """
    kind = kind_of(path)
    if kind == "database":
        name, rows, told = databases.read(path)
        return Content(rows, notes=told, place=name)
    if kind in ("parquet", "arrow"):
        notes: list[str] = []
        return Content(_checked(tables.rows(path, kind, notes), path), notes=notes)
    if kind in ("csv", "tsv"):
        return Content(_csv(path, kind), typed=False)
    if kind == "txt":
        return Content(_texts(path))
    if _in_lines(path, kind):
        notes = ["one object per line, though the file is named .json"] * (kind == "json")
        return Content(_json_lines(path), notes=notes)
    content = json_content(path, whole_text(path))
    if kind == "jsonl":
        content.notes.append("one JSON value, though the file is named .jsonl")
    return content


def is_plain_lines(path: Path) -> bool:
    """Whether a file is JSON lines as they are: named so, not compressed, an object on each line.

    Raises:
        DataError: the file is of no known type, empty or damaged.
    """
    return kind_of(path) == "jsonl" and not is_packed(path) and _in_lines(path, "jsonl")


def _in_lines(path: Path, kind: str) -> bool:
    """Whether a `json` or `jsonl` file has an object on each line, as its beginning tells."""
    try:
        beginning = _beginning(path)
    except DataError:
        if kind == "jsonl":
            raise
        return False  # reading all of it will tell the row, too
    if kind == "json":
        return _holds_lines(beginning)
    return not beginning.startswith("[") and beginning.split("\n")[0].rstrip() != "{"


def _beginning(path: Path) -> str:
    """The first line that is not blank and, where there is one, the first line after it."""
    found: list[str] = []
    for _, line in lines(path):
        if line.strip():
            found.append(line)
            if len(found) == 2:
                break
    if not found:
        raise DataError(f"{path} is empty; at least one row is needed")
    return "\n".join(found)


def _holds_lines(beginning: str) -> bool:
    first, _, second = beginning.partition("\n")
    if not (first.startswith("{") and second):
        return False
    try:
        return isinstance(parse(first, ""), dict)
    except DataError:
        return False


def _json_lines(path: Path) -> Numbered:
    for number, line in lines(path):
        if line.strip():
            yield number, json_line(line, f"{path}:{number}")


def json_line(line: str, place: str) -> dict[str, Any]:
    """The object on a line. Raises DataError, naming `place`, for anything else and for a text that is too long."""
    value = _object(parse(line, place), place)
    if len(line) > LONGEST_FIELD:
        _check_lengths(value, place)
    return value


def json_content(path: Path, text: str) -> Content:
    """The objects of one JSON value: its list, its table of columns, or the value itself."""
    whole = parse(text, str(path))
    if len(text) > LONGEST_FIELD:
        for number, value in enumerate(whole if isinstance(whole, list) else [], start=1):
            _check_lengths(value, f"{path}:{number}")
    notes: list[str] = []
    if isinstance(whole, dict):
        if _is_squad(whole):
            beside = [key for key in whole if key != "data" and isinstance(whole[key], str)]
            return Content([], squad=whole, notes=[f"'{shown(key, 40)}' beside 'data' is left out" for key in beside])
        whole = _in_object(path, whole, notes)
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {described(whole)}; expected a list of objects")
    if not whole:
        raise DataError(f"{path} holds an empty list; at least one row is needed")
    return Content(
        [(number, _object(value, f"{path}:{number}")) for number, value in enumerate(whole, start=1)], notes=notes
    )


def _in_object(path: Path, whole: dict[str, Any], notes: list[str]) -> list[Any]:
    """The rows of a file that is one object: its only list of objects, its columns turned into rows, or itself."""
    lists = {key: value for key, value in whole.items() if isinstance(value, list)}
    rows = [key for key, value in lists.items() if value and all(isinstance(row, dict) for row in value)]
    if any("role" in row or "from" in row for key in rows for row in lists[key][:1]):
        return [whole]  # a single conversation
    if len(rows) == 1 or (len(lists) == 1 and not any(isinstance(value, str) for value in whole.values())):
        key = rows[0] if rows else next(iter(lists))
        notes += [f"'{shown(name, 40)}' beside '{shown(key, 40)}' is left out" for name in whole if name != key]
        return lists[key]
    if not rows and any(isinstance(value, str) for value in whole.values()):
        return [whole]
    lengths = {len(value) for value in lists.values()}
    if not rows and len(lists) == len(whole) and len(lengths) == 1 and lengths != {0}:
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    if len(whole) > 1 and all(isinstance(value, dict) for value in whole.values()):
        return [{"id": key} | value for key, value in whole.items()]
    raise DataError(
        f"{path} holds one object with the keys {listed(whole)}, and {len(rows) or len(lists)} of them hold lists; "
        "expected a list of objects, or an object with exactly one list"
    )


def _csv(path: Path, kind: str) -> Numbered:
    number = 0
    csv.field_size_limit(LONGEST_FIELD)
    with naming_the_row(path, lambda: number + (number > 0)), opened(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            first = text.readline()
            delimiter = "\t" if kind == "tsv" else next((mark for mark in ",;\t" if mark in first), ",")
            reader = csv.reader(chain([first], text), delimiter=delimiter, strict=True)
            header: list[str] | None = None
            rows = 0
            for number, cells in enumerate(reader, start=1):  # noqa: B007
                if not cells:
                    continue
                if header is None:
                    header = _header(path, cells)
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}:{number}: the row has {number_of(len(cells), 'cell')}, and the header "
                        f"{len(header)}: quote cells "
                        "that hold separators or line ends"
                    )
                rows += 1
                yield number, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise DataError(f"{path}:{number + 1}: invalid CSV: {error}; correct the file there") from None
        except UnicodeDecodeError as error:
            raise not_utf8(f"{path}:{number + 1}", error.object, error) from None
    if not rows:
        raise DataError(f"{path} is empty; at least one row below the header is needed")


def _header(path: Path, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not all(names) or len(set(names)) < len(names):
        raise DataError(f"{path}:1: the header is {listed(names)}; every column needs a name of its own")
    return names


def _texts(path: Path) -> Numbered:
    """The texts of a file, separated by blank lines and stripped."""
    count, part = 0, []
    for number, line in chain(lines(path), [(0, "")]):
        if line.strip():
            if "\0" in line:
                raise DataError(f"{path}:{count + 1}: line {number} holds NUL characters; save the file as UTF-8 text")
            part.append(line)
        elif part:
            count += 1
            text, part = "\n".join(part).strip(), []
            if count == 1 and text.startswith("{") and _holds_lines(text.partition("\n")[0] + "\n{"):
                raise DataError(
                    f"{path}:1: a line of JSON in a text file could be a row or a text; name the file .jsonl, or put "
                    "its texts under 'text'"
                )
            if len(text) > LONGEST_FIELD:
                raise too_long(f"{path}:{count}", "the text", len(text))
            yield count, {"text": text}
    if not count:
        raise DataError(f"{path} is empty; at least one text is needed")


def too_long(place: str, what: str, length: int) -> DataError:
    return DataError(
        f"{place}: {what} has {number_of(length, 'character', form=',')}, more than the {LONGEST_FIELD:,} one "
        "text may have; split it"
    )


def _checked(found: Numbered, path: Path) -> Numbered:
    for number, value in found:
        _check_lengths(value, f"{path}:{number}")
        yield number, value


def _check_lengths(value: Any, place: str) -> None:
    for key, text in strings(value):
        if len(text) > LONGEST_FIELD:
            raise too_long(place, f"'{shown(key, 60)}'", len(text))


def strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a value, with the path of its key: `messages[0].content`."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from strings(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from strings(inner, f"{key}[{index}]")


def _is_squad(whole: dict[str, Any]) -> bool:
    data = whole.get("data")
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: the row is {described(value)}; expected an object")
    return value
