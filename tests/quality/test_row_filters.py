"""Filters that look at one row: what they find, what they must leave alone, and the value that decided."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from onebase.errors import ConfigError
from onebase.quality import options
from onebase.quality.encodings import what_is_broken
from onebase.quality.options import Filter
from onebase.quality.row_filters import check_row
from onebase.quality.scripts import letters_by_script, main_script
from onebase.records import Message, Row


def row(*answers: str, prompt: str = "What is it?", **more: Any) -> Row:
    return Row((Message("user", prompt),), answers, **more)


def why(given: Filter, own: Row) -> tuple[str, Any] | None:
    found = check_row(given, own)
    return None if found is None else (found.reason, found.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a \ufffd b", "a replacement character (U+FFFD)"),
        ("bell \x07", "a control character (U+0007)"),
        ("C1 \x85", "a control character (U+0085)"),
        ("no character \uffff", "a control character (U+FFFF)"),
        ("cafÃ© crÃ¨me", "UTF-8 read as Latin-1 or Windows-1252"),
        ("itâ€™s fine", "UTF-8 read as Latin-1 or Windows-1252"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚", "UTF-8 read as Latin-1 or Windows-1252"),
        ("ä½ å¥½", "UTF-8 read as Latin-1 or Windows-1252"),
        ("你好，世界".encode().decode("gb18030", "replace"), "a replacement character (U+FFFD)"),
        ("你好世界".encode().decode("gb18030"), "UTF-8 read as GBK"),
        ("锟斤拷锟斤拷", "bytes that were lost"),
    ],
)
def test_broken_text_is_found_and_named(text: str, reason: str) -> None:
    found = what_is_broken(text)
    assert found is not None and found[0] == reason and found[1] in text


@pytest.mark.parametrize(
    "text", ["naïve café, Ångström", "你好，世界", "«\xa0le café\xa0»", "VOILÀ… É…", "NESCAFÉ®", "tab\tand\r\nlines"]
)
def test_good_text_is_left_alone(text: str) -> None:
    assert what_is_broken(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "El niño comió piñas en la montaña.",
        "Größe, Übermut, Äpfel — „so“!",
        "Привет, как дела?",
        "今日は、元気ですか。",
        "안녕하세요",
    ],
)
def test_every_language_read_in_a_wrong_code_page_is_found(text: str) -> None:
    assert what_is_broken(text) is None
    assert what_is_broken(text.encode().decode("latin-1")) is not None
    assert what_is_broken(text.encode().decode("cp1252", "replace")) is not None


@pytest.mark.parametrize(
    ("name", "key", "most"),
    [
        ("text_zh/hongloumeng.txt.gz", "", 0),
        ("text_zh/xiyouji.txt.gz", "", 0),
        ("text_zh/tang_poems_300.json.gz", "", 0),
        ("text_en/wikitext2_valid.txt.gz", "", 0),
        ("xquad/xquad.en.json.gz", "", 0),
    ],
)
def test_no_paragraph_of_good_files_passes_for_broken(shared: Path, name: str, key: str, most: int) -> None:
    text = gzip.decompress((shared / "data" / name).read_bytes()).decode()
    if name.endswith("json.gz"):
        text = json.dumps(json.loads(text), ensure_ascii=False, indent=0)
    found = [found for line in text.splitlines() if (found := what_is_broken(line))]
    assert len(found) <= most, found[:3]


def test_length_counts_every_answer_and_prompts_without_answers() -> None:
    assert why(options.Length(), row("yes", "  \n")) == ("shorter than 1 characters", 0)
    assert why(options.Length(), row("yes", prompt=" ")) == ("empty prompt", 0)
    assert why(options.Length(most=3), row("yes", "yes!")) == ("longer than 3 characters", 4)
    assert why(options.Length(least=3, unit="words"), row("two words")) == ("shorter than 3 words", 2)
    assert why(options.Length(least=3, unit="words"), row("三个字")) is None
    assert why(options.Length(least=20), row(prompt="Short?")) == ("shorter than 20 characters", 6)
    assert why(options.Length(least=20), row(prompt="A prompt of some length")) is None


def test_repetition_is_the_share_of_distinct_ngrams() -> None:
    looping = "I can help. " * 10  # 30 words, 28 trigrams, 3 of them distinct
    assert why(options.Repetition(), row("fine", looping)) == (
        "fewer than 0.5 of an answer's 3-grams are distinct",
        round(3 / 28, 4),
    )
    assert why(options.Repetition(), row("fine", "One two three four five. Two three four six.")) is None
    assert why(options.Repetition(), row("好的" * 20)) is not None
    assert why(options.Repetition(distinct=0.05), row(looping)) is None


def test_script_is_the_share_of_letters() -> None:
    assert why(options.Script("han"), row("English", prompt="你好")) == (
        "fewer than 0.5 of the letters are han",
        round(2 / 9, 4),
    )
    assert why(options.Script(["latin", "Han"]), row("English", prompt="你好")) is None
    assert why(options.Script("latin"), row("42", prompt="6 * 7?")) is None


def test_equal_answers_are_those_that_compare_one_text() -> None:
    assert why(options.EqualAnswers(), row("The same.", "The  same.\n")) == (
        "all answers are the same text",
        "The same.",
    )
    assert why(options.EqualAnswers(), row("a", "b", "a")) is None
    assert why(options.EqualAnswers(), row("a")) is None


def test_scripts_are_counted_by_letters() -> None:
    assert letters_by_script("Hello, мир! 你好 42") == {"Latin": 5, "Cyrillic": 3, "Han": 2}
    assert main_script("日本語のテキストです") == "Japanese"
    assert main_script("안녕 世界") == "Korean"
    assert [main_script(text) for text in ("你好啊 ok", "42 %", "ᚠᚢᚦ", "𠀀𠀁")] == ["Han", "none", "Other", "Han"]


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (options.Length, {"unit": "tokens"}, "length: unit is 'tokens'; it should be characters or words"),
        (options.Length, {"least": 5, "most": 4}, "length: most is 4; it should be at least 1 and 'least'"),
        (options.Repetition, {"n": 0}, "repetition: n is 0; it should be at least 1"),
        (options.Repetition, {"distinct": 2.0}, "repetition: distinct is 2.0; it should be from 0 to 1"),
        (options.Script, {}, "script: script is ''; it should be one of arabic, armenian, "),
        (options.NearDuplicates, {"similarity": 0.1}, "similarity is 0.1; it should be from 0.3 to 1"),
        (options.Leaks, {"run": 4}, "leaks: run is 4; it should be at least 5"),
        (options.Leaks, {"share": 0.0}, "leaks: share is 0.0; it should be above 0 and at most 1"),
        (
            options.Difficulty,
            {"low": 0.9},
            "low and high is '0.9 and 0.9'; it should be two numbers from 0 to 1, in order",
        ),
        (options.Noise, {"probability": 1.0}, "noise: probability is 1.0; it should be between 0 and 1"),
        (options.Noise, {"folds": 1}, "noise: folds is 1; it should be from 2 to 50"),
    ],
)
def test_options_out_of_range_are_refused(kind: type[Filter], given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        kind(**given)
    assert says in str(refused.value)


def test_filters_run_in_one_order_and_are_given_once() -> None:
    given: list[Filter] = [options.NearDuplicates(), options.Encoding(), options.Duplicates()]
    assert [own.name for own in options.in_order(given)] == ["encoding", "duplicates", "near_duplicates"]
    with pytest.raises(ConfigError, match="the filter encoding is given twice; give it once, with all its options"):
        options.in_order([options.Encoding(), options.Encoding()])


def test_a_script_that_unicode_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="script: script is 'klingon'; it should be one of arabic, "):
        options.Script("klingon")
