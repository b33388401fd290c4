from __future__ import annotations

import pytest

from onebase.verifiers.exact import Exact, same_text
from onebase.verifiers.verifier import Task


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("Paris", "Paris"),
        ("PARIS.", "paris"),
        ("<answer>\n the  White\tHouse </answer>", "The White House"),
        ("I think: \\boxed{Paris}", "paris"),
        ('The answer is "Paris".', "Paris"),
        ("ｐａｒｉｓ", "Paris"),
        ("答案是巴黎。", "巴黎"),
        ("thoughts\nLondon", ["Paris", "London"]),
        ("?", "?"),
        ("Straße", "STRASSE"),
        ("7", 7),
    ],
)
def test_the_gold_text_is_right(completion: str, gold: object) -> None:
    assert Exact().verify(completion, Task("", gold)).score == 1


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("London", "Paris"),
        ("Paris, France", "Paris"),
        ("-5", "5"),
        ("C#", "C"),
        ("Paris\nLondon", "Paris"),
        ("a", ["b"]),
    ],
)
def test_another_text_is_wrong(completion: str, gold: object) -> None:
    assert Exact().verify(completion, Task("", gold)).score == 0.1


def test_capital_letters_may_count() -> None:
    assert Exact(ignore_case=False).verify("paris", Task("", "Paris")).score == 0.1
    assert Exact(ignore_case=False).verify("Paris", Task("", "Paris")).score == 1


def test_no_answer_scores_nothing() -> None:
    assert Exact().verify("  \n", Task("", "Paris"))[:2] == (0.0, None)
    assert Exact(extract="tag").verify("Paris", Task("", "Paris"))[:2] == (0.0, None)


def test_equal_answers_are_equal_texts() -> None:
    assert {same_text(text) for text in (" The  White House.", "the white house", "**THE WHITE HOUSE**")} == {
        "the white house"
    }


@pytest.mark.parametrize("extract", ["auto", "tag", "boxed", "hash", "last"])
@pytest.mark.parametrize("gold", ["Paris", "7", ["Paris", "not Paris"], "two words"])
@pytest.mark.parametrize("solution", [None, "It is easy."])
def test_the_gold_answer_is_accepted_and_its_twin_rejected(gold: object, solution: str | None, extract: str) -> None:
    first = gold[0] if isinstance(gold, list) else gold
    task = Task("", gold, solution and f"{solution}\n{first}")
    verifier = Exact(extract=extract)
    assert verifier.verify(verifier.accepted(task), task).score == 1
    assert verifier.verify(verifier.rejected(task), task).score == 0.1
    assert solution is None or solution in verifier.rejected(task)
