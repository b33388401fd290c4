from __future__ import annotations

import time
import unicodedata

import pytest

from onebase.errors import ConfigError, DataError
from onebase.verifiers.exact import Exact
from onebase.verifiers.extract import HOW, find_answer, gold_text, plain, wrapped
from onebase.verifiers.verifier import Task

GSM8K = "She sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $<<9*2=18>>18.\n#### 18"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("<think>5?</think><answer> 42 </answer>", "42"),
        ("<ANSWER>42</ANSWER>", "42"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer><answer>3</answer>", "3"),
        ("the box \\boxed{\\frac{1}{2}} holds it", "\\frac{1}{2}"),
        ("\\boxed{1} then \\boxed{ {2} }", "{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("{ never closed \\boxed{7}", "7"),
        (GSM8K, "18"),
        ("so 42 #### 42", "42"),
        ("The answer is Paris.", "Paris"),
        ("The answer is Paris. I hope this helps.", "Paris"),
        ("The final answer is: 3.5", "3.5"),
        ("The answer is:\n\n7", "7"),
        ("**Answer:** 42", "42"),
        ("the answer is J. R. R. Tolkien", "J. R. R. Tolkien"),
        ("所以答案是巴黎。对吗?", "巴黎"),
        ("答案:B", "B"),
        ("The answer is \\boxed{4}.", "4"),
        ("<answer>the answer is 4</answer>", "4"),
        ("<answer>1</answer>\n#### 2", "2"),
        ("#### 2\n<answer>1</answer>", "1"),
        ("no mark\nlast line\n\n", "last line"),
        ("#### \nlast line", "last line"),
        ("## heading\n##### 5\nend", "end"),
        ("<answer></answer>\nend", "end"),
        ("", None),
        (" \n\t", None),
    ],
)
def test_the_last_marked_answer_is_found_or_else_the_last_line(completion: str, answer: str | None) -> None:
    assert find_answer(completion) == answer


@pytest.mark.parametrize(
    ("how", "answer"), [("tag", "1"), ("boxed", "2"), ("hash", "3"), ("last", "the answer is 4"), ("auto", "4")]
)
def test_an_answer_is_looked_for_only_where_it_should_stand(how: str, answer: str) -> None:
    assert find_answer("<answer>1</answer> \\boxed{2}\n#### 3\nthe answer is 4", how) == answer


@pytest.mark.parametrize("how", ["tag", "boxed", "hash"])
def test_without_its_mark_there_is_no_answer(how: str) -> None:
    assert find_answer("the answer is 4", how) is None


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("answer", ["42", "a b", "x = {1}"])
def test_a_wrapped_answer_is_found(how: str, answer: str) -> None:
    assert find_answer(wrapped(answer, how), how) == answer


@pytest.mark.parametrize(
    ("gold", "bare"),
    [("42", "42"), (42, "42"), (GSM8K, "18"), ("so \\boxed{7}", "7"), ("<answer>7</answer>", "7"), (" ４２ ", "42")],
)
def test_a_gold_answer_may_be_a_full_solution(gold: object, bare: str) -> None:
    assert gold_text(gold, Task("")) == bare


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        (None, "d.jsonl:3: no gold answer"),
        ("  ", "d.jsonl:3: the gold answer '  ', which is no text"),
        ({"a": 1}, "d.jsonl:3: the gold answer {'a': 1}, which is no text"),
    ],
)
def test_a_row_without_a_gold_answer_is_named(gold: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        gold_text(gold, Task("", place="d.jsonl:3"))
    assert str(caught.value) == message and caught.value.remedy == "no-gold"


def test_an_unknown_place_for_answers_is_an_error() -> None:
    with pytest.raises(ConfigError) as caught:
        Exact(extract="everywhere")
    assert str(caught.value) == (
        "an answer cannot be looked for by 'everywhere'; it is one of auto, tag, boxed, hash, last"
    )


@pytest.mark.parametrize(
    "piece",
    ["{", "}", "<answer>", "</answer>", "\\boxed{", "\\", "#### ", "####\n", "answer is ", "答案是", "\\boxed "],
)
def test_finding_an_answer_takes_linear_time(piece: str) -> None:
    text = piece * (100_000 // len(piece))
    times = []
    for _ in range(3):
        start = time.perf_counter()
        for how in HOW:
            find_answer(text, how)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.2 * len(HOW)


def test_a_long_run_of_combining_marks_takes_no_quadratic_time() -> None:
    text = "a" + "\u0301\u0316" * 50_000
    start = time.perf_counter()
    normal = plain(text)
    assert time.perf_counter() - start < 1
    assert len(normal) < 40 and plain("e\u0301" * 5) == unicodedata.normalize("NFKC", "e\u0301" * 5)
