"""Containers: every kind of file gives the same rows, whole folders are read in order, and damage names its row."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import random
import re
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.failures import told
from onebase.errors import DataError, MissingExtraError
from onebase.reading import files, hub
from onebase.reading.files import LONGEST_FIELD, check_file, expand, kind_of
from onebase.reading.formats import iter_rows, read_files, read_rows
from onebase.records import Message

ROWS = [{"prompt": f"frage {n}?", "completion": f"答案 {n}", "note": None if n % 2 else "x\ny"} for n in range(7)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def zstd(content: bytes) -> bytes:
    return bytes(files._zstd().compress(content))


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def refusal(path: Path | str, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert told(caught.value, "sft", None) == 3
    return message.removeprefix(str(path))


def table(rows: list[dict[str, Any]]) -> Any:
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.Table.from_pylist(rows)


def write_table(path: Path, rows: list[dict[str, Any]], kind: str, *, size: int = 3) -> Path:
    """A Parquet file, or Arrow's file or stream format, in batches of so many rows."""
    found = table(rows)
    import pyarrow.parquet

    if kind == "parquet":
        pyarrow.parquet.write_table(found, path, row_group_size=size)
        return path
    make = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with make(str(path), found.schema) as writer:
        writer.write_table(found, max_chunksize=size)
    return path


# kinds of files


@pytest.mark.parametrize("packed", PACKERS)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "ndjson"])
def test_every_container_gives_the_same_rows(tmp_path: Path, kind: str, packed: str) -> None:
    path = tmp_path / f"rows.{kind}"
    content = LINES
    if kind == "json":
        content = json.dumps(ROWS).encode()
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(ROWS[0]), delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
        content = path.read_bytes()
    path = tmp_path / f"rows.{kind}{packed}"
    path.write_bytes(PACKERS[packed](content))
    rows = read_rows(path)
    assert [(row.messages, row.answers) for row in rows] == [
        ((Message("user", row["prompt"]),), (row["completion"],)) for row in ROWS
    ]
    first = 2 if kind in ("csv", "tsv") else 1  # a spreadsheet counts its header
    assert [row.place for row in rows] == [f"{path}:{n}" for n in range(first, first + 7)]
    assert rows[0].columns == {"note": "x\ny"}
    assert list(iter_rows(path, limit=3)) == rows[:3]


@pytest.mark.parametrize(("kind", "suffix"), [("parquet", ".parquet"), ("stream", ".arrow"), ("file", ".arrow"),
                                              ("file", ".feather"), ("parquet", ".bin")])  # fmt: skip
def test_parquet_and_arrow_are_read_like_json(tmp_path: Path, kind: str, suffix: str) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path = write_table(tmp_path / f"rows{suffix}", [{"messages": turns, "n": n} for n in range(7)], kind)
    rows = read_rows(path)
    assert [row.place for row in rows] == [f"{path}:{n}" for n in range(1, 8)]
    assert {(row.messages, row.answers) for row in rows} == {((Message("user", "q"),), ("a",))}
    assert [row.columns["n"] for row in rows] == list(range(7))
    assert len(read_rows(path, limit=4)) == 4


def test_what_json_has_no_word_for_is_read_or_named(tmp_path: Path) -> None:
    from datetime import datetime
    from decimal import Decimal

    row = {
        "prompt": "q",
        "completion": "a",
        "margin": float("nan"),
        "when": datetime(2026, 1, 2, 3, 4),
        "d": Decimal(2),
        "image": {"bytes": b"\xff\xd8", "path": "a.jpg"},
    }
    (read,) = read_rows(write_table(tmp_path / "rows.parquet", [row], "parquet"))
    assert read.columns == {
        "margin": None,
        "when": "2026-01-02 03:04:00",
        "d": 2.0,
        "image": {"bytes": None, "path": "a.jpg"},
    }
    assert read.notes == ("the bytes in 'image.bytes' are left out",)


