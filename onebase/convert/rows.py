"""Converts a data file to another tool's layout: every row is written, read back and compared with what it was.

A part that the target cannot hold stops the conversion with its name, or is left out if it was named to be dropped:
a field of `Row` (`margin`, `ended`, `tools`, ...), `tie`, `ids` of tool calls, a column, `columns` for all of them,
`answers` to keep the best and the worst of a ranked list, or `rows` to leave out rows the target cannot hold at all.

Rows pass one at a time, so a file may be larger than memory.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from onebase.convert.calls import (
    has_calls,
    has_ids,
    results_have_calls,
    results_in_order,
    speaks_beside_calls,
    without_ids,
)
from onebase.convert.layouts import (
    BESIDE_CALLS,
    CALLS,
    LAYOUTS,
    NO_CALL,
    NOT_ALTERNATING,
    OUT_OF_ORDER,
    Layout,
    alternates,
    is_pair,
)
from onebase.errors import ConfigError, DataError
from onebase.files import atomic_file
from onebase.reading.formats import detect, iter_rows, read_record
from onebase.reading.tools import TOOL_KEYS
from onebase.records import Row
from onebase.shown import shown

SUFFIXES = (".jsonl", ".json")
NO_ANSWER = "a prompt without an answer"
_DROPPED_ALONE = ("margin", "prefix", "ended", "tie", "columns", "tools", "ids")
_NOT_CONTENT = {"place", "notes", "source", "layout"}
_PARTS = {field.name for field in fields(Row)} - _NOT_CONTENT
_NO_TOOLS: tuple[object, ...] = (None, "", "[]", [], {})


@dataclass
class Told:
    """What a conversion tells at its end."""

    rows: int = 0
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows by the part that was left out."""
    notes: Counter[str] = field(default_factory=Counter)
    """Rows by what was read otherwise than it is written, or not at all."""
    keys: set[str] = field(default_factory=set)
    """Of the objects written."""


class ListsNeeded(Exception):
    """Pairs and longer lists are in one file, and pairs were not written as lists."""


def run(
    *, file: Path, output: Path, to: str, drop: Collection[str] = (), columns: Mapping[str, str] | None = None
) -> None:
    """Converts `file` to `output` and prints, to stderr, what was dropped and what the file holds beside.

    Raises:
        ConfigError: `output` is of another type than .jsonl or .json.
        DataError: the file cannot be read, or the target cannot hold a part of a row that is not in `drop`.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{shown(output, 200)}: name a .jsonl file (an object a line) or a .json file (one list)")
    try:
        told = _write(file, output, to, drop, columns, lists=False)
    except ListsNeeded:
        told = _write(file, output, to, drop, columns, lists=True)
    for note, count in told.notes.most_common():
        print(f"{shown(note)}: {_rows(count)}", file=sys.stderr)
    for part, count in sorted(told.dropped.items()):
        print(f"dropped {shown(part, 60)}: {_rows(count)}", file=sys.stderr)
    unknown = [shown(part, 60) for part in drop if not _was_dropped(part, told.dropped)]
    if unknown:
        print(f"nothing to drop in any row: {', '.join(unknown)}", file=sys.stderr)
    print(f"{told.written} of {_rows(told.rows)} written to {shown(output)}", file=sys.stderr)
    if to == "llamafactory":
        print(f"for LLaMA-Factory's dataset_info.json: {json.dumps(registered(output, told.keys))}", file=sys.stderr)


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


def _was_dropped(part: str, dropped: Counter[str]) -> bool:
    columns = part == "columns" and any(name.startswith("column ") for name in dropped)
    return part in dropped or f"column {part}" in dropped or columns


def _write(
    file: Path, output: Path, to: str, drop: Collection[str], columns: Mapping[str, str] | None, *, lists: bool
) -> Told:
    told = Told()

    def counted() -> Iterator[Row]:
        for row in iter_rows(file, columns=columns):
            told.rows += 1
            told.notes.update(row.notes)
            yield row

    with atomic_file(output) as handle:
        for record in converted(counted(), to, drop=drop, dropped=told.dropped, lists=lists):
            text = json.dumps(record, ensure_ascii=False)
            if output.suffix == ".json":
                handle.write(("[\n" if not told.written else ",\n") + text)
            else:
                handle.write(text + "\n")
            told.written += 1
            told.keys.update(record)
        if not told.written:
            raise DataError(f"{shown(file)}: the layout {to} can hold none of its {_rows(told.rows)}")
        if output.suffix == ".json":
            handle.write("\n]\n")
    return told


def converted(
    rows: Iterable[Row], to: str, *, drop: Collection[str], dropped: Counter[str], lists: bool = False
) -> Iterator[dict[str, Any]]:
    """The rows in the layout `to`; counts in `dropped` what was left out, by part.

    Args:
        lists: writes pairs as lists of two, for files that hold longer lists too.

    Raises:
        DataError: the layout cannot hold a part of a row that is not in `drop`.
        ListsNeeded: without `lists`, where they are needed.
    """
    layout, mentioned = LAYOUTS[to], set(drop)
    first = ""
    for row in rows:
        kept = layout.complete(best_first(normal(row)))
        if "answers" in mentioned and kept.grades is not None and len(kept.answers) > 2:
            worst = kept.grades.index(min(kept.grades))
            kept = normal(kept.only([0, worst]))
            dropped["answers"] += 1
        if "tie" in mentioned and "tie" in foreign(kept, layout):  # without its tie a pair says nothing
            dropped["tie"] += 1
            continue
        for part in foreign(kept, layout) & mentioned | {key for key in kept.columns if key in mentioned}:
            kept = without(kept, part)
            dropped[part] += 1
        record = layout.write(kept, lists)
        lost = lost_parts(kept, layout, record)
        allowed = mentioned | {f"column {key}" for key in kept.columns if "columns" in mentioned or key in mentioned}
        if lost and set(lost) <= allowed:
            for part in lost:
                kept = without(kept, part)
                dropped[part] += 1
            record = layout.write(kept, lists)
            lost = lost_parts(kept, layout, record)
        if not lost and detect(record) != (first := first or detect(record)):
            if not lists and kept.grades is not None and len(kept.answers) > 1:
                raise ListsNeeded
            lost = ["the layout of the rows before it"]
        if not lost:
            yield record
        elif "rows" in mentioned:
            dropped["rows"] += 1
        else:
            raise DataError(refusal(row, to, lost))


def lost_parts(row: Row, layout: Layout, record: dict[str, Any]) -> list[str]:
    """The parts of a row that the layout's tool would not understand; where there are none, those the record lacks."""
    lost = foreign(row, layout) or differences(row, record)
    if "columns" in lost:
        lost = {part for part in lost if not part.startswith("column ")}
    return sorted(lost)


