"""Mapping the keys of a row that no reader knows, or that could be read in two ways."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.config.files import dump_config, load_config
from onebase.config.language import SFTConfig
from onebase.config.remedies import with_remedy
from onebase.data.remarks import remarks
from onebase.errors import ConfigError, DataError
from onebase.reading.columns import apply, suggested
from onebase.reading.formats import read_rows
from onebase.records import Message
from tests.reading.test_formats import written
from tests.tiny_models import save_tiny

ROW = {
    "q": "Which?",
    "options": ["one", "two"],
    "meta": {"title": "T", "n": 3},
    "turns": [{"text": "a"}, {"text": "b"}],
    "a.b": "dotted",
    "none": None,
    "good": True,
}


def mapped(mapping: dict[str, str], row: dict[str, Any] = ROW) -> dict[str, Any]:
    return apply(mapping, row, "f:1").values


def refusal(mapping: dict[str, str], row: dict[str, Any] = ROW) -> str:
    with pytest.raises(DataError) as caught:
        apply(mapping, row, "f:1")
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("q", "Which?"),
        ("options", "one\ntwo"),
        ("meta.title", "T"),
        ("turns[1].text", "b"),
        ("turns.0.text", "a"),
        ("a.b", "dotted"),
        ("{q}\n{options}", "Which?\none\ntwo"),
        ("{meta.title}: {turns[0].text} ({meta.n}, {good}){none}", "T: a (3, true)"),
        ("{{{q}}} {{}}", "{Which?} {}"),
    ],
)
def test_a_mapping_names_keys_or_fills_a_template(given: str, value: str) -> None:
    assert mapped({"prompt": given}) == {"prompt": value}


def test_other_values_keep_their_type() -> None:
    assert mapped({"messages": "turns", "margin": "meta.n"}) == {"messages": ROW["turns"], "margin": 3}
    assert apply({"prompt": "q", "title": "meta.title"}, ROW, "f:1").columns == {
        key: value for key, value in ROW.items() if key not in ("q", "meta")
    }


def test_keys_that_are_not_there_are_named_with_the_nearest() -> None:
    start = "f:1: there is no key '{}' to read 'prompt' from"
    assert refusal({"prompt": "optoins"}) == start.format("optoins") + "; did you mean 'options'?"
    assert refusal({"prompt": "{q} {meta.titel}"}) == start.format("meta.titel") + "; did you mean 'title'?"
    assert refusal({"prompt": "zzz"}) == start.format("zzz") + f"; found {', '.join(ROW)}"
    assert refusal({"prompt": "turns[2].text"}) == start.format("turns[2].text") + (
        ": 'turns' has 2 entries, numbered from 0"
    )
    assert refusal({"prompt": "q.text"}) == start.format("q.text") + ": 'q' is the string \"Which?\""


def test_templates_that_are_none_are_named() -> None:
    assert refusal({"prompt": "{q"}) == "f:1: the template for 'prompt' has a single '{'; write it twice for a brace"
    assert refusal({"prompt": "q}"}).endswith("has a single '}'; write it twice for a brace")
    assert refusal({"prompt": "{}"}).endswith("has a single '{}'; write it twice for a brace")
    assert refusal({"prompt": "{meta}"}) == "f:1: 'meta', for 'prompt', is an object; name a text inside it"
    assert refusal({"prompt": "{turns}"}) == "f:1: 'turns', for 'prompt', is a list; name a text inside it"


def test_any_row_is_read_by_a_mapping(tmp_path: Path) -> None:
    rows = [{"id": f"x{n}", "frage": f"q{n}", "options": ["a", "b"], "antwort": "a", "quelle": "web"} for n in range(3)]
    path = written(tmp_path, rows)
    read = read_rows(path, columns={"prompt": "{frage}\n{options}", "completion": "antwort"})
    assert [row.messages for row in read] == [(Message("user", f"q{n}\na\nb"),) for n in range(3)]
    assert read[0].answers == ("a",) and read[0].columns == {"id": "x0", "quelle": "web"}
    (line,) = remarks(read, [])
    assert line.endswith("columns for reward functions only: id (3 rows), quelle (3 rows)")


def test_a_mapping_decides_between_two_readings(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "q", "completion": "a", "response": "b", "text": "c", "code": "d"}])
    (row,) = read_rows(path, columns={"prompt": "prompt", "completion": "response"})
    assert row.answers == ("b",) and row.columns["completion"] == "a"
    (row,) = read_rows(path, columns={"text": "text"})
    assert row.messages == () and row.answers == ("c",)
    (row,) = read_rows(path, columns={"prompt": "text", "chosen": "completion", "rejected": "response"})
    assert row.answers == ("a", "b") and row.grades == (1.0, 0.0)


def test_tables_are_mapped_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["Frage", "gut", "schlecht"], ["q", "a", "b"]])
    (row,) = read_rows(path, columns={"prompt": "Frage", "chosen": "gut", "rejected": "schlecht"})
    assert row.answers == ("a", "b")


def test_a_row_without_a_mapped_key_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"frage": "q", "antwort": "a"}, {"frage": "q"}])
    with pytest.raises(DataError, match=r"rows.jsonl:2: there is no key 'antwort' to read 'completion' from"):
        read_rows(path, columns={"prompt": "frage", "completion": "antwort"})
    with pytest.raises(DataError, match="no known layout has the keys promt; usual ones are {prompt, completion}"):
        read_rows(path, columns={"promt": "frage"})


@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ({"context": "c", "frage": "q", "antwort": "a"}, "{prompt: context, completion: antwort}"),
        ({"id": "1", "src": "a", "tgt": "b"}, "{prompt: src, completion: tgt}"),
        ({"meta": {"title": "t"}, "article": "a", "highlights": "b", "url": "u"},
         "{prompt: meta.title, completion: highlights}"),
        ({"body": "a"}, "{text: body}"),
        ({"n": 1}, "{prompt: KEY, completion: KEY}"),
    ],
)  # fmt: skip
def test_the_refusal_of_unknown_keys_has_a_mapping_to_start_from(
    tmp_path: Path, row: dict[str, Any], mapping: str
) -> None:
    assert suggested(row) == mapping
    with pytest.raises(DataError) as caught:
        read_rows(written(tmp_path, [row]))
    assert f"; map its keys with data.columns (or --columns), for a start {mapping}, or rename them" in with_remedy(
        caught.value
    )


@pytest.mark.parametrize("row", [{"frage": "q", "antwort": "a"}, {"src": "q", "tgt": "a"}])
def test_the_mapping_of_a_refusal_reads_the_file(tmp_path: Path, row: dict[str, Any]) -> None:
    import yaml

    (read,) = read_rows(written(tmp_path, [row]), columns=yaml.safe_load(suggested(row)))
    assert read.messages == (Message("user", "q"),) and read.answers == ("a",)


GIVEN = ["--model=m", "--output_dir=o", "--data.train=d.jsonl"]


def test_a_config_holds_a_mapping_whole(tmp_path: Path) -> None:
    mapping = {"prompt": "meta.title", "completion": "{options}\n{a-b}"}
    path = tmp_path / "sft.yaml"
    path.write_text(
        "model: m\noutput_dir: o\ndata:\n  train: d.jsonl\n  columns:\n    prompt: meta.title\n"
        '    completion: "{options}\\n{a-b}"\n'
    )
    config = load_config(SFTConfig, path)
    assert config.data.columns == mapping
    path.write_text(dump_config(config))
    assert load_config(SFTConfig, path) == config
    line = '--data.columns={prompt: meta.title, completion: "{options}\\n{a-b}"}'
    assert load_config(SFTConfig, None, [*GIVEN, line]).data.columns == mapping
    assert load_config(SFTConfig, None, GIVEN).data.columns is None
    for wrong in ("--data.columns=question", "--data.columns={prompt: [a]}", "--data.columns={}"):
        with pytest.raises(ConfigError, match="'data.columns' = "):
            load_config(SFTConfig, None, [*GIVEN, wrong])


def test_a_dry_run_reads_by_the_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    rows = [{"frage": f"q {n}", "antwort": "a", "q2": "x"} for n in range(8)]
    path = written(tmp_path, rows)
    words = ["sft", f"--model={base}", f"--output_dir={tmp_path / 'o'}", "--model.chat_template=plain", "--dry-run",
             f"--data.train={path}"]  # fmt: skip
    assert main(words) == 3
    assert (
        "map its keys with data.columns (or --columns), for a start {prompt: frage, completion: q2}"
        in capsys.readouterr().err
    )
    assert main([*words, "--data.columns", json.dumps({"prompt": "frage", "completion": "antwort"})]) == 0
    assert "columns for reward functions only: q2 (8 rows)" in capsys.readouterr().err
