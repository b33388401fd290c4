"""Arithmetic tasks: right, different, split by content, and harder as the dial turns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from onebase.demo.arithmetic import DIFFICULTIES, arithmetic_rows, working
from onebase.errors import DataError
from onebase.reading.formats import read_rows


def tasks(difficulty: int, split: Literal["train", "held_out"] = "train", count: int = 40, seed: int = 0) -> list[str]:
    rows = arithmetic_rows(seed=seed, count=count, difficulty=difficulty, split=split)
    return [row["prompt"].removeprefix("What is ").removesuffix("?") for row in rows]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_every_step_of_the_working_has_the_value_of_the_task(difficulty: int) -> None:
    for row in arithmetic_rows(seed=1, count=60, difficulty=difficulty, split="train"):
        line, last = row["answer"].split("\n")
        steps = line.split(" = ")
        assert row["prompt"] == f"What is {steps[0]}?" and last == f"#### {row['gold']}"
        assert {eval(step) for step in steps} == {int(row["gold"])} and steps[-1] == row["gold"]
        # One operation less per step, so that none is skipped.
        assert [len(re.findall(r"[+*-]", step)) for step in steps] == list(range(len(steps)))[::-1]
        assert "-" not in {step[0] for step in steps} and row["difficulty"] == difficulty
        assert row["terms"] == len(re.findall(r"\d+", steps[0])) == len(steps)


def test_the_dial_goes_from_one_digit_sums_to_brackets() -> None:
    shapes = {
        1: r"\d\+\d",
        2: r"\d([+-]\d){2}",
        3: r"\d{1,2}([+-]\d{1,2}){2}",
        4: r"\d\*\d{1,2}[+-]\d{1,2}|\d{1,2}[+-]\d\*\d{1,2}",
        5: r"\d\*\(\d{1,2}[+-]\d{1,2}\)[+-]\d{1,2}|\d{1,2}[+-]\d\*\(\d{1,2}[+-]\d{1,2}\)",
    }
    for difficulty, shape in shapes.items():
        assert all(re.fullmatch(shape, task) for task in tasks(difficulty))
    assert {sign for task in tasks(5) for sign in "+-*()" if sign in task} == set("+-*()")


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_no_task_is_drawn_twice_and_none_is_in_both_splits(difficulty: int) -> None:
    count = 60 if difficulty == 1 else 300
    train = [task for seed in (0, 1) for task in tasks(difficulty, count=count, seed=seed)]
    held_out = tasks(difficulty, "held_out", count=11)
    assert len(set(train[:count])) == count and len(set(held_out)) == 11 and not set(train) & set(held_out)
    # 3+8 and 8+3 are one task in two writings.
    assert not {"".join(sorted(task)) for task in held_out if difficulty == 1} & {"".join(sorted(t)) for t in train}


def test_tasks_that_run_out_are_counted() -> None:
    for split, found in (("train", 89), ("held_out", 11)):
        with pytest.raises(DataError) as caught:
            tasks(1, split, count=100)  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"only {found} different {split} tasks of difficulty 1 were found, not 100; ask for fewer, or for a higher "
            "difficulty"
        )
    assert len(tasks(2, "held_out", count=500)) == 500  # of about 620


def test_the_seed_alone_decides() -> None:
    assert tasks(3) == tasks(3) and tasks(3) != tasks(3, seed=1) and tasks(3)[:10] == tasks(3, count=10)


def test_brackets_come_first_then_products_then_the_left() -> None:
    assert working("2+3*(9-5)-1") == ["2+3*(9-5)-1", "2+3*4-1", "2+12-1", "14-1", "13"]
    assert working("20-5-3") == ["20-5-3", "15-3", "12"] and working("7") == ["7"]
    assert working("2*(3-5)+9") is None and working("1-2+3") is None


def test_written_rows_are_read_with_their_gold_answer(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = arithmetic_rows(seed=0, count=5, difficulty=4, split="held_out")
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row, read in zip(rows, read_rows(path), strict=True):
        assert read.messages[0].content == row["prompt"] and read.answers == (row["answer"],) and read.notes == ()
        assert {name: read.columns[name] for name in ("gold", "difficulty", "terms")} == {
            "gold": row["gold"],
            "difficulty": 4,
            "terms": 3,
        }
