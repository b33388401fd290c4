"""JSON that two readers would read differently, or that Python alone reads, is refused with its row and key."""

from __future__ import annotations

import json

import pytest

from onebase.errors import DataError
from onebase.reading.json_text import described, parse


def refusal(text: str) -> str:
    with pytest.raises(DataError) as caught:
        parse(text, "f.jsonl:2")
    return str(caught.value).removeprefix("f.jsonl:2")


def test_what_json_allows_is_read_as_it_is() -> None:
    value = {"a": [1, -2.5e3, True, None, "\u2028 🙂"], "b": {"a": 10**300}}
    assert parse(json.dumps(value), "f") == value
    assert parse('"\\ud83d\\ude42"', "f") == "🙂"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 3}', ": the key 'a' appears twice in one object; keep one"),
        ('[{"a": 1}, {"b": {"c": 1, "c": 1}}]', ":2: the key 'c' appears twice in one object; keep one"),
        ('{"a": NaN}', ": NaN is not a JSON number; use a finite number, or null"),
        ("[1, [-Infinity]]", ":2: -Infinity is not a JSON number; use a finite number, or null"),
        ('{"a": 1e999}', ": the number 1e999 is out of range; use a finite one"),
        (
            '{"a": {"b": ["x", "\\ud83d"]}}',
            ": 'a.b[1]' holds half of a surrogate pair, U+D83D at character 0; remove it",
        ),
        ('[{}, {"\\udc00": 1}]', ":2: '\\udc00' holds half of a surrogate pair, U+DC00 at character 0; remove it"),
        ('{"\\u001b[2J": 1, "\\u001b[2J": 2}', ": the key '\\x1b[2J' appears twice in one object; keep one"),
    ],
)
def test_what_is_ambiguous_is_refused_with_its_place(text: str, message: str) -> None:
    assert refusal(text) == message


def test_numbers_of_thousands_of_digits_are_refused() -> None:
    assert refusal('{"a": ' + "7" * 5000 + "}") == (
        ": the number 77777777777777777... has 5000 digits; use a smaller one, or a string"
    )
    assert refusal('[1, {"a": -' + "7" * 900 + "}]").startswith(":2: the number -7777")


def test_nesting_too_deep_is_refused() -> None:
    assert refusal('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}") == ": JSON is nested too deeply; flatten it"
    assert refusal("[1, 2, " + "[" * 100_000 + "]" * 100_000 + "]") == ":3: JSON is nested too deeply; flatten it"


def test_what_is_no_json_names_line_and_column() -> None:
    assert refusal("{'a': 1}").startswith(": invalid JSON at column 2: Expecting property name")
    assert refusal('{"a": 1} {}').endswith("one object per line belongs in a file named .jsonl")


def test_values_are_described_by_their_type() -> None:
    assert [described(value) for value in (None, [], {"a": 1}, True, "x" * 50)] == [
        "null",
        "an empty list",
        "an object",
        "the boolean true",
        'the string "' + "x" * 36 + "...",
    ]
    assert described("\x1b[2J") == 'the string "\\u001b[2J"'
