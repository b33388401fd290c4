"""The verifiers by name."""

from __future__ import annotations

from onebase.verifiers.answer_format import AnswerFormat
from onebase.verifiers.choice import Choice
from onebase.verifiers.code import Code
from onebase.verifiers.exact import Exact
from onebase.verifiers.json_schema import JsonSchema
from onebase.verifiers.maths import Maths
from onebase.verifiers.numeric import Numeric
from onebase.verifiers.pattern import Pattern
from onebase.verifiers.script import Script
from onebase.verifiers.shape import Length, Repetition
from onebase.verifiers.verifier import Verifier

VERIFIERS: dict[str, type[Verifier]] = {
    verifier.name: verifier
    for verifier in (Exact, Numeric, Choice, Maths, Code, Pattern, AnswerFormat, JsonSchema, Length, Repetition, Script)
}
"""What `name` means in a list of verifiers; the options of each are its fields."""
