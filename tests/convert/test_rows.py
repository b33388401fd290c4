"""Data files in other tools' layouts: what is written reads back as the same rows, or is named."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.convert.layouts import LAYOUTS
from onebase.convert.rows import ListsNeeded, best_first, converted, run
from onebase.errors import ConfigError, DataError
from onebase.reading.formats import read_record, read_rows
from onebase.records import Message, Row

TURNS = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "2+2?"))


def row(*answers: str, messages: tuple[Message, ...] = TURNS, **more: Any) -> Row:
    return Row(messages, answers, place="d.jsonl:1", **more)


def written(row: Row, to: str, *drop: str) -> dict[str, Any]:
    (record,) = converted([row], to, drop=drop, dropped=Counter())
    json.dumps(record)
    return record


PAIR = row("4", "5", grades=(1.0, 0.0))
SINGLE = row("4")
EXPECTED = {
    ("jsonl", "single"): {"system": "Be brief.", "completion": "4"},
    ("trl", "single"): {"completion": [{"role": "assistant", "content": "4"}]},
    ("trl", "pair"): {"chosen": [{"role": "assistant", "content": "4"}]},
    ("openai", "single"): {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
        ]
    },
    ("sharegpt", "pair"): {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"},
            {"from": "human", "value": "2+2?"},
        ],
        "chosen": {"from": "gpt", "value": "4"},
        "rejected": {"from": "gpt", "value": "5"},
    },
    ("alpaca", "single"): {
        "instruction": "2+2?",
        "input": "",
        "system": "Be brief.",
        "history": [["Hi", "Hello"]],
        "output": "4",
    },
    ("alpaca", "pair"): {"instruction": "2+2?", "chosen": "4", "rejected": "5"},
}


@pytest.mark.parametrize(("to", "kind"), EXPECTED)
def test_a_row_as_the_tool_documents_it(to: str, kind: str) -> None:
    record = written(PAIR if kind == "pair" else SINGLE, to)
    assert record == record | EXPECTED[to, kind]


FULL = {
    "margin": row("a", "b", grades=(1.0, 0.0), margin=0.5),
    "tie": row("a", "b", grades=(0.0, 0.0)),
    "ended": row("a", ended=(False,)),
    "prefix": row("a", "b", grades=(1.0, 0.0), prefix="First, "),
    "columns": row("a", columns={"topic": "maths", "n": 3}),
    "answers": row("a", "b", "c", grades=(2.0, 1.0, 0.0)),
}


@pytest.mark.parametrize("part", FULL)
@pytest.mark.parametrize("to", LAYOUTS)
def test_a_part_is_held_or_named_and_can_be_dropped(to: str, part: str) -> None:
    given = FULL[part]
    try:
        back = read_record(written(given, to), place=given.place)
    except DataError as error:
        assert f"d.jsonl:1: the layout {to} cannot hold" in str(error) and part in str(error)
        if part == "tie":  # without it the pair says nothing
            assert not [*converted([given], to, drop=["tie"], dropped=Counter())]
            return
        record = written(given, to, part)
        back = read_record(record, place=given.place)
        plain = {"margin": None, "ended": None, "prefix": None, "columns": {}}
        if part in plain:
            assert getattr(back, part) == plain[part]
            assert (back.messages, back.answers) == (given.messages, given.answers)
        elif part == "answers":
            assert (back.answers, back.grades) == (("a", "c"), (1.0, 0.0))
    else:
        assert to != "openai"
        assert getattr(back, "grades" if part == "tie" else part) == getattr(given, "grades" if part == "tie" else part)


def test_a_row_that_cannot_be_held_is_left_out_only_if_asked() -> None:
    unanswered, dropped = row(), Counter[str]()
    with pytest.raises(DataError, match=r"cannot hold a prompt without an answer; .* --drop rows leaves out such rows"):
        written(unanswered, "alpaca")
    assert [*converted([unanswered, SINGLE], "alpaca", drop=["rows"], dropped=dropped)] == [written(SINGLE, "alpaca")]
    assert dropped == {"rows": 1}


def test_turns_that_do_not_alternate_are_never_merged_or_lost() -> None:
    messages = (Message("user", "a"), Message("user", "b"), Message("assistant", "c"), Message("user", "d"))
    for to in LAYOUTS:
        try:
            record = written(row("e", messages=messages), to)
        except DataError as error:
            said = {"alpaca": "messages", "llamafactory": "turns that do not alternate"}[to]
            assert f"cannot hold {said}" in str(error)
        else:
            assert read_record(record, place="").messages == messages


FILES = {
    "hh_rlhf/harmless-base-test.jsonl.gz": 2312,
    "oasst1_zh/oaast_rm_zh.json.gz": 775,
    "oasst1_zh/oaast_sft_zh.json.gz": 689,
    "llamafactory_demo/dpo_en_demo.json.gz": 300,
    "llamafactory_demo/dpo_zh_demo.json.gz": 300,
    "llamafactory_demo/kto_en_demo.json.gz": 300,
    "llamafactory_demo/identity.json": 91,
    "fine_grained_rlhf/dev_feedback.json.gz": 500,
    "fastchat/dummy_conversation.json.gz": 500,
    "xquad/xquad.en.json.gz": 1190,
    "cmrc2018/cmrc2018_trial.json.gz": 1002,
    "gsm8k/test.jsonl.gz": 1319,
    "mbpp/mbpp.jsonl.gz": 974,
    "sentiment/sentence_polarity.jsonl.gz": 10662,
    "text_en/tinystories_sample.txt.gz": None,
}
LEFT_OUT = {
    # answers to 500 questions and 775 prompts are ranked lists of more than two: no other tool has such a layout
    ("oasst1_zh/oaast_rm_zh.json.gz", "trl"): "answers",
    ("oasst1_zh/oaast_rm_zh.json.gz", "sharegpt"): "answers",
    ("fine_grained_rlhf/dev_feedback.json.gz", "trl"): "answers",
    ("fine_grained_rlhf/dev_feedback.json.gz", "sharegpt"): "answers",
}
WITHOUT_PROMPTS = ("sharegpt", "alpaca")
NO_ANSWERS = ("xquad/xquad.en.json.gz", "cmrc2018/cmrc2018_trial.json.gz")
NO_PROMPTS = ("sentiment/sentence_polarity.jsonl.gz", "text_en/tinystories_sample.txt.gz")
NOT_ALTERNATING = {"hh_rlhf/harmless-base-test.jsonl.gz": 4}


@pytest.mark.parametrize("to", ["jsonl", "trl", "sharegpt", "alpaca"])
@pytest.mark.parametrize("name", FILES)
def test_every_file_survives_the_round_trip(shared: Path, tmp_path: Path, name: str, to: str) -> None:
    """Compared field by field, without the code that decides what a layout can hold."""
    source, output = shared / "data" / name, tmp_path / "out.jsonl"
    rows = read_rows(source)
    if FILES[name] is not None:
        assert len(rows) == FILES[name]
    drop = ["tie", *([LEFT_OUT[name, to]] if (name, to) in LEFT_OUT else [])]
    if to in WITHOUT_PROMPTS and name in (*NO_ANSWERS, *NO_PROMPTS):
        with pytest.raises(DataError, match="cannot hold"):
            run(file=source, output=output, to=to, drop=drop)
        assert not output.exists()
        return
    lost = NOT_ALTERNATING.get(name, 0) if to == "alpaca" else 0
    run(file=source, output=output, to=to, drop=[*drop, *(["rows"] if lost else [])])
    back = read_rows(output)
    ties = sum(len(row.answers) > 1 and len(set(row.grades or ())) == 1 for row in rows)
    assert len(rows) - len(back) <= lost + ties
    expected = [best_first(row) for row in rows]
    if len(rows) > len(back) and (name, to) not in LEFT_OUT:
        kept = {(row.messages, row.answers) for row in back}
        expected = [row for row in expected if (row.messages, row.answers) in kept]
    elif len(rows) > len(back):  # pairs of the best and the worst, of which the tied are left out
        asked = {row.messages for row in back}
        expected = [row for row in expected if row.messages in asked]
        assert to in ("trl", "sharegpt") and len(expected) - len(back) <= ties
        return
    for before, after in zip(expected, back, strict=True):
        assert before.messages == after.messages
        if (name, to) in LEFT_OUT and len(before.answers) > 2:
            assert after.answers[0] == before.answers[0] and len(after.answers) == 2
            continue
        assert (before.answers, before.ended, before.margin) == (after.answers, after.ended, after.margin)
        if before.grades is not None and len(before.answers) > 1:
            order = [a > b for a, b in zip(before.grades, before.grades[1:], strict=False)]
            assert after.grades is not None
            assert order == [a > b for a, b in zip(after.grades, after.grades[1:], strict=False)]
        assert dict(before.columns) == dict(after.columns)


def test_the_command_writes_lines_or_a_list_and_tells_what_it_dropped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "d.jsonl"
    source.write_text('{"prompt": "a", "completion": "b", "id": 1}\n{"prompt": "c", "completion": "d", "id": 2}\n')
    words = ["data", "convert", str(source)]
    assert main([*words, str(tmp_path / "o.json"), "--to", "openai", "--drop", "columns"]) == 0
    assert "dropped columns: 2 rows\n2 of 2 rows written" in capsys.readouterr().err
    assert [turn["role"] for turn in json.loads((tmp_path / "o.json").read_text())[1]["messages"]] == [
        "user",
        "assistant",
    ]
    assert main([*words, str(tmp_path / "o.jsonl"), "--to", "openai", "--drop", "id"]) == 0
    assert len((tmp_path / "o.jsonl").read_text().splitlines()) == 2
    assert main([*words, str(tmp_path / "o.jsonl"), "--to", "trl"]) == 2
    assert "exists; choose another name" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "p.jsonl"), "--to", "openai"]) == 3
    said = capsys.readouterr().err
    assert f"{source}:1: the layout openai cannot hold columns; choose another layout, or --drop columns leaves" in said
    assert not (tmp_path / "p.jsonl").exists() and not list(tmp_path.glob(".p*"))
    assert main([*words, str(tmp_path / "l.json"), "--to", "llamafactory"]) == 0
    assert '"formatting": "sharegpt"' in capsys.readouterr().err
    with pytest.raises(ConfigError, match="name a .jsonl file"):
        run(file=source, output=tmp_path / "o.csv", to="trl")


def test_pairs_become_lists_where_a_file_holds_longer_ones(tmp_path: Path) -> None:
    pair, longer = PAIR, row("4", "5", "6", grades=(2.0, 2.0, 0.0))
    for to, key in (("jsonl", "responses"), ("alpaca", "output")):
        for order in ([pair, longer], [longer, pair]):
            with pytest.raises(ListsNeeded):
                [*converted(order, to, drop=(), dropped=Counter())]
            records = [*converted(order, to, drop=(), dropped=Counter(), lists=True)]
            assert [len(record[key]) for record in records] == [len(row.answers) for row in order]
            assert [read_record(record, place="").answers for record in records] == [row.answers for row in order]
    source, output = tmp_path / "d.jsonl", tmp_path / "o.jsonl"
    lists = [{"instruction": "2+2?", "output": answers} for answers in (["4", "5"], ["4", "5", "6"], ["4", "3"])]
    source.write_text("".join(json.dumps(row) + "\n" for row in lists))
    run(file=source, output=output, to="jsonl")
    assert [len(row.answers) for row in read_rows(output)] == [2, 3, 2]


def test_rows_are_written_as_they_are_read() -> None:
    def rows() -> Iterator[Row]:
        yield SINGLE
        raise AssertionError("a second row was read before the first was written")

    assert next(converted(rows(), "trl", drop=(), dropped=Counter())) == written(SINGLE, "trl")


def test_what_was_read_otherwise_or_not_at_all_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "d.jsonl"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = [{"role": "user", "content": parts, "mood": "glad"}, {"role": "assistant", "content": "c"}]
    source.write_text(json.dumps({"messages": turns}) + "\n")
    words = ["data", "convert", str(source), str(tmp_path / "o.jsonl"), "--to", "trl", "--drop", "margn"]
    assert main(words) == 0
    assert capsys.readouterr().err.splitlines() == [
        "the text parts of a message are joined: 1 row",
        "'messages[].mood' is left out: 1 row",
        "nothing to drop in any row: margn",
        f"1 of 1 row written to {tmp_path / 'o.jsonl'}",
    ]


def test_labels_of_answers_are_true_and_false_for_other_tools() -> None:
    labelled = row("4", columns={"label": 1})
    for to in ("trl", "sharegpt", "llamafactory"):
        assert written(labelled, to)["label"] is True
    assert written(labelled, "jsonl")["label"] == 1
    text = Row((), ("good",), grades=(1.0,), columns={"label": 1}, place="d.jsonl:1")
    assert type(written(text, "trl")["label"]) is int
