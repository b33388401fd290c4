"""Normalising texts, their runs of characters, and similarity: against plain sets of strings."""

from __future__ import annotations

import random

import numpy
import pytest

from onebase.quality.texts import (
    digest,
    distinct,
    jaccard,
    normalised,
    parts_of,
    prompt_of,
    runs_of,
    squeezed,
    verdict_of,
)
from onebase.records import Message, Row


def runs_of_text(text: str, length: int, length_cjk: int) -> list[str]:
    found = []
    for i in range(len(text)):
        size = length_cjk if "\u3040" <= text[i] <= "\u9fff" else length
        if i + size <= len(text):
            found.append(text[i : i + size])
    return found or [text]


TEXTS = ["", "a", "abc", "hello world, hello", "你好，世界你好", "mixed 你好 text 世界 here", "é" * 9, "x" * 3000]


@pytest.mark.parametrize("text", TEXTS)
def test_equal_runs_have_equal_hashes_and_others_do_not(text: str) -> None:
    written = runs_of_text(text, 5, 3) if text else []
    assert len(runs_of(text, 5, 3)) == len(written)
    assert len(distinct(runs_of(text, 5, 3))) == len(set(written))


def test_a_run_has_one_hash_wherever_it_stands_and_whatever_else_is_in_the_text() -> None:
    for around in ("before ", "你好"):
        inside = set(runs_of(around + "needle" + around, 6, 6).tolist())
        assert runs_of("needle", 6, 6)[0] in inside
        assert runs_of("needlf", 6, 6)[0] not in inside


@pytest.mark.parametrize("seed", range(20))
def test_similarity_is_that_of_the_sets_of_runs(seed: int) -> None:
    generator = random.Random(seed)
    a, b = ("".join(generator.choices("ab你好 ", k=generator.randint(1, 60))) for _ in range(2))
    one, other = set(runs_of_text(a, 3, 2)), set(runs_of_text(b, 3, 2))
    similarity = jaccard(distinct(runs_of(a, 3, 2)), distinct(runs_of(b, 3, 2)))
    assert similarity == pytest.approx(len(one & other) / len(one | other))


def test_nothing_is_like_nothing() -> None:
    empty = numpy.zeros(0, numpy.uint64)
    assert jaccard(empty, empty) == 1 and jaccard(empty, runs_of("abcdef", 5, 3)) == 0


def test_normalising_forgets_case_width_and_white_space() -> None:
    assert normalised("  Ｈello\n\tWORLD ") == "hello world"
    assert squeezed(" Hello \n World") == "Hello World"


def test_digests_tell_where_a_text_ends() -> None:
    assert digest("ab", "c") != digest("a", "bc") != digest("abc")
    assert len(digest("x")) == 16


def test_parts_are_the_prompt_and_the_answers_best_first() -> None:
    messages = (Message("system", "Be kind."), Message("user", "Hi"))
    row = Row(messages, ("bad", "good", "middle"), grades=(0.0, 2.0, 1.0), prefix="Step 1")
    assert parts_of(row) == ["Be kind.\nHi\nStep 1", "good", "middle", "bad"]
    assert parts_of(Row((), ("a text",))) == ["a text"] and prompt_of(Row((), ("a text",))) == "a text"


def test_verdicts_differ_by_grades_label_and_gold() -> None:
    def row(**more: object) -> Row:
        return Row((Message("user", "Hi"),), ("a", "b"), **more)  # type: ignore[arg-type]

    rows = [
        row(),
        row(grades=(1.0, 0.0)),
        row(grades=(0.0, 0.0)),
        row(columns={"label": 1}),
        row(columns={"gold": "4"}),
    ]
    assert len({verdict_of(own) for own in rows}) == 5
    assert verdict_of(row(grades=(1.0, 0.0))) == verdict_of(row(grades=(0.0, 1.0)))
