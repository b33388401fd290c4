"""Filters that look at one row at a time: encoding, length, repetition, script, equal answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onebase.quality import options
from onebase.quality.encodings import what_is_broken
from onebase.quality.options import Filter
from onebase.quality.scripts import letters_by_script
from onebase.quality.texts import parts_of, prompt_of, squeezed
from onebase.records import Row
from onebase.verifiers.shape import words_of


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a filter drops a row."""

    filter: str
    reason: str
    value: Any
    """The JSON value that decided."""


def check_row(given: Filter, row: Row) -> Finding | None:
    """What the filter has against the row; None if nothing, or if the filter compares rows."""
    check = _CHECKS.get(type(given))
    found = check(given, row) if check else None
    return Finding(given.name, *found) if found else None


def _encoding(given: options.Encoding, row: Row) -> tuple[str, Any] | None:
    for text in parts_of(row):
        if found := what_is_broken(text):
            return found
    return None


def _length(given: options.Length, row: Row) -> tuple[str, Any] | None:
    if row.messages and not any(message.content.strip() for message in row.messages):
        return "empty prompt", 0
    for text in row.answers or (prompt_of(row),):
        length = len(words_of(text)) if given.unit == "words" else len(text.strip())
        if length < given.least:
            return f"shorter than {given.least} {given.unit}", length
        if given.most is not None and length > given.most:
            return f"longer than {given.most} {given.unit}", length
    return None


def _repetition(given: options.Repetition, row: Row) -> tuple[str, Any] | None:
    for text in row.answers:
        share = distinct_share(words_of(text), given.n)
        if share < given.distinct:
            return f"fewer than {given.distinct:g} of an answer's {given.n}-grams are distinct", round(share, 4)
    return None


def _script(given: options.Script, row: Row) -> tuple[str, Any] | None:
    letters = letters_by_script("\n".join(parts_of(row)))
    total = sum(letters.values())
    wanted = {script.casefold() for script in given.scripts}
    share = sum(count for name, count in letters.items() if name.casefold() in wanted) / total if total else 1.0
    if share >= given.share:
        return None
    return f"fewer than {given.share:g} of the letters are {' or '.join(given.scripts)}", round(share, 4)


def _equal_answers(given: options.EqualAnswers, row: Row) -> tuple[str, Any] | None:
    compared = len(row.answers) > 1 and len({squeezed(answer) for answer in row.answers}) == 1
    return ("all answers are the same text", row.answers[0][:100]) if compared else None


def distinct_share(words: list[str], n: int) -> float:
    """The share of n-grams that are distinct (Li et al. 2016, distinct-n); 1 if there are none."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


_CHECKS: dict[type, Callable[[Any, Row], tuple[str, Any] | None]] = {
    options.Encoding: _encoding,
    options.Length: _length,
    options.Repetition: _repetition,
    options.Script: _script,
    options.EqualAnswers: _equal_answers,
}
