from __future__ import annotations

import pytest

from onebase.errors import DataError
from onebase.verifiers.choice import Choice, options_in, options_of
from onebase.verifiers.verifier import Task, Verdict

PROMPT = "Which is the capital of France?\nA. London\nB. Paris\nC) Rome\n(D) Bonn"


def verdict(completion: str, gold: object = "B") -> tuple[float, str | None]:
    return Choice().verify(completion, Task(PROMPT, gold))[:2]


@pytest.mark.parametrize(
    "completion",
    [
        "B",
        "(B)",
        "B)",
        "b",
        "B.",
        "(b)",
        "The answer is B.",
        "The answer is (B) Paris",
        "B. Paris",
        "Paris",
        "**B**",
        "B is right",
        "\\boxed{B}",
        "<answer>B</answer>",
        "Option B",
        "答案是B。",
        "选B",
        "I weigh A and C.\nThe answer is probably B",
        "It is on the Seine.\nparis.",
        "The answer is Paris.",
    ],
)
def test_a_letter_or_the_text_of_an_option_is_read(completion: str) -> None:
    assert verdict(completion) == (1.0, "B")


@pytest.mark.parametrize(
    ("completion", "letter"), [("A", "A"), ("C. Paris", "C"), ("The answer is D", "D"), ("Rome", "C")]
)
def test_another_option_is_wrong(completion: str, letter: str) -> None:
    assert verdict(completion) == (0.1, letter)


@pytest.mark.parametrize(
    "completion", ["", "E", "Berlin", "B or C", "A or B", "either A, B or C", "A dog", "I do not know"]
)
def test_no_option_or_several_are_no_answer(completion: str) -> None:
    assert verdict(completion) == (0.0, None)


@pytest.mark.parametrize("gold", ["B", "b", "(B)", "B. Paris", "Paris", "... #### B"])
def test_the_gold_answer_is_a_letter_or_a_text(gold: str) -> None:
    assert verdict("B", gold) == (1.0, "B")


def test_options_may_stand_in_one_line_and_the_last_question_counts() -> None:
    assert options_in("Q: A) one B) two\nAnswer: A\n\nQ: (A) red (B) green (C) blue") == {
        "A": "red",
        "B": "green",
        "C": "blue",
    }
    assert options_in("A. one\nC. three\nB. two") == {"A": "one", "B": "two"}
    assert options_in("题:A、一 B、二") == {} and options_in("题\nＡ．一\nＢ．二") == {"A": "一", "B": "二"}


@pytest.mark.parametrize("end", ["\nA:", "\n\nA: ", "\nA. ", "\nA: Let me think."])
def test_the_place_for_the_answer_is_no_option(end: str) -> None:
    asked = "Q: Which is a colour?\n(A) four (B) red"
    assert options_in(asked + end) == {"A": "four", "B": "red"}
    assert options_in(f"{asked}\nA: B\n\nQ: And a number?\nA) six\nB) blue{end}") == {"A": "six", "B": "blue"}
    assert Choice().verify("B", Task(asked + end, "B")).score == 1


def test_of_a_prompt_that_was_cut_the_options_are_those_of_the_row() -> None:
    expected = {"A": "London", "B": "Paris", "C": "Rome"}
    cut = "Rome\nWhich of these is the capital of France?"
    for columns in (
        {"options": ["London", "Paris", "Rome"]},
        {"options": ["A)London", "B)Paris", "C)Rome"]},
        {"choices": {"label": ["1", "2", "3"], "text": ["London", "Paris", "Rome"]}},
        {"choices": {"A": "London", "B": "Paris", "C": "Rome"}},
    ):
        assert options_of(columns) == expected
        assert Choice().verify("Paris", Task(cut, "B", columns=columns)).score == 1
        assert Choice().verify("The answer is C", Task(cut, "B", columns=columns)) == Verdict(0.1, "C")
    # The prompt comes first: it is what the policy saw.
    assert Choice().verify("Bonn", Task(PROMPT, "D", columns={"options": ["Bonn", "Kiel"]})) == Verdict(1.0, "D")
    for columns in ({}, {"options": "A"}, {"options": [1, 2]}, {"choices": {"text": "x"}}, {"options": ["one"] * 27}):
        assert options_of(columns) == {}


@pytest.mark.parametrize("extract", ["auto", "tag", "boxed", "hash", "last"])
@pytest.mark.parametrize("gold", ["A", "D", "Paris"])
@pytest.mark.parametrize("solution", [None, "We know it.\nThe answer is {}.", "{}"])
def test_the_gold_answer_is_accepted_and_its_twin_rejected(gold: str, solution: str | None, extract: str) -> None:
    task = Task(PROMPT, gold, solution and solution.format(gold))
    verifier = Choice(extract=extract)
    assert verifier.verify(verifier.accepted(task), task).score == 1
    assert verifier.verify(verifier.rejected(task), task).score == 0.1


def test_a_prompt_without_options_is_refused() -> None:
    for call in (Choice().accepted, lambda task: Choice().verify("B", task)):
        with pytest.raises(DataError) as caught:
            call(Task("Capital of France?", "B", place="d.jsonl:3"))
        assert str(caught.value) == (
            "d.jsonl:3: the prompt, as the policy sees it, lists no options to choose from, and the row has none in a "
            "column 'options' or 'choices'; write each as 'A. text', 'A) text' or '(A) text'"
        )


def test_a_gold_answer_that_is_no_option_is_named() -> None:
    with pytest.raises(DataError) as caught:
        Choice().verify("B", Task(PROMPT, "Madrid", place="d.jsonl:3"))
    assert str(caught.value) == (
        "d.jsonl:3: the gold answer 'Madrid' is none of the options A, B, C, D in the prompt; write its letter"
    )
