"""The cache of tokenized rows: same tokens with it and without, shared by runs, damaged or full without harm."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from onebase.data import token_cache
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.encoded import Encoder
from onebase.data.fit import Cuts, Limits
from onebase.data.prepare import encode_rows
from onebase.data.token_cache import TokenCache, cache_root, row_key
from onebase.records import Example, Message, Row
from tests.tiny_models import tiny_tokenizer


@pytest.fixture
def chat() -> ChatFormat:
    return chat_format(tiny_tokenizer(), "hh")


def asked(text: str, *answers: str, **more: Any) -> Row:
    return Row((Message("user", text),), answers, place=f"d.jsonl:{len(text)}", **more)


ROWS = [
    asked("a question", "an answer"),
    asked("two answers", "good", "bad", grades=(1.0, 0.0), margin=0.5),
    asked("cut", "an answer that goes on and on and does not end " * 3),
    asked("a prompt that is cut at its beginning " * 4, "yes"),
    asked("unfinished", "it stops in", ended=(False,)),
    Row((Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye")), ("Bye!",), place="d.jsonl:9"),
    Row((), ("a text",), place="d.jsonl:10"),
]
LIMITS = Limits(96, max_completion=40, truncate_prompt="left")


def same(a: Example | None, b: Example | None) -> bool:
    if a is None or b is None:
        return a is b
    plain = [
        (
            list(e.prompt_ids),
            [list(c) for c in e.completions],
            e.counted and [list(c) for c in e.counted],
            e.grades,
            e.margin,
        )
        for e in (a, b)
    ]
    return plain[0] == plain[1] and a.row == b.row


def cuts_of(cuts: Cuts) -> list[list[str]]:
    return [cuts.turns, cuts.tokens, cuts.completions, cuts.dropped]


@pytest.mark.parametrize("train_on", ["completion", "assistant", "all"])
@pytest.mark.parametrize("truncate", ["left", "drop"])
def test_cached_rows_are_the_encoded_ones_and_their_cuts_are_told(
    chat: ChatFormat, tmp_path: Path, train_on: Any, truncate: Any
) -> None:
    limits = Limits(96, max_completion=40, truncate_prompt=truncate)
    rows = [row for row in ROWS if train_on == "completion" or len(row.answers) == 1]
    plain_cuts, first_cuts, second_cuts = Cuts(limits), Cuts(limits), Cuts(limits)
    plain = [Encoder(chat, train_on)(row, plain_cuts) for row in rows]
    first = Encoder(chat, train_on, TokenCache(tmp_path / "k"))
    assert all(same(a, first(row, first_cuts)) for a, row in zip(plain, rows, strict=True))
    assert first.cache is not None
    first.cache.flush()
    second = Encoder(chat, train_on, TokenCache(tmp_path / "k"))
    assert all(same(a, second(row, second_cuts)) for a, row in zip(plain, rows, strict=True))
    assert second.cache is not None and (second.cache.hits, second.cache.misses) == (len(rows), 0)
    assert cuts_of(plain_cuts) == cuts_of(first_cuts) == cuts_of(second_cuts) != [[], [], [], []]


def test_a_key_changes_with_every_word_and_with_nothing_else() -> None:
    base = asked("q", "a", grades=(1.0,))
    others = [
        asked("Q", "a"),
        asked("q", "A"),
        asked("q", "a", "a"),
        asked("q", "a", ended=(False,)),
        asked("q", "a", prefix=""),
        Row((Message("system", "q"),), ("a",)),
        Row((), ("q", "a")),
    ]
    keys = {row_key(row) for row in [base, *others]}
    assert len(keys) == 1 + len(others) and {len(key) for key in keys} == {16}
    assert row_key(base) == row_key(asked("q", "a", columns={"label": 1}))


def test_two_runs_share_a_folder_and_each_finds_the_others_rows(tmp_path: Path) -> None:
    def run(start: int) -> None:
        cache = TokenCache(tmp_path / "k")
        for number in range(start, start + 400):
            cache.put(row_key(asked(str(number), "a")), [number] * 5)
            if number % 50 == 0:
                cache.flush()
        cache.flush()

    threads = [threading.Thread(target=run, args=(start,)) for start in (0, 200, 400)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = TokenCache(tmp_path / "k")
    for number in range(800):
        entry = reader.get(row_key(asked(str(number), "a")))
        assert entry is not None and entry.tolist() == [number] * 5
    assert not list((tmp_path / "k").glob(".*"))  # nothing half-written


@pytest.mark.parametrize("name", ["keys.npy", "ends.npy", "tokens.npy"])
@pytest.mark.parametrize("damage", [b"", b"not numpy", None, "half"])
def test_a_damaged_segment_is_not_read(tmp_path: Path, name: str, damage: bytes | str | None) -> None:
    cache = TokenCache(tmp_path / "k")
    cache.put(b"0" * 16, [1, 2, 3])
    cache.flush()
    (segment,) = (tmp_path / "k").glob("segment-*")
    path = segment / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] if damage == "half" else damage)  # type: ignore[arg-type]
    assert TokenCache(tmp_path / "k").get(b"0" * 16) is None


def test_the_oldest_segments_go_when_all_are_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "MOST_BYTES", 30_000)
    for number in range(12):
        cache = TokenCache(tmp_path / f"tokens-{number % 2}")
        cache.put(bytes([number]) * 16, [number] * 1000)
        cache.flush()
    kept = list(tmp_path.glob("*/segment-*"))
    assert 3 <= len(kept) <= 7
    assert TokenCache(tmp_path / "tokens-1").get(bytes([11]) * 16) is not None
    assert TokenCache(tmp_path / "tokens-0").get(bytes([0]) * 16) is None


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = TokenCache(tmp_path / "file" / "k")
    cache.put(b"0" * 16, [1])
    cache.flush()
    assert cache.get(b"0" * 16) is None


def test_few_rows_are_not_cached_and_many_are(
    chat: ChatFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [asked(f"q{i}", "a") for i in range(50)]
    cache = TokenCache(tmp_path / "k")
    plain = encode_rows(rows, chat, LIMITS, cache=cache)
    assert not (tmp_path / "k").exists()
    monkeypatch.setattr("onebase.data.prepare.FEWEST_ROWS", 50)
    assert all(map(same, plain, encode_rows(rows, chat, LIMITS, cache=cache)))
    again = TokenCache(tmp_path / "k")
    assert all(map(same, plain, encode_rows(rows, chat, LIMITS, cache=again))) and again.hits == 50


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", "")
    assert cache_root() is None
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("ONEBASE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_root() == tmp_path / "x" / "onebase"
