"""Numbers on the command line, written plainly."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from cyclopts import Parameter, Token

from onebase.shown import shown


def _written_as(kind: type, pattern: str, what: str) -> Callable[[Any, Sequence[Token]], Any]:
    """A converter for plain numbers: cyclopts would round 1.5 to an integer and accept 0x10 and 1_0."""

    def convert(_hint: Any, tokens: Sequence[Token]) -> Any:
        if not re.fullmatch(pattern, tokens[0].value):
            raise ValueError(f"{shown(tokens[0].value, 60)} is not {what}")
        return kind(tokens[0].value)

    return convert


WHOLE = Parameter(converter=_written_as(int, r"[+-]?\d{1,18}", "a whole number"))
REAL = Parameter(converter=_written_as(float, r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", "a number"))
Whole = Annotated[int, WHOLE]
Real = Annotated[float, REAL]
