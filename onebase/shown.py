"""Other people's text made safe to print: nothing in it moves the cursor, recolours the terminal or reverses a line."""

from __future__ import annotations

import json
import re

_CONTROLS = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""C0 and C1 control characters, marks that change the direction of writing, line separators, halves of surrogates.
The joiners that emoji and Persian are written with are not among them."""
_UNSAFE = re.compile(f"[{_CONTROLS}]")
_UNSAFE_BUT_LAYOUT = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def shown(text: object, limit: int | None = None, *, lines: bool = False) -> str:
    """Returns `str(text)` with control characters written out (`\\x1b`, `\\u202e`), so that it can be printed anywhere.

    Args:
        text: from a data file, a model folder, an exception, a model's answer.
        limit: characters of the result, at most; what is longer ends in `...`.
        lines: keeps newlines and tabs, for text that is shown as paragraphs; a message stays on one line.
    """
    try:
        whole = str(text)
    except BaseException as error:  # an exception's own __str__ may raise, or call sys.exit
        whole = f"({type(text).__name__} without a text: its __str__ raises {type(error).__name__})"
    cut = whole if limit is None else whole[: limit + 1]
    safe = (_UNSAFE_BUT_LAYOUT if lines else _UNSAFE).sub(lambda found: _escaped(found[0]), cut)
    if limit is None or len(safe) <= limit:
        return safe
    return safe[: max(0, limit - 3)] + "..."


def json_shown(value: object, *, indent: int | None = None) -> str:
    """Returns the value as JSON in which every control character is an escape, so that it can be printed anywhere."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNSAFE_BUT_LAYOUT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
