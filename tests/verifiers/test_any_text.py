"""Whatever a policy writes, a verifier gives a score from 0 to 1, soon, or raises VerifierError."""

from __future__ import annotations

import random
import time

import pytest

from onebase.errors import VerifierError
from onebase.verifiers.answer_format import AnswerFormat
from onebase.verifiers.choice import Choice
from onebase.verifiers.exact import Exact
from onebase.verifiers.json_schema import JsonSchema
from onebase.verifiers.numeric import Numeric
from onebase.verifiers.pattern import Pattern
from onebase.verifiers.script import Script
from onebase.verifiers.shape import Length, Repetition
from onebase.verifiers.table import VERIFIERS
from onebase.verifiers.verifier import Task, Verifier

TASKS = {
    "exact": [Task("", "Paris"), Task("", ["a", "b"])],
    "numeric": [Task("", "42"), Task("", "5 km"), Task("", "0"), Task("", "25%")],
    "choice": [Task("A. one\nB. two", "B")],
}
NESTED = {"anyOf": [{"type": "number", "multipleOf": 0.1}, {"items": {"$ref": "#"}}]}
EVERY: list[Verifier] = [
    *(kind(extract=how) for kind in (Exact, Numeric, Choice) for how in ("auto", "tag", "boxed", "hash", "last")),
    Numeric(tolerance=0.5),
    Pattern(r"^(\w+\s?)*$", timeout=0.2),
    AnswerFormat(),
    JsonSchema(NESTED),
    Length(most=10, least=2),
    Length(least=10, unit="characters"),
    Repetition(),
    Script("latin"),
]

PIECES = [
    *("<answer>", "</answer>", "<think>", "</think>", "\\boxed{", "{", "}", "\\{", "\\", "#### ", "\n", " ", "\t"),
    *(
        "the answer is ",
        "答案是",
        "A",
        "(B)",
        "C.",
        "$",
        "€",
        "%",
        "/",
        ",",
        ".",
        "-",
        "\u2212",
        "=",
        "^",
        "×",
        "'",
        "_",
    ),
    *("0", "1", "42", "1/0", "0/0", "1e9", "e", "E+", "inf", "nan", "-Infinity", "10^400", "10^-400", "^", "9" * 30),
    *("\\frac{1}{0}", "\\frac", "\\text{", "\\times10^", "½", "²", "⁻", "٣", "४", "７", "万", "Ⅷ", "①", "零", "𝟗", "௧"),
    *(
        "[",
        "]",
        '"',
        ":",
        "null",
        "```",
        "```json\n",
        "\x00",
        "\ufeff",
        "\u202e",
        "\u2066",
        "\u200d",
        "\ud800",
        "\udcff",
    ),
    *("\u0301", "İ", "ß", "ﬃ", "\ufdfa", "字", "あ", "한", "😀", "\r", "\u2028", "\x1b[31m", "million", "km", "cents"),
]
NASTY = [
    *("", " ", "\n\n\n", "\x00", "\ud800", "\ufeff", bytes(range(128, 256)).decode("utf-8", "surrogateescape")),
    *(f"<answer>{text}</answer>" for text in ("", "\x00", "\u202e42", "10^400", "1/0", "inf", "nan", "-", "$", "%")),
    *(f"\\boxed{{{text}}}" for text in ("", "{", "}", "\\frac{1}{0}", "\\frac{}{}", "10^{10^{10}}", "9" * 5000)),
    *(
        "#### " + text
        for text in ("1e999999", "1e-999999", "1e1000", "9^999", "99^999", "0^-1", "0^0", "1" + ",000" * 300)
    ),
    *(f"9.{'9' * 990}e1000/{'7' * 990}.{'3' * 9}", f"1 {'9' * 999}/{'7' * 999}", f"{'9' * 999}e1000 trillion million"),
    *("[" * 500 + "]" * 500, "[" * 100_000, '{"a":' * 1000 + "1" + "}" * 1000, "1" * 4301, "[1e400]", f"[{10**400}]"),
]
LONG = [piece * (100_000 // len(piece.encode("utf-8", "surrogatepass"))) for piece in PIECES] + [
    *("1 " * 50_000, "1/" * 50_000, "1," * 50_000, "1." * 50_000, "-1" * 50_000, "$1" * 50_000, "1e1" * 33_000),
    *("1 1/1 " * 16_000, "1^" * 50_000, "a\u0301\u0316" * 33_000, "\u0301\u0316" * 50_000, "(A) " * 25_000),
    *(
        "\\frac{1}{" * 11_000,
        "\\frac" + " " * 99_000,
        "\\text{a" * 14_000,
        "<answer>1</answer>" * 5_500,
        "1" + "," * 99_999,
    ),
    *("answer is answer is\n" * 5_000, "A. x " * 20_000, "is " * 33_000, "[1]," * 25_000, "10^9" * 25_000),
]


def mixtures(count: int) -> list[str]:
    rng = random.Random(0)
    return ["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(count)]


def check(verifier: Verifier, completions: list[str], tasks: list[Task]) -> None:
    for task in tasks:
        for completion in completions:
            start = time.perf_counter()
            try:
                verdict = verifier.verify(completion, task)
            except VerifierError as error:
                assert "\n" not in str(error)
            else:
                assert 0 <= verdict.score <= 1, (verifier, completion[:100])
                assert verdict.answer is None or isinstance(verdict.answer, str)
            assert time.perf_counter() - start < 1, (verifier, completion[:100])


def test_every_verifier_is_tried() -> None:
    # The two that run processes of their own are tried in test_maths and test_sandbox.
    assert {verifier.name for verifier in EVERY} == set(VERIFIERS) - {"maths", "code"}


@pytest.mark.parametrize("verifier", EVERY, ids=repr)
def test_any_text_has_a_score(verifier: Verifier) -> None:
    check(verifier, [*NASTY, *mixtures(400)], TASKS.get(verifier.name, [Task("")]))


@pytest.mark.parametrize("verifier", [v for v in EVERY if getattr(v, "extract", "auto") == "auto"], ids=repr)
def test_a_hundred_kilobytes_of_anything_have_a_score_within_a_second(verifier: Verifier) -> None:
    check(verifier, LONG, TASKS.get(verifier.name, [Task("")])[:1])


@pytest.mark.parametrize(("verifier", "gold"), [(Exact(), "Rumpelstiltskin"), (Numeric(), "-31415.92653")], ids=repr)
def test_rubbish_is_never_right(verifier: Verifier, gold: str) -> None:
    assert all(verifier.verify(completion, Task("", gold)).score < 1 for completion in [*NASTY, *mixtures(400)])
