"""Tools: read from OpenAI and ShareGPT files, written by the templates that know them, refused by those that do not."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from onebase.data.chat import chat_format
from onebase.data.remarks import remarks
from onebase.data.selection import drop_unusable, split_by_prompt
from onebase.data.templates import BUILT_IN_TEMPLATES
from onebase.errors import DataError
from onebase.reading.formats import read_rows
from onebase.reading.tools import for_file, for_template, texts_of
from onebase.records import Message, Row, ToolCall
from tests.data.test_chat import byte_level, with_template

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'The "weather" somewhere',
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Köln", "Bern"]}}},
    },
}
CALL = ToolCall("weather", '{"city": "Köln"}', "c1")
ASKED = (
    Message("user", "Rain?"),
    Message("assistant", "", (CALL,)),
    Message("tool", '{"rain": true}', name="weather", call_id="c1"),
)
TOOLS = (json.dumps(WEATHER, ensure_ascii=False),)
KNOW_TOOLS = {"qwen", "llama-3"}


def only(folder: Path, row: dict[str, Any]) -> Row:
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (read,) = read_rows(folder / "rows.jsonl")
    return read


def refusal(folder: Path, row: dict[str, Any]) -> str:
    with pytest.raises(DataError) as caught:
        only(folder, row)
    return str(caught.value).removeprefix(f"{folder / 'rows.jsonl'}:1: ")


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


# reading


@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize("arguments", ['{"city": "K\\u00f6ln"}', {"city": "Köln"}])
def test_openai_messages_keep_calls_results_and_tools(tmp_path: Path, content: str | None, arguments: Any) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    row = only(
        tmp_path,
        {
            "messages": [
                said("user", "Rain?"),
                said("assistant", content, tool_calls=[call]),
                said("tool", '{"rain": true}', name="weather", tool_call_id="c1"),
                said("assistant", "It rains."),
            ],
            "tools": [WEATHER],
            "source": "x",
        },
    )
    assert row.messages == ASKED and row.answers == ("It rains.",) and row.calls is None
    assert [json.loads(tool) for tool in row.tools] == [WEATHER] and row.columns == {"source": "x"}


def test_sharegpt_calls_and_observations_are_the_same_row(tmp_path: Path) -> None:
    turns = [
        {"from": "human", "value": "Rain?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Köln"}}'},
        {"from": "observation", "value": '{"rain": true}'},
        {"from": "gpt", "value": "It rains."},
    ]
    bare = WEATHER["function"]
    row = only(tmp_path, {"conversations": turns, "tools": json.dumps([bare]), "system": "S"})
    without_ids = (Message("system", "S"), ASKED[0], Message("assistant", "", (ToolCall("weather", CALL.arguments),)))
    assert row.messages == (*without_ids, Message("tool", '{"rain": true}'))
    # A bare definition is put into the form that templates are written for.
    assert [json.loads(tool) for tool in row.tools] == [WEATHER] and row.columns == {}
    for none in ([], "[]", "", None, {}):
        assert only(tmp_path, {"conversations": turns, "tools": none}).tools == ()


def test_an_answer_may_be_a_call(tmp_path: Path) -> None:
    call = {"function": {"name": "weather", "arguments": '{"city": "Köln"}'}}
    row = only(tmp_path, {"messages": [said("user", "q"), said("assistant", "Let me see.", tool_calls=[call] * 2)]})
    plain = ToolCall("weather", CALL.arguments)
    assert row.answers == ("Let me see.",) and row.calls == ((plain, plain),)
    assert row.answer(0) == Message("assistant", "Let me see.", (plain, plain))
    pair = {
        "messages": [said("user", "q")],
        "chosen": said("assistant", None, tool_calls=[call]),
        "rejected": said("assistant", "No idea."),
    }
    row = only(tmp_path, pair)
    assert row.answers == ("", "No idea.") and row.calls == ((plain,), ())
    assert row.only([1]).calls == ((),) and row.only([1]).answers == ("No idea.",)
    assert [row.answer(k).text for k in (0, 1)] == ['{"name": "weather", "arguments": {"city": "Köln"}}', "No idea."]
    # Two lists that part after the prompt, as TRL writes pairs.
    row = only(tmp_path, {key: [said("user", "q"), pair[key]] for key in ("chosen", "rejected")})
    assert row.messages == (Message("user", "q"),) and row.calls == ((plain,), ())
    # The old form of a single call.
    old = said("assistant", None, function_call={"name": "weather", "arguments": '{"city": "Köln"}'})
    assert only(tmp_path, {"messages": [said("user", "q"), old]}).calls == ((plain,),)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tools": [{"type": "function"}]}, "'tools[0]' is an object; expected a tool {name, description, parameters}"),
        ({"tools": "[{"}, "'tools' is the string \"[{\", and not JSON at character 3; correct it"),
        ({"functions": [3]}, "'functions[0]' is the number 3; expected a tool"),
        ({"calls": [{"function": {}}]}, "'messages[1].tool_calls[0]' is an object; expected a call {name, arguments}"),
        (
            {"calls": [{"name": "f", "arguments": "{"}]},
            "'messages[1].tool_calls[0].arguments' is the string \"{\", and",
        ),
        ({"calls": [{"name": "f", "arguments": "[1]"}]}, "'messages[1].tool_calls[0].arguments' is the string"),
        ({"calls": [{"name": "f", "arguments": 3}]}, "'messages[1].tool_calls[0].arguments' is the number 3; expected"),
        (
            {"role": "user", "calls": [{"name": "f"}]},
            "'messages[1]' is a user turn with tool calls; only the assistant",
        ),
    ],
)
def test_tools_and_calls_that_are_none_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    calls, role = row.pop("calls", None), row.pop("role", "assistant")
    turns = [said("user", "q"), said(role, "a", **({"tool_calls": calls} if calls else {})), said("assistant", "b")]
    assert refusal(tmp_path, {"messages": turns, **row}).startswith(message)


def test_a_call_that_is_no_json_is_refused(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f(1)"}, {"from": "gpt", "value": "a"}]
    assert refusal(tmp_path, {"conversations": turns}) == (
        "'conversations[1].value' is the string \"f(1)\", and not JSON at character 1; correct it, or make it part of "
        "a plain turn"
    )


def test_messages_are_written_as_they_were_read(tmp_path: Path) -> None:
    turns = [for_file(turn) for turn in ASKED]
    row = only(tmp_path, {"messages": [*turns, said("assistant", "It rains.")], "tools": [WEATHER]})
    assert row.messages == ASKED
    assert for_template(ASKED[1])["tool_calls"][0]["function"]["arguments"] == {"city": "Köln"}
    assert for_template(Message("user", "q")) == {"role": "user", "content": "q"}


# templates


@pytest.mark.parametrize("name", BUILT_IN_TEMPLATES)
def test_templates_that_do_not_know_tools_refuse_them_in_one_line(name: str) -> None:
    form = chat_format(byte_level(), name)
    row = Row(ASKED, ("It rains.",), place="f:1", tools=TOOLS)
    if name in KNOW_TOOLS:
        text = form.render_prompt(row.messages, tools=row.tools)
        assert all(text.count(words) or text.count(json.dumps(words)[1:-1]) for words in texts_of(ASKED, ()))
        return
    for part in (row, Row(row.messages, ("a",), place="f:1"), Row(row.messages[:1], ("a",), place="f:1", tools=TOOLS)):
        with pytest.raises(DataError, match="^f:1: the chat template .* (does not write|refuses)") as caught:
            form.encode_example(part)
        assert caught.value.remedy == "template-without-tools" and "\n" not in str(caught.value)
    # An answer that calls a tool.
    with pytest.raises(DataError, match="^f:1: the chat template .* (does not write 'weather' of the row's|refuses)"):
        form.encode_example(Row(ASKED[:1], ("",), place="f:1", calls=((CALL,),)))


def test_what_a_template_writes_is_compared_with_what_it_writes_without() -> None:
    says = "{% for m in messages %}{{ m.content }}{% endfor %}"
    # The tool's name stands in the prompt anyway; that does not make the template one that writes tools.
    row = Row((Message("user", "use weather, the tool"),), ("a",), tools=('{"function": {"name": "weather"}}',))
    with pytest.raises(DataError, match="does not write 'weather' of the row's tools, calls and results$"):
        with_template(says).encode_example(row)
    assert with_template("{{ tools }}" + says).encode_example(row)
    # Half of a definition is not all of it.
    named = with_template("{% for t in tools %}{{ t.function.name }}{% endfor %}" + says)
    assert named.encode_example(row)
    with pytest.raises(DataError, match="does not write 'Bern'"):
        named.render_prompt(row.messages, tools=TOOLS)
    # Of two calls to one function, one.
    first = with_template(
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls[0].function if m.tool_calls }}{% endfor %}"
    )
    twice = (ASKED[0], Message("assistant", "", (CALL, CALL)), ASKED[2])
    assert first.render_prompt(ASKED)
    with pytest.raises(DataError, match="does not write 'weather'"):
        first.render_prompt(twice)
    # What is said beside a call.
    calls = with_template("{% for m in messages %}{{ m.tool_calls or m.content }}{% endfor %}")
    beside = (ASKED[0], Message("assistant", "Let me see.", (CALL,)), ASKED[2])
    assert calls.render_prompt(ASKED)
    with pytest.raises(DataError, match="drops what the assistant says beside a tool call, 'Let me see.'$"):
        calls.render_prompt(beside)
    with pytest.raises(DataError, match="drops what the answer says beside its tool call, 'Let me see.'$"):
        calls.encode_example(Row(ASKED[:1], ("Let me see.",), calls=((CALL,),)))


def test_the_shipped_qwen_writes_tools_calls_and_results() -> None:
    form = chat_format(byte_level(bos=False, extra=("<|im_start|>", "<|im_end|>")), "qwen")
    example = form.encode_example(Row(ASKED, ("It rains.",), tools=TOOLS), train_on="assistant")
    text = form.tokenizer.decode([*example.prompt_ids, *example.completions[0]])
    assert text == (
        "<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        f"{TOOLS[0]}\n</tools>\n\nFor each function call, return a json object with function name and arguments "
        "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n'
        '<|im_start|>user\n<tool_response>\n{"rain": true}\n</tool_response><|im_end|>\n'
        "<|im_start|>assistant\nIt rains.<|im_end|>"
    )
    assert example.counted is not None
    flags = zip(example.completions[0], example.counted[0], strict=True)
    learned = form.tokenizer.decode([token for token, counts in flags if counts])
    assert learned == (
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>It rains.<|im_end|>'
    )


def test_the_shipped_llama_3_writes_tools_calls_and_results() -> None:
    marks = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    form = chat_format(byte_level(bos=False, extra=marks), "llama-3")
    example = form.encode_example(Row(ASKED[:1], ("",), tools=TOOLS, calls=((CALL,),)))
    prompt, answer = (form.tokenizer.decode(list(ids)) for ids in (example.prompt_ids, example.completions[0]))
    assert prompt.startswith("<|start_header_id|>user<|end_header_id|>\n\nGiven the following functions, please")
    assert json.dumps(WEATHER, indent=4, ensure_ascii=False) + "\n\nRain?<|eot_id|>" in prompt
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n")
    assert answer == '{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>'
    text = form.render_prompt(ASKED, tools=TOOLS)
    assert '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"rain\\": true}"<|eot_id|>' in text
    for calls, content in (((CALL, CALL), ""), ((CALL,), "Let me see.")):
        with pytest.raises(DataError, match="a turn of Llama 3 is either text or one tool call"):
            form.render_prompt((ASKED[0], Message("assistant", content, calls), ASKED[2]))


@pytest.mark.parametrize("name", ["qwen2.5", "qwen3"])
def test_the_shipped_qwen_writes_what_the_published_ones_write(shared: Path, name: str) -> None:
    config = json.loads((shared / f"data/tokenizers/{name}_config_only/tokenizer_config.json").read_text())
    tokenizer = byte_level(bos=False)
    ours, theirs = chat_format(tokenizer, "qwen").template, config["chat_template"]
    system = Message("system", "Be brief.")
    later = (*ASKED, Message("assistant", "It rains."), Message("user", "And now?"))
    two = (ASKED[0], Message("assistant", "Let me see.", (CALL, CALL)), ASKED[2], ASKED[2], *later[-2:])
    for turns, tools in [(later, TOOLS), (later, ()), (two, TOOLS * 2), (later[-1:], TOOLS), (later[-1:], ())]:
        told = [for_template(turn) for turn in (system, *turns)]
        defined = [json.loads(tool) for tool in tools] or None
        texts = [
            tokenizer.apply_chat_template(
                told, tools=defined, chat_template=template, tokenize=False, add_generation_prompt=True
            )
            for template in (ours, theirs)
        ]
        assert texts[0] == texts[1]


def test_a_real_file_with_tools_is_read_and_learned_whole(shared: Path, real: Any) -> None:
    rows = read_rows(shared / "data/llamafactory_demo/glaive_toolcall_en_demo.json.gz")
    assert len(rows) == 300 and sum(bool(row.tools) for row in rows) == 191
    roles = Counter(turn.role for row in rows for turn in row.messages)
    assert roles["tool"] == sum(len(turn.tool_calls) for row in rows for turn in row.messages) == 211
    tokenizer = real("minimind")
    for template in (None, "qwen", "llama-3"):
        form = chat_format(tokenizer, template)
        for row in rows[::6]:
            example = form.encode_example(row, train_on="assistant")
            text = form.decode([*example.prompt_ids, *example.completions[0]])
            for words in texts_of(row.messages, row.tools):
                assert words in text or json.dumps(words, ensure_ascii=False)[1:-1] in text
    for template in set(BUILT_IN_TEMPLATES) - KNOW_TOOLS:
        form = chat_format(tokenizer, template)
        with pytest.raises(DataError, match=r"glaive_toolcall_en_demo.json.gz:1: the chat template") as caught:
            for row in rows:
                if any(turn.tool_calls for turn in row.messages):
                    form.encode_example(row)
        assert caught.value.remedy in ("template-without-tools", "template-refuses-row")


# rows that hold tools, elsewhere


def test_rows_that_differ_in_tools_or_calls_are_not_the_same() -> None:
    one, other = (Row(ASKED[:1], ("",), place=f"f:{n}", calls=((call,),)) for n, call in enumerate((CALL, CALL)))
    assert remarks([one, other], []) == ["the training data repeats rows: 1 row (f:1)"]
    elsewhere = ToolCall("weather", '{"city": "Bern"}')
    assert remarks([one, Row(ASKED[:1], ("",), place="f:2", calls=((elsewhere,),))], []) == []
    assert remarks([one, Row(ASKED[:1], ("",), place="f:2", calls=((CALL,),), tools=TOOLS)], []) == []
    train, held_out = split_by_prompt([one, Row(one.messages, ("a",), tools=TOOLS)], 0.5, seed=0)
    assert len(train) == len(held_out) == 1


def test_an_answer_that_only_calls_is_not_empty() -> None:
    call, same = Row(ASKED[:1], ("",), calls=((CALL,),)), Row(ASKED[:1], ("", ""), (1.0, 0.0), calls=((CALL,), (CALL,)))
    assert drop_unusable([call, Row(ASKED[:1], ("", " "), (1.0, 0.0), calls=((CALL,), ()))], max_share=1)[1] == {
        "empty answer": [""]
    }
    assert drop_unusable([call])[0] == [call]
    assert drop_unusable([same], max_share=1)[1] == {"equal answers": [""]}