def refusal(row: Row, to: str, lost: Collection[str]) -> str:
    """Why a row is refused, and what would let it pass."""
    alone = [part.removeprefix("column ") for part in lost if part in _DROPPED_ALONE or part.startswith("column ")]
    if "answers" in lost and row.grades is not None and len(row.answers) > 2:
        alone = ["answers"]
    words = " ".join(f"--drop {shown(part, 60)}" for part in alone if len(alone) == len(lost) or alone == ["answers"])
    how = f"{words} leaves that out, --drop rows such rows" if words else "--drop rows leaves out such rows"
    said = ", ".join(shown(part, 60) for part in lost)
    return f"{row.place}: the layout {to} cannot hold {said}; choose another layout, or {how}"


def normal(row: Row) -> Row:
    """The row without keys for tools that hold none, and without lists of calls that are all empty."""
    columns = {key: value for key, value in row.columns.items() if key not in TOOL_KEYS or value not in _NO_TOOLS}
    calls = row.calls if row.calls and any(row.calls) else None
    return row if columns == row.columns and calls == row.calls else replace(row, columns=columns, calls=calls)


def best_first(row: Row) -> Row:
    """The row with its graded answers in order, so that the first is the best."""
    if row.grades is None or len(row.answers) < 2:
        return row
    order = sorted(range(len(row.answers)), key=lambda k: -row.grades[k])  # type: ignore[index]
    return row if order == list(range(len(order))) else row.only(order)


def parts_of(row: Row) -> set[str]:
    """What a row holds that some layout has no place for: fields that are set, and what turns and calls are like."""
    present = {name for name in _PARTS if getattr(row, name)}
    if is_pair(row) and row.grades is not None and row.grades[0] == row.grades[1]:
        present.add("tie")
    if row.prefix is not None:
        present.add("prefix")
    if not alternates(row):
        present.add(NOT_ALTERNATING)
    if not has_calls(row):
        return present
    present.add(CALLS)
    if has_ids(row):
        present.add("ids" if results_in_order(row) else OUT_OF_ORDER)
    if speaks_beside_calls(row):
        present.add(BESIDE_CALLS)
    return present if results_have_calls(row) else present | {NO_CALL}


def foreign(row: Row, layout: Layout) -> set[str]:
    """The parts of this row that the layout's tool would not understand."""
    found = parts_of(row) & layout.foreign
    return found | ({NO_ANSWER} if not row.answers and not layout.prompts else set())


def differences(row: Row, record: dict[str, Any]) -> set[str]:
    """The parts that are not the same when the record is read back; `answers` if it cannot be read at all."""
    try:
        back = read_record(record, place=row.place)
    except DataError:
        return {"answers"} if row.answers else {NO_ANSWER}
    found = {
        field.name
        for field in fields(Row)
        if field.name not in _NOT_CONTENT | {"grades", "columns"}
        and getattr(row, field.name) != getattr(back, field.name)
    }
    if _ranks(row) != _ranks(back):
        found.add("grades")
    missing = object()
    for key in {*row.columns, *back.columns}:
        if row.columns.get(key, missing) != back.columns.get(key, missing):
            found.add(f"column {key}")
    return found


def _ranks(row: Row) -> tuple[int, ...] | None:
    """The order of the grades; only a single label has a value of its own."""
    if row.grades is None or len(row.grades) == 1:
        return None if row.grades is None else (int(row.grades[0]),)
    levels = sorted(set(row.grades))
    return tuple(levels.index(grade) for grade in row.grades)


def without(row: Row, part: str) -> Row:
    """The row without one of its parts; the row itself if that part cannot be taken out alone."""
    if part == "columns":
        return replace(row, columns={})
    if part.removeprefix("column ") in row.columns:
        gone = part.removeprefix("column ")
        return replace(row, columns={key: value for key, value in row.columns.items() if key != gone})
    if part == "ids":
        return without_ids(row)
    if part == "tools":
        return replace(row, tools=())
    if part in ("margin", "prefix", "ended", "grades"):
        nothing: dict[str, Any] = {part: None}
        return replace(row, **nothing)
    return row


def registered(output: Path, keys: Collection[str]) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` has to say about a file whose objects have these keys."""
    entry: dict[str, Any] = {"file_name": output.name}
    if "conversations" not in keys:
        return {output.stem: entry | {"columns": {"prompt": "text"}}}
    columns = {"messages": "conversations", **{key: key for key in ("system", "tools") if key in keys}}
    if "chosen" in keys:
        entry["ranking"] = True
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    elif "label" in keys:
        columns["kto_tag"] = "label"
    return {output.stem: entry | {"formatting": "sharegpt", "columns": columns}}
