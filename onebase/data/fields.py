"""One object of a data file, taken key by key: each value is checked where it is read, and a message names its place.

A turn that calls a function counts as an assistant turn, and what the function returned as a user turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from onebase.data.files import shown
from onebase.errors import DataError
from onebase.records import Message, Row

ROLES = {
    "system": "system", "user": "user", "human": "user", "observation": "user", "tool": "user",
    "assistant": "assistant", "gpt": "assistant", "function_call": "assistant",
}  # fmt: skip
PREFIX_KEY = "initial_reason_steps"
"""As in Math-Step-DPO: the shared correct beginning of the assistant's answer, beside every prompt."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_REQUIRED = object()


def listed(keys: Mapping[str, Any]) -> str:
    return ", ".join(map(str, keys)) or "(none)"


class Fields:
    """One object of a file and its place; keys that were not taken become columns."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self.values = values
        self.place = place
        self.taken: set[str] = set()

    def wrong(self, key: str, value: object, needed: str) -> DataError:
        return DataError(f"{self.place}: '{key}' is {shown(value)}; {needed} is needed")

    def take(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value at `key`; a default stands in for a key that is missing or null."""
        self.taken.add(key)
        value = self.values.get(key)
        if default is not _REQUIRED and value is None:
            return default
        if key not in self.values:
            raise DataError(f"{self.place}: the key '{key}' is missing among {listed(self.values)}; add it")
        return value

    def text(self, key: str, default: Any = _REQUIRED) -> str:
        return self.checked(key, self.take(key, default))

    def checked(self, key: str, value: Any, needed: str = "a string") -> str:
        if not isinstance(value, str):
            raise self.wrong(key, value, needed)
        if half := _SURROGATE.search(value):
            raise DataError(
                f"{self.place}: '{key}' holds half of a surrogate pair, U+{ord(half[0]):04X} at character "
                f"{half.start()}; remove it"
            )
        return value

    def items(self, key: str, needed: str) -> list[Any]:
        value = self.take(key)
        if not isinstance(value, list) or not value:
            raise self.wrong(key, value, needed)
        return value

    def messages(self, key: str) -> tuple[Message, ...]:
        turns = self.items(key, "a list of messages")
        return tuple(self.message(f"{key}[{index}]", turn) for index, turn in enumerate(turns))

    def message(self, key: str, turn: Any) -> Message:
        names = ("from", "value") if isinstance(turn, dict) and "from" in turn else ("role", "content")
        if not isinstance(turn, dict) or any(name not in turn for name in names):
            raise self.wrong(key, turn, "a message {role, content} or {from, value}")
        role, content = (turn[name] for name in names)
        if not isinstance(role, str) or role not in ROLES:
            raise self.wrong(f"{key}.{names[0]}", role, f"one of {', '.join(ROLES)}")
        return Message(ROLES[role], self.checked(f"{key}.{names[1]}", content))

    def system(self) -> tuple[Message, ...]:
        text = self.text("system", "")
        return (Message("system", text),) if text else ()

    def prompt(self, key: str) -> tuple[Message, ...]:
        """`system` and a text, or a list of messages that does not end in an answer."""
        value = self.take(key)
        if not isinstance(value, list):
            return *self.system(), Message("user", self.checked(key, value, "a string or a list of messages"))
        messages = self.messages(key)
        if messages[-1].role == "assistant":
            raise DataError(
                f"{self.place}: '{key}' ends in an assistant turn; leave that turn to the answer, or write it as "
                f"'{PREFIX_KEY}' where the answers are steps that follow it"
            )
        return *self.system(), *messages

    def answer(self, key: str, prompt: tuple[Message, ...]) -> str:
        """A text, one message, or a list of messages: one assistant turn, with or without the prompt before it."""
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
                f"{self.place}: '{key}' holds the turns {found}; one assistant turn is needed, alone or behind the "
                "prompt's own turns"
            )
        return turns[0].content

    def row(self, messages: tuple[Message, ...], answers: Sequence[str] = (), **more: Any) -> Row:
        if messages and self.take(PREFIX_KEY, None) is not None:
            more["prefix"] = self.text(PREFIX_KEY)
        columns = {key: value for key, value in self.values.items() if key not in self.taken}
        return Row(messages, tuple(answers), columns=columns, place=self.place, **more)

    def compared(self, messages: tuple[Message, ...], chosen: str, rejected: str) -> Row:
        """A row of two answers, with its optional `margin` and `tie`."""
        margin, tie = self.take("margin", None), self.take("tie", False)
        if margin is not None:
            if isinstance(margin, bool) or not isinstance(margin, int | float) or not math.isfinite(margin):
                raise self.wrong("margin", margin, "a finite number")
            margin = float(margin)
        if not isinstance(tie, bool):
            raise self.wrong("tie", tie, "true or false")
        return self.row(messages, (chosen, rejected), grades=(0.0, 0.0) if tie else (1.0, 0.0), margin=margin)

    def check_label(self) -> float | None:
        """The number of an optional `label`, which stays among the columns."""
        label = self.values.get("label")
        if label is None:
            return None
        if not isinstance(label, bool | int) or label not in (0, 1):
            raise self.wrong("label", label, "0, 1, true or false")
        return float(label)

    def last_answer(self, turns: tuple[Message, ...], key: str) -> Row:
        """A conversation: its last assistant turn is the answer; none where another role has the last word."""
        self.check_label()
        if turns[-1].role != "assistant":
            return self.row((*self.system(), *turns))
        if len(turns) == 1:
            raise DataError(f"{self.place}: '{key}' holds the answer alone; put the turn it answers before it")
        return self.row((*self.system(), *turns[:-1]), (turns[-1].content,))
