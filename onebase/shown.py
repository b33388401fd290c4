"""Makes foreign text safe to print: it cannot move the cursor, recolour the terminal or reverse a line."""

from __future__ import annotations

import json
import re

_CONTROLS = "\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
"""C0 and C1 controls, marks that change the writing direction, line separators and lone surrogates; not the joiners
that emoji and Persian need."""
_UNSAFE = re.compile(f"[{_CONTROLS}]")
_UNSAFE_BUT_LAYOUT = re.compile(f"(?![\n\t])[{_CONTROLS}]")


def shown(text: object, limit: int | None = None, *, lines: bool = False) -> str:
    """Returns `str(text)` with control characters escaped (`\\x1b`, `\\u202e`), so that it is safe to print anywhere.

    Args:
        text: anything from a data file, a model folder, an exception or a model's answer.
        limit: maximum number of characters returned; longer text ends in `...`.
        lines: keeps newlines and tabs, for text printed as paragraphs; by default all goes on one line.
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
    """Returns the value as JSON with control characters escaped, so that it is safe to print anywhere."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return _UNSAFE_BUT_LAYOUT.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def number_of(number: int, thing: str, things: str = "", *, form: str = "") -> str:
    """Returns a number with what it counts: `1 row`, `3 rows`.

    Args:
        thing: one of them.
        things: several of them, where that is not the word with -s: `people`, or `rows are` beside `row is`.
        form: how the number is written, as in an f-string: `,` for `12,345`.
    """
    return f"{number:{form}} {thing if number == 1 else things or thing + 's'}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
