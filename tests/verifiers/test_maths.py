"""The verifier maths: equal expressions are right, and no answer keeps it busy."""

from __future__ import annotations

import gzip
import importlib.util
import json
import time
from pathlib import Path

import pytest

from onebase.config.remedies import with_remedy
from onebase.errors import DataError, MissingExtraError, VerifierError
from onebase.verifiers.maths import Maths
from onebase.verifiers.verifier import Task


@pytest.mark.parametrize(
    ("completion", "gold", "score", "answer"),
    [
        ("so it is 42.\n#### 42", "42", 1.0, "42"),
        ("it is 43", 42, 0.1, "43"),
        ("I do not know", "42", 0.0, None),
        ("", "42", 0.0, None),
        (r"\boxed{\frac{1}{2}}", "0.5", 1.0, "0.5"),
        ("The answer is 0.5", r"\frac{1}{2}", 1.0, "0.5"),
        (r"\boxed{\{1,2\}}", r"\{2,1\}", 1.0, "{1, 2}"),
        ("1,234", "1,234", 1.0, "1234"),
        (r"\boxed{x=3}", "3", 1.0, "3"),
        (r"\boxed{(x+1)^2}", "x^2+2x+1", 1.0, "x**2 + 2*x + 1"),
        (r"\boxed{1.0}", "1", 1.0, "1"),
        (r"\boxed{__import__('os').getcwd()}", "1", 0.1, "__import__(os).getcwd()"),
        ("\ud800 \\boxed{7}", "7", 1.0, "7"),
    ],
)
def test_an_answer_is_compared_as_an_expression(
    completion: str, gold: object, score: float, answer: str | None
) -> None:
    assert Maths().verify(completion, Task("", gold=gold))[:2] == (score, answer)


@pytest.mark.parametrize(
    "texts",
    [(r"\boxed{1/2}", r"\boxed{0.5}", r"\boxed{\frac{2}{4}}"), (r"\boxed{\sqrt{8}}", r"\boxed{2\sqrt{2}}"),
     (r"\boxed{\{2,1\}}", r"\boxed{\{1,2\}}"), (r"\boxed{x(x+1)}", r"\boxed{x^2+x}")],
)  # fmt: skip
def test_equal_answers_are_equal_texts(texts: tuple[str, ...]) -> None:
    assert len({Maths().verify(text, Task("", gold="7919")).answer for text in texts}) == 1


@pytest.mark.parametrize(
    "completion",
    ["9**9**9**9", r"\boxed{9^{9^{9^{9}}}}", r"\boxed{10^{10^{10}}}", r"\boxed{((((9!)!)!)!)!}", r"\boxed{100!!!!}",
     "{" * 100_000, r"\boxed{" * 15_000, "1" * 100_000, r"\boxed{" + "(" * 5_000 + ")" * 5_000 + "}",
     r"\boxed{\prod_{k=1}^{10^8} k}", r"\boxed{\int_0^1 x^x^x^x dx}", r"\boxed{(x+y+z)^{1000000}}", "\0" * 1_000],
    ids=lambda text: text[:24].replace("\0", "0"),
)  # fmt: skip
def test_a_hostile_answer_is_wrong_or_an_error_in_time(completion: str) -> None:
    start = time.monotonic()
    try:
        assert Maths(timeout=1.5).verify(completion, Task("", gold="1")).score < 1
    except VerifierError as error:
        assert str(error) in ("took longer than 1.5 s", "its process was killed (out of memory?)")
    assert time.monotonic() - start < 1.5 + 4.0  # starting the next process included


def test_a_row_without_a_readable_gold_is_an_error() -> None:
    with pytest.raises(VerifierError, match=r"^a.jsonl:3: gold answer \$\$ is not an expression$"):
        Maths().verify("1", Task("", gold="$$", place="a.jsonl:3"))
    maths = Maths()
    for gold in (None, " "):
        task = Task("", gold=gold, solution="it is 3", place="a.jsonl:3")
        for ask in (lambda task: maths.verify("1", task), maths.accepted, maths.rejected):
            with pytest.raises(DataError, match="^a.jsonl:3: no gold answer$") as caught:
                ask(task)
            assert "reward.gold" in with_remedy(caught.value)


@pytest.mark.parametrize(
    "gold", ["72", "1,234", "-3", "0.5", r"\frac{1}{2}", "(1,2)", r"\{1,2\}", "x+1", r"\text{A}", "7"]
)
def test_the_twins_of_a_row_score_one_and_less(gold: str) -> None:
    maths, task = Maths(), Task("", gold=gold)
    accepted, rejected = maths.accepted(task), maths.rejected(task)
    assert accepted is not None and maths.verify(accepted, task).score == 1
    assert rejected is not None and maths.verify(rejected, task).score == 0.1


def test_solutions_of_real_problems_are_right(shared: Path) -> None:
    with gzip.open(shared / "data/gsm8k/test.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(200), strict=False)]
    tasks = [Task("", gold=row["answer"].split("####")[1].strip(), solution=row["answer"]) for row in rows]
    maths = Maths()
    wrong = [task.solution for task in tasks if maths.verify(str(maths.accepted(task)), task).score != 1]
    assert len(wrong) == 0
    assert all(maths.verify(str(maths.rejected(task)), task).score < 1 for task in tasks[:50])


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"^the verifier maths needs math-verify: pip install 'onebase\[rft\]'$"
    ):
        Maths()
