"""Writes rows in the layouts of other tools, one function each: from a `Row` to the keys of one object.

    jsonl         everything a row can hold, in the keys that onebase reads
    trl           prompt and completion, or chosen and rejected, as lists of messages; text; tools
    openai        messages and tools; input (messages, tools), preferred_output and non_preferred_output
    sharegpt      conversations; the same with chosen and rejected; tools as JSON text
    llamafactory  as sharegpt, with text for pretraining
    alpaca        instruction, input, output, history and system; the same with chosen and rejected

A function writes what it can. What it cannot write, or what its tool would not understand, is found by reading the
object back (`rows.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onebase.convert.calls import numbered
from onebase.reading.fields import PREFIX_KEY
from onebase.reading.tools import for_file, for_template
from onebase.records import Message, Row

CALLS = "tool calls"
BESIDE_CALLS = "a text beside tool calls"
OUT_OF_ORDER = "results in another order than their calls"
NO_CALL = "results that answer no call"
NOT_ALTERNATING = "turns that do not alternate"


@dataclass(frozen=True, slots=True)
class Layout:
    """One target."""

    write: Callable[[Row, bool], dict[str, Any]]
    """Row and whether the file holds ranked lists, so that its pairs have to be lists too -> object."""
    foreign: frozenset[str]
    """What its tool would not understand, even if the file holds it: fields of `Row`, and parts as `rows.parts_of`
    names them."""
    prompts: bool = False
    """Whether a prompt may stand without an answer."""
    complete: Callable[[Row], Row] = lambda row: row
    """Adds what the tool needs and the row may lack."""


def _answer(row: Row, k: int, written: Callable[[Message], dict[str, Any]] = for_file) -> dict[str, Any]:
    return written(row.answer(k))


def _said(message: Message) -> dict[str, Any]:
    """A turn as ShareGPT has it: calls as the JSON text of a turn of their own."""
    if message.tool_calls:
        calls = [{"name": call.name, "arguments": json.loads(call.arguments)} for call in message.tool_calls]
        return {
            "from": "function_call",
            "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False),
        }
    who = {"user": "human", "assistant": "gpt", "tool": "observation"}
    return {"from": who.get(message.role, message.role), "value": message.content}


def is_pair(row: Row) -> bool:
    return len(row.answers) == 2 and row.grades is not None


def alternates(row: Row) -> bool:
    """Whether user (or a tool's result) and assistant take turns, after a system turn."""
    _, turns = _system_first(row.messages)
    return not row.messages or (
        len(turns) % 2 == 1 and all((turn.role == "assistant") == bool(n % 2) for n, turn in enumerate(turns))
        and all(turn.role != "system" for turn in turns)
    )  # fmt: skip


def _is_list(row: Row, lists: bool) -> bool:
    return row.grades is not None and len(row.answers) > (1 if lists else 2)


def _labelled(row: Row) -> dict[str, Any]:
    """The columns; a text's grade is its label."""
    if len(row.answers) == 1 and row.grades is not None and "label" not in row.columns:
        return {**row.columns, "label": int(row.grades[0])}
    return dict(row.columns)


def _beside(row: Row) -> dict[str, Any]:
    """The columns for other tools, which take only true and false for the label of an answer to a prompt."""
    columns = _labelled(row)
    if row.messages and row.answers and columns.get("label") in (0, 1):
        columns["label"] = bool(columns["label"])
    return columns


def _compared(row: Row) -> dict[str, Any]:
    """What may stand beside two compared answers."""
    found: dict[str, Any] = {}
    if row.margin is not None:
        found["margin"] = row.margin
    if row.grades is not None and row.grades[0] == row.grades[1]:
        found["tie"] = True
    if row.ended is not None:
        found |= {"chosen_ended": row.ended[0], "rejected_ended": row.ended[1]}
    return found


def _single(row: Row) -> dict[str, Any]:
    return {} if row.ended is None else {"ended": row.ended[0]}


def _tools(row: Row) -> dict[str, Any]:
    return {"tools": [json.loads(tool) for tool in row.tools]} if row.tools else {}


def _tools_as_text(row: Row) -> dict[str, Any]:
    """Definitions as LLaMA-Factory takes them: bare, as long as nothing stands around them."""
    tools = [json.loads(tool) for tool in row.tools]
    bare = [
        tool["function"] if list(tool) == ["type", "function"] and tool["type"] == "function" else tool
        for tool in tools
    ]
    return {"tools": json.dumps(bare, ensure_ascii=False)} if tools else {}


def jsonl(row: Row, lists: bool = False) -> dict[str, Any]:
    columns = _labelled(row)
    if not row.messages:
        return {"text": row.answers[0] if row.answers else "", **columns, **_single(row)}
    system, turns = _system_first(row.messages)
    prompt: Any = turns[0].content if [turn.role for turn in turns] == ["user"] else [for_file(turn) for turn in turns]
    found: dict[str, Any] = {"prompt": prompt, **({"system": system} if system else {})}
    answers = [_answer(row, k) if row.calls and row.calls[k] else row.answers[k] for k in range(len(row.answers))]
    if _is_list(row, lists):
        found |= {"responses": answers, "scores": list(row.grades or ())}
        found |= {"ended": list(row.ended)} if row.ended is not None else {}
    elif is_pair(row):
        found |= {"chosen": answers[0], "rejected": answers[1], **_compared(row)}
    elif answers:
        found |= {"completion": answers[0], **_single(row)}
    if row.prefix is not None:
        found[PREFIX_KEY] = row.prefix
    return found | _tools(row) | columns


def trl(row: Row, lists: bool = False) -> dict[str, Any]:
    columns = _beside(row)
    if not row.messages:
        return {"text": row.answers[0] if row.answers else "", **columns}
    # The trainers hand messages to the chat template as they are, so arguments are objects.
    found: dict[str, Any] = {"prompt": [for_template(turn) for turn in row.messages]}
    answers = [[_answer(row, k, for_template)] for k in range(len(row.answers))]
    if is_pair(row):
        found |= {"chosen": answers[0], "rejected": answers[1], **_compared(row)}
    elif answers:
        found["completion"] = answers[0]
    return found | _tools(row) | columns


def openai(row: Row, lists: bool = False) -> dict[str, Any]:
    turns = [for_file(turn) for turn in row.messages]
    answers = [_answer(row, k) for k in range(len(row.answers))]
    if is_pair(row):
        return {
            "input": {"messages": turns, **_tools(row)},
            "preferred_output": answers[:1],
            "non_preferred_output": answers[1:],
        }
    return {"messages": turns + answers, **_tools(row)}


def sharegpt(row: Row, lists: bool = False) -> dict[str, Any]:
    system, turns = _system_first(row.messages)
    found: dict[str, Any] = {"system": system} if system else {}
    asked, answers = (
        [_said(turn) for turn in some] for some in (turns, [row.answer(k) for k in range(len(row.answers))])
    )
    if is_pair(row):
        found |= {"conversations": asked, "chosen": answers[0], "rejected": answers[1], **_compared(row)}
    else:
        found |= {"conversations": asked + answers, **(_single(row) if answers else {})}
    return found | _tools_as_text(row) | _beside(row)


def llamafactory(row: Row, lists: bool = False) -> dict[str, Any]:
    return sharegpt(row) if row.messages else {"text": row.answers[0] if row.answers else "", **_labelled(row)}


def alpaca(row: Row, lists: bool = False) -> dict[str, Any]:
    system, turns = _system_first(row.messages)
    *earlier, last = turns if turns else [Message("user", "")]
    pairs = [[asked.content, said.content] for asked, said in zip(earlier[::2], earlier[1::2], strict=False)]
    found: dict[str, Any] = {"instruction": last.content, "input": ""}
    if system:
        found["system"] = system
    if pairs:
        found["history"] = pairs
    if _is_list(row, lists):
        found |= {"output": list(row.answers), "grades": list(row.grades or ())}
        found |= {"ended": list(row.ended)} if row.ended is not None else {}
    elif is_pair(row):
        found |= {"chosen": row.answers[0], "rejected": row.answers[1], **_compared(row)}
    elif row.answers:
        found |= {"output": row.answers[0], **_single(row)}
    return found | _labelled(row)


def _system_first(messages: tuple[Message, ...]) -> tuple[str, tuple[Message, ...]]:
    """A system text that opens the conversation, apart from the turns."""
    if messages and messages[0].role == "system":
        return messages[0].content, messages[1:]
    return "", messages


_STEPS = frozenset({"tie", "ended", "prefix"})
_SHAREGPT = _STEPS | {"margin", "ids", OUT_OF_ORDER, BESIDE_CALLS}
LAYOUTS: Mapping[str, Layout] = {
    "jsonl": Layout(jsonl, frozenset(), prompts=True),
    "trl": Layout(trl, _STEPS, prompts=True),
    "openai": Layout(openai, _STEPS | {"margin", "columns", NO_CALL}, complete=numbered),
    "sharegpt": Layout(sharegpt, _SHAREGPT),
    "llamafactory": Layout(llamafactory, _SHAREGPT | {NOT_ALTERNATING}),
    "alpaca": Layout(alpaca, _STEPS | {"margin", "tools", CALLS}),
}
