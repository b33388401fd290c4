"""What a person should know about the rows that were read: unusual turns, mixed kinds, duplicates, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

from onebase.errors import DataError
from onebase.reading.files import check_file, expand, file_id
from onebase.reading.unread import columns_beside
from onebase.records import Row
from onebase.shown import number_of, shown

_LEFT_OUT = " is left out"
"""How notes on a part of a row that is not read end."""


def check_split(train: Sequence[str], held_out: Sequence[str]) -> None:
    """Raises DataError if a file is on both sides, so that nothing would be held out."""
    for name in (*train, *held_out):
        check_file(name)
    known = {file_id(path): path for name in train for path in expand(name)}
    for path in (path for name in held_out for path in expand(name)):
        if (same := known.get(file_id(path))) is not None:
            raise DataError(
                f"{shown(path)} is evaluation data, and training data as {shown(same)}: what was trained on says "
                "nothing about new data",
                remedy="evaluated-on-training-data",
            )


def remarks(train: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    """Lines about the rows; usually none.

    Raises:
        DataError: the held-out rows are the training rows.
    """
    lines = [
        f"{shown(note)}: {_places(rows)}"
        for note, rows in _by_note([*train, *held_out]).items()
        if not note.endswith(_LEFT_OUT)
    ]
    orders = {"two assistant turns in a row": _answers_itself, "a system turn after others": _told_late}
    for what, is_so in orders.items():
        if found := [row for row in (*train, *held_out) if is_so(row)]:
            lines.append(f"{what}: {_places(found)}")
    lines += _beside([*train, *held_out])
    lines += _mixed([*train, *held_out])
    seen: dict[Hashable, Row] = {}
    copies = [row for row in train if seen.setdefault(_key(row), row) is not row and row.messages]
    if copies:  # repeated plain texts are normal
        lines.append(f"the training data repeats rows: {_places(copies)}")
    both = [row for row in held_out if _key(row) in seen]
    if both and len({_key(row) for row in both}) == len(seen) and len(both) == len(held_out):
        raise DataError(
            f"the {number_of(len(held_out), 'evaluation row')} (from {both[0].place} on) are the training rows: "
            "what was trained on "
            "says nothing about new data",
            remedy="evaluated-on-training-data",
        )
    if both:
        lines.append(
            f"warning: held-out rows are also trained on, which makes held-out results look too good: "
            f"{_places(both)} of {len(held_out)}"
        )
    return lines


def _answers_itself(row: Row) -> bool:
    roles = [message.role for message in row.messages] + ["assistant"] * bool(row.messages and row.answers)
    return any(pair == ("assistant", "assistant") for pair in zip(roles, roles[1:], strict=False))


def _told_late(row: Row) -> bool:
    roles = [message.role for message in row.messages]
    return any(role != "system" and after == "system" for role, after in zip(roles, roles[1:], strict=False))


def _beside(rows: Sequence[Row]) -> list[str]:
    """Lines for each file: which parts of its rows are left out, and which columns no model reads."""
    gone: dict[str, Counter[str]] = {}
    columns: dict[str, Counter[str]] = {}
    for row in rows:
        name = row.place.rpartition(":")[0]
        if found := [note.removesuffix(_LEFT_OUT) for note in row.notes if note.endswith(_LEFT_OUT)]:
            gone.setdefault(name, Counter()).update(found)
        if found := columns_beside(row):
            columns.setdefault(name, Counter()).update(found)
    return [
        f"{name}: {what}: "
        + ", ".join(f"{shown(key, 60)} ({count} row{'s' * (count > 1)})" for key, count in keys.items())
        for what, files in (
            ("left out", gone),
            ("in no prompt and no answer, columns for reward functions only", columns),
        )
        for name, keys in files.items()
    ]


def _mixed(rows: Sequence[Row]) -> list[str]:
    """A line for each file with rows of several kinds."""
    files: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        files.setdefault(row.place.rpartition(":")[0], {}).setdefault(_kind(row), []).append(row)
    return [
        f"{name} holds rows of several kinds: " + "; ".join(f"{kind}: {_places(some)}" for kind, some in kinds.items())
        for name, kinds in files.items()
        if len(kinds) > 1
    ]


def _kind(row: Row) -> str:
    if not row.messages:
        return "plain text"
    if not row.answers:
        return "a prompt alone"
    return "a prompt and one answer" if len(row.answers) == 1 else "answers that are compared"


def _by_note(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        for note in row.notes:
            found.setdefault(note, []).append(row)
    return found


def _key(row: Row) -> Hashable:
    return row.messages, row.tools, row.prefix, row.answers, row.calls, row.grades


def _places(rows: Sequence[Row]) -> str:
    first = ", ".join(row.place for row in rows[:3])
    return f"{len(rows)} row{'s' * (len(rows) > 1)} ({first})"
