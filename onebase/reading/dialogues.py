"""Readers for conversations that are not lists of `{role, content}` or `{from, value}`: transcripts and logs."""

from __future__ import annotations

import json
from typing import Any

from onebase.errors import DataError
from onebase.reading.fields import Answer, Fields, transcript
from onebase.reading.json_text import parse
from onebase.records import Message, Row

TURNS_KEYS = ("turns", "dialog", "dialogue", "data")
"""Keys that may hold a list of texts, said by user and assistant in turn."""


def read_transcripts(fields: Fields) -> Row:
    """Two conversations with a shared beginning; the prompt is its part up to the last user turn.

    If they part before the last reply, everything that follows is the answer, written as a transcript.
    """
    chosen, rejected = _turns(fields, "chosen"), _turns(fields, "rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1].role != "user":
        shared -= 1
    if not shared:
        raise DataError(f"{fields.place}: 'chosen' and 'rejected' share no user turn; give two answers to one prompt")
    return fields.compared(chosen[:shared], *(_said(turns[shared:]) for turns in (chosen, rejected)))


def _turns(fields: Fields, key: str) -> tuple[Message, ...]:
    value = fields.value(key)
    if isinstance(value, list):
        turns = fields.messages(key)
    else:
        text = fields.checked(key, value, "a transcript or a list of messages")
        turns = transcript(text)
        if not turns:
            raise DataError(
                f"{fields.place}: '{key}' starts with {text[:20]!r}; a transcript starts with '\\n\\nHuman:' "
                "(or add the key 'prompt', and leave the answers in 'chosen' and 'rejected')"
            )
    if turns[-1].role != "assistant":
        raise DataError(f"{fields.place}: '{key}' ends in a {turns[-1].role} turn; end it in an assistant turn")
    return turns


def _said(turns: tuple[Message, ...]) -> Answer:
    return turns[0] if len(turns) == 1 and turns[0].tool_calls else _transcript(turns)


def _transcript(turns: tuple[Message, ...]) -> str:
    who = {"user": "Human", "assistant": "Assistant", "system": "System", "tool": "Tool"}
    # The prompt ends in "\n\nAssistant:", so an answer that opens with another role has to say so.
    first = turns[0].text if turns[0].role == "assistant" else f"{who[turns[0].role]}: {turns[0].text}"
    return (first + "".join(f"\n\n{who[turn.role]}: {turn.text}" for turn in turns[1:])).strip()


def turns_key(row: Any) -> str | None:
    """The key of a list of texts that are said in turn."""
    for key in TURNS_KEYS:
        value = row.get(key)
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return key
    return None


def read_turns(fields: Fields) -> Row:
    """A list of texts, said by user and assistant in turn (UltraChat)."""
    key = turns_key(fields.values)
    assert key is not None, "the layout was told by this key"
    texts = [fields.checked(f"{key}[{n}]", text) for n, text in enumerate(fields.items(key, "a list of texts"))]
    fields.notes.append(f"the texts in '{key}' read as said by user and assistant in turn")
    turns = tuple(Message(("user", "assistant")[n % 2], text) for n, text in enumerate(texts))
    return fields.last_answer(turns, key)


def read_utterances(fields: Fields) -> Row:
    """A logged dialogue `{utterances: [{speaker, text}]}` (Taskmaster): its last assistant turn is the answer.

    What the user says after it has no answer; it is left out, which a note says.
    """
    said = []
    for index, turn in enumerate(fields.items("utterances", "a list of {speaker, text}")):
        if not isinstance(turn, dict):
            raise fields.wrong(f"utterances[{index}]", turn, "an object {speaker, text}")
        inner = {key: value for key, value in turn.items() if key not in ("speaker", "text")}
        said.append({"role": turn.get("speaker"), "content": turn.get("text"), **inner})
    turns = tuple(fields.message(f"utterances[{index}]", turn) for index, turn in enumerate(said))
    last = max((number for number, turn in enumerate(turns, start=1) if turn.role == "assistant"), default=len(turns))
    if last < len(turns):
        fields.notes.append("'utterances[].text' after the last answer is left out")
    return fields.last_answer(turns[:last], "utterances")


def read_rated_turn(fields: Fields) -> Row:
    """A dialogue's beginning, its next turn and a reward (Taskmaster).

    No tools are defined there, so calls are texts of the assistant and their results texts of the user, in JSON.
    """
    turns = _logged(fields, "context")
    if not isinstance(turns, list):
        raise fields.wrong("context", turns, "a list of turns, or its JSON")
    prompt = tuple(fields.message(f"context[{index}]", _turn(turn)) for index, turn in enumerate(turns))
    prompt = prompt or (Message("user", ""),)  # an empty prompt, not a plain text
    answer = fields.message("generation", _turn(_logged(fields, "generation")))
    if answer.role != "assistant":
        raise DataError(f"{fields.place}: 'generation' is a {answer.role} turn; expected one of the agent")
    return fields.row(prompt, (answer.content,), grades=(fields.number("reward"),))


def _logged(fields: Fields, key: str) -> Any:
    value = fields.take(key)
    return parse(value, f"{fields.place}: '{key}'") if isinstance(value, str) else value


def _turn(turn: Any) -> Any:
    """A Taskmaster turn as a ShareGPT one."""
    if not isinstance(turn, dict):
        return turn
    role = {"agent": "gpt", "user": "human", "api": "human"}.get(str(turn.get("role")), turn.get("role"))
    if isinstance(turn.get("text"), str):
        return {"from": role, "value": turn["text"]}
    if isinstance(turn.get("api"), dict):
        calls = [{"name": name, "arguments": arguments} for name, arguments in turn["api"].items()]
        return {"from": "gpt", "value": json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)}
    if "response" in turn:
        return {"from": "human", "value": json.dumps(turn["response"], ensure_ascii=False)}
    return turn
