"""Rows found by their places: the same rows as read at once, whatever the file, and errors with their place."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from onebase.data.chat import ChatFormat, chat_format
from onebase.data.encoded import Encoder
from onebase.data.fit import Limits
from onebase.data.mixing import Order, Source
from onebase.data.prepare import encode_rows
from onebase.errors import DataError
from onebase.reading.formats import read_rows
from onebase.records import Example
from onebase.streaming.examples import Streamed
from onebase.streaming.indexed import IndexedRows
from onebase.streaming.minibatches import DEPTH, Minibatches
from onebase.streaming.rows import StreamedRows
from tests.tiny_models import tiny_tokenizer

LIMITS = Limits(200)


@pytest.fixture
def chat() -> ChatFormat:
    return chat_format(tiny_tokenizer(), "plain")


def write(path: Path, count: int, *, empty: tuple[int, ...] = ()) -> Path:
    rows = [{"prompt": f"{path.stem} {i}", "completion": "" if i in empty else f"answer {i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(*paths: Path) -> StreamedRows:
    return StreamedRows([Source(tuple(map(str, paths)))])


def streamed(chat: ChatFormat, *paths: Path, limits: Limits = LIMITS) -> Streamed:
    return Streamed(rows_of(*paths), Encoder(chat), limits)


@pytest.mark.parametrize(
    "text",
    [
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n',
        '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}',
        '\ufeff{"prompt": "a", "completion": "b"}\r\n\r\n{"prompt": "ü\u2028é", "completion": "漢"}\r\n',
        '\n\n{"prompt": "a", "completion": "b"}\n\n\n{"prompt": "c", "completion": "d"}\n\n',
        '\ufeff  \n{"prompt": "a", "completion": "b"}\n \t\r\n{"prompt": "c", "completion": "d"}\n   ',
    ],
)
@pytest.mark.parametrize("block", [5, 1 << 24])
def test_rows_are_those_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int) -> None:
    monkeypatch.setattr("onebase.streaming.indexed.BLOCK", block)
    path = tmp_path / "d.jsonl"
    path.write_bytes(text.encode())
    file, rows = IndexedRows(path), read_rows(path)
    assert [file.row(i) for i in range(len(file))] == rows and len(rows) == 2
    assert file.row(1) == rows[1] and file.row(0) == rows[0]  # in any order


def test_real_files_stream_as_they_are_read(shared: Path, tmp_path: Path) -> None:
    rows = read_rows(shared / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz")
    import gzip

    plain = tmp_path / "hh.jsonl"
    plain.write_bytes(gzip.decompress((shared / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz").read_bytes()))
    file = IndexedRows(plain)
    assert len(file) == len(rows) == 2312
    for index in range(0, len(rows), 7):
        assert (file.row(index).messages, file.row(index).answers) == (rows[index].messages, rows[index].answers)


def test_examples_are_those_encoded_at_once_and_the_content_is_the_fingerprint(
    chat: ChatFormat, tmp_path: Path
) -> None:
    a, b = write(tmp_path / "a.jsonl", 30), write(tmp_path / "b.jsonl", 20)
    found = streamed(chat, a, b)
    expected = encode_rows([*read_rows(a), *read_rows(b)], chat, LIMITS)
    assert list(found) == expected and found[5:8] == expected[5:8] and len(found.sample()) == 50
    same = write(tmp_path / "c.jsonl", 30)
    same.write_bytes(a.read_bytes())
    assert streamed(chat, same, b).fingerprint == found.fingerprint
    same.write_bytes(a.read_bytes().replace(b"answer 3", b"answer x", 1))
    assert streamed(chat, same, b).fingerprint != found.fingerprint
    assert streamed(chat, b, a).fingerprint != found.fingerprint


def test_an_unusable_row_is_replaced_by_the_next_and_counted(chat: ChatFormat, tmp_path: Path) -> None:
    found = streamed(chat, write(tmp_path / "a.jsonl", 10, empty=(3, 4, 9)))
    places = [example.row.place.rpartition(":")[2] for example in found if example.row]
    assert places == ["1", "2", "3", "6", "6", "6", "7", "8", "9", "1"]
    assert found.left_out["empty answer"] == 4 and "4 empty answer" in found.told()


def test_too_many_unusable_rows_are_an_error(chat: ChatFormat, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 1000, empty=tuple(range(0, 1000, 5)))
    found = streamed(chat, path)
    with pytest.raises(DataError, match=r"a.jsonl:\d+: \d+ of the \d+ rows read so far cannot be used.*empty answer"):
        for i in range(0, 1000):
            found[i]
    with pytest.raises(DataError, match="rows up to here cannot be used"):
        streamed(chat, write(tmp_path / "b.jsonl", 5, empty=(0, 1, 2, 3, 4)))[2]


def test_held_out_prompts_are_never_trained_on(chat: ChatFormat, tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 40}", "completion": f"{i}"} for i in range(100)]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = rows_of(path)
    whole = rows.fingerprint
    assert len(rows.hold_out(0.1, most=1000)) == 10 and len(rows.hold_out(0.1, most=4)) == 4
    asked = {row.messages for row in rows.hold_out(0.1, most=1000)}
    found = Streamed(rows, Encoder(chat), LIMITS)
    assert not {example.row.messages for example in found if example.row} & asked
    assert not {row.messages for row in rows.learned()} & asked and found.fingerprint != whole


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.jsonl", b"", "is empty"),
        ("d.jsonl", b'{"prompt": "a", "completion": "b"}\n[1]\n', r"d.jsonl:2: the row is a list; expected an object"),
        (
            "d.jsonl",
            b'{"prompt": "a", "completion": "b"}\n{"prompt": "\xff"}\n',
            r"d.jsonl:2 is not UTF-8: byte 12 is 0xff",
        ),
        ("d.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n', r"d.jsonl:2: invalid JSON at column 15"),
        ("d.jsonl", b'{"prompt": "a", "completion": "b"}\n{"text": "a"}\n', r"d.jsonl:2: the keys text do not match"),
    ],
)
def test_errors_name_the_file_and_the_line(
    chat: ChatFormat, tmp_path: Path, name: str, text: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text)
    with pytest.raises(DataError, match=message):
        list(streamed(chat, path))


def examples(train: Streamed | list[Example], *, first: int = 0, steps: int = 40) -> list[list[str]]:
    order = Order([Source(("a",))], [len(train)], seed=1)
    with Minibatches(train, order, 8, total=steps) as minibatches:
        found = [minibatches.examples(step) for step in range(first, steps)]
    return [[example.row.place for example in step if example.row] for step in found]


def test_minibatches_are_the_same_streamed_resumed_or_in_memory(chat: ChatFormat, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 50)
    at_once = examples(encode_rows(read_rows(path), chat, LIMITS))
    assert examples(streamed(chat, path)) == at_once
    assert examples(streamed(chat, path), first=17) == at_once[17:]


def test_no_more_is_prepared_than_the_depth_and_the_thread_ends(chat: ChatFormat, tmp_path: Path) -> None:
    train = streamed(chat, write(tmp_path / "a.jsonl", 5000))
    order = Order([Source(("a",))], [len(train)], seed=1)
    before = threading.active_count()
    with Minibatches(train, order, 4, total=1000) as minibatches:
        minibatches.examples(0)
        while minibatches._ready.qsize() < DEPTH:
            pass
        assert train.read <= 4 * (DEPTH + 2)
        assert all(example.tree is not None for example in minibatches.examples(1))  # laid out ahead too
    assert threading.active_count() == before


def test_an_error_of_the_thread_comes_where_its_step_is_asked_for(chat: ChatFormat, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 60)
    lines = path.read_text().splitlines()
    lines[41] = '{"prompt": "a"'
    path.write_text("\n".join(lines))
    train = streamed(chat, path)
    order = Order([Source(("a",))], [60], seed=1)
    bad = next(step for step in range(8) if 41 in order.minibatch(step, 8))
    with Minibatches(train, order, 8, total=8) as minibatches:
        for step in range(bad):
            minibatches.examples(step)
        with pytest.raises(DataError, match="a.jsonl:42"):
            minibatches.examples(bad)


def test_a_limit_counts_rows_of_what_is_not_replayed(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path / f"{name}.jsonl", 6) for name in "abc")
    sources = [Source((str(a),)), Source((str(b),), limit=4), Source((str(c),), replayed=True, share=0.5, limit=5)]
    for limit, counts in ((None, [6, 4, 5]), (8, [6, 2, 5]), (6, [6, 0, 5]), (2, [2, 0, 5])):
        found = StreamedRows(sources, limit=limit)
        assert found.counts == counts and len(found) == sum(counts)
        assert [row.source for row in found] == [n for n, count in enumerate(counts) for _ in range(count)]
    of_two_files = StreamedRows([Source((str(a), str(b)), limit=8), Source((str(c),))])
    assert of_two_files.counts == [8, 6]
    assert [row.place.rpartition("/")[2] for row in of_two_files][5:9] == [
        "a.jsonl:6",
        "b.jsonl:1",
        "b.jsonl:2",
        "c.jsonl:1",
    ]
    with pytest.raises(DataError, match="are the same file"):
        StreamedRows([Source((str(a),)), Source((str(a),), replayed=True, share=0.1)])
