"""Reads one object of a data file key by key: each value is checked as it is read, and messages name its place.

Tools are read with their definitions, calls and results (`reading/tools.py`). Anything that would be lost from the text
a model reads is refused.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from onebase.errors import DataError
from onebase.reading.json_text import described, listed
from onebase.reading.tools import TOOL_KEYS, read_calls, read_tools
from onebase.reading.unread import check_nothing_is_left_out
from onebase.records import Message, Row, ToolCall
from onebase.shown import number_of, shown

Answer = str | Message
"""An answer's text, or the whole turn if it calls tools."""

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "observation": "tool",
    "tool": "tool",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
    "developer": "system",
    "prompter": "user",
    "bot": "assistant",
    "model": "assistant",
}
_TOOL_ROLES = ("observation", "tool")
_CALLS = ("tool_calls", "function_call")
"""Keys of a message that hold calls."""
_UNREAD = ("reasoning_content", "reasoning", "thinking", "images", "audio")
"""Keys of a message that are not passed to the template."""
SCORE = ("overall_score", "score", "rating", "reward", "pm_score", "votes")
"""Keys of one answer's score, higher is better; the first one there counts."""
SYSTEM_KEYS = ("system", "system_prompt")
_TEXT_PARTS = ("text", "input_text", "output_text")
"""Types of the parts of a message that hold text."""
_TURN = re.compile(r"\n\n(Human|Assistant):")
_WHO = {"Human": "user", "Assistant": "assistant"}
_LARGEST = 1e15
"""Larger grades cannot be told apart as floating-point numbers."""
_LARGEST_MARGIN = 1000.0

PREFIX_KEY = "initial_reason_steps"
"""The correct beginning that all answers continue, as in Math-Step-DPO; may stand beside every prompt."""

_REQUIRED = object()


