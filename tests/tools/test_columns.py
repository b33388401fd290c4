"""`--columns`: every verb that reads a data file reads keys of other names, as `data.columns` of a config does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.cli import preflight
from onebase.cli.main import main
from onebase.errors import ConfigError
from tests.recipes.conftest import write_rows
from tests.tools.test_score_and_chat import one_error, said

ROWS: list[dict[str, Any]] = [{"frage": f"Is it number {i}?", "antwort": f"It is {i}.", "zahl": i} for i in range(40)]
COLUMNS = ["--columns", "{prompt: frage, completion: antwort}"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "d.jsonl", ROWS)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_score_and_eval_read_by_a_mapping(
    base: Path, reward_role: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [{"prompt": row["frage"], "completion": row["antwort"]} for row in ROWS]
    plain = write_rows(tmp_path / "plain.jsonl", usual)
    mapped, _ = said(capsys, "score", str(reward_role), str(file), *COLUMNS)
    expected, _ = said(capsys, "score", str(reward_role), str(plain))
    assert [json.loads(line)["score"] for line in mapped.splitlines()] == [
        json.loads(line)["score"] for line in expected.splitlines()
    ]
    words = ["--verifier", "numeric", "--samples", "2", "--max-new-tokens", "3", "--limit", "3", "--dtype", "float32"]
    output = tmp_path / "samples.jsonl"
    mapping = "{prompt: 'How many? {frage}', gold: zahl}"
    said(capsys, "eval", str(base), str(file), *words, "--columns", mapping, "--output", str(output))
    assert [sample["prompt"] for sample in read(output)[::2]] == [f"How many? {row['frage']}" for row in ROWS[:3]]


def test_data_verbs_read_by_a_mapping(
    base: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, _ = said(capsys, "data", "show", str(file), "--model", str(base), "--chat-template", "hh", *COLUMNS)
    assert "Is it number 0?" in out and "It is 0." in out
    out, _ = said(capsys, "data", "stats", str(file), "--json", *COLUMNS)
    assert json.loads(out)["files"][0]["kinds"] == {"prompt and answer": 40}
    said(capsys, "data", "split", str(file), "--output", str(tmp_path / "split"), *COLUMNS)
    parts = [read(tmp_path / "split" / f"{side}.jsonl") for side in ("train", "test")]
    assert sorted([*parts[0], *parts[1]], key=lambda row: row["zahl"]) == ROWS and all(parts)
    said(capsys, "data", "clean", str(file), "--output", str(tmp_path / "clean"), "--filter", "duplicates", *COLUMNS)
    assert read(tmp_path / "clean" / "kept" / "d.jsonl") == ROWS
    said(capsys, "data", "convert", str(file), str(tmp_path / "o.jsonl"), "--to", "trl", "--drop", "columns", *COLUMNS)
    assert read(tmp_path / "o.jsonl")[3]["prompt"][0]["content"] == "Is it number 3?"


@pytest.mark.parametrize("verb", [["score", "role"], ["eval", "role", "--verifier", "exact"], ["data", "stats"]])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt", "--columns is prompt; it should map what is read to the file's keys, as in '{prompt: question, co"),
        ("{}", "--columns is {}; it should map"),
        ("{prompt: [a]}", "--columns is {prompt: [a]}; it should map"),
        ("{prompt: a", "--columns is not valid YAML: "),
    ],
)
def test_a_mapping_that_is_none_is_one_line(
    verb: list[str], text: str, message: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, str(file), "--columns", text]) == 2
    assert one_error(capsys.readouterr().err).startswith(message)


def test_a_key_that_is_a_number_is_read_as_its_text() -> None:
    assert preflight.read_columns("{prompt: 0, completion: 'a b'}") == {"prompt": "0", "completion": "a b"}
    assert preflight.read_columns(None) is None
    with pytest.raises(ConfigError, match="--columns is"):
        preflight.read_columns("{prompt: ''}")


def test_a_key_that_is_missing_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", str(file), "--columns", "{prompt: fragen, completion: antwort}"]) == 3
    found = one_error(capsys.readouterr().err)
    assert found == f"{file}:1: there is no key 'fragen' to read 'prompt' from; did you mean 'frage'?"
