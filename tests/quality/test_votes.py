"""Rows that deny each other: the majority stands, and where there is none, nobody does."""

from __future__ import annotations

from typing import Any

from onebase.quality.votes import Denied, Votes
from onebase.records import Message, Row


def pair(better: str, worse: str, prompt: str = "Which?", **more: Any) -> Row:
    return Row((Message("user", prompt),), (better, worse), **{"grades": (1.0, 0.0), **more})


def denied(rows: list[Row], kind: str = "contradictions") -> dict[int, Denied]:
    votes = Votes()
    for number, row in enumerate(rows):
        votes.add(number, row, kind)
    return votes.denied()


def test_of_two_reversed_preferences_neither_stands() -> None:
    rows = [pair("a", "b"), pair("c", "d"), pair("b", "a")]
    assert denied(rows) == {0: Denied(2, (1, 1)), 2: Denied(0, (1, 1))}


def test_the_majority_stands() -> None:
    rows = [pair("a", "b"), pair("b", "a"), pair("a", "b")]
    assert denied(rows) == {1: Denied(0, (1, 2))}


def test_the_order_in_which_answers_are_written_does_not_matter() -> None:
    assert set(denied([pair("a", "b"), pair("a", "b", grades=(0.0, 1.0))])) == {0, 1}
    assert not denied([pair("a", "b"), pair("b", "a", grades=(0.0, 1.0))])


def test_prompts_are_compared_without_case_and_white_space_and_answers_with_case() -> None:
    assert set(denied([pair("a", "b"), pair("b ", "a", prompt=" which?\n")])) == {0, 1}
    assert not denied([pair("a", "b"), pair("b", "a", prompt="Who?")])
    assert not denied([pair("a", "b"), pair("b", "A")])


def test_a_ranked_list_is_denied_by_one_of_its_pairs() -> None:
    ranked = Row((Message("user", "Which?"),), ("a", "b", "c"), grades=(2.0, 1.0, 0.0))
    assert set(denied([ranked, pair("c", "b"), pair("x", "a")])) == {0, 1}


def test_ties_deny_nothing() -> None:
    assert not denied([pair("a", "b"), pair("b", "a", grades=(0.0, 0.0))])


def test_labels_of_one_answer_deny_each_other() -> None:
    def labelled(label: Any, answer: str = "yes") -> Row:
        return Row((Message("user", "Which?"),), (answer,), columns={"label": label})

    assert set(denied([labelled(True), labelled(False), labelled(0, "no")])) == {0, 1}
    texts = [Row((), ("a text",), grades=(grade,)) for grade in (1.0, 1.0, 0.0)]
    assert set(denied(texts)) == {2}


def test_gold_answers_to_one_prompt_deny_each_other() -> None:
    def task(gold: Any, prompt: str = "2 + 2?") -> Row:
        return Row((Message("user", prompt),), (), columns={"gold": gold})

    assert set(denied([task("4"), task("5"), task(" 4 ")], "consistency")) == {1}
    assert set(denied([task("4"), task(5)], "consistency")) == {0, 1}
    assert not denied([task("4"), task("5", "2 + 3?"), task(None), task(["4", "5"])], "consistency")
    assert not denied([task("4"), task("5")], "contradictions")


def test_a_row_is_denied_by_the_first_that_says_otherwise() -> None:
    votes = Votes()
    for index, gold in enumerate(["4", "4", "5", "6"]):
        votes.add(index, Row((Message("user", "2+2?"),), columns={"gold": gold}), "consistency")
    assert {index: denied.by for index, denied in votes.denied().items()} == {2: 0, 3: 0}
    votes.add(4, Row((Message("user", "2+2?"),), columns={"gold": "5"}), "consistency")
    assert {index: denied.by for index, denied in votes.denied().items()} == {0: 2, 1: 2, 2: 0, 3: 0, 4: 0}
