"""Foreign text in our messages: no terminal escapes, one line, within the limit."""

from __future__ import annotations

import ast
import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from onebase.shown import json_shown, number_of, shown


def test_control_characters_are_written_out() -> None:
    assert shown("\x1b]0;title\x07\x1b[2Jgone") == r"\x1b]0;title\x07\x1b[2Jgone"
    assert shown("a\r\nb\tc\x7f\x9bm") == r"a\r\nb\tc\x7f\x9bm"
    assert shown("abc\u202edcba\u2066\u2028") == r"abc\u202edcba\u2066\u2028"


def test_no_character_that_moves_the_cursor_is_left() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    for lines in (False, True):
        left = shown(every, lines=lines)
        left.encode("utf-8")
        assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in left if not (lines and c in "\n\t"))


def test_words_of_any_script_stay_as_they_are() -> None:
    text = "naïve 中文 🙂 👩\u200d👩\u200d👧 می\u200cخواهم עברית [bold]"
    assert shown(text) == text


def test_paragraphs_keep_their_lines() -> None:
    assert shown("a\n\tb\x1b[0m\r\n", lines=True) == "a\n\tb\\x1b[0m\\r\n"


@pytest.mark.parametrize("text", ["x" * 100, "\x1b" * 100, "x" * 39 + "\x1b"])
def test_a_long_text_is_cut(text: str) -> None:
    cut = shown(text, 40)
    assert len(cut) == 40 and cut.endswith("...")
    assert shown("x" * 40, 40) == "x" * 40 and shown("", 40) == ""


def test_what_has_no_text_of_its_own_is_named() -> None:
    class Silent(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert shown(Silent()) == "(Silent without a text: its __str__ raises RuntimeError)"
    assert shown(12) == "12"


def test_a_text_cannot_end_the_process() -> None:
    class Ending:
        def __str__(self) -> str:
            raise SystemExit(0)

    assert shown(Ending()) == "(Ending without a text: its __str__ raises SystemExit)"


@pytest.mark.parametrize("indent", [None, 2])
def test_json_is_read_back_as_it_was_and_moves_no_cursor(indent: int | None) -> None:
    value = {"a\x9b31m": ["\x1b[2J", "\u202e\x7f\u2028", "漢字 🙂\n"]}
    text = json_shown(value, indent=indent)
    assert json.loads(text) == value and "漢字 🙂" in text
    assert not [c for c in text if c != "\n" and (ord(c) < 32 or 126 < ord(c) < 160 or c in "\u202e\u2028")]


def test_one_thing_is_not_told_as_several() -> None:
    assert [number_of(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]


COUNTED = (
    "answer block candidate completion example file layer prompt ranking rollout row sample score step task test text"
)
NO_COUNTS = ("called", "kind", "what", "verb", "name", "key", "how", "role", "split")
"""Names that hold a word, so that what follows is a verb or stands for one kind."""
CONSTANT = re.compile(r"_?[A-Z][A-Z_]+")


def counts_without_their_word(source: str) -> list[str]:
    """The lines of f-strings that write `{count} rows`, which would say `1 rows`; constants are known to be more."""
    nouns = "|".join(f"{noun}s" for noun in COUNTED.split())
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        for value, after in pairwise(node.values):
            if not (isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant)):
                continue
            said = ast.unparse(value.value)
            word = said.rpartition(".")[2]
            plain = value.format_spec is None or ast.unparse(value.format_spec) in ("f','", "f'd'")
            if CONSTANT.fullmatch(word) or word in NO_COUNTS or not plain or said.startswith(("number_of(", "shown(")):
                continue
            # "3 of 5 rows" and "each of the 5 rows" are said of one row too.
            if re.match(rf" (?:(?!is|has|does)[a-z-]+ )?(?:{nouns})\b(?! (?:of|do|have|are|were)\b)", str(after.value)):
                found.append(f"line {node.lineno}: {{{said}}}{str(after.value)[:30]}")
    return found


def test_a_count_has_the_word_that_fits_it() -> None:
    assert [number_of(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert number_of(1, "row is", "rows are") == "1 row is" and number_of(12345, "row", form=",") == "12,345 rows"
    assert counts_without_their_word('f"{count} rows, {len(x):,} new tasks"') != []
    assert counts_without_their_word("f\"{number_of(count, 'row')} and {MOST_ROWS} rows\"") == []


def test_no_message_says_1_rows() -> None:
    found = {}
    for path in sorted((Path(__file__).parents[1] / "onebase").rglob("*.py")):
        if path.parent.name == "objectives":
            continue  # imports torch alone; its errors are for callers, not for users
        if lines := counts_without_their_word(path.read_text(encoding="utf-8")):
            found[path.name] = lines
    assert not found, found