def test_missing_packages_are_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_table(tmp_path / "rows.parquet", ROWS, "parquet")
    (tmp_path / "rows.jsonl.zst").write_bytes(zstd(LINES))
    for name in ("pyarrow", "pyarrow.parquet", "backports", "backports.zstd", "compression", "compression.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in (path, tmp_path / "rows.jsonl.zst"):
        with pytest.raises(MissingExtraError, match=r'pip install "onebase\[data\]"'):
            read_rows(name)


def test_the_content_tells_the_kind_where_the_name_does_not(tmp_path: Path) -> None:
    cases: dict[str, tuple[bytes, str]] = {
        "lines": (LINES, "jsonl"),
        "list": (json.dumps(ROWS, indent=1).encode(), "json"),
        "packed": (gzip.compress(LINES), "jsonl"),
        "packed.jsonl": (gzip.compress(LINES), "jsonl"),
        "bom.dat": (b"\xef\xbb\xbf" + LINES, "jsonl"),
    }
    for name, (content, kind) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert kind_of(tmp_path / name) == kind
        assert [row.answers for row in read_rows(tmp_path / name)] == [(row["completion"],) for row in ROWS]
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04")
    assert refusal(tmp_path / "x.zip").startswith(": unsupported file type; use .json, .jsonl, ")


def test_json_and_json_lines_named_the_other_way_are_read_and_noted(tmp_path: Path) -> None:
    (tmp_path / "lines.json").write_bytes(LINES)
    (tmp_path / "list.jsonl").write_text(json.dumps(ROWS))
    (tmp_path / "pretty.jsonl").write_text(json.dumps(ROWS, indent=1))
    for name, note in (
        ("lines.json", "one object per line, though the file is named .json"),
        ("list.jsonl", "one JSON value, though the file is named .jsonl"),
        ("pretty.jsonl", "one JSON value, though the file is named .jsonl"),
    ):
        rows = read_rows(tmp_path / name)
        assert len(rows) == 7 and {row.notes for row in rows} == {(note,)}


def test_an_object_may_hold_rows_columns_or_be_one_row(tmp_path: Path) -> None:
    def answers_of(whole: Any) -> list[str]:
        (tmp_path / "rows.json").write_text(json.dumps(whole))
        return [row.answers[0] for row in read_rows(tmp_path / "rows.json")]

    two = [{"prompt": "q", "completion": "a"}, {"prompt": "r", "completion": "b"}]
    assert answers_of({"version": 1, "rows": two, "tags": ["x"]}) == ["a", "b"]
    assert answers_of({"prompt": ["q", "r"], "completion": ["a", "b"]}) == ["a", "b"]
    assert answers_of({"x1": two[0], "x2": two[1]}) == ["a", "b"]
    assert answers_of(two[0]) == ["a"]
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert answers_of({"messages": talk, "id": "x"}) == ["a"]
    assert refusal_of(tmp_path, "rows.json", json.dumps({"a": two, "b": two}).encode()).startswith(
        " holds one object with the keys a, b, and 2 of them hold lists"
    )


def refusal_of(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return refusal(folder / name)


def test_cells_of_a_table_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages", "label", "margin"])
        writer.writerow(
            [json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]), "1", ""]
        )
        writer.writerow(
            [str([{"role": "user", "content": "it's"}, {"role": "assistant", "content": "b"}]), "False", ""]
        )
    first, second = read_rows(path)
    assert first.answers == ("a",) and first.columns["label"] == 1
    assert second.messages == (Message("user", "it's"),) and second.columns["label"] is False
    path.write_text('prompt;chosen;rejected;margin\nq;[1] a;"x;\ny";0.5\n')
    (row,) = read_rows(path)
    assert row.answers == ("[1] a", "x;\ny") and row.margin == 0.5 and row.place == f"{path}:2"
    path.write_text('question,A,B,answer\nwhich?,one,two,B\n"what, then?",three,four,A\n')
    assert [(row.messages[0].content, row.columns["gold"]) for row in read_rows(path)] == [
        ("which?\nA) one\nB) two", "B"),
        ("what, then?\nA) three\nB) four", "A"),
    ]
    path.write_text("instruction,input,output\r\n3 + 4?,,7\r\n")  # Excel's line ends
    (row,) = read_rows(path)
    assert row.messages == (Message("user", "3 + 4?"),) and row.answers == ("7",)


