from __future__ import annotations

from fractions import Fraction

import pytest

from onebase.errors import ConfigError, DataError
from onebase.verifiers.numbers import MOST_DIGITS, written
from onebase.verifiers.numeric import Numeric
from onebase.verifiers.verifier import Task


def score(completion: str, gold: object, **options: object) -> float:
    return Numeric(**options).verify(completion, Task("", gold)).score  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("#### 1,234", "1234"),
        ("1,234,567.5", "1234567.5"),
        ("1,00,000", "100000"),
        ("1\u202f234", "1234"),
        ("1'234", "1234"),
        ("1.234.567", "1234567"),
        ("3,5", "3.5"),
        ("0,125", "0.125"),
        ("1.234,5", "1234.5"),
        (".5", "0.5"),
        ("-5", "-5"),
        ("+5", "5"),
        ("\u22125", "-5"),
        ("x = -5", "-5"),
        ("是-5", "-5"),
        ("3/4", "0.75"),
        ("-3/4", "-0.75"),
        ("1 1/2", "1.5"),
        ("1½ cups", "1.5"),
        ("½", "0.5"),
        ("\\boxed{\\frac{3}{4}}", "3/4"),
        ("\\boxed{-\\dfrac{1}{2}}", "-0.5"),
        ("$\\frac12$", "0.5"),
        ("1\\frac{1}{2}", "1.5"),
        ("$1,000", "1000"),
        ("\\$1,000", "1000"),
        ("$1{,}000$", "1000"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("1.2e3", "1200"),
        ("12E-1", "1.2"),
        ("1.2×10^3", "1200"),
        ("$1.2\\times10^{3}$", "1200"),
        ("1.2×10³", "1200"),
        ("2^10", "1024"),
        ("１２３．５", "123.5"),
        ("−１２", "-12"),
        ("٣٫٥", "3.5"),
        ("१२", "12"),
        ("50%", "50"),
        ("50%", "0.5"),
        ("5 million", "5000000"),
        ("1.5万", "15000"),
        ("18 dollars a day", "18"),
        ("18元", "18"),
        ("答案是18。", "18"),
        ("5\\text{ km}", "5"),
        ("She sells 16 - 3 - 4 = 9", "9"),
        ("9-2", "2"),
        ("<answer>9 * 2 = 18</answer>", "18"),
        ("The answer is 18 dollars for 3 days.", "18"),
        ("<answer>5</answer> and the answer is obvious.", "5"),
        ("first 3, then 4, so 7.", "7"),
        ("42.", 42),
        ("3.5", 3.5),
        ("2000 and 1/0", "2000"),
        ("41.99999999", "42"),
        ("0.0000001", "0"),
        ("5 on day 3\n#### 5", "... #### 5"),
    ],
)
def test_a_number_is_read_in_any_usual_writing(completion: str, gold: object) -> None:
    assert score(completion, gold) == 1


@pytest.mark.parametrize(
    ("completion", "gold"),
    [
        ("43", "42"),
        ("-42", "42"),
        ("4,2", "42"),
        ("1/3", "0.33"),
        ("1234568", "1234567"),
        ("1000000001", "1000000000"),
        ("50%", "5"),
        ("10^400", "5"),
        ("42 and then 43", "42"),
        ("<answer>43</answer> 42", "42"),
        ("0.001", "0"),
        ("5", "5%"),
    ],
)
def test_another_number_is_wrong(completion: str, gold: object) -> None:
    assert score(completion, gold) == 0.1 and score(completion, gold, wrong=0.0) == 0


@pytest.mark.parametrize("completion", ["", "none", "inf", "nan", "-Infinity", "1/0", "1e999999999", "9" * 5000, "x5"])
def test_what_is_not_a_number_is_no_answer(completion: str) -> None:
    assert Numeric().verify(completion, Task("", "5"))[:2] == (0.0, None)


