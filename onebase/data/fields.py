"""Reads one object of a data file key by key: each value is checked as it is read, and messages name its place.

A function call counts as an assistant turn and its result as a user turn; both are noted. Anything that would be lost
from the text a model reads, such as a tool definition, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onebase.data.json_text import described, listed
from onebase.errors import DataError
from onebase.records import Message, Row

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "observation": "user",
    "tool": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "function_call": "assistant",
}
_TOOL_ROLES = ("observation", "tool")
_UNREAD = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "images", "audio")
"""Keys of a message that are not passed to the template."""
_PROMPT_PARTS = ("options", "choices", "context", "input", "query", "question")
"""Keys whose text should be part of the prompt beside them."""
_LARGEST = 1e15
"""Larger grades cannot be told apart as floating-point numbers."""
_LARGEST_MARGIN = 1000.0

PREFIX_KEY = "initial_reason_steps"
"""The correct beginning that all answers continue, as in Math-Step-DPO; may stand beside every prompt."""

_REQUIRED = object()


class Fields:
    """One object of a file and its place; keys that are not taken become columns."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place
        self.taken: set[str] = set()
        self.notes: list[str] = []

    def wrong(self, key: str, value: object, needed: str, *, remedy: str = "") -> DataError:
        return DataError(f"{self.place}: '{key}' is {described(value)}; expected {needed}", remedy=remedy)

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value at `key`; a default replaces a missing or null one."""
        self.taken.add(key)
        value = self.values.get(key)
        if default is not _REQUIRED and value is None:
            return default
        if key not in self.values:
            raise DataError(f"{self.place}: the key '{key}' is missing; found {listed(self.values)}")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self.checked(key, self.take(key, default))

    def checked(self, key: str, value: Any, needed: str = "a string") -> str:
        if not isinstance(value, str):
            raise self.wrong(key, value, needed)
        return value

    def items(self, key: str, needed: str) -> list[Any]:
        value = self.take(key)
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
        unread = next((name for name in _UNREAD if isinstance(turn, dict) and turn.get(name)), None)
        if unread is not None:
            raise DataError(
                f"{self.place}: '{key}.{unread}' would be lost, as only '{names[1]}' is read; move it into "
                f"'{names[1]}', or drop the row"
            )
        if not isinstance(turn, dict) or any(name not in turn for name in names):
            raise self.wrong(key, turn, "a message {role, content} or {from, value}")
        role, content = (turn[name] for name in names)
        if not isinstance(role, str) or role not in ROLES:
            raise self.wrong(f"{key}.{names[0]}", role, f"one of {', '.join(ROLES)}")
        if turn.get("weight", 1) != 1:
            needed = "no weight (all answers count alike)"
            raise self.wrong(f"{key}.weight", turn["weight"], needed, remedy="turn-weights")
        if role in (*_TOOL_ROLES, "function_call"):
            self.notes.append(f"'{role}' turns read as {ROLES[role]} turns")
        return Message(ROLES[role], self.checked(f"{key}.{names[1]}", content))

    def system(self) -> tuple[Message, ...]:
        text = self.text("system", "")
        return (Message("system", text),) if text else ()

    def prompt(self, key: str) -> tuple[Message, ...]:
        """`system` and a text, or a list of messages that does not end in an assistant turn."""
        value = self.take(key)
        if not isinstance(value, list):
            return *self.system(), Message("user", self.checked(key, value, "a string or a list of messages"))
        messages = self.messages(key)
        if messages[-1].role == "assistant":
            raise DataError(
                f"{self.place}: '{key}' ends in an assistant turn; move that turn to the answer, or to '{PREFIX_KEY}' "
                "if the answers are steps that follow it"
            )
        return *self.system(), *messages

    def answer(self, key: str, prompt: tuple[Message, ...]) -> str:
        """A text, a message, or a list of messages: one assistant turn, optionally after the prompt's own turns."""
        value = self.take(key)
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
        return turns[0].content

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def endings(self, count: int) -> list[bool]:
        """`ended`: whether an answer is complete or stops mid-sentence; a list if the row has a list of answers."""
        if count == 1 and not isinstance(self.values.get("ended"), list):
            return [self.flag("ended", True)]
        flags = self.take("ended", [True] * count)
        if not isinstance(flags, list) or len(flags) != count or not all(isinstance(flag, bool) for flag in flags):
            raise self.wrong("ended", flags, f"a list of {count} times true or false, one per answer")
        return flags

    def row(self, messages: tuple[Message, ...], answers: Sequence[str] = (), **more: Any) -> Row:
        if messages and self.take(PREFIX_KEY, None) is not None:
            more["prefix"] = self.text(PREFIX_KEY)
        ended = more.pop("ended", None) or (self.endings(len(answers)) if answers else [])
        more["ended"] = None if all(ended) else tuple(ended)
        columns = {key: value for key, value in self.values.items() if key not in self.taken}
        if messages:
            self._check_nothing_is_left_out(columns, "\n".join(message.content for message in messages))
        notes = tuple(dict.fromkeys(self.notes))
        return Row(messages, tuple(answers), columns=columns, place=self.place, notes=notes, **more)

    def _check_nothing_is_left_out(self, columns: Mapping[str, Any], prompt: str) -> None:
        for key in ("tools", "functions"):
            value = columns.get(key)
            if value and not (isinstance(value, str) and value.strip() in ("", "[]", "{}", "null")):
                raise DataError(
                    f"{self.place}: '{key}' defines tools, which are not passed to the chat template yet; write them "
                    f"into the system turn and remove '{key}', or drop the row"
                )
        for key in _PROMPT_PARTS:
            if any(text.strip() not in prompt for text in _texts(columns.get(key))):
                raise DataError(
                    f"{self.place}: '{key}' is beside the prompt and would not be part of it; move it into the "
                    f"prompt, or rename '{key}' if the model should not see it"
                )

    def compared(self, messages: tuple[Message, ...], chosen: str, rejected: str) -> Row:
        """A row of two answers, with optional `margin` and `tie`."""
        margin, tie = self.take("margin", None), self.flag("tie", False)
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
        label = self.values.get("label")
        if label is None:
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
        return self.row((*self.system(), *turns[:-1]), (turns[-1].content,))


def is_grade(value: object) -> bool:
    """Whether a value is a number that can rank an answer."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST  # type: ignore[operator]


def _role(turn: Any) -> Any:
    return (turn.get("from") or turn.get("role")) if isinstance(turn, dict) else None


def _texts(value: Any) -> list[str]:
    """The texts of a string, list or object; for `{"text": [..], "label": [..]}` only the options."""
    if isinstance(value, dict):
        value = value.get("text", list(value.values()))
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner)]
    return [value] if isinstance(value, str) and value.strip() else []
