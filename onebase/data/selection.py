"""Selects rows: drops those nothing can be learned from, and holds some out by prompt."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from onebase.errors import DataError
from onebase.records import Row
from onebase.shown import number_of


def split_by_prompt(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Splits into (train, held_out). About `fraction` of the rows are held out; rows with one prompt stay together.

    Prompts are ordered by a hash of their text and the seed, so the order of the rows does not matter. Each side has at
    least one prompt, unless `fraction` is 0. A plain text is its own prompt.

    Raises:
        DataError: all rows have the same prompt.
    """
    assert 0 <= fraction < 1, f"fraction is {fraction}; expected a share of the rows in [0, 1)"
    if fraction == 0:
        return list(rows), []
    sizes: dict[str, int] = {}
    keys = [_prompt_key(row, seed) for row in rows]
    for key in keys:
        sizes[key] = sizes.get(key, 0) + 1
    if len(sizes) < 2:
        raise DataError(
            f"{rows[0].place if rows else 'no rows'}: nothing can be held out: the {len(rows)} rows have "
            f"{number_of(len(sizes), 'different prompt')} (texts of a .txt file are separated by blank lines)",
            remedy="nothing-to-hold-out",
        )
    held_out: set[str] = set()
    count, wanted = 0, fraction * len(rows)
    for key in sorted(sizes)[:-1]:
        # Gets nearest to the fraction: a prompt is added if at least half of its rows are still wanted.
        if held_out and count + sizes[key] / 2 > wanted:
            break
        held_out.add(key)
        count += sizes[key]
    train = [row for row, key in zip(rows, keys, strict=True) if key not in held_out]
    return train, [row for row, key in zip(rows, keys, strict=True) if key in held_out]


def drop_unusable(
    rows: Sequence[Row], *, max_share: float = 0.05, answers: bool = True
) -> tuple[list[Row], dict[str, list[str]]]:
    """Drops rows nothing can be learned from. Returns the others, and the places of the dropped ones by reason.

    Reasons: `empty prompt` (all messages are blank) and, if `answers` are checked, `empty answer` (any of them) and
    `equal answers` (all answers of a compared or ranked row are the same text).

    Raises:
        DataError: more than `max_share` of the rows would be dropped.
    """
    kept: list[Row] = []
    dropped: dict[str, list[str]] = {}
    for row in rows:
        reason = unusable(row, answers=answers)
        if reason is None:
            kept.append(row)
        else:
            dropped.setdefault(reason, []).append(row.place)
    check_share(dropped, len(rows), max_share)
    return kept, dropped


def check_share(dropped: Mapping[str, Sequence[str]], count: int, max_share: float) -> None:
    """Checks the places of dropped rows, by reason, against the `count` rows there were.

    Raises:
        DataError: they are more than `max_share` of all.
    """
    gone = sum(map(len, dropped.values()))
    if gone > max_share * count:
        counts = ", ".join(f"{reason}: {len(at)} (first {', '.join(at[:3])})" for reason, at in dropped.items())
        raise DataError(
            f"{gone} of {number_of(count, 'row')} cannot be used, more than the allowed share of {max_share:g}: "
            f"{counts}",
            remedy="unusable-rows",
        )


def unusable(row: Row, *, answers: bool = True) -> str | None:
    """Why nothing can be learned from a row; None if something can."""
    return unusable_prompt(row) or (_unusable_answers(row) if answers or not row.messages else None)


def unusable_prompt(row: Row) -> str | None:
    """What is wrong with a row's prompt; None if nothing is."""
    if row.messages and not any(message.content.strip() for message in row.messages):
        return "empty prompt"
    return None


def _unusable_answers(row: Row) -> str | None:
    answers = [row.answer(k).text.strip() for k in range(len(row.answers))]
    if not all(answers):
        return "empty answer"
    if len(answers) > 1 and len(set(answers)) == 1:
        return "equal answers"
    return None


def _prompt_key(row: Row, seed: int) -> str:
    turns: list[object] = [(message.role, message.text) for message in row.messages]
    if turns and row.tools:
        turns.append(row.tools)
    return hashlib.sha256(f"{seed}\n{json.dumps(turns or row.answers)}".encode()).hexdigest()
