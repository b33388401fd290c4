"""Finds what a row says beside its prompt and answers: refuses what was meant to be read, and names the rest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from onebase.errors import DataError
from onebase.records import Message, Row
from onebase.shown import shown

_PROMPT_PARTS = (
    "options",
    "choices",
    "context",
    "input",
    "query",
    "question",
    "instruction",
    "prompt",
    "problem",
    "passage",
)
"""Keys whose text should be part of the prompt beside them."""
_OPTION = re.compile(r"(?:options?|choices?|opt?|distractor)[ _-]?[a-hA-H1-8]|[A-H]")
"""A key that holds one option of a question."""
_OTHER_READINGS = ("completion", "response", "output", "reply", "chosen", "rejected", "messages", "conversations")
"""Keys that would be read if the ones that were read were missing."""
DECIDING = (
    *_OTHER_READINGS,
    "instruction",
    "conversation",
    "preferred_output",
    "utterances",
    "response_j",
    "test_list",
)
"""Keys that make a row be read another way; a row that is written again cannot have columns of these names."""
_ROLES = ("role", "from")
_FOR_VERIFIERS = ("gold", "answer", "label", "tests", "setup", "code_prompt", "entry_point", "orders")
"""Columns that verifiers, losses and measures of agreement read."""


def check_nothing_is_left_out(
    place: str, columns: Mapping[str, Any], messages: Sequence[Message], answers: Sequence[str], *, read: Sequence[str]
) -> None:
    """Checks a row's columns for texts that belong in its prompt, or that could have been read instead.

    A column that repeats the whole prompt, as rendered by some template, is neither.

    Args:
        place: of the row, for messages.
        columns: the keys that were not read, and their values.
        read: the keys that were.

    Raises:
        DataError: naming the key; where there are two readings, naming both.
    """
    options = [key for key in columns if _OPTION.fullmatch(key)]
    parts = [key for key in columns if key in _PROMPT_PARTS] + (options if len(options) > 1 else [])
    others = [key for key in _OTHER_READINGS if key in columns]
    if not parts and not others:
        return
    prompt = _joined(message.content for message in messages)
    for key in parts:
        if any(text not in prompt for text in texts(columns[key])) and not _renders(columns[key], messages):
            raise DataError(
                f"{place}: '{key}' is beside the prompt and would not be part of it; move it into the prompt, or "
                f"rename '{key}' if the model should not see it",
                remedy="beside-the-prompt",
                template=f'"{{{read[0] if read else "question"}}}\\n{{{key}}}"',
            )
    said = _joined([prompt, *answers])
    for key in others:
        if any(text not in said for text in texts(columns[key])) and not _renders(columns[key], messages):
            target = {"conversations": "messages", "response": "completion", "output": "completion"}.get(key, key)
            alone = target in ("messages", "chosen", "rejected") or not read
            other = {target: key} if alone else {"prompt": read[0], target: key}
            raise DataError(
                f"{place}: the row can be read by {_quoted(read)}, or by {_quoted(list(other.values()))}; they hold "
                "different texts",
                remedy="two-readings",
                mapping="{" + ", ".join(f"{name}: {shown(value, 40)}" for name, value in other.items()) + "}",
            )


def columns_beside(row: Row) -> list[str]:
    """The columns of a row whose texts are in none of its messages and answers, and that no verifier reads."""
    said = _joined([*(message.content for message in row.messages), *row.answers, row.prefix or ""])
    return [
        key
        for key, value in row.columns.items()
        if key not in _FOR_VERIFIERS and any(text not in said for text in texts(value))
    ]


def texts(value: Any) -> list[str]:
    """The texts of a string, list or object; for `{"text": [..], "label": [..]}` only the options, and no roles."""
    if isinstance(value, dict):
        value = value.get("text", [inner for key, inner in value.items() if key not in _ROLES])
    if isinstance(value, list):
        return [text for inner in value for text in texts(inner)]
    return [_plain(value)] if isinstance(value, str) and value.strip() else []


def _joined(parts: Iterable[str]) -> str:
    return _plain("\n".join(parts))


def _plain(text: str) -> str:
    return text.strip().replace("\r\n", "\n")


def _renders(value: Any, messages: Sequence[Message]) -> bool:
    return isinstance(value, str) and all(message.content.strip() in value for message in messages)


def _quoted(keys: Sequence[str]) -> str:
    return " and ".join(f"'{shown(key, 40)}'" for key in keys)
