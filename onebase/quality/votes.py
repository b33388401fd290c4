"""Rows that deny each other: preferences reversed, labels and gold answers that differ for the same texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

from onebase.quality.texts import digest, normalised, prompt_of, squeezed
from onebase.records import Row


@dataclass(frozen=True, slots=True)
class Denied:
    """Why a row's statement does not stand."""

    by: int
    """The first row that says otherwise."""
    votes: tuple[int, int]
    """Rows that say the same, this one among them, and rows that say otherwise."""


class Votes:
    """What rows state about the same thing. A row votes once for each of its statements."""

    def __init__(self) -> None:
        self.said: dict[bytes, list[tuple[int, Any]]] = {}

    def add(self, index: int, row: Row, kind: str) -> None:
        """Adds a row's statements.

        Args:
            index: the row's number; rows are added in order.
            kind: `contradictions` (preferences and labels) or `consistency` (gold answers).
        """
        self.take(index, statements(row, kind))

    def take(self, index: int, said: Iterable[tuple[bytes, Any]]) -> None:
        """Adds what a row states, as `statements` found it."""
        for what, says in said:
            self.said.setdefault(what, []).append((index, says))

    def denied(self) -> dict[int, Denied]:
        """The rows whose statement fewer rows make than its opposite, or as many; with the first row that denies it.

        A preference that one row states and one row reverses is worth nothing, so both are denied.
        """
        found: dict[int, Denied] = {}
        for votes in self.said.values():
            counts = Counter(says for _, says in votes)
            if len(counts) == 1:
                continue
            (winner, most), (_, second) = counts.most_common(2)
            (first, by_first), (_, by_other) = islice(_first_of_each(votes).items(), 2)
            for index, says in votes:
                if says == winner and most > second:
                    continue
                by = by_other if says == first else by_first
                found.setdefault(index, Denied(by, (counts[says], len(votes) - counts[says])))
        return found


def _first_of_each(votes: list[tuple[int, Any]]) -> dict[Any, int]:
    """The first row that says each thing, in the order of the rows."""
    found: dict[Any, int] = {}
    for index, says in votes:
        found.setdefault(says, index)
    return found


def statements(row: Row, kind: str) -> Iterator[tuple[bytes, Any]]:
    """What a row states, for `contradictions` (preferences and labels) or for `consistency` (gold answers)."""
    return preferences(row) if kind == "contradictions" else gold_answers(row)


def preferences(row: Row) -> Iterator[tuple[bytes, Any]]:
    """For each two answers of different grades which one is better; for an answer with a label the label."""
    prompt = normalised(prompt_of(row)) if row.messages else ""
    answers = [squeezed(answer) for answer in row.answers]
    if row.grades is not None and len(answers) > 1:
        for i, k in combinations(range(len(answers)), 2):
            if row.grades[i] != row.grades[k] and answers[i] != answers[k]:
                better = answers[i] if row.grades[i] > row.grades[k] else answers[k]
                first, second = sorted((answers[i], answers[k]))
                yield digest("pair", prompt, first, second), better == first
        return
    label = row.grades[0] if row.grades else row.columns.get("label")
    if len(answers) == 1 and isinstance(label, bool | int | float):
        yield digest("label", prompt, answers[0]), float(label)


def gold_answers(row: Row) -> Iterator[tuple[bytes, Any]]:
    """The gold answer to the row's prompt, if it has one."""
    gold = row.columns.get("gold")
    if row.messages and isinstance(gold, str | int | float):
        yield digest("gold", normalised(prompt_of(row))), normalised(str(gold))
