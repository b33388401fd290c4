"""What is said of the rows that were read, and splits that hold nothing out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.data.mixing import Source
from onebase.data.prepare import read_split
from onebase.data.remarks import remarks
from onebase.errors import DataError
from onebase.records import Message, Row


def asked(number: int, *answers: str, file: str = "f", **fields: Any) -> Row:
    return Row((Message("user", f"q{number}"),), answers, place=f"{file}:{number}", **fields)


def written(path: Path, numbers: range) -> str:
    path.write_text("".join(json.dumps({"prompt": f"q{n}", "completion": "a"}) + "\n" for n in numbers))
    return str(path)


def split_of(train: list[str], held_out: list[str]) -> tuple[list[Row], list[Row]]:
    rows, held, _ = read_split(
        [Source(tuple(train))], held_out, eval_fraction=0.1, limit=None, seed=0, max_dropped_share=0
    )
    return rows, held


def test_an_evaluation_file_that_is_a_training_file_is_refused(tmp_path: Path) -> None:
    train = written(tmp_path / "a.jsonl", range(4))
    (tmp_path / "link.jsonl").symlink_to(train)
    for name in ("a.jsonl", "link.jsonl"):
        with pytest.raises(DataError, match=f"{name} is evaluation data, and training data as .*a.jsonl: ") as caught:
            split_of([train], [str(tmp_path / name)])
        assert caught.value.remedy == "evaluated-on-training-data"


def test_an_evaluation_file_with_the_rows_of_the_training_file_is_refused(tmp_path: Path) -> None:
    train, copy = written(tmp_path / "a.jsonl", range(4)), written(tmp_path / "b.jsonl", range(4))
    with pytest.raises(
        DataError, match=r"the 4 evaluation rows \(from .*b.jsonl:1 on\) are the training rows"
    ) as caught:
        remarks(*split_of([train], [copy]))
    assert caught.value.remedy == "evaluated-on-training-data"


def test_rows_on_both_sides_are_counted(tmp_path: Path) -> None:
    train, held = written(tmp_path / "a.jsonl", range(6)), written(tmp_path / "b.jsonl", range(4, 9))
    assert remarks(*split_of([train], [held])) == [
        f"warning: held-out rows are also trained on, which makes held-out results look too good: 2 rows ({held}:1, "
        f"{held}:2) of 5"
    ]
    assert remarks(*split_of([train], [])) == []


def test_rows_that_stand_more_than_once_are_counted() -> None:
    rows = [asked(1, "a"), asked(2, "a"), asked(1, "a", file="g"), asked(1, "b")]
    assert remarks(rows, []) == ["the training data repeats rows: 1 row (g:1)"]


def test_a_file_whose_rows_are_of_several_kinds_says_so() -> None:
    rows = [asked(1, "a"), asked(2), asked(3, "a", "b", grades=(1.0, 0.0)), asked(4), asked(5, "a", file="g")]
    assert remarks(rows, []) == [
        "f holds rows of several kinds: a prompt and one answer: 1 row (f:1); a prompt alone: 2 rows (f:2, f:4); "
        "answers that are compared: 1 row (f:3)"
    ]
    assert remarks([asked(1, "a"), asked(2, "b")], []) == []


def test_notes_of_rows_are_said_once_with_their_places() -> None:
    rows = [asked(n, "a", notes=("'tool' turns read as user turns",)) for n in range(5)]
    assert remarks(rows[:3], rows[3:]) == ["'tool' turns read as user turns: 5 rows (f:0, f:1, f:2)"]
