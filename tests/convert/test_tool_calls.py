"""Tool definitions, calls and results in other tools' layouts: held both ways, or refused by name."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.convert.calls import numbered, without_ids
from onebase.convert.layouts import BESIDE_CALLS, CALLS, LAYOUTS, NO_CALL, NOT_ALTERNATING, OUT_OF_ORDER
from onebase.convert.rows import converted, normal
from onebase.errors import DataError
from onebase.reading.formats import read_record, read_rows
from onebase.records import Message, Row, ToolCall

WEATHER = {"name": "weather", "description": "Of a city", "parameters": {"properties": {"city": {"type": "string"}}}}
TOOL = json.dumps({"type": "function", "function": WEATHER})
BERN, ROME = (ToolCall("weather", json.dumps({"city": city})) for city in ("Bern", "Rome"))
RESULT = Message("tool", '{"rain": true}')
ASKED = (Message("system", "Be brief."), Message("user", "Rain?"), Message("assistant", "", (BERN,)), RESULT)
PLAIN = Row(ASKED, ("It rains.",), tools=(TOOL,), place="d.jsonl:1")
"""As ShareGPT files have it: calls without ids."""
WITH_IDS = numbered(PLAIN)


def write(row: Row, to: str, *drop: str) -> dict[str, Any]:
    (record,) = converted([row], to, drop=drop, dropped=Counter())
    found = json.loads(json.dumps(record))
    assert isinstance(found, dict)
    return found


def read(record: dict[str, Any]) -> Row:
    return replace(read_record(record, place="d.jsonl:1"), layout="", notes=())


def refused(row: Row, to: str, *drop: str) -> str:
    with pytest.raises(DataError) as caught:
        write(row, to, *drop)
    return str(caught.value)


def test_openai_gets_messages_with_ids_and_tools_beside_them() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    assert write(PLAIN, "openai") == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": '{"rain": true}', "tool_call_id": "call_1"},
            {"role": "assistant", "content": "It rains."},
        ],
        "tools": [json.loads(TOOL)],
    }


def test_trl_gets_arguments_as_objects() -> None:
    record = write(PLAIN, "trl")
    (call,) = record["prompt"][2]["tool_calls"]
    assert call == {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
    assert record["tools"] == [json.loads(TOOL)]
    assert record["completion"] == [{"role": "assistant", "content": "It rains."}]


@pytest.mark.parametrize("to", ["sharegpt", "llamafactory"])
def test_sharegpt_gets_calls_as_turns_and_tools_as_text(to: str) -> None:
    assert write(PLAIN, to) == {
        "system": "Be brief.",
        "conversations": [
            {"from": "human", "value": "Rain?"},
            {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
            {"from": "observation", "value": '{"rain": true}'},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": json.dumps([WEATHER]),
    }


@pytest.mark.parametrize("there", ["jsonl", "trl", "openai", "sharegpt", "llamafactory"])
@pytest.mark.parametrize("back", ["jsonl", "trl", "openai", "sharegpt", "llamafactory"])
def test_tools_calls_and_results_survive_the_way_there_and_back(there: str, back: str) -> None:
    answers = (replace(PLAIN, answers=("",), calls=((BERN, ROME),)), PLAIN)
    pair = replace(PLAIN, answers=("", "No idea."), calls=((BERN,), ()), grades=(1.0, 0.0))
    for row in (*answers, pair):
        again = read(write(read(write(row, there)), back, "ids"))
        expected = numbered(row) if back == "openai" or (there == "openai" and back in ("jsonl", "trl")) else row
        assert again == expected


def test_ids_are_held_or_named() -> None:
    for to in ("jsonl", "trl", "openai"):
        assert read(write(WITH_IDS, to)) == WITH_IDS
    for to in ("sharegpt", "llamafactory"):
        assert refused(WITH_IDS, to) == (
            f"d.jsonl:1: the layout {to} cannot hold ids; choose another layout, or --drop ids leaves that out, "
            "--drop rows such rows"
        )
        assert read(write(WITH_IDS, to, "ids")) == PLAIN


def test_what_a_layout_cannot_hold_is_named() -> None:
    two = replace(PLAIN, messages=(*ASKED[:2], Message("assistant", "", (BERN, ROME)), RESULT, RESULT))
    turned = numbered(two)
    turned = replace(turned, messages=(*turned.messages[:3], *turned.messages[:2:-1]))
    talking = replace(PLAIN, messages=(*ASKED[:2], Message("assistant", "Let me see.", (BERN,)), RESULT))
    lonely = replace(PLAIN, messages=(*ASKED, RESULT))
    assert f"cannot hold {OUT_OF_ORDER}; choose another layout, or --drop rows" in refused(turned, "sharegpt", "ids")
    assert f"cannot hold {BESIDE_CALLS}; choose" in refused(talking, "sharegpt")
    assert f"cannot hold {NO_CALL}; choose" in refused(lonely, "openai")
    assert f"cannot hold {CALLS}, tools; choose" in refused(PLAIN, "alpaca")
    assert f"cannot hold {NOT_ALTERNATING}; choose" in refused(two, "llamafactory")
    # What is no fault elsewhere passes there.
    assert read(write(turned, "openai")) == turned and read(write(two, "sharegpt")) == two
    for to in ("jsonl", "trl", "openai"):
        assert without_ids(read(write(talking, to))) == talking
    for row in (turned, talking, lonely, two):
        for to in LAYOUTS:
            assert not [*converted([row], to, drop=["rows"], dropped=(dropped := Counter()))] or not dropped["rows"]


def test_definitions_can_be_dropped_and_calls_cannot() -> None:
    told = Row((Message("user", "Hi"),), ("Hello",), tools=(TOOL,), place="d.jsonl:1")
    assert "--drop tools leaves that out" in refused(told, "alpaca")
    assert write(told, "alpaca", "tools") == {"instruction": "Hi", "input": "", "output": "Hello"}
    assert f"cannot hold {CALLS}; choose another layout, or --drop rows" in refused(PLAIN, "alpaca", "tools", "calls")


def test_a_definition_with_more_around_it_keeps_that() -> None:
    strict = json.dumps({"type": "function", "function": WEATHER, "cache": True})
    reordered = json.dumps({"function": WEATHER, "type": "function"})
    for to in ("sharegpt", "openai", "trl", "jsonl"):
        assert read(write(replace(PLAIN, tools=(strict, reordered)), to, "ids")).tools == (strict, reordered)


def test_numbers_pass_over_ids_that_are_there_and_results_go_to_their_function() -> None:
    other = ToolCall("time", "{}", "call_1")
    asked = (ASKED[1], Message("assistant", "", (BERN, other)))
    results = (Message("tool", "12:00", name="time"), Message("tool", "wet", name="weather"), Message("tool", "?"))
    found = numbered(Row((*asked, *results), ("",), calls=((ROME,),)))
    assert [call.id for call in found.messages[1].tool_calls] == ["call_2", "call_1"]
    assert [message.call_id for message in found.messages[2:]] == ["call_1", "call_2", ""]
    assert found.calls is not None and found.calls[0][0].id == "call_3"


def test_openai_pairs_have_their_tools_inside(tmp_path: Path) -> None:
    pair = replace(WITH_IDS, answers=("Yes.", "No."), grades=(1.0, 0.0))
    record = write(pair, "openai")
    assert set(record) == {"input", "preferred_output", "non_preferred_output"}
    assert record["input"]["tools"] == [json.loads(TOOL)] and read(record) == pair
    # Tools in both places: those outside are read, and the others are named.
    twice = {**record, "tools": [WEATHER | {"name": "other"}]}
    found = read_record(twice, place="")
    assert "other" in found.tools[0] and "'input.tools' is left out" in found.notes


def test_keys_for_tools_that_hold_none_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]
    rows = [{"conversations": turns, "tools": "[]"}, {"conversations": turns, "tools": json.dumps([WEATHER])}]
    source, output = tmp_path / "d.json", tmp_path / "o.jsonl"
    source.write_text(json.dumps(rows))
    assert main(["data", "convert", str(source), str(output), "--to", "openai"]) == 0
    first, second = map(json.loads, output.read_text().splitlines())
    assert "tools" not in first and second["tools"][0]["function"] == WEATHER
    assert main(["data", "convert", str(output), str(tmp_path / "l.json"), "--to", "llamafactory"]) == 0
    assert '"columns": {"messages": "conversations", "tools": "tools"}' in capsys.readouterr().err
    assert [row.tools for row in read_rows(tmp_path / "l.json")] == [row.tools for row in read_rows(source)]


def generated(seed: int) -> Row:
    """A conversation with calls of all kinds."""
    rng = random.Random(seed)

    def calls(most: int) -> tuple[ToolCall, ...]:
        made = [ToolCall(rng.choice("fg"), json.dumps({"x": rng.random()}), rng.choice(["", f"c{rng.random()}"]))]
        return tuple(made * rng.randint(1, most)) if not made[0].id else tuple(made)

    messages = [Message("system", "s")] * rng.randint(0, 1)
    for n in range(rng.randint(1, 3)):
        messages.append(Message("user", f"q{n}"))
        if rng.random() < 0.6:
            made = calls(2)
            messages.append(Message("assistant", rng.choice(["", "so"]), made))
            for call in made[: rng.randint(1, 2)]:
                name, call_id = rng.choice(["", call.name]), rng.choice(["", call.id])
                messages.append(Message("tool", f"r{rng.random()}", name=name, call_id=call_id))
        messages.append(Message("assistant", f"a{n}"))
    messages.pop()
    compared = rng.random() < 0.5
    answers = tuple(f"a{k}" for k in range(1 + compared))
    own = tuple(rng.choice([(), calls(2)]) for _ in answers)
    tools = tuple(TOOL for _ in range(rng.randint(0, 2)))
    return Row(tuple(messages), answers, grades=(1.0, 0.0) if compared else None, tools=tools, calls=own, place="d:1")


@pytest.mark.parametrize("to", LAYOUTS)
def test_no_part_of_any_conversation_is_lost_without_its_name(to: str) -> None:
    kept = 0
    for seed in range(300):
        row = generated(seed)
        try:
            back = read(write(row, to))
        except DataError as error:
            assert str(error).startswith(f"d:1: the layout {to} cannot hold ")
            continue
        kept += 1
        assert replace(back, place="d:1") == (numbered(normal(row)) if to == "openai" else normal(row))
    assert kept > {"jsonl": 299, "trl": 299, "openai": 150, "alpaca": 0}.get(to, 20)
