from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from onebase.config.remedies import with_remedy
from onebase.errors import DataError, RewardError, VerifierError
from onebase.processes import Group
from onebase.reading.formats import read_files
from onebase.records import Example, Message, Row, ScoreRequest, Scores
from onebase.rewards.functions import FunctionReward
from onebase.rewards.verified import VerifiedReward, Weighted, check_gold, task_of
from onebase.verifiers.answer_format import AnswerFormat
from onebase.verifiers.choice import Choice
from onebase.verifiers.exact import Exact
from onebase.verifiers.numbers import plain_numbers
from onebase.verifiers.numeric import Numeric
from onebase.verifiers.pattern import Pattern
from onebase.verifiers.shape import Length
from onebase.verifiers.verifier import Task, Verdict

T = TypeVar("T")


def row(number: int = 1, answers: Sequence[str] = (), **columns: Any) -> Row:
    return Row((Message("user", f"question {number}"),), tuple(answers), columns=columns, place=f"d.jsonl:{number}")


def request(*samples: tuple[Row | None, list[str]]) -> ScoreRequest:
    """Completions of each row."""
    examples = [Example([1], [[2]] * len(completions), row=row) for row, completions in samples]
    completions = [completion for _, texts in samples for completion in texts]
    prompts = [f"prompt {i}" for i, (_, texts) in enumerate(samples) for _ in texts]
    return ScoreRequest(examples, prompts, completions)


@dataclass(frozen=True)
class Learned:
    """A source that scores by length."""

    name: str = "learned"

    def score(self, request: ScoreRequest) -> Scores:
        return Scores(torch.tensor([float(len(text)) for text in request.completions]))


@dataclass
class Plain:
    """A verifier made of a function."""

    check: Callable[[str, Task], Verdict]
    name: str = "plain"
    decides: bool = True
    slow: bool = False

    def verify(self, completion: str, task: Task) -> Verdict:
        return self.check(completion, task)

    def accepted(self, task: Task) -> str | None:
        return "right"

    def rejected(self, task: Task) -> str | None:
        return "wrong"


def test_the_total_is_the_weighted_sum_of_the_parts() -> None:
    source = VerifiedReward(
        [Weighted(Numeric()), Weighted(Length(most=1), 0.5)], learned=Learned(), learned_weight=0.01
    )
    scores = source.score(request((row(gold="4"), ["4", "5 and 6"]), (row(gold="7"), ["7", "none"])))
    assert source.name == "numeric + length + learned"
    assert {name: part.tolist() for name, part in scores.parts.items()} == {
        "numeric": [1, pytest.approx(0.1), 1, 0],
        "length": [1, 0, 1, 1],
        "learned": [1, 7, 1, 4],
    }
    assert scores.total.tolist() == pytest.approx([1.51, 0.17, 1.51, 0.54]) and scores.total.dtype == torch.float32
    assert scores.failures == {}


def test_right_is_what_every_deciding_verifier_found_right() -> None:
    lists_b = Plain(lambda completion, task: Verdict(float("b" in completion), completion[-1:]))
    source = VerifiedReward([Weighted(Length(most=1)), Weighted(Numeric(), 0.0), Weighted(lists_b)])
    scores = source.score(request((row(gold="4"), ["4 b", "4", "5 b", "a"])))
    assert scores.right is not None and scores.right.dtype == torch.bool
    assert scores.right.tolist() == [True, False, False, False]
    assert scores.answers == ["4", "4", "5", None]


def test_rules_of_form_decide_nothing() -> None:
    scores = VerifiedReward([Weighted(Length(most=1))]).score(request((row(), ["a"])))
    assert scores.right is None and scores.answers is None


def test_a_completion_that_cannot_be_checked_scores_nothing_there_and_says_why() -> None:
    def check(completion: str, task: Task) -> Verdict:
        if completion == "slow":
            raise VerifierError("out of time")
        return Verdict(1.0)

    parts = [Weighted(Plain(check)), Weighted(Plain(check, name="other"), 2.0), Weighted(Length(most=9), 0.25)]
    scores = VerifiedReward(parts).score(request((row(), ["fast", "slow"])))
    assert scores.total.tolist() == [3.25, 0.25]
    assert scores.failures == {1: "plain: out of time; other: out of time"}
    assert scores.right is not None and scores.right.tolist() == [True, False]


def test_two_parts_of_one_name_are_told_apart() -> None:
    parts = [Weighted(Pattern("a")), Weighted(Pattern("b")), Weighted(Pattern("c"))]
    scores = VerifiedReward(parts).score(request((row(), ["b"])))
    assert {name: part.item() for name, part in scores.parts.items()} == {"pattern": 0, "pattern-2": 1, "pattern-3": 0}


