"""Rows that were judged elsewhere are cleaned as those that were judged here."""

from __future__ import annotations

from onebase.quality.clean import Cleaner
from onebase.quality.judged import Judge, Judged
from onebase.quality.options import FILTERS
from onebase.records import Message, Row


def rows() -> list[Row]:
    """Rows that contradict, repeat and resemble each other, one broken, and one whose answers are the same."""
    found = []
    for n in range(24):
        prompt = f"Which of these two numbers is larger, {n % 20} or {n % 20 + 1}, and why do you think so?"
        answers = ("The second one, since it follows the first.", "The first one, because I like it more.")
        grades = (0.0, 1.0) if n == 21 else (1.0, 0.0)
        columns = {"gold": str(n % 20 + (n == 22))}
        found.append(Row((Message("user", prompt),), answers, grades, columns=columns, place=f"a:{n + 1}"))
    near = "Which of these two numbers is larger, 3 or 4, and why do you think that?"
    found.append(Row((Message("user", near),), found[3].answers, (1.0, 0.0), columns={"gold": "3"}, place="a:25"))
    found.append(Row((Message("user", "why"),), ("\ufffd\ufffd broken", "whole"), (1.0, 0.0), place="a:26"))
    found.append(Row((Message("user", "why"),), ("same", "same"), (1.0, 0.0), place="a:27"))
    return found


def test_a_row_is_the_same_after_it_was_written_as_a_line() -> None:
    filters = [FILTERS[name]() for name in FILTERS if name not in ("difficulty", "script", "leaks")]
    here, elsewhere = Cleaner(filters), Cleaner(filters)
    judge = Judge(filters)
    for row in rows():
        here.add(row)
        line = judge(row).line()
        assert "\n" not in line
        elsewhere.take(Judged.read(line))
    one, other = here.finish(), elsewhere.finish()
    assert one == other
    assert {name for name, count in one.dropped.items() if count} >= {
        "encoding",
        "equal_answers",
        "contradictions",
        "consistency",
        "duplicates",
        "near_duplicates",
    }
