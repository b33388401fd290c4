"""Which rows are held out, and which are left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onebase.data.selection import drop_unusable, split_by_prompt
from onebase.errors import DataError
from onebase.records import Message, Row


def user(text: str) -> Message:
    return Message("user", text)


def rows_of(prompts: list[str]) -> list[Row]:
    return [Row((user(prompt),), (f"a{index}",), place=f"f:{index}") for index, prompt in enumerate(prompts)]


def test_rows_with_one_prompt_land_on_one_side() -> None:
    rows = rows_of([f"p{index % 40}" for index in range(200)])
    train, held_out = split_by_prompt(rows, 0.25, seed=1)
    assert len(train) == 150 and len(held_out) == 50
    assert not {row.messages for row in train} & {row.messages for row in held_out}
    assert sorted(train + held_out, key=rows.index) == rows


def test_the_split_depends_on_the_seed_and_not_on_the_order() -> None:
    rows = rows_of([f"p{index}" for index in range(100)])
    sides = [
        {row.place for row in split_by_prompt(given, 0.2, seed)[1]}
        for given, seed in ((rows, 0), (rows[::-1], 0), (rows, 1))
    ]
    assert sides[0] == sides[1] != sides[2] and len(sides[0]) == len(sides[2]) == 20
    assert [row.place for row in split_by_prompt(rows, 0.2, 0)[0]] == [
        row.place for row in rows if row.place not in sides[0]
    ]


def test_plain_texts_are_their_own_prompts() -> None:
    rows = [Row((), (f"text {index}",)) for index in range(10)]
    assert [len(side) for side in split_by_prompt(rows, 0.3, 0)] == [7, 3]


def test_both_sides_hold_a_prompt() -> None:
    assert [len(side) for side in split_by_prompt(rows_of(["a", "b"]), 0.01, 0)] == [1, 1]
    assert [len(side) for side in split_by_prompt(rows_of(["a", "b"]), 0.99, 0)] == [1, 1]
    assert [len(side) for side in split_by_prompt(rows_of(["a", "b"]), 0, 0)] == [2, 0]


def test_one_prompt_cannot_be_split() -> None:
    with pytest.raises(DataError) as caught:
        split_by_prompt(rows_of(["a", "a", "a"]), 0.5, 0)
    assert str(caught.value) == (
        "f:0: nothing can be held out: the 3 rows have 1 different prompt (texts of a .txt file are separated by "
        "blank lines)"
    )
    assert caught.value.remedy == "nothing-to-hold-out"
    with pytest.raises(DataError, match="no rows: nothing can be held out"):
        split_by_prompt([], 0.5, 0)
    with pytest.raises(AssertionError, match=r"fraction is 1\.5"):
        split_by_prompt(rows_of(["a", "b"]), 1.5, 0)


def test_unusable_rows_are_left_out_by_reason() -> None:
    good = Row((user("q"),), ("a", "b"), grades=(1.0, 0.0), place="f:1")
    bad = [
        Row((user("q"),), ("a", " "), place="f:2"),
        Row((user("q"),), ("a", "a "), place="f:3"),
        Row((user(" "),), ("a",), place="f:4"),
        Row((), ("",), place="f:5"),
    ]
    kept, dropped = drop_unusable([good, *bad], max_share=1)
    assert kept == [good]
    assert dropped == {"empty answer": ["f:2", "f:5"], "equal answers": ["f:3"], "empty prompt": ["f:4"]}
    assert drop_unusable([good, Row((user("q"),))]) == ([good, Row((user("q"),))], {})


def test_too_many_unusable_rows_are_an_error() -> None:
    rows = [Row((), ("" if index < 6 else "a",), place=f"f:{index}") for index in range(100)]
    with pytest.raises(DataError) as caught:
        drop_unusable(rows)
    assert str(caught.value) == (
        "6 of 100 rows cannot be used, more than the allowed share of 0.05: empty answer: 6 (first f:0, f:1, f:2)"
    )
    assert caught.value.remedy == "unusable-rows"
    assert len(drop_unusable(rows[1:] + rows[-1:])[0]) == 95


def test_steps_of_one_question_stay_on_one_side() -> None:
    rows = [replace(row, prefix=f"step {index}") for index, row in enumerate(rows_of([f"p{i % 9}" for i in range(90)]))]
    train, held_out = split_by_prompt(rows, 0.3, seed=0)
    assert len(held_out) == 30 and not {row.messages for row in train} & {row.messages for row in held_out}