class Fields:
    """One object of a file and its place; keys that are not taken become columns."""

    def __init__(self, values: Mapping[str, Any], place: str, *, typed: bool = True, mapped: bool = False) -> None:
        self.values = values
        self.place = place
        self.typed = typed
        """False where every value is a text (CSV), which may stand for a number or a list."""
        self.mapped = mapped
        """Whether the user said which keys are read, so that no other reading is meant."""
        self.taken: set[str] = set()
        self.notes: list[str] = []

    def wrong(self, key: str, value: object, needed: str, *, remedy: str = "") -> DataError:
        return DataError(f"{self.place}: '{key}' is {described(value)}; expected {needed}", remedy=remedy)

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value at `key`; a default replaces a missing or null one."""
        self.taken.add(key)
        value = self.values.get(key)
        if default is not _REQUIRED and (value is None or (value == "" and not self.typed)):
            return default
        if key not in self.values:
            raise DataError(f"{self.place}: the key '{key}' is missing; found {listed(self.values)}")
        return value

    def value(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value at `key` as JSON has it: in a table of texts, what the text stands for."""
        value = self.take(key, default)
        return _meant(value) if isinstance(value, str) and not self.typed else value

    def untaken(self, key: str) -> Any:
        """The value at `key`, which stays a column."""
        value = self.values.get(key)
        return _meant(value) if isinstance(value, str) and not self.typed else value

    def left(self) -> dict[str, Any]:
        """The keys that were not taken, and their values."""
        return {key: value for key, value in self.values.items() if key not in self.taken}

    def number(self, key: str) -> float:
        """A number that grades an answer; the key stays a column."""
        return self.grade(key, self.untaken(key))

    def grade(self, key: str, value: Any) -> float:
        if not is_grade(value):
            raise self.wrong(key, value, "a number")
        return float(value)

    def rating(self) -> tuple[float] | None:
        """The score of the row's only answer, if it has one."""
        found = next((key for key in SCORE if key in self.values and is_grade(self.untaken(key))), None)
        return None if found is None else (self.number(found),)

    def note_left_out(self, key: str, entry: Mapping[str, Any], read: Sequence[str]) -> None:
        """Notes which keys of an object inside the row are not read, but for empty ones."""
        key = re.sub(r"\[\d+\]", "[]", key)
        for name, value in entry.items():
            if name not in read and value not in (None, "", [], {}):
                self.notes.append(f"'{key}.{name}' is left out")

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self.checked(key, self.take(key, default))

    def checked(self, key: str, value: Any, needed: str = "a string") -> str:
        if not isinstance(value, str):
            raise self.wrong(key, value, needed)
        return value

    def items(self, key: str, needed: str) -> list[Any]:
        value = self.value(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, value, needed)
        return value

    def messages(self, key: str) -> tuple[Message, ...]:
        turns = self.items(key, "a list of messages")
        read = []
        for index, turn in enumerate(turns):
            read.append(self.message(f"{key}[{index}]", turn))
            if _role(turn) in _TOOL_ROLES and (not index or _role(turns[index - 1]) in ("system", "user", "human")):
                raise DataError(
                    f"{self.place}: '{key}[{index}]' is a tool's result, but no assistant turn before it called "
                    "one; add the call before it, or make it a user turn"
                )
        return tuple(read)

    def message(self, key: str, turn: Any) -> Message:
        names = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
        calls = self._calls(key, turn, names[0]) if isinstance(turn, dict) else ()
        if calls and (turn.get(names[1]) is None or turn.get(names[0]) == "function_call"):
            turn = {**turn, names[1]: ""}
        unread = next((name for name in _UNREAD if isinstance(turn, dict) and turn.get(name)), None)
        if unread is not None:
            raise DataError(
                f"{self.place}: '{key}.{unread}' would be lost, as only '{names[1]}' is read; move it into "
                f"'{names[1]}', or drop the row"
            )
        if not isinstance(turn, dict) or any(name not in turn for name in names):
            raise self.wrong(key, turn, "a message {role, content} or {from, value}")
        role, content = (turn[name] for name in names)
        role = role.lower() if isinstance(role, str) and role.lower() in ROLES else role
        if not isinstance(role, str) or role not in ROLES:
            raise self.wrong(f"{key}.{names[0]}", role, f"one of {', '.join(ROLES)}")
        if turn.get("weight", 1) != 1:
            needed = "no weight (all answers count alike)"
            raise self.wrong(f"{key}.weight", turn["weight"], needed, remedy="turn-weights")
        if calls and ROLES[role] != "assistant":
            raise DataError(f"{self.place}: '{key}' is a {role} turn with tool calls; only the assistant calls tools")
        text, of_tool = self._content(f"{key}.{names[1]}", content), role in _TOOL_ROLES
        more = ("name", "tool_call_id") if of_tool else ()
        self.note_left_out(key, turn, (*names, *more, "weight", *_CALLS, *_UNREAD))
        name, call_id = (str(turn.get(entry) or "") if of_tool else "" for entry in ("name", "tool_call_id"))
        return Message(ROLES[role], text, calls, name, call_id)

    def _calls(self, key: str, turn: Mapping[str, Any], role_key: str) -> tuple[ToolCall, ...]:
        """What a turn calls: in a key of its own, or as the text of a `function_call` turn."""
        if turn.get(role_key) == "function_call":
            return read_calls(
                turn.get("value", turn.get("content")), self.place, f"{key}.{'value' if 'value' in turn else 'content'}"
            )
        return tuple(
            call for name in _CALLS if turn.get(name) for call in read_calls(turn[name], self.place, f"{key}.{name}")
        )

    def _content(self, key: str, content: Any) -> str:
        """The text of a message; of a list of typed parts the texts, joined."""
        if not isinstance(content, list) or not content:
            return self.checked(key, content)
        texts = []
        for index, part in enumerate(content):
            kind = part.get("type") if isinstance(part, dict) else "text"
            text = part.get("text") if isinstance(part, dict) else part
            if kind not in _TEXT_PARTS:
                raise DataError(
                    f"{self.place}: '{key}[{index}]' is a part of the type '{shown(kind, 40)}'; only text can be "
                    "read: leave out the part, or the row"
                )
            texts.append(self.checked(f"{key}[{index}].text", text))
        if len(texts) > 1:
            self.notes.append("the text parts of a message are joined")
        return "".join(texts)

    def system(self) -> tuple[Message, ...]:
        key = next((key for key in SYSTEM_KEYS if self.values.get(key) is not None), SYSTEM_KEYS[0])
        text = self.text(key, "")
        return (Message("system", text),) if text else ()

    def prompt(self, key: str) -> tuple[Message, ...]:
        """`system` and a text, or a list of messages that does not end in an assistant turn."""
        value = self._turns_or_text(key)
        if not isinstance(value, list):
            text = self.checked(key, value, "a string or a list of messages")
            turns = (
                transcript(text.rstrip().removesuffix("\n\nAssistant:"))
                if text.rstrip().endswith("\n\nAssistant:")
                else ()
            )
            if turns:
                self.notes.append(f"the transcript in '{key}' read as turns")
            return *self.system(), *(turns or (Message("user", text),))
        messages = self.messages(key)
        if messages[-1].role == "assistant":
            raise DataError(
                f"{self.place}: '{key}' ends in an assistant turn; move that turn to the answer, or to '{PREFIX_KEY}' "
                "if the answers are steps that follow it"
            )
        return *self.system(), *messages

    def answer(self, key: str, prompt: tuple[Message, ...]) -> Answer:
        """A text, a message, or a list of messages: one assistant turn, optionally after the prompt's own turns."""
        value = self._turns_or_text(key)
        if isinstance(value, dict):
            turns: tuple[Message, ...] = (self.message(key, value),)
        elif isinstance(value, list):
            turns = self.messages(key)
            if turns[:-1] == prompt[-len(turns) + 1 :]:
                turns = turns[-1:]
        else:
            return self.checked(key, value, "a string or a list of messages")
        if len(turns) != 1 or turns[0].role != "assistant":
            found = ", ".join(turn.role for turn in turns)
            raise DataError(
                f"{self.place}: '{key}' holds the turns {found}; expected one assistant turn, alone or after the "
                "prompt's own turns"
            )
        return turns[0] if turns[0].tool_calls else turns[0].content

    def _turns_or_text(self, key: str) -> Any:
        value = self.take(key)
        if self.typed or not isinstance(value, str) or value.lstrip()[:2] not in ("[{", "{'", '{"'):
            return value
        meant = _meant(value)
        turns = meant if isinstance(meant, list) else [meant]
        return meant if all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in turns) else value

    def flag(self, key: str, default: bool) -> bool:
        value = self.value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def endings(self, count: int) -> list[bool]:
        """`ended`: whether an answer is complete or stops mid-sentence; a list if the row has a list of answers."""
        if count == 1 and not isinstance(self.untaken("ended"), list):
            return [self.flag("ended", True)]
        flags = self.value("ended", [True] * count)
        if not isinstance(flags, list) or len(flags) != count or not all(isinstance(flag, bool) for flag in flags):
            raise self.wrong("ended", flags, f"a list of {number_of(count, 'time')} true or false, one per answer")
        return flags

    def row(
        self,
        messages: tuple[Message, ...],
        answers: Sequence[Answer] = (),
        *,
        more_columns: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> Row:
        """The row, with the tools beside it; keys that no reader took become its columns.

        Args:
            answers: an answer that calls tools is a message.

        Raises:
            DataError: a column holds something that should be in the prompt, or that could be read instead.
        """
        if messages:
            more["tools"] = self._tools()
        if any(isinstance(answer, Message) for answer in answers):
            more["calls"] = tuple(answer.tool_calls if isinstance(answer, Message) else () for answer in answers)
        texts = tuple(answer.content if isinstance(answer, Message) else answer for answer in answers)
        if messages and self.take(PREFIX_KEY, None) is not None:
            more["prefix"] = self.text(PREFIX_KEY)
        ended = more.pop("ended", None) or (self.endings(len(answers)) if answers else [])
        more["ended"] = None if all(ended) else tuple(ended)
        columns = self.left() | dict(more_columns or {})
        if not self.typed and "label" in columns:
            columns["label"] = self.untaken("label")
        if messages:
            self._check_nothing_is_left_out(columns, messages, [*texts, more.get("prefix") or ""])
        notes = tuple(dict.fromkeys(self.notes))
        return Row(messages, texts, columns=columns, place=self.place, notes=notes, **more)

    def _tools(self) -> tuple[str, ...]:
        """The tools beside the messages. An empty value stays a column, like any other."""
        found: tuple[str, ...] = ()
        for key in TOOL_KEYS:
            if tools := read_tools(self.values.get(key), self.place, key):
                self.taken.add(key)
                found += tools
        return found

    def _check_nothing_is_left_out(
        self, columns: Mapping[str, Any], messages: Sequence[Message], answers: Sequence[str]
    ) -> None:
        if not self.mapped:
            check_nothing_is_left_out(self.place, columns, messages, answers, read=self.taken_keys())

    def taken_keys(self) -> list[str]:
        """The keys that were read, in the row's order."""
        return [key for key in self.values if key in self.taken]

    def compared(self, messages: tuple[Message, ...], chosen: Answer, rejected: Answer) -> Row:
        """A row of two answers, with optional `margin` and `tie`."""
        margin, tie = self.value("margin", None), self.flag("tie", False)
        ended = [self.flag("chosen_ended", True), self.flag("rejected_ended", True)]
        if margin is not None:
            if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin <= _LARGEST_MARGIN:
                needed = f"a number from 0 to {_LARGEST_MARGIN:g}, how much better 'chosen' is"
                raise self.wrong("margin", margin, needed)
            margin = float(margin)
        grades = (0.0, 0.0) if tie else (1.0, 0.0)
        return self.row(messages, (chosen, rejected), grades=grades, margin=margin, ended=ended)

    def check_label(self) -> float | None:
        """The optional `label` as a number; it also stays a column."""
        label = self.untaken("label")
        if label in (None, ""):
            return None
        if not isinstance(label, bool | int) or label not in (0, 1):
            raise self.wrong("label", label, "0, 1, true or false")
        return float(label)

    def last_answer(self, turns: tuple[Message, ...], key: str) -> Row:
        """A conversation: if its last turn is the assistant's, that is the answer; otherwise there is none."""
        self.check_label()
        if turns[-1].role != "assistant":
            return self.row((*self.system(), *turns))
        if len(turns) == 1:
            raise DataError(f"{self.place}: '{key}' holds only an answer; add the turn that it answers before it")
        last = turns[-1]
        return self.row((*self.system(), *turns[:-1]), (last if last.tool_calls else last.content,))


def transcript(text: str) -> tuple[Message, ...]:
    """The turns of a transcript in the format of hh-rlhf; empty if it is none."""
    before, *parts = _TURN.split(text)
    if before.strip() or not parts:
        return ()
    return tuple(Message(_WHO[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def is_grade(value: object) -> bool:
    """Whether a value is a number that can rank an answer."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _meant(text: str) -> Any:
    """What a cell of a table stands for: a number, a truth value, a list or object in JSON or as Python writes it."""
    stripped = text.strip()
    if stripped.lower() in ("true", "false"):
        return stripped.lower() == "true"
    if not re.match(r"[\[{]|-?\d", stripped):
        return text
    try:
        return json.loads(stripped)
    except (ValueError, RecursionError):
        pass
    try:
        found = ast.literal_eval(stripped) if stripped[0] in "[{" else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return found if isinstance(found, list | dict) else text


def _role(turn: Any) -> Any:
    return (turn.get("from") or turn.get("role")) if isinstance(turn, dict) else None