@pytest.mark.parametrize(
    ("completion", "gold", "expected"),
    [
        ("5 km", "5 km", 1),
        ("5000 m", "5 km", 1),
        ("5 kilometres", "5 km", 1),
        ("500 g", "0.5 kg", 1),
        ("90 minutes", "1.5 hours", 1),
        ("1800 cents", "$18", 1),
        ("18", "$18", 1),
        ("$18", "18 dollars", 1),
        ("12 inches", "1 foot", 1),
        ("0.25", "25%", 1),
        ("25 percent", "25%", 1),
        ("18 eggs", "18 egg", 1),
        ("5", "5 km", 0.1),
        ("5 kg", "5 km", 0.1),
        ("5 m", "5 km", 0.1),
        ("€18", "$18", 0.1),
        ("18 hens", "18 eggs", 0.1),
    ],
)
def test_a_unit_of_the_gold_answer_has_to_be_there_or_to_convert(completion: str, gold: str, expected: float) -> None:
    assert score(completion, gold) == expected


def test_units_can_be_left_out_of_the_comparison() -> None:
    assert score("5", "5 km", units=False) == 1 and score("5 kg", "5 km", units=False) == 1


def test_a_tolerance_is_a_share_of_the_gold_number() -> None:
    assert score("105", "100", tolerance=0.05) == 1
    assert score("106", "100", tolerance=0.05) == 0.1
    assert score("-95", "-100", tolerance=0.05) == 1
    assert score("0.04", "0", tolerance=0.05) == 1


def test_equal_answers_are_equal_texts() -> None:
    verifier, task = Numeric(), Task("", "5")
    for writings in (["0.75", "3/4", "\\frac{3}{4}", ".750"], ["1200", "1,200", "1.2e3"], ["-0.05", "-5/100"]):
        assert len({verifier.verify(text, task).answer for text in writings}) == 1
    assert verifier.verify("1/3", task).answer == "1/3" and written(Fraction(-1, 20)) == "-0.05"
    assert verifier.verify("9" * MOST_DIGITS, task).answer == "9" * MOST_DIGITS


@pytest.mark.parametrize("extract", ["auto", "tag", "boxed", "hash", "last"])
@pytest.mark.parametrize("gold", ["42", "-3.5", "1/3", "5 km", "$1,000", "25%", "1234567", "0", "so #### 7"])
@pytest.mark.parametrize("solution", [None, "2 and 3"])
def test_the_gold_answer_is_accepted_and_its_twin_rejected(gold: str, solution: str | None, extract: str) -> None:
    if solution is not None:
        solution = f"{solution}, so it is {gold.rpartition('#### ')[2]}"
    task = Task("", gold, solution)
    for verifier in (Numeric(extract=extract), Numeric(extract=extract, tolerance=0.2)):
        assert verifier.verify(verifier.accepted(task), task).score == 1
        assert verifier.verify(verifier.rejected(task), task).score == 0.1


def test_only_the_final_answer_of_a_solution_is_corrupted() -> None:
    task = Task("", "18", "9 eggs, 18 dollars\n#### 18")
    assert Numeric().accepted(task) == task.solution
    assert Numeric().rejected(task) == "9 eggs, 18 dollars\n#### 19"
    assert Numeric(extract="tag").accepted(task) == f"{task.solution}\n<answer>18</answer>"


def test_a_solution_with_another_answer_than_the_gold_one_is_not_accepted() -> None:
    task = Task("", "18", "#### 17")
    for verifier in (Numeric(), Numeric(extract="tag")):
        assert verifier.verify(verifier.accepted(task), task).score == 0.1


