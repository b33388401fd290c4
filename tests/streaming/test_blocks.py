"""Blocks of texts tokenized into files: those of texts in memory, made once, and what was left out is told again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from onebase.config.remedies import with_remedy
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.mixing import Source
from onebase.data.texts import as_text, blocks_of, end_to_end
from onebase.errors import DataError
from onebase.reading.formats import read_rows
from onebase.records import Example
from onebase.streaming import blocks
from onebase.streaming.blocks import Blocks, tokenized
from onebase.streaming.rows import StreamedRows
from tests.tiny_models import tiny_tokenizer


@pytest.fixture
def chat() -> ChatFormat:
    return chat_format(tiny_tokenizer(), "plain")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(name: str, count: int) -> list[dict[str, Any]]:
    return [{"text": f"{name} {i} " + "x" * (i * i % 23)} for i in range(count)]


def expected(path: Path, chat: ChatFormat, length: int) -> list[Example]:
    return blocks_of((as_text(row, chat) for row in read_rows(path)), length)


@pytest.mark.parametrize("length", [2, 7, 64, 100_000])
def test_blocks_are_those_of_texts_in_memory(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(blocks, "WRITTEN_AT_ONCE", 50)
    a, b = write(tmp_path / "a.jsonl", texts("a", 31)), write(tmp_path / "b.jsonl", texts("b", 8))
    rows = StreamedRows([Source((str(a),)), Source((str(b),))])
    found, dropped = tokenized(rows, chat, length, max_dropped_share=0.05)
    of_a, of_b = expected(a, chat, length), expected(b, chat, length)
    assert list(found) == [*of_a, *of_b] and found[1:3] == [*of_a, *of_b][1:3]
    assert found.counts == [len(of_a), len(of_b)] and dropped == {}
    assert found.num_counted == sum(example.num_counted for example in [*of_a, *of_b])
    assert set(map(str, found.sample())) <= set(map(str, found)) and len(found.sample()) == min(256, len(found))
    with pytest.raises(IndexError):
        found[len(found)]


def test_a_block_of_one_token_is_left_out(tmp_path: Path) -> None:
    import numpy

    path = tmp_path / "0.i32"
    path.write_bytes(numpy.arange(9, dtype="<i4").tobytes())
    found = Blocks([path], 4, "key")
    assert [[*e.prompt_ids, *e.completions[0]] for e in found] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert found.num_counted == 6 and found.fingerprint != Blocks([path], 3, "key").fingerprint


def test_one_end_token_stands_between_texts_that_begin_with_it() -> None:
    made = [Example([0], [[5, 0]]), Example([0], [[6, 7, 0]]), Example([1], [[8, 0]]), Example([0], [[9]])]
    assert [token for ids in end_to_end(made) for token in ids] == [0, 5, 0, 6, 7, 0, 1, 8, 0, 9]


def test_tokens_are_made_once_and_anew_for_other_rows_or_words(chat: ChatFormat, tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*texts("a", 40), {"text": " "}])
    said: list[str] = []

    def make(chat: ChatFormat = chat, *, held_out: float = 0.0, length: int = 16, **source: Any) -> Blocks:
        rows = StreamedRows([Source((str(path),), **source)])
        if held_out:
            rows.hold_out(held_out, most=1000)
        found, dropped = tokenized(rows, chat, length, max_dropped_share=0.05, tell=said.append)
        assert dropped == {"empty answer": [f"{path}:41"]} or source  # told every time
        return found

    first = make()
    assert list(make()) == list(first) and len(said) == 1
    assert said[0].startswith("41 texts are tokenized once, and kept in the cache (")
    assert make(length=8).fingerprint != first.fingerprint and len(said) == 1  # the same tokens, cut elsewhere
    held = make(held_out=0.25)
    assert len(held) < len(first) and len(said) == 2
    make(limit=30)
    make(columns={"text": "text"})
    make(chat_format(tiny_tokenizer(), "hh"))
    assert len(said) == 5 and len(list(cache.glob("kept-texts-*"))) == 5
    path.write_text(path.read_text().replace("a 7 ", "b 7 "))
    assert list(make()) != list(first) and len(said) == 6


def test_held_out_texts_are_in_no_block(chat: ChatFormat, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts("a", 40))
    rows = StreamedRows([Source((str(path),))])
    held_out = rows.hold_out(0.25, most=1000)
    found, _ = tokenized(rows, chat, 10_000, max_dropped_share=0.05)
    left = [as_text(row, chat) for row in read_rows(path) if row.answers not in {held.answers for held in held_out}]
    assert len(held_out) == 10 and list(found) == blocks_of(left, 10_000)


def test_too_many_unusable_texts_and_conversations_without_a_template_are_refused(
    chat: ChatFormat, tmp_path: Path, cache: Path
) -> None:
    path = write(tmp_path / "a.jsonl", [*texts("a", 10), {"text": ""}, {"text": " "}])
    rows = StreamedRows([Source((str(path),))])
    with pytest.raises(DataError, match="2 of 12 rows cannot be used, more than the allowed share of 0.05: empty answ"):
        tokenized(rows, chat, 16, max_dropped_share=0.05)
    path = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="b.jsonl:1: pretraining reads plain text") as caught:
        tokenized(StreamedRows([Source((str(path),))]), chat_format(tiny_tokenizer()), 16, max_dropped_share=0.05)
    assert with_remedy(caught.value).endswith("; set model.chat_template, or use `onebase sft`")
    assert not list(cache.glob("kept-*")) and not list(cache.glob("*.tmp"))
