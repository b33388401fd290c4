"""Rules of form: pattern, answer_format, json_schema, length, repetition, script. None decides what is right."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from onebase.errors import ConfigError, MissingExtraError, VerifierError
from onebase.verifiers.answer_format import AnswerFormat
from onebase.verifiers.json_schema import JsonSchema
from onebase.verifiers.pattern import Pattern
from onebase.verifiers.script import Script
from onebase.verifiers.shape import Length, Repetition, words_of
from onebase.verifiers.table import VERIFIERS
from onebase.verifiers.verifier import Task, Verifier

NOTHING = Task("")
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "multipleOf": 1}},
    "required": ["name"],
    "additionalProperties": False,
}


def score(verifier: Verifier, completion: str) -> float:
    return verifier.verify(completion, NOTHING).score


def test_the_verifiers_that_decide_are_those_that_compare_with_the_gold_answer() -> None:
    deciding = {name for name, verifier in VERIFIERS.items() if verifier.decides}
    assert deciding == {"exact", "numeric", "choice", "maths", "code"}


def test_a_pattern_is_found_anywhere() -> None:
    assert score(Pattern(r"\bDr\. \p{Lu}"), "to Dr. Žižek, say") == 1
    assert score(Pattern(r"^\d+$"), "5 and") == 0


def test_a_search_without_end_costs_one_completion() -> None:
    start = time.perf_counter()
    with pytest.raises(VerifierError) as caught:
        score(Pattern(r"^(a|aa)+$", timeout=0.1), "a" * 5000 + "!")
    assert time.perf_counter() - start < 5
    assert str(caught.value) == (
        "the search for '^(a|aa)+$' took more than 0.1 seconds; write it without repetitions inside repetitions"
    )


@pytest.mark.parametrize("pattern", ["(", "[", "a{2,1}", "*"])
def test_what_is_no_pattern_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Pattern(pattern)
    assert str(caught.value).startswith(f"{pattern!r} is not a regular expression: ")


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        (" <think>a\nb</think>\n\n<answer>b</answer>\n", 1),
        ("<think></think><answer>b</answer>", 1),
        ("<think>a</think><answer> </answer>", 0),
        ("Well. <think>a</think><answer>b</answer>", 0.1),
        ("<think>a</think> so <answer>b</answer>", 0.1),
        ("<think>a</think><answer>b</answer>.", 0.1),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.1),
        ("<think>a</think><answer>b</answer><answer>c</answer>", 0.1),
        ("<answer>b</answer><think>a</think>", 0.1),
        ("<think><answer>b</answer></think>", 0.1),
        ("<answer>b</answer>", 0.1),
        ("<think>a</think>b", 0),
        ("<think>a</think><answer>b", 0),
        ("", 0),
    ],
)
def test_the_form_of_thought_and_answer_is_graded(completion: str, expected: float) -> None:
    assert score(AnswerFormat(), completion) == expected


@pytest.mark.parametrize(
    "verifier",
    [AnswerFormat(), Pattern("a"), JsonSchema(PERSON), Length(most=1), Repetition(), Script("han")],
    ids=repr,
)
def test_a_rule_of_form_asks_nothing_of_the_gold_answer(verifier: Verifier) -> None:
    assert not verifier.decides and verifier.accepted(NOTHING) is None and verifier.rejected(NOTHING) is None


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"name": "Ada", "age": 36}', 1),
        ('Here:\n```json\n{"name": "Ada"}\n```\nDone.', 1),
        ('```\n{"name": "Ada"}\n```', 1),
        ('```\n{"name": "Ada"}\n```\n```\n{}\n```', 0),
        ('{"name": 5}', 0.1),
        ('{"name": "Ada", "extra": 1}', 0.1),
        ("[]", 0.1),
        ("null", 0.1),
        ("Ada", 0),
        ('{"name": "Ada"', 0),
        ("", 0),
        ('{"name": "Ada", "age": NaN}', 0),
        ('{"name": "Ada", "age": -Infinity}', 0),
        ('{"name": "Ada", "age": 1e999}', 0),
        ('{"name": "Ada", "age": ' + "9" * 5000 + "}", 0),
        ("[" * 100_000, 0),
        ("[" * 100_000 + "]" * 100_000, 0),
    ],
)
def test_json_is_held_to_the_schema(completion: str, expected: float) -> None:
    assert score(JsonSchema(PERSON), completion) == expected


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "objekt"}, "not a JSON schema: type: 'objekt' is not valid under any of the given schemas"),
        ({"properties": []}, "not a JSON schema: properties: [] is not of type 'object'"),
    ],
)
def test_what_is_no_schema_is_an_error(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        JsonSchema(schema)
    assert str(caught.value) == message


def test_a_schema_is_never_fetched() -> None:
    with pytest.raises(ConfigError) as caught:
        score(JsonSchema({"$ref": "http://localhost:1/schema.json"}), "{}")
    assert str(caught.value) == (
        "the JSON schema refers to http://localhost:1/schema.json, which it does not hold; put it under $defs"
    )


def test_json_nested_deeper_than_can_be_checked_costs_one_completion() -> None:
    deepest = next(n for n in range(900, 0, -50) if json.loads("[" * n + "]" * n))
    with pytest.raises(VerifierError) as caught:
        score(JsonSchema({"items": {"$ref": "#"}}), "[" * deepest + "]" * deepest)
    assert str(caught.value).startswith("the JSON cannot be checked: maximum recursion depth exceeded")


def test_without_jsonschema_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(MissingExtraError) as caught:
        JsonSchema(PERSON)
    assert str(caught.value) == "checking JSON needs jsonschema: pip install 'onebase[rft]'"


@pytest.mark.parametrize(
    ("count", "expected"), [(0, 0), (1, 0.5), (2, 1), (3, 1), (4, 1), (5, 0.75), (6, 0.5), (8, 0), (100, 0)]
)
def test_a_length_falls_linearly_outside_its_limits(count: int, expected: float) -> None:
    assert score(Length(most=4, least=2), "word " * count) == expected
    assert score(Length(most=4, least=2, unit="characters"), " " + "é" * count) == expected
    assert score(Length(most=4, least=2), "字" * count) == expected


def test_a_length_may_have_one_limit() -> None:
    assert score(Length(most=4), "") == 1 and score(Length(least=4), "word " * 100) == 1


def test_words_are_words_and_each_chinese_character_is_one() -> None:
    assert words_of("Don't stop, l’été 42!") == ["don't", "stop", "l’été", "42"]
    assert words_of("我爱GPT和カナ") == ["我", "爱", "gpt", "和", "カ", "ナ"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "a length needs a limit: most, least or both"),
        ({"most": 5, "unit": "lines"}, "a length is in words or characters, not in 'lines'"),
        ({"most": 0}, "a limit of length is at least 1"),
        ({"least": -1}, "a limit of length is at least 1"),
        ({"most": 2, "least": 3}, "a length of at least 3 and at most 2 does not exist; swap them"),
    ],
)
def test_limits_that_make_no_sense_are_an_error(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Length(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("completion", "n", "expected"),
    [
        ("a b c d", 3, 1),
        ("a b c a b c", 3, 0.75),  # abc bca cab abc
        ("go " * 12, 3, 0.1),
        ("Go go GO", 1, 1 / 3),
        ("哈哈哈哈哈", 3, 1 / 3),
        ("a b", 3, 1),
        ("", 3, 1),
        ("a", 1, 1),
    ],
)
def test_repetition_is_the_share_of_distinct_ngrams(completion: str, n: int, expected: float) -> None:
    assert score(Repetition(n), completion) == pytest.approx(expected)


def test_an_ngram_has_a_word() -> None:
    with pytest.raises(ConfigError) as caught:
        Repetition(0)
    assert str(caught.value) == "repetition counts n-grams of at least 1 word, not of 0"


@pytest.mark.parametrize(
    ("script", "completion", "expected"),
    [
        ("latin", "Hello, 42!", 1),
        ("latin", "Hi 世界", 0.5),
        ("han", "世界 hi", 0.5),
        ("Cyrillic", "привет", 1),
        ("latin", "привет", 0),
        ("latin", "ｈｉ", 1),
        ("latin", "42 + 1", 1),
        ("latin", " ", 0),
        ("hiragana", "ひらカナ", 0.5),
    ],
)
def test_a_script_is_the_share_of_its_letters(script: str, completion: str, expected: float) -> None:
    assert score(Script(script), completion) == expected


@pytest.mark.parametrize("script", ["klingonese", "", "latin}|.", "L"])
def test_an_unknown_script_is_an_error(script: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Script(script)
    assert str(caught.value) == f"{script!r} is not a script of Unicode, such as latin, han or cyrillic"
