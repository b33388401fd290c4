"""The answer is the gold number."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from onebase.errors import ConfigError, DataError
from onebase.shown import shown
from onebase.verifiers.extract import at, check_how, gold_text, marked_spans, wrapped
from onebase.verifiers.numbers import UNITS, Quantity, numbers_in, plain_numbers, read, several, stands_alone, written
from onebase.verifiers.verifier import Task, Verdict

ROUNDING = 1e-6
"""Up to here a tolerance is for rounding, and rounding never turns one whole number into another."""

_EXPRESSION = re.compile(r"[\d+^×÷·±√π!<>≤≥]|(?<!\*)\*(?!\*)|/(?!\w\w)|\\[a-zA-Z]+|(?<![^\W\d_])[-–](?![^\W\d_])")
"""What does not stand beside a gold number and its unit."""

NEAR_THE_END = 4_000
"""Characters of a completion in which its last number is looked for first: reading every number of a long one takes
time."""


@dataclass(frozen=True)
class Numeric:
    """Scores 1 if the answer is the gold number; `wrong` if it is another number; 0 if it is none.

    The answer is the first number of a marked answer, behind its last `=`; without a mark the text's last number. A
    marked answer with more than one number in it, or with a number that is part of an expression, is wrong.
    Two numbers are equal within `tolerance` times the gold one (of 0: within `tolerance`). If the gold answer has a
    unit, the answer needs it too, or one that converts to it; a sum of money and an angle may leave it out.
    """

    tolerance: float = 1e-6
    wrong: float = 0.1
    units: bool = True
    """Whether a unit of the gold answer has to be in the answer."""
    extract: str = "auto"

    name = "numeric"
    decides = True

    def __post_init__(self) -> None:
        check_how(self.extract)
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"a tolerance of {self.tolerance:g} accepts any number; it is at least 0 and below 1")

    def verify(self, completion: str, task: Task) -> Verdict:
        gold = self._gold(task)
        found = self._find(plain_numbers(completion), self.extract)
        if found is None:
            return Verdict(0.0)
        if isinstance(found, str):
            return Verdict(self.wrong, found)
        values = self._in_unit_of(gold, found)
        right = any(abs(value - gold.value) <= self._allowed(gold.value) for value in values)
        return Verdict(1.0 if right else self.wrong, written(values[0] if values else found.value))

    def accepted(self, task: Task) -> str:
        gold = plain_numbers(gold_text(task.gold, task))
        self._gold(task)
        if task.solution is None:
            return wrapped(gold, self.extract)
        solution = plain_numbers(task.solution)
        if self._find(solution, self.extract) is not None:
            return task.solution
        found = self._find(solution, "auto")
        answer = gold if found is None or isinstance(found, str) else solution[found.start : found.unit_end]
        return f"{task.solution}\n{wrapped(answer, self.extract)}"

    def rejected(self, task: Task) -> str:
        right = plain_numbers(self.accepted(task))
        found = self._find(right, self.extract)
        gold = self._gold(task).value
        other = written(gold + 1 + int(2 * self._allowed(gold)))
        start, end = (0, len(right)) if found is None or isinstance(found, str) else (found.start, found.end)
        return right[:start] + other + right[end:]

    def _gold(self, task: Task) -> Quantity:
        gold = gold_text(task.gold, task)
        text = plain_numbers(gold)
        found = _first(text)
        if found is None:
            raise DataError(f"{at(task)}the gold answer {shown(repr(gold), 60)} is not a number", remedy="no-gold")
        rest = text[_behind_equals(text, 0, found.start) : found.start] + text[found.unit_end :]
        if _EXPRESSION.search(rest) or several(text, 0, len(text)) or not stands_alone(text, found, 0, len(text)):
            raise DataError(
                f"{at(task)}the gold answer {shown(repr(gold), 60)} is not one number; the verifier maths compares "
                "expressions",
                remedy="no-gold",
            )
        return found

    def _find(self, text: str, how: str) -> Quantity | str | None:
        """The answer's number; the whole answer in words if it is more than a number; None if there is none."""
        for start, end in marked_spans(text, how):
            if (found := _first(text, start, end)) is not None:
                alone = stands_alone(text, found, _behind_equals(text, start, found.start), end)
                return found if alone and not several(text, start, end) else " ".join(text[start:end].split())
        if how not in ("auto", "last"):
            return None
        return _last(text)

    def _allowed(self, gold: Fraction) -> Fraction:
        most = Fraction(self.tolerance) * (abs(gold) or 1)
        return min(most, Fraction(1, 2)) if gold.denominator == 1 and self.tolerance <= ROUNDING else most

    def _in_unit_of(self, gold: Quantity, found: Quantity) -> list[Fraction]:
        """What the answer may mean in the gold answer's unit; empty if it has none that fits."""
        ours, theirs = UNITS.get(gold.unit or ""), UNITS.get(found.unit or "")
        if gold.unit is None or not self.units:
            return [found.value, found.value / 100] if found.unit in ("%", "percent") else [found.value]
        if ours is None or found.unit == gold.unit:
            return [found.value] if found.unit == gold.unit else []
        if theirs is not None and theirs[0] == ours[0]:
            return [found.value * theirs[1] / ours[1]]
        if found.unit is None and ours[0] in ("money", "angle"):
            return [found.value]
        return [found.value / ours[1]] if ours[0] == "share" and theirs is None else []


def _first(text: str, start: int = 0, end: int | None = None) -> Quantity | None:
    """The first number behind the last `=` of a part of a text, or else the part's first number."""
    stop = len(text) if end is None else end
    for begin in sorted({_behind_equals(text, start, stop), start}, reverse=True):
        found = (read(match) for match in numbers_in(text, begin, stop))
        if (first := next((quantity for quantity in found if quantity is not None), None)) is not None:
            return first
    return None


def _last(text: str) -> Quantity | None:
    """The text's last number: near its end, or else anywhere."""
    for start in (max(0, len(text) - NEAR_THE_END), 0):
        # A number that the window begins with may be the rest of a longer one.
        matches = [match for match in numbers_in(text, start) if match.start() > start or not start]
        if (
            last := next((found for match in reversed(matches) if (found := read(match)) is not None), None)
        ) is not None:
            return last
    return None


def _behind_equals(text: str, start: int, end: int) -> int:
    """Where the last side of a chain of equations begins."""
    return max(start, *(text.rfind(sign, start, end) + 1 for sign in "=≈"))
