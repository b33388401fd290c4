"""What a person should know of the rows that were read: mixed readings, copies, rows on both sides of a split."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from onebase.data.files import check_file, file_id
from onebase.errors import DataError
from onebase.records import Row
from onebase.shown import shown


def check_split(train: Sequence[str], held_out: Sequence[str]) -> None:
    """Raises DataError where a file is on both sides: nothing would be held out."""
    for path in (*train, *held_out):
        check_file(path)
    known = {file_id(path): path for path in train}
    for path in held_out:
        if (same := known.get(file_id(path))) is not None:
            raise DataError(
                f"{shown(path)} is in data.eval, and in data.train as {shown(same)}: what is trained on tells nothing "
                "about other data; leave data.eval out, and a part of data.train is held out"
            )


def remarks(train: Sequence[Row], held_out: Sequence[Row]) -> list[str]:
    """Lines about the rows, most often none.

    Raises:
        DataError: training and held-out rows are the same ones.
    """
    lines = [f"{shown(note)}: {_places(rows)}" for note, rows in _by_note([*train, *held_out]).items()]
    orders = {"two assistant turns in a row": _answers_itself, "a system turn behind others": _told_late}
    for what, is_so in orders.items():
        if found := [row for row in (*train, *held_out) if is_so(row)]:
            lines.append(f"{what}: {_places(found)}")
    lines += _mixed([*train, *held_out])
    seen: dict[Hashable, Row] = {}
    copies = [row for row in train if seen.setdefault(_key(row), row) is not row and row.messages]
    if copies:  # plain texts repeat themselves by nature
        lines.append(f"data.train repeats rows: {_places(copies)}")
    both = [row for row in held_out if _key(row) in seen]
    if both and len({_key(row) for row in both}) == len(seen) and len(both) == len(held_out):
        raise DataError(
            f"the {len(held_out)} rows of data.eval ({both[0].place} and on) are those of data.train: what is trained "
            "on tells nothing about other data; leave data.eval out, and a part of data.train is held out"
        )
    if both:
        lines.append(
            f"warning: held-out rows that are trained on too, so that held-out figures flatter: "
            f"{_places(both)} of {len(held_out)}"
        )
    return lines


def _answers_itself(row: Row) -> bool:
    roles = [message.role for message in row.messages] + ["assistant"] * bool(row.messages and row.answers)
    return any(pair == ("assistant", "assistant") for pair in zip(roles, roles[1:], strict=False))


def _told_late(row: Row) -> bool:
    roles = [message.role for message in row.messages]
    return any(role != "system" and after == "system" for role, after in zip(roles, roles[1:], strict=False))


def _mixed(rows: Sequence[Row]) -> list[str]:
    """A line for every file whose rows are not all of one kind."""
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
    return row.messages, row.prefix, row.answers, row.grades


def _places(rows: Sequence[Row]) -> str:
    first = ", ".join(row.place for row in rows[:3])
    return f"{len(rows)} row{'s' * (len(rows) > 1)} ({first})"