# folders, patterns, saved datasets, the Hub


def test_a_folder_and_a_pattern_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.json", "README.txt", ".hidden.jsonl", "picture.png", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": name, "completion": "x"}) if name != "c.txt" else "a text")
    found = [path.relative_to(tmp_path).as_posix() for path in expand(tmp_path)]
    assert found == ["a/1.json", "b/2.jsonl", "c.txt"]
    rows = read_rows(tmp_path)  # each file by its own layout
    assert [row.place for row in rows] == [f"{tmp_path}/{name}:1" for name in found]
    assert [bool(row.messages) for row in rows] == [True, True, False]
    assert [row.place for row in read_files([f"{tmp_path}/**/*.json*"])] == [row.place for row in rows[:2]]
    with pytest.raises(DataError, match="are the same file"):
        read_files([tmp_path, tmp_path / "c.txt"])


def test_a_folder_saved_by_datasets_is_read_by_its_own_list_of_files(tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / split
        folder.mkdir()
        names = [f"data-0000{n}-of-00002.arrow" for n in range(2)]
        for n, name in enumerate(names):
            write_table(folder / name, [{"text": f"{split} {n}"}], "stream")
        write_table(folder / "cache-1.arrow", [{"text": "from another step"}], "stream")
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    assert [row.answers[0] for row in read_rows(tmp_path / "train")] == ["train 0", "train 1"]
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert refusal(tmp_path) == f" holds the splits train, test; name one of them, such as {tmp_path}/train"
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert len(read_rows(tmp_path)) == 2


def test_a_hub_name_without_a_network_is_one_line_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hub.files.cache_clear()
    assert refusal("owner/name:train").startswith(
        " is no file here, and the Hugging Face Hub cannot be asked for it (OfflineModeIsEnabled); check the path, or"
    )
    (tmp_path / "data").mkdir()
    assert refusal("data/name").startswith(" does not exist; check the path")  # a folder that is here is no owner
    assert refusal("owner/name.jsonl").startswith(" does not exist, nor does its folder owner")


def test_the_split_of_a_hub_dataset_is_chosen_by_name() -> None:
    paths = ["main/test/0000.parquet", "main/train/0001.parquet", "main/train/0000.parquet", "extra/train/0000.parquet"]
    train = ["main/train/0000.parquet", "main/train/0001.parquet"]
    assert hub.choose(paths, ["main", "train"], "o/n:main:train") == train
    assert hub.choose(paths, ["test"], "o/n:test") == ["main/test/0000.parquet"]
    with pytest.raises(
        DataError, match="o/n:train could mean several datasets; name one of o/n:extra:train, o/n:main:"
    ):
        hub.choose(paths, ["train"], "o/n:train")
    with pytest.raises(DataError, match="o/n:dev names no part of that dataset; name one of o/n:extra:train, o/n:main"):
        hub.choose(paths, ["dev"], "o/n:dev")


def test_a_hub_dataset_is_downloaded_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    path = write_table(tmp_path / "0000.parquet", ROWS, "parquet")
    asked: list[Any] = []

    def info(self: Any, name: str, **options: Any) -> Any:
        asked.append((name, options["revision"]))
        entries = ["README.md", "default/train/0000.parquet"]
        return SimpleNamespace(sha="abc", siblings=[SimpleNamespace(rfilename=entry) for entry in entries])

    def download(name: str, entry: str, **options: Any) -> str:
        asked.append((name, entry, options["revision"]))
        return str(path)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    hub.files.cache_clear()
    assert len(read_rows("owner/data")) == 7
    assert asked == [("owner/data", "refs/convert/parquet"), ("owner/data", "default/train/0000.parquet", "abc")]
    hub.files.cache_clear()


@pytest.mark.parametrize("kind", ["jsonl", "csv", "txt", "jsonl.gz"])
def test_a_stream_of_rows_holds_a_few_of_them(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rows.{kind}"
    texts = [f"{n} " + "word " * 400 for n in range(5000)]  # 10 MB
    content = {
        "jsonl": "".join(json.dumps({"prompt": "q", "completion": text}) + "\n" for text in texts),
        "csv": "prompt,completion\n" + "".join(f"q,{text}\n" for text in texts),
        "txt": "\n\n".join(texts),
    }[kind.removesuffix(".gz")].encode()
    path.write_bytes(gzip.compress(content, 1) if kind.endswith(".gz") else content)
    del texts, content
    tracemalloc.start()
    try:
        assert sum(1 for _ in iter_rows(path)) == 5000
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_stream_of_a_table_holds_a_batch_of_it(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    rows = [{"text": f"{n} " + "word " * 400} for n in range(20_000)]  # 40 MB
    for kind in ("parquet", "file"):
        path = write_table(tmp_path / "rows.arrow", rows, kind, size=2000)
        before, most = pyarrow.total_allocated_bytes(), 0
        for number, _ in enumerate(iter_rows(path)):
            if number % 500 == 0:
                most = max(most, pyarrow.total_allocated_bytes() - before)
        assert number == 19_999 and most < 20_000_000


# damage


def test_byte_order_marks_and_line_ends_of_windows_are_harmless(tmp_path: Path) -> None:
    for name, content in (
        ("rows.jsonl", LINES.replace(b"\n", b"\r\n")),
        ("rows.json", json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode()),
        ("rows.csv", b"prompt,completion\r\nq,a\r\n"),
        ("rows.txt", b"one\r\nline\r\n\r\ntwo\r\n"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        plain = read_rows(path)
        path.write_bytes(b"\xef\xbb\xbf" + content)
        assert read_rows(path) == plain and "\r" not in plain[0].answers[0]


@pytest.mark.parametrize("packed", [name for name in PACKERS if name])
def test_a_file_cut_short_names_the_row_it_ends_in(tmp_path: Path, packed: str) -> None:
    draw = random.Random(0)
    rows = [{"prompt": f"{n}", "completion": f"{draw.getrandbits(2000):x}"} for n in range(600)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    table_of_texts = "prompt,completion\n" + "".join(f"q,{row['completion']}\n" for row in rows)
    whole = {"jsonl": lines, "json": json.dumps(rows).encode(), "csv": table_of_texts.encode()}
    for kind, content in whole.items():
        cut = PACKERS[packed](content)
        path = tmp_path / f"rows.{kind}{packed}"
        path.write_bytes(cut[: len(cut) * 2 // 3])
        names = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
        assert re.match(rf"(:\d+: the file)? is not a complete {names[packed]} file \(.+\); download", refusal(path))
        if packed != ".bz2":  # which gives its first 900 kB only whole
            assert re.match(r":[1-9]\d*: ", refusal(path))


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
def test_batches_of_any_size_are_read_whole(tmp_path: Path, kind: str) -> None:
    path = write_table(tmp_path / "rows.arrow", [{"text": f"text {n}"} for n in range(2500)], kind, size=2400)
    assert [row.answers[0] for row in read_rows(path)] == [f"text {n}" for n in range(2500)]


@pytest.mark.parametrize("kind", ["parquet", "stream", "file"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.999])
def test_a_table_cut_short_is_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = write_table(tmp_path / "rows.arrow", [{"text": f"text {n}"} for n in range(3000)], kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert re.match(r":\d+: not a complete (Parquet|Arrow) file \(.+\); download or save it again$", refusal(path))


def test_a_stream_cut_between_two_batches_is_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "rows.arrow"
    schema = pyarrow.schema([("text", pyarrow.string())])
    with path.open("wb") as file:
        writer = pyarrow.ipc.new_stream(file, schema)
        writer.write_table(pyarrow.table({"text": ["a"]}, schema=schema))
        whole = file.tell()
        writer.write_table(pyarrow.table({"text": ["b"]}, schema=schema))
        writer.close()
    path.write_bytes(path.read_bytes()[:whole])
    assert "the end of the stream is missing" in refusal(path)


@pytest.mark.parametrize(
    ("encoding", "says"),
    [("gb18030", r"byte \d+ is 0x\w\w; it may be GBK"), ("utf-16", "byte 0 is 0xff, as in UTF-16")],
)
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "txt"])
def test_other_encodings_are_named(tmp_path: Path, kind: str, encoding: str, says: str) -> None:
    text = {
        "jsonl": LINES.decode(),
        "json": json.dumps(ROWS, ensure_ascii=False, indent=1),
        "csv": "prompt,completion\nfrage,答案\n",
        "txt": "文章一\n\n文章二\n",
    }[kind]
    message = refusal_of(tmp_path, f"rows.{kind}", text.encode(encoding))
    assert re.fullmatch(rf"(:\d+)? is not UTF-8: {says}; save it as UTF-8", message)
    if encoding == "gb18030":
        assert message.startswith(":")


def test_a_field_that_no_model_could_read_is_refused_by_name(tmp_path: Path) -> None:
    huge = "x" * 10_000_000
    row = {"prompt": "q", "completion": huge}
    second = ":2: 'completion' has 10,000,000 characters, more than the 3,000,000 one text may have; split it"
    lines = json.dumps(ROWS[0]) + "\n" + json.dumps(row)
    assert refusal_of(tmp_path, "rows.jsonl", lines.encode()) == second
    assert refusal_of(tmp_path, "rows.json", json.dumps([ROWS[0], row]).encode()) == second
    assert (
        refusal(write_table(tmp_path / "rows.parquet", [{**ROWS[0], "note": ""}, {**row, "note": ""}], "parquet"))
        == second
    )
    message = refusal_of(tmp_path, "rows.csv", f"prompt,completion\na,b\nq,{huge}\n".encode())
    assert message == f":3: invalid CSV: field larger than field limit ({LONGEST_FIELD}); correct the file there"
    message = refusal_of(tmp_path, "rows.txt", f"one\n\n{huge}\n".encode())
    assert message == ":2: the text has 10,000,000 characters, more than the 3,000,000 one text may have; split it"


def test_faults_of_a_table_of_texts_name_the_row(tmp_path: Path) -> None:
    def of(text: str) -> str:
        return refusal_of(tmp_path, "rows.csv", text.encode())

    assert of("prompt,completion\na,b\nc\n") == (
        ":3: the row has 1 cell, and the header 2: quote cells that hold separators or line ends"
    )
    assert of('prompt,completion\na,b\nc,"d\n') == ":3: invalid CSV: unexpected end of data; correct the file there"
    assert of("prompt,prompt\na,b\n") == ":1: the header is prompt, prompt; every column needs a name of its own"
    assert of("prompt,\na,b\n").startswith(":1: the header is prompt, ; every column needs")
    assert of("") == of("prompt,completion\n") == " is empty; at least one row below the header is needed"


def test_text_that_could_be_rows_is_refused(tmp_path: Path) -> None:
    assert refusal_of(tmp_path, "rows.txt", LINES).startswith(":1: a line of JSON in a text file could be a row or a")
    assert refusal_of(tmp_path, "blank.txt", b"\n \n") == " is empty; at least one text is needed"
    assert refusal_of(tmp_path, "nul.txt", b"a\n\nb\0c\n").startswith(":2: line 3 holds NUL characters")


DAMAGED = [
    "fastchat/dummy_conversation.json.gz",
    "fine_grained_rlhf/dev_feedback.json.gz",
    "gsm8k/test.jsonl.gz",
    "hh_rlhf/harmless-base-test.jsonl.gz",
    "llamafactory_demo/dpo_zh_demo.json.gz",
    "llamafactory_demo/identity.json",
    "llamafactory_demo/kto_en_demo.json.gz",
    "mbpp/mbpp.jsonl.gz",
    "oasst1_zh/oaast_rm_zh.json.gz",
    "oasst1_zh/oaast_sft_zh.json.gz",
    "pandalm/testset-v1.json.gz",
    "sentiment/sentence_polarity.jsonl.gz",
    "taskmaster_reward/tm4_reward_06.json.gz",
    "taskmaster_sft/tm4_data_07.json.gz",
    "text_zh/tang_poems_300.json.gz",
]
NEEDED = {
    "dummy_conversation": "conversations",
    "dev_feedback": "prediction 2",
    "test": "question",
    "harmless-base-test": "rejected",
    "dpo_zh_demo": "chosen",
    "identity": "output",
    "kto_en_demo": "messages",
    "mbpp": "code",
    "oaast_rm_zh": "instruction",
    "oaast_sft_zh": "output",
    "testset-v1": "response1",
    "sentence_polarity": "text",
    "tm4_reward_06": "generation",
    "tm4_data_07": "utterances",
    "tang_poems_300": "paragraphs",
}


def damaged_copies(path: Path, folder: Path) -> Iterator[tuple[str, Path, int | None]]:
    """Copies of a real file, each damaged in its own way, with the row of the damage where it has one."""
    content = path.read_bytes()
    plain = gzip.decompress(content) if path.suffix == ".gz" else content
    kind = "jsonl" if ".jsonl" in path.name else "json"
    listed = kind == "json"
    rows = json.loads(plain) if listed else [json.loads(line) for line in plain.splitlines() if line.strip()]
    rows = rows[:40]

    def written(name: str, changed: list[Any], encoding: str = "utf-8") -> Path:
        text = json.dumps(changed, ensure_ascii=False) if listed else "\n".join(
            json.dumps(row, ensure_ascii=False) for row in changed
        )  # fmt: skip
        file = folder / f"{name}.{kind}"
        file.write_bytes(text.encode(encoding))
        return file

    cut = folder / f"cut.{kind}.gz"
    packed = gzip.compress(plain)
    cut.write_bytes(packed[: len(packed) // 2])
    yield "cut", cut, None
    yield "utf16", written("utf16", rows, "utf-16"), None
    key = NEEDED[path.name.partition(".")[0]]
    for name, row in (
        ("missing", {k: value for k, value in rows[20].items() if k != key}),
        ("null", {**rows[20], key: None}),
        ("number", {**rows[20], key: {"a": 1}}),
        ("huge", {**rows[20], key: "x" * (LONGEST_FIELD + 1)}),
        ("other", {"some": "thing"}),
        ("list", ["some"]),
    ):
        yield name, written(name, [*rows[:20], row, *rows[21:]]), 21


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_copies_of_a_real_file_are_one_line_with_the_row(shared: Path, tmp_path: Path, name: str) -> None:
    for damage, path, row in damaged_copies(shared / "data" / name, tmp_path):
        message = refusal(path)
        if row is not None:
            assert message.startswith(f":{row}"), (damage, message)
        assert len(message) < 3000, (damage, message)


def test_files_are_checked_by_name_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"not json")
    check_file(path)
    with pytest.raises(DataError, match="does not exist"):
        check_file(tmp_path / "row.jsonl")
    (tmp_path / "rows.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(DataError, match="rows.pdf: unsupported file type"):
        check_file(tmp_path / "rows.pdf")
