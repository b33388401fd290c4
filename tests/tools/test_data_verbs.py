"""`onebase data clean`, `split` and `stats` as a user runs them: what is written, printed and refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from bench.planted import plant
from onebase.cli.main import main
from onebase.errors import DataError
from onebase.reading.formats import iter_originals, read_rows
from onebase.tools import data_clean
from onebase.tools.row_difficulty import WrongShares, ranks


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pairs(seed: int = 0, count: int = 300) -> list[dict[str, Any]]:
    rows = plant(count, seed).rows
    return [
        {"id": n, "prompt": r.messages[0].content, "chosen": r.answers[0], "rejected": r.answers[1], "x": {"y": [1.0]}}
        for n, r in enumerate(rows)
    ]


def test_kept_and_dropped_rows_together_are_the_file_unchanged_and_in_order(tmp_path: Path) -> None:
    rows = pairs()
    file = write(tmp_path / "pairs.jsonl", rows)
    assert main(["data", "clean", str(file), "--output", str(tmp_path / "out")]) == 0
    kept, dropped = (read(tmp_path / "out" / part / "pairs.jsonl") for part in ("kept", "dropped"))
    assert dropped and sorted([*kept, *(line["row"] for line in dropped)], key=lambda row: row["id"]) == rows
    for some in (kept, [line["row"] for line in dropped]):
        assert [row["id"] for row in some] == sorted(row["id"] for row in some)
    for line in dropped:
        assert set(line) <= {"place", "filter", "reason", "value", "others", "row"}
        assert line["place"] == f"{file}:{line['row']['id'] + 1}"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"] == len(rows) and report["kept"] == len(kept)
    counts = {own["name"]: own["dropped"] for own in report["filters"]}
    assert counts == {name: sum(line["filter"] == name for line in dropped) for name in counts}
    # Without one filter its rows come back, unless another has something against them.
    assert main(["data", "clean", str(file), "--output", str(tmp_path / "two"), "--filter", "encoding"]) == 0
    assert len(read(tmp_path / "two" / "kept" / "pairs.jsonl")) == len(rows) - counts["encoding"]


def test_the_order_of_the_options_does_not_change_a_byte(tmp_path: Path) -> None:
    file = write(tmp_path / "pairs.jsonl", pairs())
    orders = [
        ["--filter", "duplicates", "--filter", "{name: length, least: 200}", "--filter", "encoding", "--output", "{}"],
        ["--output", "{}", "--filter", "encoding", "--filter", "{least: 200, name: length}", "--filter", "duplicates"],
    ]
    for n, words in enumerate(orders):
        assert main(["data", "clean", str(file), *(word.replace("{}", str(tmp_path / str(n))) for word in words)]) == 0
    for name in ("kept/pairs.jsonl", "dropped/pairs.jsonl", "report.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_every_file_is_written_apart_under_a_name_of_its_own(tmp_path: Path) -> None:
    one = write(tmp_path / "a" / "rows.jsonl", [{"prompt": "Who?", "completion": "I"}])
    two = tmp_path / "b" / "rows.jsonl.gz"
    two.parent.mkdir()
    two.write_bytes(gzip.compress(b'{"text": "a text"}\n{"text": "Who?"}\n'))
    (tmp_path / "poem.txt").write_text("first\n\nsecond\n\nfirst\n")
    files = [str(one), str(two), str(tmp_path / "poem.txt")]
    assert main(["data", "clean", *files, "--output", str(tmp_path / "out")]) == 0
    kept = tmp_path / "out" / "kept"
    assert sorted(path.name for path in kept.iterdir()) == ["poem.jsonl", "rows-2.jsonl", "rows.jsonl"]
    assert read(kept / "poem.jsonl") == [{"text": "first"}, {"text": "second"}]
    assert [row.answers for row in read_rows(kept / "rows-2.jsonl")] == [("a text",), ("Who?",)]


def test_rows_that_hold_test_prompts_are_dropped(tmp_path: Path) -> None:
    questions = [f"What does the {animal} by the old river say to the moon at night?" for animal in ("cat", "dog")]
    train = write(tmp_path / "train.jsonl", [{"prompt": q, "completion": "x"} for q in [*questions, "Where is it?"]])
    test = write(tmp_path / "test.jsonl", [{"prompt": questions[0].upper(), "gold": "x"}])
    words = ["data", "clean", str(train), "--output", str(tmp_path / "out"), "--against", str(test)]
    assert main([*words, "--filter", "duplicates"]) == 0
    (dropped,) = read(tmp_path / "out" / "dropped" / "train.jsonl")
    assert dropped["filter"] == "leaks" and dropped["value"] == {"of": f"{test}:1"}


def test_samples_of_an_evaluation_say_which_questions_are_too_easy_or_too_hard(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {n}?", "gold": "4"} for n in range(5)]
    rights = [[True] * 4, [False] * 4, [True, False] * 2, [True, True, True, False]]
    samples = [
        {"row": "elsewhere:1", "sample": k, "prompt": f"Question {n}?", "completion": "", "right": right}
        for n, own in enumerate(rights)
        for k, right in enumerate(own)
    ]
    train, file = write(tmp_path / "train.jsonl", rows), write(tmp_path / "samples.jsonl", samples)
    words = ["data", "clean", str(train), "--output", str(tmp_path / "out"), "--difficulty", str(file)]
    assert main([*words, "--filter", "{name: difficulty, low: 0.1, high: 0.9}"]) == 0
    kept = [row["prompt"] for row in read(tmp_path / "out" / "kept" / "train.jsonl")]
    assert kept == ["Question 2?", "Question 3?", "Question 4?"]  # the last was not measured
    dropped = read(tmp_path / "out" / "dropped" / "train.jsonl")
    assert [(line["reason"], line["value"]) for line in dropped] == [("too easy", 0.0), ("too hard", 1.0)]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["difficulty_not_measured"] == 1
    with pytest.raises(
        DataError, match=r"bad\.jsonl:1: a sample has 'prompt' \(a text\) and 'right' \(true or false\)"
    ):
        WrongShares(write(tmp_path / "bad.jsonl", [{"prompt": "?", "right": 1}]))


def test_ranks_go_from_0_to_1_and_equal_losses_share_one() -> None:
    assert ranks({"a": 3.0, "b": 1.0, "c": 2.0, "d": 2.0, "e": 9.0}) == {
        "a": 0.75,
        "b": 0.0,
        "c": 0.375,
        "d": 0.375,
        "e": 1.0,
    }
    assert ranks({"a": 1.0}) == {"a": 0.5} and ranks({}) == {}


def test_nothing_is_written_when_all_rows_would_go_or_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        tmp_path / "rows.jsonl", [{"prompt": "Who?", "completion": "I"}, {"prompt": "What?", "completion": "It"}]
    )
    words = ["data", "clean", str(file), "--output", str(tmp_path / "out")]
    assert main([*words, "--filter", "{name: length, least: 100}"]) == 3
    assert "all 2 rows would be dropped, the first by the filter length (shorter than 100 characters: 1)" in (
        capsys.readouterr().err
    )
    real = data_clean.write_apart

    def changed(*given: Any) -> None:
        write(file, [{"prompt": "Who?", "completion": "I"}])
        real(*given)

    monkeypatch.setattr(data_clean, "write_apart", changed)
    assert main(words) == 3
    assert "the files had 2 rows when they were judged and 1 now; run it again" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["clean", "--output", "new"], 2, "name at least one data file"),
        (
            ["clean", "d.jsonl", "--output", "full"],
            2,
            "full is not empty; name a new folder with --output, or empty this",
        ),
        (["clean", "d.jsonl", "--output", "d.jsonl"], 2, "d.jsonl is a file; name a new folder with --output"),
        (
            ["clean", "d.jsonl", "./d.jsonl", "--output", "new"],
            3,
            "d.jsonl and d.jsonl are the same file; name it once",
        ),
        (["clean", "d.jsonl", "--output", "new", "--filter", "lenght"], 2, "no filter 'lenght'; did you mean length?"),
        (["clean", "d.jsonl", "--output", "new", "--filter", "zzz"], 2, "the filters are encoding, length, "),
        (
            ["clean", "d.jsonl", "--output", "new", "--filter", "{name: length, most: x}"],
            2,
            "length: most: Input should be",
        ),
        (["clean", "d.jsonl", "--output", "new", "--filter", "{name: length, mots: 3}"], 2, "length: mots: Unexpected"),
        (["clean", "d.jsonl", "--output", "new", "--filter", "{name: length"], 2, "--filter is not valid YAML"),
        (
            ["clean", "d.jsonl", "--output", "new", "--filter", "leaks"],
            2,
            "leaks has nothing to compare with; add --against",
        ),
        (["clean", "d.jsonl", "--output", "new", "--filter", "difficulty"], 2, "add --difficulty"),
        (["clean", "d.jsonl", "--output", "new", "--filter", "length", "--filter", "length"], 2, "given twice"),
        (["clean", "d.jsonl", "--output", "new", "--against", "none.jsonl"], 3, "none.jsonl does not exist"),
        (["clean", "d.jsonl", "--output", "new", "--difficulty", "none"], 2, "none"),
        (["clean", "d.jsonl", "--output", "new", "--seed", "-1"], 2, "--seed is -1; it should be between 0 and"),
        (
            ["split", "d.jsonl", "--output", "new", "--test", "1.5"],
            2,
            "--test is 1.5; it should be a share between 0 and 1",
        ),
        (["split", "one.jsonl", "--output", "new"], 3, "the 2 rows have 1 different prompt, which are all alike"),
        (["split", "d.jsonl", "--output", "full"], 2, "full is not empty"),
        (["stats"], 2, "name at least one data file"),
        (["stats", "d.jsonl", "--chat-template", "hh"], 2, "name a tokenizer with --model too"),
        (["stats", "d.jsonl", "--model", "none"], 2, "none"),
        (["stats", "d.jsonl", "--plots", "d.jsonl"], 2, "choose another --plots"),
    ],
)
def test_mistakes_are_answered_in_one_line_and_nothing_is_written(
    words: list[str], code: int, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d.jsonl", [{"prompt": "Who?", "completion": "I"}, {"prompt": "What is it?", "completion": "It"}])
    write(tmp_path / "one.jsonl", [{"prompt": "Who?", "completion": "I"}, {"prompt": "who?", "completion": "You"}])
    write(tmp_path / "full" / "x.jsonl", [])
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert main(["data", *words]) == code
    said = capsys.readouterr().err
    assert says in said and "Traceback" not in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_split_writes_every_row_once_and_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"{word} {n % 40} of the river?", "completion": str(n)} for n, word in enumerate(["What"] * 90)]
    file = write(tmp_path / "rows.jsonl", rows)
    assert main(["data", "split", str(file), "--output", str(tmp_path / "out"), "--test", "0.2"]) == 0
    train, test = (read(tmp_path / "out" / f"{side}.jsonl") for side in ("train", "test"))
    assert sorted([*train, *test], key=lambda row: int(row["completion"])) == rows
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    report = json.loads((tmp_path / "out" / "split.json").read_text())
    assert report["rows"] == {"train": len(train), "test": len(test)} and report["prompts_in_both"] == 0
    assert "No prompt is in both" in capsys.readouterr().out
    write(file, rows[::-1])
    assert main(["data", "split", str(file), "--output", str(tmp_path / "again"), "--test", "0.2"]) == 0
    assert read(tmp_path / "again" / "test.jsonl") == test[::-1]


def test_stats_prints_a_column_per_file_or_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write(tmp_path / "one.jsonl", [{"prompt": "Who?", "chosen": "I am", "rejected": "no"}] * 2)
    two = write(tmp_path / "two.jsonl", [{"prompt": "who?", "completion": "你好"}])
    assert main(["data", "stats", str(one), str(two), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert "one.jsonl" in printed and f"Both in {one} and in {two}: 1 prompt." in printed
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["one.png", "two.png"]
    assert main(["data", "stats", str(one), str(two), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [own["rows"] for own in found["files"]] == [2, 1] and found["files"][0]["duplicates"] == 1
    assert found["files"][0]["length_bias"]["characters"]["mean"] == 2
    assert found["prompts_in_both"] == [{"files": [str(one), str(two)], "prompts": 1}]


def test_a_squad_question_is_read_back_as_the_same_row(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "xquad" / "xquad.en.json.gz"
    originals = list(iter_originals(path))
    again = read_rows(write(tmp_path / "again.jsonl", [dict(original.values) for original in originals]))
    assert len(again) == 1190
    assert [(row.messages, row.columns["gold"]) for row in again] == [
        (original.row.messages, original.row.columns["gold"]) for original in originals
    ]
