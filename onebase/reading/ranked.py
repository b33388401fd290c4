"""Readers for answers that people or models graded: votes, ranks and scores.

Verdicts of several annotators become one grade per answer: its wins minus its losses over all pairs and annotators (its
Copeland score), where ranks are compared, and the verdict of most, where two answers are. The verdicts themselves stay
in the row's columns, for measures of agreement.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from onebase.errors import DataError
from onebase.reading.fields import SCORE, Fields, is_grade
from onebase.reading.layouts import prompt_of
from onebase.records import Row
from onebase.shown import number_of

PREDICTION = re.compile(r"prediction ([1-9]\d*)")
ANSWER_LISTS = ("completions", "responses", "generations", "candidates", "answers", "outputs")
SCORES = ("scores", "ratings", "rewards")
RANKS = ("ranks", "rankings", "rank", "ranking")

TEXT = ("response", "completion", "text", "answer", "output", "generation", "content", "body")
_RESPONSE = re.compile(r"response[ _-]?([12])")
_ANNOTATOR = re.compile(r"annotator[ _-]?\d+")


def read_votes(fields: Fields) -> Row:
    """Answers that were compared two by two, graded by wins minus losses."""
    prompt = prompt_of(fields)
    numbers = [int(found[1]) for found in map(PREDICTION.fullmatch, fields.values) if found]
    answers = [fields.text(f"prediction {number}") for number in range(1, max(2, *numbers) + 1)]
    pairs = list(combinations(range(len(answers)), 2))
    votes = fields.items("preference", "a list of votes")
    if len(votes) != len(pairs):
        raise DataError(
            f"{fields.place}: 'preference' holds {number_of(len(votes), 'vote')}, and {len(answers)} predictions "
            f"make {len(pairs)} "
            "pairs, (1, 2), (1, 3) and so on; give one vote per pair"
        )
    grades = [0.0] * len(answers)
    for index, ((first, second), vote) in enumerate(zip(pairs, votes, strict=True)):
        won = _won(fields, f"preference[{index}]", vote)
        grades[first] += won
        grades[second] -= won
    return fields.row(prompt, answers, grades=tuple(grades))


def _won(fields: Fields, key: str, vote: Any) -> int:
    if type(vote) is not int or vote not in (0, 1, 2):
        raise fields.wrong(key, vote, "1 (the first is better), 2 (the second) or 0 (a tie)")
    return (0, 1, -1)[vote]


def is_annotated(row: Mapping[str, Any]) -> bool:
    """Whether a row has two responses and annotators' verdicts on them (PandaLM)."""
    return sum(bool(_RESPONSE.fullmatch(key)) for key in row) == 2 and any(map(_ANNOTATOR.fullmatch, row))


def read_annotated(fields: Fields) -> Row:
    """Two responses and what each annotator said; the verdict of most decides, and without one they are tied."""
    prompt = prompt_of(fields)
    answers = [_as_text(fields, key) for key in sorted(filter(_RESPONSE.fullmatch, fields.values))]
    verdicts = [_won(fields, key, fields.untaken(key)) for key in fields.values if _ANNOTATOR.fullmatch(key)]
    ranked = Counter(verdicts).most_common()
    won = ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else 0
    return fields.row(prompt, answers, grades=(float(won), float(-won)))


def _as_text(fields: Fields, key: str) -> str:
    """An answer; where it was `true` or a number, a program took the text for one, and it is written out again."""
    value = fields.take(key)
    if isinstance(value, bool | int | float):
        fields.notes.append(f"'{key}' is no text in some rows, and was read as its JSON")
        return json.dumps(value)
    return fields.checked(key, value)


def scored_list(row: Mapping[str, Any]) -> str | None:
    """The key of a list of answers that have scores or ranks, inside them or in a list beside."""
    for key in ANSWER_LISTS:
        value = row.get(key)
        if isinstance(value, list) and value:
            inside = isinstance(value[0], dict) and first_of(TEXT, value[0]) and first_of(SCORE, value[0])
            if inside or (isinstance(value[0], str) and first_of((*SCORES, *RANKS), row)):
                return key
    return None


def read_scored(fields: Fields) -> Row:
    """Answers with a score each (UltraFeedback, answers with votes), or with the ranks one or several people gave."""
    prompt = prompt_of(fields)
    key = scored_list(fields.values)
    assert key is not None, "the layout was told by this key"
    entries = fields.items(key, "a list of answers")
    beside = first_of((*SCORES, *RANKS), fields.values)
    if isinstance(entries[0], str):
        assert beside is not None, "the layout was told by this key"
        answers = [fields.checked(f"{key}[{index}]", answer) for index, answer in enumerate(entries)]
        return fields.row(prompt, answers, grades=_grades(fields, beside, len(answers)))
    answers, grades = [], []
    text, score = str(first_of(TEXT, entries[0])), str(first_of(SCORE, entries[0]))
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise fields.wrong(f"{key}[{index}]", entry, f"an object with '{text}' and '{score}'")
        answers.append(fields.checked(f"{key}[{index}].{text}", entry.get(text)))
        grades.append(fields.grade(f"{key}[{index}].{score}", entry.get(score)))
        fields.note_left_out(f"{key}[{index}]", entry, (text, score))
    fields.notes.append(f"answers in '{key}' graded by their '{score}'")
    return fields.row(prompt, answers, grades=tuple(grades))


def _grades(fields: Fields, key: str, count: int) -> tuple[float, ...]:
    """The grades in a list of scores (higher is better) or ranks (1 is best), or in a list of such lists."""
    value, sign = fields.value(key), -1 if key in RANKS else 1
    needed = f"a list of {count} numbers, one per answer, or a list of such lists, one per annotator"
    several = isinstance(value, list) and bool(value) and all(isinstance(given, list) for given in value)
    lists = value if several else [value]
    if not isinstance(value, list) or any(len(given) != count or not all(map(is_grade, given)) for given in lists):
        raise fields.wrong(key, value, needed)
    if several:
        return by_wins([[sign * grade for grade in given] for given in lists])
    return tuple(float(sign * grade) for grade in value)


def by_wins(lists: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """One grade per answer from several annotators' grades (higher is better): its wins minus its losses."""
    won = [0.0] * len(lists[0])
    for given in lists:
        for first, second in combinations(range(len(given)), 2):
            sign = (given[first] > given[second]) - (given[first] < given[second])
            won[first] += sign
            won[second] -= sign
    return tuple(won)


def with_unranked(row: Row) -> Row:
    """The row with the answers that one of its columns lists, ranked by nothing; a row that has answers as it is."""
    if row.answers:
        return row
    for key in ANSWER_LISTS:
        value = row.columns.get(key)
        if isinstance(value, list) and len(value) > 1 and all(isinstance(answer, str) for answer in value):
            rest = {name: column for name, column in row.columns.items() if name != key}
            return replace(row, answers=tuple(value), columns=rest)
    return row


def first_of(keys: Sequence[str], row: Mapping[str, Any]) -> str | None:
    return next((key for key in keys if row.get(key) is not None), None)