def test_a_python_function_is_a_part(tmp_path: Path) -> None:
    file = tmp_path / "politeness.py"
    file.write_text("def please(prompts, completions):\n    return ['please' in text for text in completions]\n")
    function = FunctionReward(f"{file}:please")
    scores = VerifiedReward([Weighted(function, 0.5), Weighted(Numeric())]).score(
        request((row(gold="4"), ["4 please", "4"]))
    )
    assert scores.total.tolist() == [1.5, 1.0] and scores.right is not None and scores.right.all()


def test_a_functions_failures_are_kept() -> None:
    class Source:
        name = "source"

        def score(self, request: ScoreRequest) -> Scores:
            return Scores(torch.zeros(2), failures={1: "no idea"})

    assert VerifiedReward([Weighted(Source())]).score(request((row(), ["a", "b"]))).failures == {1: "source: no idea"}


def test_slow_verifiers_run_in_several_threads_and_keep_the_order() -> None:
    both = threading.Barrier(2, timeout=30)

    def check(completion: str, task: Task) -> Verdict:
        both.wait()  # returns only when two threads are here
        time.sleep(0.01 * (completion == "0"))
        return Verdict(int(completion) / 10)

    scores = VerifiedReward([Weighted(Plain(check, slow=True))]).score(request((row(), ["0", "1", "2", "3"])))
    assert scores.total.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])


def test_only_the_first_process_verifies() -> None:
    class Second(Group):
        count, index = 2, 1

        def gather(self, mine: T) -> list[T]:
            return [(first, None), mine]  # type: ignore[list-item]

    def fail(completion: str, task: Task) -> Verdict:
        raise AssertionError("the second process verifies nothing")

    first: list[Any] = []
    VerifiedReward(
        [Weighted(Numeric()), Weighted(Learned())],
        group=type("First", (Group,), {"from_main": lambda self, make: first.extend(make()) or first})(),
    ).score(request((row(gold="4"), ["4"])))
    scores = VerifiedReward([Weighted(Plain(fail)), Weighted(Learned())], group=Second()).score(
        request((row(gold="4"), ["4"]))
    )
    assert scores.total.tolist() == [2.0]


@pytest.mark.parametrize("slow", [False, True])
def test_a_broken_verifier_is_named_with_the_place(slow: bool) -> None:
    def fail(completion: str, task: Task) -> Verdict:
        raise ZeroDivisionError("by\nzero")

    with pytest.raises(RewardError) as caught:
        VerifiedReward([Weighted(Plain(fail, slow=slow))]).score(request((row(3), ["a\x1b"])))
    assert str(caught.value) == (
        "d.jsonl:3: verifier plain, on the completion 'a\\x1b', failed: ZeroDivisionError: by\\nzero"
    )


@pytest.mark.parametrize("score", [1.5, -0.1, float("nan")])
def test_a_score_outside_0_to_1_is_an_error(score: float) -> None:
    with pytest.raises(RewardError) as caught:
        VerifiedReward([Weighted(Plain(lambda completion, task: Verdict(score)))]).score(request((row(3), ["a"])))
    assert str(caught.value) == (
        f"d.jsonl:3: verifier plain, on the completion 'a', gave {score:g}; a verifier's score is between 0 and 1"
    )


@pytest.mark.parametrize(
    ("row", "gold", "expected"),
    [
        (row(gold="1", answer="2", own="3"), "own", ("3", None)),
        (row(gold="1", answer="2"), None, ("1", None)),
        (row(answers=["full"], answer="2"), None, ("2", "full")),
        (row(answers=["full"]), None, ("full", "full")),
        (row(answers=["a", "b"]), None, (None, None)),
        (Row((), ("bad", "good"), (0.0, 1.0), columns={"gold": "g"}), None, ("g", "good")),
        (row(), None, (None, None)),
    ],
)
def test_gold_and_solution_are_read_from_the_row(row: Row, gold: str | None, expected: tuple[Any, Any]) -> None:
    task = task_of(row, "prompt", gold=gold)
    assert (task.gold, task.solution) == expected and (task.prompt, task.place) == ("prompt", row.place)


def test_a_missing_column_of_gold_answers_is_named() -> None:
    with pytest.raises(DataError) as caught:
        VerifiedReward([Weighted(Numeric())], gold="label").score(request((row(3, answer="4", level=2), ["4"])))
    assert str(caught.value) == "d.jsonl:3: there is no column 'label' with a gold answer; the row has answer, level"


