"""Cleaning: planted faults are found, the order of the options does not matter, and every drop says why."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from bench.planted import SHARES, measure, plant
from onebase.quality import options
from onebase.quality.clean import Cleaned, Cleaner
from onebase.quality.options import FILTERS, STANDARD, Filter
from onebase.records import Message, Row


def cleaned(rows: list[Row], *filters: Filter, **more: Any) -> Cleaned:
    cleaner = Cleaner(filters or [FILTERS[name]() for name in STANDARD], **more)
    for row in rows:
        cleaner.add(row)
    return cleaner.finish()


def pair(prompt: str, better: str, worse: str, n: int = 0, **more: Any) -> Row:
    return Row((Message("user", prompt),), (better, worse), grades=(1.0, 0.0), place=f"a.jsonl:{n}", **more)


@pytest.mark.parametrize("seed", range(3))
def test_planted_faults_are_found(seed: int) -> None:
    found = measure(plant(2000, seed))
    least = {name: (0.97, 0.97) for name in SHARES} | {"repetition": (1.0, 0.9)}
    least |= {"near_duplicates": (1.0, 0.85), "noise": (0.75, 0.3)}
    for name, own in found.items():
        precision, recall = least[name]
        assert own.planted == round(2000 * SHARES[name]) * (2 if name in ("contradictions", "consistency") else 1)
        assert own.precision >= precision and own.recall >= recall, (name, own)


def test_nothing_is_dropped_from_rows_without_faults() -> None:
    planted = plant(1500, 7)
    faults = set().union(*planted.faults.values())
    clean = [row for n, row in enumerate(planted.rows) if n not in faults and n < 1000]
    assert len(clean) > 500 and not cleaned(clean).findings


def test_the_order_of_filters_does_not_matter() -> None:
    rows = plant(150, 1).rows
    chosen = [options.Encoding(), options.Contradictions(), options.Duplicates(), options.NearDuplicates()]
    found = [cleaned(rows, *order).findings for order in itertools.permutations(chosen)]
    assert found[0] and all(own == found[0] for own in found)
    assert list(found[0]) == sorted(found[0])


def test_a_row_counts_for_the_first_filter_and_tells_what_others_of_single_rows_found() -> None:
    rows = [pair("What?", "\ufffd" * 5, "\ufffd" * 5, 1), pair("What?", "fine", "bad", 2)]
    found = cleaned(rows, options.EqualAnswers(), options.Encoding())
    assert [finding.filter for finding in found.findings[0]] == ["encoding", "equal_answers"]
    assert found.dropped == {"encoding": 1, "equal_answers": 0} and found.alone == {"encoding": 1, "equal_answers": 1}
    assert found.rows == 2


def test_a_row_is_compared_only_with_rows_that_no_filter_of_single_rows_dropped() -> None:
    rows = [pair("What?", "good", "bad \ufffd", 1), pair("What?", "bad \ufffd", "good", 2), pair("What?", "a", "b", 3)]
    assert set(cleaned(rows).findings) == {0, 1}
    kept = [pair("What?", "x" * 40, "y" * 40, 1), pair("What?", "x" * 40, "y" * 40, 2)]
    broken = pair("What?\ufffd", "x" * 40, "y" * 40, 0)
    assert set(cleaned([broken, *kept], options.Encoding(), options.Duplicates()).findings) == {0, 2}
    # White space is no difference to a vote, and this kind of it is no text: the row says nothing to the one it denies.
    denying = [pair("What?", "bad\x1f", "good", 1), pair("What?", "good", "bad", 2)]
    assert set(cleaned(denying, options.Encoding(), options.Contradictions()).findings) == {0}


def test_duplicates_name_the_first_row_and_differ_by_verdict() -> None:
    rows = [pair("What?", "a", "b", 1), pair("What?", "a", "b", 2), pair("What?", "a", "b", 3)]
    found = cleaned(rows, options.Duplicates()).findings
    assert {n: finding[0].value for n, finding in found.items()} == {1: {"of": "a.jsonl:1"}, 2: {"of": "a.jsonl:1"}}
    tied = Row(rows[0].messages, rows[0].answers, grades=(0.0, 0.0), place="a.jsonl:9")
    assert not cleaned([rows[0], tied], options.Duplicates()).findings
    gold = [pair("What?", "a", "b", n, columns={"gold": str(n)}) for n in range(2)]
    assert not cleaned(gold, options.Duplicates()).findings
    roles = [Row((Message(role, "Hi"),), ("a",)) for role in ("user", "system")]
    assert not cleaned(roles, options.Duplicates()).findings


def test_contradictions_name_the_row_that_denies_and_the_votes() -> None:
    rows = [pair("What?", "a", "b", 1), pair("What?", "b", "a", 2), pair("What?", "a", "b", 3)]
    found = cleaned(rows, options.Contradictions(), options.Duplicates()).findings
    assert found[1][0].value == {"against": "a.jsonl:1", "votes": [1, 2]}
    assert found[2][0].filter == "duplicates" and set(found) == {1, 2}


def test_difficulty_keeps_the_middle_and_what_was_not_measured() -> None:
    rows = [pair(f"Question {n}?", f"answer {n}", "no", n) for n in range(11)]
    difficulty = {f"a.jsonl:{n}": n / 10 for n in range(10)}
    found = cleaned(rows, options.Difficulty(low=0.2, high=0.7), difficulty=difficulty)
    assert set(found.findings) == {0, 1, 8, 9} and found.not_measured == 1
    assert {n: (f[0].reason, f[0].value) for n, f in found.findings.items() if n in (0, 9)} == {
        0: ("too easy", 0.0),
        9: ("too hard", 0.9),
    }


def test_noise_drops_at_most_the_share_of_the_largest_loss() -> None:
    planted = plant(800, 3)
    free = cleaned(planted.rows, options.Noise(probability=0.5, share=1.0)).findings
    few = cleaned(planted.rows, options.Noise(probability=0.5, share=0.01)).findings
    assert len(few) == int(0.01 * sum(row.grades is not None for row in planted.rows)) < len(free)
    assert (
        max(f[0].value["probability"] for f in few.values())
        <= sorted(f[0].value["probability"] for f in free.values())[len(few)]
    )


def test_margins_of_a_role_take_the_place_of_heads() -> None:
    rows = [pair(f"q{n}", "good", "bad", n) for n in range(10)]
    margins = {row.place: 2.0 for row in rows} | {rows[3].place: -3.0, rows[7].place: -1.0}
    del margins[rows[9].place]
    for share, dropped in ((0.12, [3]), (0.5, [3, 7]), (0.05, [])):
        cleaner = Cleaner([options.Noise(probability=0.4, share=share)], margins=margins)
        for row in rows:
            cleaner.add(row)
        cleaned = cleaner.finish()
        assert list(cleaned.findings) == dropped and cleaned.not_judged == 1
    assert cleaner.claims == []


def test_diversity_falls_when_a_kind_of_rows_is_dropped_and_not_when_copies_are() -> None:
    rows = plant(600, 5).rows
    copies = [replace(row, place=f"{row.place}b") for row in rows[:200]]
    found = cleaned([*rows, *copies], options.Duplicates())
    assert len(found.findings) >= 200 and found.after.covered == 1
    assert found.after.distinct["distinct_3"] > found.before.distinct["distinct_3"]
    only = cleaned(rows, options.Script("han"))
    assert only.after.covered < 0.8 and only.after.effective < 0.8 * only.before.effective
