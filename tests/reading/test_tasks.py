"""Tasks whose answers can be checked, in their published layouts: what becomes prompt, gold answer and tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from onebase.data.remarks import remarks
from onebase.reading.formats import read_rows
from onebase.reading.layouts import final_answer
from onebase.reading.tasks import last_boxed
from tests.reading.test_formats import only, refusal, user, written

# worked solutions


def test_the_final_answer_of_gsm8k_is_gold_and_its_solution_the_answer(tmp_path: Path) -> None:
    solution = "He has 500 + 500 = 1,000 pens.\n#### 1,000"
    row = only(tmp_path, {"question": "How many?", "answer": solution})
    assert row.messages == (user("How many?"),) and row.answers == (solution,) and row.notes == ()
    assert row.columns == {"answer": solution, "gold": "1,000"}
    own = only(tmp_path, {"question": "How many?", "answer": solution, "gold": "a thousand"})
    assert own.columns["gold"] == "a thousand"


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        ("so\n#### -3", "-3"),
        ("so\n####7 \n", "7"),
        ("#### 1\nno,\n#### 2", "2"),
        ("so\r\n#### $5\r\n", "$5"),
        ("#### A heading\nand its text", None),
        ("so\n####", None),
        ("so\n#### \n", None),
        ("costs #### 4", None),
        ("42", None),
    ],
)
def test_only_a_last_line_after_four_marks_is_a_final_answer(solution: str, gold: str | None) -> None:
    assert final_answer(solution) == gold


def test_every_real_gsm8k_row_has_its_number(shared: Path) -> None:
    for name in ("train", "test"):
        for row in read_rows(shared / f"data/gsm8k/{name}.jsonl.gz"):
            assert row.columns["answer"].rpartition("#### ")[2] == row.columns["gold"]
            assert re.fullmatch(r"-?[\d,]*\.?\d+", row.columns["gold"]), row.place


MATH = {"problem": "What is half?", "level": "Level 1", "type": "Algebra", "solution": "It is $\\boxed{\\frac{1}{2}}$."}


def test_what_a_math_solution_boxes_last_is_gold(tmp_path: Path) -> None:
    row = only(tmp_path, MATH)
    assert row.messages == (user("What is half?"),) and row.answers == (MATH["solution"],) and row.notes == ()
    assert row.columns == {"level": "Level 1", "type": "Algebra", "gold": "\\frac{1}{2}"}
    given = only(tmp_path, {**MATH, "answer": "0.5"})
    assert given.answers == (MATH["solution"],) and given.columns["gold"] == given.columns["answer"] == "0.5"
    alone = only(tmp_path, {"problem": "1 + 1?", "answer": 2})
    assert alone.answers == ("2",) and alone.columns == {"answer": 2, "gold": "2"}


@pytest.mark.parametrize(
    ("solution", "gold"),
    [
        (r"$\boxed{4}$", "4"),
        (r"first \boxed{1}, then \boxed{\sqrt{2^{3}}}.", r"\sqrt{2^{3}}"),
        (r"$\boxed{\left\{ x \right. }$ {", r"\left\{ x \right."),
        (r"$\boxed {5}$", "5"),
        (r"so $\fbox{7}$", "7"),
        (r"so $\boxed 2$.", "2"),
        (r"\boxed{}", None),
        (r"\boxed{1", None),
        (r"\boxedtext{1}", None),
        ("", None),
    ],
)
def test_the_last_box_is_read_with_its_braces_matched(solution: str, gold: str | None) -> None:
    assert last_boxed(solution) == gold


def test_deep_braces_take_no_time() -> None:
    assert last_boxed("\\boxed" + "{" * 200_000) is None
    deep = "{" * 100_000 + "1" + "}" * 100_000
    assert last_boxed("\\boxed{" + deep + "}") == deep


def test_a_solution_without_a_box_has_no_gold_and_says_so(tmp_path: Path) -> None:
    row = only(tmp_path, {**MATH, "solution": "By induction."})
    assert row.answers == ("By induction.",) and "gold" not in row.columns
    assert row.notes == ("no \\boxed{..} in 'solution' to read the gold answer from",)
    message = refusal(tmp_path, {"problem": "q", "answer": ["2"]})
    assert message == "'answer' is a list; expected the final answer, a text or a number"
    for blank in (None, " "):
        assert "expected the final answer" in refusal(tmp_path, {"problem": "q", "answer": blank, "solution": ""})


# word problems

SVAMP = {"ID": "chal-1", "Body": "Ann had 12 pens. ", "Question": "How many are 2 less?", "Answer": 10.0, "Type": "Sub"}


def test_a_body_and_its_question_are_one_prompt(tmp_path: Path) -> None:
    row = only(tmp_path, {**SVAMP, "Equation": "( 12.0 - 2.0 )"})
    assert row.messages == (user("Ann had 12 pens. How many are 2 less?"),) and row.answers == ("10",)
    assert row.columns == {
        "ID": "chal-1",
        "Answer": 10.0,
        "Type": "Sub",
        "Equation": "( 12.0 - 2.0 )",
        "gold": "10",
    }
    small = only(tmp_path, {key.lower(): value for key, value in SVAMP.items()})
    assert small.messages == row.messages and small.columns["gold"] == "10"
    joined = only(tmp_path, {"question_concat": "1 + 1?", "Answer": "2.0"})
    assert joined.messages == (user("1 + 1?"),) and joined.columns["gold"] == "2.0"


def test_the_keys_that_were_found_are_said_once(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, [SVAMP, {**SVAMP, "Body": "Bob had 12 pens."}]))
    said = remarks(rows, [])
    path = tmp_path / "rows.jsonl"
    assert said == [
        f"question read from 'Body' and 'Question', gold from 'Answer': 2 rows ({path}:1, {path}:2)",
        f"{path}: in no prompt and no answer, columns for reward functions only: ID (2 rows), Type (2 rows)",
    ]
    row = only(tmp_path, {"question": "1 + 1?", "golden": "2"})
    assert row.notes == ("question read from 'question', gold from 'golden'",)


def test_a_number_beside_the_question_is_gold(tmp_path: Path) -> None:
    row = only(tmp_path, {"question": "小明有3支笔，又买了2支，共几支？", "golden": "5", "grade": 1, "num_digits": 1})
    assert row.messages[0].content.startswith("小明") and row.answers == ("5",)
    assert row.columns == {"golden": "5", "grade": 1, "num_digits": 1, "gold": "5"}
    worked = only(tmp_path, {"question": "q", "answer": "3 + 2 = 5", "answer_number": 5})
    assert worked.answers == ("3 + 2 = 5",) and worked.columns["gold"] == "5"
    assert only(tmp_path, {"question": "q", "answer": 2.5}).columns == {"answer": 2.5, "gold": "2.5"}
    assert only(tmp_path, {"problem": "q", "golden": "x^2"}).columns["gold"] == "x^2"


@pytest.mark.parametrize(
    ("answer", "found"), [(None, "null"), (True, "the boolean true"), ([5], "a list"), ("", 'the string ""')]
)
def test_a_number_that_is_none_is_named(tmp_path: Path, answer: object, found: str) -> None:
    message = refusal(tmp_path, {**SVAMP, "Answer": answer})
    assert message == f"'Answer' is {found}; expected the final answer, a text or a number"
    assert refusal(tmp_path, {**SVAMP, "Body": 3}) == "'Body' is the number 3; expected a string"


# multiple choice

AQUA = {"question": "What is 3 * 7?", "options": ["A)20", "B)21", "C)22"], "rationale": "3 * 7 = 21", "correct": "B"}


def test_options_end_the_prompt_and_the_letter_is_gold(tmp_path: Path) -> None:
    row = only(tmp_path, AQUA)
    assert row.messages == (user("What is 3 * 7?\nA)20\nB)21\nC)22"),) and row.answers == ("3 * 7 = 21",)
    assert row.columns == {"options": AQUA["options"], "correct": "B", "gold": "B"} and row.notes == ()


@pytest.mark.parametrize(
    ("more", "gold", "note"),
    [
        ({"choices": ["20", "21"], "answer": 1}, "B", "the number in 'answer' read as its option's letter, so A for 0"),
        ({"choices": ["20", "21"], "answer": "A"}, "A", None),
        ({"choices": ["20", "21"], "answer": "(B)."}, "B", None),
        ({"options": {"A": "20", "B": "21"}, "answer": "B"}, "B", None),
        ({"choices": {"text": ["20", "21"], "label": ["A", "B"]}, "answerKey": "B"}, "B", None),
        (
            {"choices": {"text": ["20", "21"], "label": ["1", "2"]}, "answerKey": "2"},
            "B",
            "the label in 'answerKey' read as its option's letter, so A for 1",
        ),
        ({"choices": ["20", "21"], "answer": "21"}, "B", "the text in 'answer' read as its option's letter"),
        (
            {"choices": {"text": ["20", "21"]}, "label": 0},
            "A",
            "the number in 'label' read as its option's letter, so A for 0",
        ),
    ],
)
def test_the_right_option_may_be_a_letter_a_label_a_place_or_a_text(
    tmp_path: Path, more: dict[str, Any], gold: str, note: str | None
) -> None:
    row = only(tmp_path, {"question": "What is 3 * 7?", **more})
    assert row.messages == (user("What is 3 * 7?\nA) 20\nB) 21"),)
    assert row.columns["gold"] == gold and row.answers == (gold,)
    assert row.notes == (() if note is None else (note,))


def test_options_that_the_question_lists_are_not_listed_twice(tmp_path: Path) -> None:
    options = {"choices": ["20", "21"], "answer": "B"}
    for question in ("What is 3 * 7?\nA. 20\nB. 21", "What is 3 * 7? (A) 20 (B) 21"):
        assert only(tmp_path, {"question": question, **options}).messages == (user(question),)
    # The numbers alone say nothing of letters.
    row = only(tmp_path, {"question": "Which is 3 * 7, 20 or 21?", **options})
    assert row.messages == (user("Which is 3 * 7, 20 or 21?\nA) 20\nB) 21"),)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "?"}, {"role": "user", "content": "q"}]
    row = only(tmp_path, {"prompt": turns, **options})
    assert [turn.content for turn in row.messages] == ["Hi", "?", "q\nA) 20\nB) 21"]


def test_a_choice_that_cannot_be_told_is_named(tmp_path: Path) -> None:
    needed = "expected one of A, B, C, a place from 0 to 2, or the text of one option"
    for wrong, found in (("D", 'string "D"'), (3, "number 3"), (-1, "number -1"), (True, "boolean true")):
        assert refusal(tmp_path, {**AQUA, "correct": wrong}) == f"'correct' is the {found}; {needed}"
    twice = {"question": "q", "choices": ["x", "x"], "answer": "x"}
    assert refusal(tmp_path, twice).endswith("expected one of A, B, a place from 0 to 1, or the text of one option")
    texts = "expected 2 to 26 texts, one per option"
    assert refusal(tmp_path, {**AQUA, "options": ["A)1"]}) == f"'options' is a list; {texts}"
    assert refusal(tmp_path, {**AQUA, "options": "A or B"}) == f"'options' is the string \"A or B\"; {texts}"
    assert refusal(tmp_path, {**AQUA, "options": ["A", 2]}) == f"'options' is the number 2; {texts}"
    few = {"question": "q", "choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"}
    assert refusal(tmp_path, few) == "'choices.label' is a list; expected a list of 2 labels, one per option"


# code

MBPP = {
    "text": "Write a function that doubles.",
    "code": "def double(x):\r\n\treturn 2 * x",
    "task_id": 7,
    "test_setup_code": "",
    "test_list": ["assert double(2) == 4", "assert double(0) == 0"],
    "challenge_test_list": [],
}


def test_the_tests_of_a_code_task_are_in_the_prompt_and_in_a_column(tmp_path: Path) -> None:
    row = only(tmp_path, MBPP)
    tests = "Your code should pass these tests:\nassert double(2) == 4\nassert double(0) == 0"
    asked = f"Write a function that doubles.\n{tests}"
    assert row.messages == (user(asked),) and row.answers == ("def double(x):\n\treturn 2 * x",)
    assert row.columns == {"task_id": 7, "challenge_test_list": [], "tests": MBPP["test_list"], "setup": ""}
    sanitized = {"prompt": MBPP["text"], "test_imports": ["import math", "import re"]}
    row = only(tmp_path, {**{k: MBPP[k] for k in ("code", "task_id", "test_list")}, **sanitized})
    assert row.messages == (user(asked),) and row.columns["setup"] == "import math\nimport re"
    assert only(tmp_path, {**MBPP, "test_setup_code": "x = 1\r\ny = 2"}).columns["setup"] == "x = 1\ny = 2"


def test_bad_code_tasks_are_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, {**MBPP, "test_list": []}) == "'test_list' is an empty list; expected a list of tests"
    assert refusal(tmp_path, {**MBPP, "test_list": [1]}) == "'test_list' is the number 1; expected a string"
    assert refusal(tmp_path, {**MBPP, "code": None}) == "'code' is null; expected a string"
    assert refusal(tmp_path, {**MBPP, "test_imports": "re"}) == (
        "'test_imports' is the string \"re\"; expected a list of import lines"
    )


def run(*programs: str) -> None:
    names: dict[str, Any] = {}
    for program in programs:
        exec(program, names)


def test_a_function_to_complete_keeps_what_its_check_needs(tmp_path: Path) -> None:
    row = only(
        tmp_path,
        {
            "task_id": "Own/0",
            "prompt": 'def double(x):\n    """Twice x."""\n',
            "canonical_solution": "    return 2 * x\n",
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            "entry_point": "double",
        },
    )
    columns = row.columns
    assert row.messages == (user(columns["code_prompt"]),) and row.answers == ("    return 2 * x\n",)
    assert columns["entry_point"] == "double" and columns["setup"] == "" and columns["task_id"] == "Own/0"
    run(columns["setup"], columns["code_prompt"] + row.answers[0], *columns["tests"])
    with pytest.raises(AssertionError):
        run(columns["code_prompt"] + "    return x\n", *columns["tests"])
    broken = {"prompt": "p", "canonical_solution": "c", "test": "t", "entry_point": None}
    assert refusal(tmp_path, broken) == "'entry_point' is null; expected a string"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the file's own code
def test_the_real_mbpp_rows_pass_their_own_tests(shared: Path) -> None:
    """The first hundred, in this process: they are known to be harmless."""
    rows = read_rows(shared / "data/mbpp/mbpp.jsonl.gz")
    assert sum(bool(row.columns["setup"]) for row in rows) == 2
    assert all(len(row.columns["tests"]) == 3 and "\r" not in row.answers[0] for row in rows)
    assert all(test in row.messages[0].content for row in rows for test in row.columns["tests"])
    for row in rows[:100]:
        run(row.columns["setup"], row.answers[0], *row.columns["tests"])