def test_a_completion_without_a_row_has_no_gold_answer() -> None:
    with pytest.raises(DataError) as caught:
        VerifiedReward([Weighted(Numeric())]).score(request((None, ["4"])))
    assert str(caught.value) == "no gold answer"


def test_gold_answers_that_are_accepted_raise_nothing() -> None:
    rows = [row(1, gold="4"), row(2, answer="so #### 5"), row(3, ["It is 6"], gold=6)]
    check_gold([Numeric(), Exact(), AnswerFormat(), Length(most=1)], rows[:2])
    check_gold([Numeric(extract="boxed")], rows)
    options = Row((Message("system", "Choose."), Message("user", "A. one\nB. two")), columns={"gold": "B"})
    check_gold([Choice()], [options])


def test_rows_that_do_not_pass_their_own_check_are_counted_and_three_are_shown() -> None:
    rows = [row(1, gold="4"), row(2), row(3, gold="four"), row(4, ["#### 5"], gold="6"), row(5), row(6, gold="7")]
    with pytest.raises(DataError) as caught:
        check_gold([Length(most=1), Numeric()], rows)
    assert with_remedy(caught.value) == (
        "numeric: 4 of 6 rows do not pass their own check: d.jsonl:2: no gold answer; "
        "d.jsonl:3: the gold answer 'four' is not a number; d.jsonl:4: scored the right answer '#### 5' 0.1; "
        "correct these rows, name the right column (reward.gold, or --gold in eval), or take that verifier out"
    )


def test_a_verifier_that_accepts_everything_is_found_out() -> None:
    with pytest.raises(DataError) as caught:
        check_gold([Plain(lambda completion, task: Verdict(1.0))], [row(1), row(2)])
    assert str(caught.value) == (
        "plain: 2 of 2 rows do not pass their own check: d.jsonl:1: scored the wrong answer 'wrong' 1; "
        "d.jsonl:2: scored the wrong answer 'wrong' 1"
    )


def test_what_a_verifier_notes_is_told() -> None:
    noting = Plain(lambda completion, task: Verdict(0.1, note="NameError: x" if completion == "right" else None))
    with pytest.raises(DataError, match=r": d.jsonl:1: scored the right answer 'right' 0.1 \(NameError: x\)$"):
        check_gold([noting], [row(1)])
    parts = [Weighted(noting), Weighted(noting), Weighted(Length(most=9))]
    scores = VerifiedReward(parts).score(request((row(), ["wrong", "right"])))
    assert scores.notes == {1: "plain: NameError: x; plain-2: NameError: x"}
    assert scores.only([1, 1]).notes == {0: scores.notes[1], 1: scores.notes[1]}


def test_slow_verifiers_take_the_cores_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    names: set[str] = set()

    def check(completion: str, task: Task) -> Verdict:
        names.add(threading.current_thread().name)
        time.sleep(0.01)
        return Verdict(1.0)

    VerifiedReward([Weighted(Plain(check, slow=True))]).score(request((row(), ["a"] * 8)))
    assert len(names) == 1


def test_a_gold_answer_that_cannot_be_checked_is_told() -> None:
    def fail(completion: str, task: Task) -> Verdict:
        raise VerifierError("out of time")

    with pytest.raises(DataError) as caught:
        check_gold([Plain(fail, slow=True)], [Row((), place="")])
    assert str(caught.value) == (
        "plain: 1 of 1 rows do not pass their own check: row 1: could not check 'right': out of time"
    )


def test_the_end_of_a_long_solution_is_shown() -> None:
    with pytest.raises(DataError) as caught:
        check_gold([Numeric()], [row(1, ["word " * 100 + "\x1b#### 5"], gold="6")])
    assert str(caught.value).endswith(f"scored the right answer '...{'word ' * 10}\\x1b#### 5' 0.1")


def test_every_solution_of_gsm8k_is_accepted_and_its_twin_rejected(shared: Path) -> None:
    folder = shared / "data" / "gsm8k"
    rows = read_files([folder / "train.jsonl.gz", folder / "test.jsonl.gz"])
    assert len(rows) == 8792
    check_gold([Numeric()], rows)
    check_gold([Numeric(extract="tag"), Numeric(extract="boxed"), Exact(extract="hash")], rows[:500])
    verifier = Numeric()
    for row in rows[:500]:
        task = task_of(row, "")
        assert task.solution and verifier.rejected(task).startswith(plain_numbers(task.solution).rpartition("#### ")[0])
        assert verifier.verify(verifier.rejected(task), task).score == 0.1
