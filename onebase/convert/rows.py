"""Converts a data file to another tool's layout: every row is written, read back and compared with what it was.

A part that the target cannot hold stops the conversion with its name, or is left out if it was named to be dropped:
a field of `Row` (`margin`, `ended`, ...), `tie`, a column, `columns` for all of them, `answers` to keep the best and
the worst of a ranked list, or `rows` to leave out rows the target cannot hold at all.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from onebase.convert.layouts import LAYOUTS, Layout, is_pair
from onebase.errors import ConfigError, DataError
from onebase.files import atomic_file
from onebase.reading.formats import detect, read_record, read_rows
from onebase.records import Row
from onebase.shown import shown

SUFFIXES = (".jsonl", ".json")
NO_ANSWER = "a prompt without an answer"
_DROPPED_ALONE = ("margin", "prefix", "ended", "tie", "columns")
_NOT_CONTENT = {"place", "notes", "source", "layout"}
_PARTS = {field.name for field in fields(Row)} - _NOT_CONTENT | {"tie"}


def run(*, file: Path, output: Path, to: str, drop: Collection[str] = ()) -> None:
    """Converts `file` to `output` and prints, to stderr, what was dropped.

    Raises:
        ConfigError: `output` is of another type than .jsonl or .json.
        DataError: the file cannot be read, or the target cannot hold a part of a row that is not in `drop`.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{shown(output, 200)}: name a .jsonl file (an object a line) or a .json file (one list)")
    dropped: Counter[str] = Counter()
    rows = read_rows(file)
    records = converted(rows, to, drop=drop, dropped=dropped)
    written = 0
    with atomic_file(output) as handle:
        for record in records:
            text = json.dumps(record, ensure_ascii=False)
            if output.suffix == ".json":
                handle.write(("[\n" if not written else ",\n") + text)
            else:
                handle.write(text + "\n")
            written += 1
        if not written:
            raise DataError(f"{shown(file)}: the layout {to} can hold none of its {len(rows)} rows")
        if output.suffix == ".json":
            handle.write("\n]\n")
    for part, count in sorted(dropped.items()):
        print(f"dropped {shown(part, 60)}: {count} rows", file=sys.stderr)
    print(f"{written} of {len(rows)} rows written to {output}", file=sys.stderr)
    if to == "llamafactory":
        print(f"for LLaMA-Factory's dataset_info.json: {json.dumps(registered(output, rows[0]))}", file=sys.stderr)


def converted(
    rows: Collection[Row], to: str, *, drop: Collection[str], dropped: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The rows in the layout `to`; counts in `dropped` what was left out, by part.

    Raises:
        DataError: the layout cannot hold a part of a row that is not in `drop`.
    """
    layout, mentioned = LAYOUTS[to], set(drop)
    lists = "answers" not in mentioned and any(row.grades is not None and len(row.answers) > 2 for row in rows)
    first = ""
    for row in rows:
        kept = best_first(row)
        if "answers" in mentioned and kept.grades is not None and len(kept.answers) > 2:
            worst = kept.grades.index(min(kept.grades))
            kept = kept.only([0, worst])
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
            lost = ["the layout of the rows before it"]
        if not lost:
            yield record
        elif "rows" in mentioned:
            dropped["rows"] += 1
        else:
            raise DataError(refusal(row, to, lost))


def lost_parts(row: Row, layout: Layout, record: dict[str, Any]) -> list[str]:
    """The parts of a row that the record does not hold, or that the layout's tool would not understand."""
    lost = foreign(row, layout) | differences(row, record)
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


def best_first(row: Row) -> Row:
    """The row with its graded answers in order, so that the first is the best."""
    if row.grades is None or len(row.answers) < 2:
        return row
    order = sorted(range(len(row.answers)), key=lambda k: -row.grades[k])  # type: ignore[index]
    return row if order == list(range(len(order))) else row.only(order)


def foreign(row: Row, layout: Layout) -> set[str]:
    """The parts of this row that the layout's tool would not understand."""
    present = {name for name in _PARTS - {"tie"} if getattr(row, name, None)}
    if is_pair(row) and row.grades is not None and row.grades[0] == row.grades[1]:
        present.add("tie")
    if row.prefix is not None:
        present.add("prefix")
    return present & layout.foreign | ({NO_ANSWER} if not row.answers and not layout.prompts else set())


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
    """The row without one of its parts."""
    if part == "columns":
        return replace(row, columns={})
    if part.removeprefix("column ") in row.columns:
        gone = part.removeprefix("column ")
        return replace(row, columns={key: value for key, value in row.columns.items() if key != gone})
    if part in ("margin", "prefix", "ended", "grades", "calls"):
        nothing: dict[str, Any] = {part: None}
        return replace(row, **nothing)
    return row


def registered(output: Path, row: Row) -> dict[str, Any]:
    """What LLaMA-Factory's `dataset_info.json` has to say about a file."""
    entry: dict[str, Any] = {"file_name": output.name}
    if not row.messages:
        return {output.stem: entry | {"columns": {"prompt": "text"}}}
    columns = {"messages": "conversations"}
    if any(message.role == "system" for message in row.messages):
        columns["system"] = "system"
    if is_pair(row):
        entry["ranking"] = True
        columns |= {"chosen": "chosen", "rejected": "rejected"}
    elif "label" in row.columns:
        columns["kto_tag"] = "label"
    return {output.stem: entry | {"formatting": "sharegpt", "columns": columns}}
