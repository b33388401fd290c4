"""Files that are no plain JSON lines: copied once, whole or not at all, and read like the file itself."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onebase.config.remedies import with_remedy
from onebase.errors import DataError, DoesNotFitError
from onebase.reading.formats import read_rows
from onebase.records import Row
from onebase.streaming import kept
from onebase.streaming.indexed import IndexedRows
from onebase.streaming.kept import kept_folder

ROWS: list[dict[str, Any]] = [
    {"prompt": f'Frage {i}, "quoted"\nand a second line', "completion": f"antwort 漢 {i}"} for i in range(20)
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def as_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["prompt", "completion"])
        table.writeheader()
        table.writerows(ROWS)


def write_parquet(path: Path) -> None:
    table = pytest.importorskip("pyarrow").Table.from_pylist(ROWS)
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=7)


def write_arrow(path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.Table.from_pylist(ROWS)
    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=6)


def write_zstd(path: Path) -> None:
    zstd = pytest.importorskip("backports.zstd")
    path.write_bytes(zstd.compress(as_lines(ROWS)))


WRITERS: dict[str, Callable[[Path], Any]] = {
    "d.csv": write_csv,
    "d.parquet": write_parquet,
    "d.arrow": write_arrow,
    "d.jsonl.zst": write_zstd,
    "d.jsonl.gz": lambda path: path.write_bytes(gzip.compress(as_lines(ROWS))),
    "packed.jsonl": lambda path: path.write_bytes(gzip.compress(as_lines(ROWS))),
    "d.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(b"\n" + as_lines(ROWS))),
    "d.json": lambda path: path.write_text(json.dumps(ROWS)),
    "lines.json": lambda path: path.write_bytes(as_lines(ROWS)),
    "list.jsonl": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "d.txt": lambda path: path.write_text("\n\n".join(row["prompt"] for row in ROWS)),
}


def everything(row: Row) -> tuple[Any, ...]:
    return row, row.place, row.layout, row.notes


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_any_file_are_those_read_at_once(tmp_path: Path, cache: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    said: list[str] = []
    expected = list(map(everything, read_rows(path)))
    for _ in range(2):
        found = IndexedRows(path, tell=said.append)
        assert [everything(found.row(i)) for i in range(len(found))] == expected
        assert everything(found.row(3)) == expected[3]  # in any order
    (line,) = said  # the second time the copy is there
    assert line.startswith(f"{path}: 20 rows are kept as JSON lines in the cache, written once (")
    assert [path.name for path in cache.glob("kept-rows-*/*.jsonl")] == ["rows.jsonl"]
    assert len(IndexedRows(path, limit=7)) == 7 and len(said) == 1


def test_a_mapping_reads_a_copy_too_and_needs_no_other_copy(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("frage,antwort,label\nwas?,das,1\nwer?,der,0\n")
    columns = {"prompt": "frage", "completion": "{antwort}!"}
    found = IndexedRows(path, columns)
    assert [found.row(i) for i in range(2)] == read_rows(path, columns=columns) and found.row(1).answers == ("der!",)
    IndexedRows(path, {"prompt": "antwort", "completion": "frage"})
    assert len(list(cache.glob("kept-rows-*"))) == 1
    usual = tmp_path / "usual.csv"
    usual.write_text("prompt,completion,label\nwas?,das,1\nwer?,der,0\n")
    assert [IndexedRows(usual).row(i) for i in range(2)] == read_rows(usual)
    with pytest.raises(DataError, match="d.csv:2: no known layout has the keys frage, antwort, label"):
        IndexedRows(path)


def test_a_changed_file_has_another_copy(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "d.json"
    for text in ("one", "two"):
        path.write_text(json.dumps([{"text": text}]))
        assert IndexedRows(path).row(0).answers == (text,)
    assert len(list(cache.glob("kept-rows-*"))) == 2


def test_a_file_that_breaks_off_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "d.jsonl.gz"
    path.write_bytes(gzip.compress(as_lines(ROWS * 2000))[:-2_000])
    with pytest.raises(DataError, match=r"d.jsonl.gz:\d+: the file is not a complete gzip file"):
        IndexedRows(path)
    assert not list(cache.glob("kept-*")) and not list(cache.glob("*.tmp"))


def test_questions_like_squad_are_not_streamed(tmp_path: Path) -> None:
    question = {"question": "Wo?", "id": "1", "answers": [{"text": "hier", "answer_start": 0}]}
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "hier", "qas": [question]}]}]}))
    with pytest.raises(DataError, match="d.json: questions in the form of SQuAD are not streamed") as caught:
        IndexedRows(path)
    assert with_remedy(caught.value).endswith("; set data.streaming: false")


def test_without_a_cache_only_plain_lines_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", "")
    plain, packed = tmp_path / "d.jsonl", tmp_path / "d.jsonl.gz"
    plain.write_bytes(as_lines(ROWS))
    packed.write_bytes(gzip.compress(as_lines(ROWS)))
    assert len(IndexedRows(plain)) == 20
    with pytest.raises(DataError, match="needs a place to keep them, and the cache is off") as caught:
        IndexedRows(packed)
    assert "set ONEBASE_CACHE to a folder that can be written" in with_remedy(caught.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"file/cache cannot be written \(Not a directory\)"):
        kept_folder("kept-x", lambda folder: None)


def test_a_full_disk_leaves_nothing_and_says_so(cache: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "part").write_text("half")
        raise OSError(28, os.strerror(28))

    with pytest.raises(DoesNotFitError, match="kept-x: the disk is full.*nothing is half-written.*ONEBASE_CACHE"):
        kept_folder("kept-x", fill)
    assert sorted(path.name for path in cache.iterdir()) == [".kept-x.lock"]


def test_what_a_killed_process_left_is_made_anew(cache: Path) -> None:
    (cache / ".kept-x.tmp").mkdir(parents=True)
    (cache / ".kept-x.tmp" / "half").write_text("half")
    folder = kept_folder("kept-x", lambda folder: (folder / "whole").write_text("whole") and None)
    assert [path.name for path in folder.iterdir()] == ["whole"] and not (cache / ".kept-x.tmp").exists()


def test_of_several_runs_one_makes_it_and_the_others_wait(cache: Path) -> None:
    made: list[str] = []

    def fill(folder: Path) -> None:
        made.append(folder.name)
        time.sleep(0.3)
        (folder / "whole").write_text("whole")

    with ThreadPoolExecutor(3) as pool:  # a lock is of an open file, so threads wait as processes do
        found = list(pool.map(lambda _: (kept_folder("kept-x", fill) / "whole").read_text(), range(3)))
    assert found == ["whole"] * 3 and len(made) == 1


def test_those_not_used_for_longest_go_and_the_one_in_use_stays(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST_KEPT", 2500)

    def make(name: str, size: int = 1000) -> Path:
        return kept_folder(name, lambda folder: (folder / "f").write_bytes(bytes(size)) and None)

    for number, name in enumerate(("kept-a", "kept-b")):
        os.utime(make(name), (number + 1, number + 1))
    make("kept-a")  # used again, so that b is the oldest
    make("kept-c")
    assert sorted(path.name for path in cache.glob("kept-*")) == ["kept-a", "kept-c"]
    make("kept-large", 9000)
    assert [path.name for path in cache.glob("kept-*")] == ["kept-large"]