MARKS = ("\\boxed{%s}", "<answer>%s</answer>", "#### %s", "The answer is %s")


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(
    ("answer", "first"),
    [
        ("3\\pi", 3),
        ("3π", 3),
        ("3 pi", 3),
        ("2\\sqrt{3}", 2),
        ("\\sqrt{16}", 16),
        ("2*sqrt(3)", 2),
        ("\\sqrt[3]{8}", 3),
        ("\\frac{\\pi}{4}", 4),
        ("\\frac{x}{3}", 3),
        ("12+3", 12),
        ("12 - 3", 12),
        ("12-15", 12),
        ("12 \\cdot 3", 12),
        ("(2)(3)", 2),
        ("x + 2", 2),
        ("2^x", 2),
        ("3i", 3),
        ("3x", 3),
        ("5 \\pm 2", 5),
        ("\\geq 5", 5),
        ("x > 5", 5),
        ("5 or 6 or 7", 5),
        ("5\\text{ or }6", 5),
        ("5或6", 5),
        ("five or 6", 6),
        ("x = 5 or x = 6", 6),
        ("x = 5, y = 6", 6),
        ("5, 6, and 7", 5),
        ("(1, 2)", 1),
        ("\\{5, 6\\}", 5),
        ("\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", 1),
        ("5 6 7", 5),
        ("5 apples, 6 apples", 5),
        ("5 apples 6 apples", 5),
        ("$5 or $6", 5),
        ("5 feet 3 inches", 5),
        ("12 to 15", 12),
        ("12 and a half", 12),
        ("2:30", 2),
        ("0.\\overline{3}", 0),
    ],
)
def test_a_marked_answer_that_is_not_one_number_is_wrong(mark: str, answer: str, first: int) -> None:
    verdict = Numeric().verify(mark % answer, Task("", first))
    assert verdict.score == 0.1 and verdict.answer != str(first)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize(
    "answer",
    [
        "12 apples",
        "$12",
        "$12$",
        "$12/hr",
        "12 dollars per day",
        "x = 12",
        "3 \\times 4 = 12",
        "12 (dozen)",
        "12 (3 x 4)",
        "12 for 3 days",
        "12, because it is so",
        "12 and I am sure",
        "**12** apples",
        "\\text{12}",
        "12\\text{ cm}",
        "12\\%",
        "12^\\circ",
        "12^{th}",
        "12-year-olds",
        "x ≈ 12",
        "12个",
        "\\(12\\)",
        "\\left(12\\right)",
        "\\underline{12}",
        "- 12",
        "+12",
    ],
)
def test_words_a_unit_or_an_equation_may_stand_beside_the_one_number(mark: str, answer: str) -> None:
    assert score(mark % answer, 12) == 1


def test_an_angle_may_leave_out_its_unit() -> None:
    assert score("90", "90^\\circ") == score("90 degrees", "90°") == score("\\boxed{90^{\\circ}}", "90") == 1


@pytest.mark.parametrize(
    "gold",
    [
        "3\\sqrt{2}",
        "3\\pi",
        "\\frac{\\pi}{2}",
        "(1, 2)",
        "1, 2",
        "[3, 5)",
        "12 - 3",
        "2x + 1",
        "5 - x",
        "5!",
        "2:30",
        "x = 1 or x = 2",
        "5 or more",
        "5 in 3 days",
    ],
)
def test_a_gold_answer_that_is_more_than_a_number_is_refused(gold: str) -> None:
    for written_as in (gold, f"so \\boxed{{{gold}}}"):
        for call in (Numeric().accepted, lambda task: Numeric().verify("5", task)):
            with pytest.raises(DataError) as caught:
                call(Task("", written_as, place="d.jsonl:3"))
            assert str(caught.value) == (
                f"d.jsonl:3: the gold answer {gold!r} is not one number; the verifier maths compares expressions"
            )
            assert caught.value.remedy == "no-gold"


@pytest.mark.parametrize(
    "gold", ["12 apples", "$12", "x = 12", "9 + 3 = 12", "12 (dozen)", "12 km/h", "$12/hr", "-3/4"]
)
def test_a_gold_number_may_have_words_beside_it(gold: str) -> None:
    assert score(f"#### {gold}", gold) == 1


def test_a_gold_answer_that_is_no_number_is_named() -> None:
    for call in (Numeric().accepted, lambda task: Numeric().verify("5", task)):
        with pytest.raises(DataError) as caught:
            call(Task("", "five", place="d.jsonl:3"))
        assert str(caught.value) == "d.jsonl:3: the gold answer 'five' is not a number"


@pytest.mark.parametrize("tolerance", [-0.1, 1.0, float("nan")])
def test_a_tolerance_that_accepts_anything_is_an_error(tolerance: float) -> None:
    with pytest.raises(ConfigError) as caught:
        Numeric(tolerance=tolerance)
    assert str(caught.value) == f"a tolerance of {tolerance:g} accepts any number; it is at least 0 and below 1"
