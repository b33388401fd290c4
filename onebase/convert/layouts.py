"""Writes rows in the layouts of other tools, one function each: from a `Row` to the keys of one object.

    jsonl         everything a row can hold, in the keys that onebase reads
    trl           prompt and completion, or chosen and rejected, as lists of messages; text
    openai        messages; input, preferred_output and non_preferred_output
    sharegpt      conversations; the same with chosen and rejected
    llamafactory  as sharegpt, with text for pretraining
    alpaca        instruction, input, output, history and system; the same with chosen and rejected

A function writes what it can. What it cannot write, or what its tool would not understand, is found by reading the
object back (`rows.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onebase.reading.fields import PREFIX_KEY
from onebase.records import Message, Row


@dataclass(frozen=True, slots=True)
class Layout:
    """One target."""

    write: Callable[[Row, bool], dict[str, Any]]
    """Row and whether the file holds ranked lists, so that its pairs have to be lists too -> object."""
    foreign: frozenset[str]
    """Parts of a row (fields of `Row`, or `tie`) that its tool would not understand, even if the file holds them."""
    prompts: bool = False
    """Whether a prompt may stand without an answer."""


def _turn(message: Message) -> dict[str, Any]:
    return {"role": message.role, "content": message.content}


def _said(message: Message) -> dict[str, Any]:
    return {"from": {"user": "human", "assistant": "gpt"}.get(message.role, message.role), "value": message.content}


def _answer(row: Row, k: int) -> Message:
    return Message("assistant", row.answers[k])


def is_pair(row: Row) -> bool:
    return len(row.answers) == 2 and row.grades is not None


def _is_list(row: Row, lists: bool) -> bool:
    return row.grades is not None and len(row.answers) > (1 if lists else 2)


def _labelled(row: Row) -> dict[str, Any]:
    """The columns; a text's grade is its label."""
    if len(row.answers) == 1 and row.grades is not None and "label" not in row.columns:
        return {**row.columns, "label": int(row.grades[0])}
    return dict(row.columns)


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


def jsonl(row: Row, lists: bool = False) -> dict[str, Any]:
    columns = _labelled(row)
    if not row.messages:
        return {"text": row.answers[0] if row.answers else "", **columns, **_single(row)}
    if _is_list(row, lists):
        return {**alpaca(row, lists), **({PREFIX_KEY: row.prefix} if row.prefix is not None else {})}
    system, turns = _system_first(row.messages)
    prompt: Any = turns[0].content if [turn.role for turn in turns] == ["user"] else [_turn(turn) for turn in turns]
    found: dict[str, Any] = {"prompt": prompt, **({"system": system} if system else {})}
    if is_pair(row):
        found |= {"chosen": row.answers[0], "rejected": row.answers[1], **_compared(row)}
    elif row.answers:
        found |= {"completion": row.answers[0], **_single(row)}
    if row.prefix is not None:
        found[PREFIX_KEY] = row.prefix
    return found | columns


def trl(row: Row, lists: bool = False) -> dict[str, Any]:
    columns = _labelled(row)
    if not row.messages:
        return {"text": row.answers[0] if row.answers else "", **columns}
    found: dict[str, Any] = {"prompt": [_turn(turn) for turn in row.messages]}
    if is_pair(row):
        found |= {"chosen": [_turn(_answer(row, 0))], "rejected": [_turn(_answer(row, 1))], **_compared(row)}
    elif row.answers:
        found["completion"] = [_turn(_answer(row, 0))]
    return found | columns


def openai(row: Row, lists: bool = False) -> dict[str, Any]:
    if is_pair(row):
        return {
            "input": {"messages": [_turn(turn) for turn in row.messages]},
            "preferred_output": [_turn(_answer(row, 0))],
            "non_preferred_output": [_turn(_answer(row, 1))],
        }
    return {"messages": [_turn(turn) for turn in [*row.messages, *(_answer(row, k) for k in range(len(row.answers)))]]}


def sharegpt(row: Row, lists: bool = False) -> dict[str, Any]:
    system, turns = _system_first(row.messages)
    found: dict[str, Any] = {"system": system} if system else {}
    if is_pair(row):
        found["conversations"] = [_said(turn) for turn in turns]
        found |= {"chosen": _said(_answer(row, 0)), "rejected": _said(_answer(row, 1)), **_compared(row)}
    else:
        found["conversations"] = [_said(turn) for turn in [*turns, *(_answer(row, k) for k in range(len(row.answers)))]]
        found |= _single(row) if row.answers else {}
    return found | _labelled(row)


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


LAYOUTS: Mapping[str, Layout] = {
    "jsonl": Layout(jsonl, frozenset(), prompts=True),
    "trl": Layout(trl, frozenset({"tie", "ended", "prefix"}), prompts=True),
    "openai": Layout(openai, frozenset({"tie", "ended", "prefix", "margin", "columns"})),
    "sharegpt": Layout(sharegpt, frozenset({"tie", "ended", "prefix", "margin"})),
    "llamafactory": Layout(llamafactory, frozenset({"tie", "ended", "prefix", "margin"})),
    "alpaca": Layout(alpaca, frozenset({"tie", "ended", "prefix", "margin"})),
}
