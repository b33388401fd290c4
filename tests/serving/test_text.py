"""Text as it comes: the same as decoding everything at once, up to a stop string."""

from __future__ import annotations

import random

import pytest

from onebase.serving.text import TextStream
from tests.tiny_models import EOS, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=True))


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def streamed(ids: list[int], *stops: str, strips: bool = False) -> tuple[list[str], bool]:
    stream, pieces = TextStream(decode, stops, strips=strips), []
    for token in ids:
        pieces.append(stream.add(token))
        if stream.stopped:
            return pieces, True
    pieces.append(stream.end())
    return pieces, stream.stopped


@pytest.mark.parametrize("text", ["Hello there.", "猫は好きです🙂 naïve", "", " ", "\ufffd", "a\ufffd b"])
def test_a_character_appears_once_all_its_bytes_are_there(text: str) -> None:
    pieces, stopped = streamed(ids_of(text))
    assert "".join(pieces) == text and not stopped
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


def test_any_bytes_at_all_add_up_to_what_decoding_them_at_once_gives() -> None:
    source = random.Random(0)
    for _ in range(300):
        ids = [source.randrange(259) for _ in range(source.randrange(30))]
        assert "".join(streamed(ids)[0]) == decode(ids)
        assert "".join(streamed(ids, strips=True)[0]) == decode(ids).strip()


@pytest.mark.parametrize("stop", ["b", "\n\n", "the end", "好き", "🙂", "x" * 40])
def test_a_stop_string_of_any_length_ends_the_text_before_it_and_no_part_of_it_is_handed_out(stop: str) -> None:
    text = f"A story, 猫は\nth the e{stop} and more {stop}"
    expected = text[: text.index(stop)]
    pieces, stopped = streamed(ids_of(text), "never", stop)
    assert stopped and "".join(pieces) == expected
    given = ""
    for piece in pieces:
        given += piece
        assert expected.startswith(given)


def test_the_beginning_of_a_stop_string_is_handed_out_once_it_turns_out_to_be_none() -> None:
    pieces, stopped = streamed(ids_of("aab aac"), "aabb")
    assert "".join(pieces) == "aab aac" and not stopped
    assert pieces[:4] == ["", "", "", "aab "]
    assert "".join(streamed(ids_of("tail aab"), "aabb")[0]) == "tail aab"


def test_of_several_stop_strings_the_one_that_begins_first_counts() -> None:
    assert streamed(ids_of("one two three"), "three", "two")[0][-1:] == [""]
    assert "".join(streamed(ids_of("one two three"), "three", "two")[0]) == "one "
    assert "".join(streamed(ids_of("one two"), "wo", "two")[0]) == "one "  # both are found with the same token


def test_stripped_text_loses_blanks_at_its_ends_alone() -> None:
    pieces, _ = streamed(ids_of("  \n a  b \n "), strips=True)
    assert "".join(pieces) == "a  b"
    assert "".join(streamed(ids_of("  a  STOP b"), "STOP", strips=True)[0]) == "a"
    assert "".join(streamed(ids_of("   "), strips=True)[0]) == ""


def test_special_tokens_are_no_text() -> None:
    assert "".join(streamed([*ids_of("a"), EOS, *ids_of("b")])[0]) == "ab"
