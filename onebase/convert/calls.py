"""What a layout may ask of tool calls: ids where it needs them, none where it has no place for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

from onebase.records import Message, Row, ToolCall


def numbered(row: Row) -> Row:
    """The row with an id for every call, `call_1`, `call_2`, .. where the file has none, and for the result it got.

    A result without an id is that of the first call before it that has none yet, of the function it names if it names
    one. A result of no call keeps no id.
    """
    calls = [call for turn in (*row.messages, *_answers(row)) for call in turn.tool_calls]
    if not calls and not any(message.role == "tool" for message in row.messages):
        return row
    taken = {call.id for call in calls}
    fresh = (name for n in count(1) if (name := f"call_{n}") not in taken)
    messages, waiting = [], list[ToolCall]()
    for message in row.messages:
        if message.tool_calls:
            message = replace(message, tool_calls=_named(message.tool_calls, fresh))
            waiting = list(message.tool_calls)
        elif message.role == "tool" and (answered := _answered(message, waiting)) is not None:
            waiting.remove(answered)
            message = replace(message, call_id=answered.id)
        messages.append(message)
    of_answers = row.calls and tuple(_named(own, fresh) for own in row.calls)
    return replace(row, messages=tuple(messages), calls=of_answers)


def without_ids(row: Row) -> Row:
    """The row without the ids of calls, and without what its results say of the call they answer."""
    messages = tuple(
        replace(message, tool_calls=_bare(message.tool_calls), name="", call_id="") for message in row.messages
    )
    return replace(row, messages=messages, calls=row.calls and tuple(map(_bare, row.calls)))


def has_ids(row: Row) -> bool:
    """Whether a call has an id, or a result says which call or function it is of."""
    turns = (*row.messages, *_answers(row))
    return any(turn.name or turn.call_id or any(call.id for call in turn.tool_calls) for turn in turns)


def has_calls(row: Row) -> bool:
    """Whether the conversation or an answer holds calls or their results."""
    return any(turn.tool_calls or turn.role == "tool" for turn in (*row.messages, *_answers(row)))


def results_in_order(row: Row) -> bool:
    """Whether results follow in the order of the calls they answer, so that they can be told without ids."""
    waiting: list[ToolCall] = []
    for message in row.messages:
        if message.tool_calls:
            waiting = list(message.tool_calls)
        elif message.role == "tool" and waiting:
            call = waiting.pop(0)
            if (message.call_id and call.id != message.call_id) or (message.name and call.name != message.name):
                return False
    return True


def results_have_calls(row: Row) -> bool:
    """Whether every result names the call it answers."""
    return all(message.call_id for message in row.messages if message.role == "tool")


def speaks_beside_calls(row: Row) -> bool:
    """Whether a turn says something and calls something."""
    return any(turn.tool_calls and turn.content.strip() for turn in (*row.messages, *_answers(row)))


def _answers(row: Row) -> list[Message]:
    return [row.answer(k) for k in range(len(row.answers))]


def _named(calls: tuple[ToolCall, ...], fresh: Iterator[str]) -> tuple[ToolCall, ...]:
    return tuple(call if call.id else replace(call, id=next(fresh)) for call in calls)


def _bare(calls: tuple[ToolCall, ...]) -> tuple[ToolCall, ...]:
    return tuple(replace(call, id="") for call in calls)


def _answered(result: Message, waiting: list[ToolCall]) -> ToolCall | None:
    """The call that a result answers, among those that wait for one."""
    if result.call_id:
        return next((call for call in waiting if call.id == result.call_id), None)
    same = [call for call in waiting if call.name == result.name]
    return next(iter(same or waiting), None)
