"""Runs in a worker process: reads answers with math-verify and compares them. Nothing here limits time; `Workers` does.

math-verify's own time limits are switched off: they use a signal, which only a main thread can set.
"""

from __future__ import annotations

from typing import Any

import sympy
from math_verify import parse, verify

from onebase.verifiers.workers import serve

_MAX_EXPONENT, _MAX_OPERATIONS = 12, 200
_MAX_ANSWER = 200


def checked(request: dict[str, Any]) -> dict[str, Any]:
    """Returns whether `completion` gives the answer `gold`, whether the gold could be read, and the answer found."""
    gold = str(request["gold"])
    expected = parse(gold if "\\boxed" in gold or "$" in gold else f"\\boxed{{{gold}}}", parsing_timeout=None)
    found = parse(request["completion"], parsing_timeout=None)
    right = bool(found) and bool(expected) and verify(expected, found, timeout_seconds=None)
    return {"readable": bool(expected), "right": right, "answer": canonical(found[0]) if found else None}


def canonical(value: Any) -> str:
    """Returns a text that is the same for equal answers: 1/2 and 0.5, {1, 2} and {2, 1}, x = 3 and 3.

    Numbers are compared to ten digits. Formulas are multiplied out where that is cheap; `sin(x)^2 + cos(x)^2` and 1
    stay different texts.
    """
    if isinstance(value, str):
        return value.strip()[:_MAX_ANSWER]
    if isinstance(value, sympy.Eq) and value.lhs.is_Symbol:
        return canonical(value.rhs)
    if isinstance(value, sympy.FiniteSet):
        return "{" + ", ".join(sorted(canonical(item) for item in value.args)) + "}"
    if isinstance(value, sympy.Tuple):
        return "(" + ", ".join(canonical(item) for item in value.args) + ")"
    if isinstance(value, sympy.Integer):
        return f"{int(value):.10g}" if abs(value) >= 10**15 else str(value)
    if isinstance(value, sympy.Expr) and value.is_number:
        number = sympy.N(value, 12)
        small = number.is_real and abs(number) < 1e15
        return (f"{float(number):.10g}" if small else str(sympy.N(number, 10)))[:_MAX_ANSWER]
    return str(_expanded(value))[:_MAX_ANSWER]


def _expanded(value: Any) -> Any:
    if not isinstance(value, sympy.Expr) or sympy.count_ops(value) > _MAX_OPERATIONS:
        return value
    powers = value.atoms(sympy.Pow)
    if any(not power.exp.is_number or abs(power.exp) > _MAX_EXPONENT for power in powers):
        return value
    return sympy.expand(value)


if __name__ == "__main__":
    serve(checked)
