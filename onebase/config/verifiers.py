"""The verifiers a run may use, a group of options each. The docstring under a key is its help text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, model_serializer

from onebase.config.values import FUNCTION, Count, Float, Group, Positive, Share
from onebase.shown import shown

Extract = Literal["auto", "tag", "boxed", "hash", "last"]


class VerifierGroup(Group):
    """What every verifier has."""

    name: str
    """Which verifier."""
    weight: Float = 1.0
    """Its score times this is added to the reward."""

    @property
    def options(self) -> dict[str, Any]:
        """The options of the verifier itself."""
        return {key: getattr(self, key) for key in type(self).model_fields if key not in ("name", "weight")}


class AnswerGroup(VerifierGroup):
    """A verifier that looks for the answer in a completion."""

    wrong: Share = 0.1
    """Score of an answer that is wrong; a completion without any scores 0."""
    extract: Extract = "auto"
    """Where the answer stands: <answer> tag, \\boxed{}, behind ####, last line or number; auto = the last mark."""


class ExactGroup(AnswerGroup):
    """The answer is the gold text."""

    name: Literal["exact"]
    ignore_case: bool = True
    """Capital letters equal small ones."""


class NumericGroup(AnswerGroup):
    """The answer is the gold number, however it is written."""

    name: Literal["numeric"]
    tolerance: Share = 1e-6
    """Largest difference, as a share of the gold number."""
    units: bool = True
    """A unit of the gold answer has to be in the answer."""


class ChoiceGroup(AnswerGroup):
    """The answer is the letter of the right option in the prompt."""

    name: Literal["choice"]


class MathsGroup(VerifierGroup):
    """The answer equals the gold expression."""

    name: Literal["maths"]
    wrong: Share = 0.1
    """Score of an answer that is wrong; a completion without any scores 0."""
    timeout: Positive = 5.0
    """Seconds a comparison may take."""
    memory_mb: Count = 1024
    """Memory a comparison may take, in MiB."""


class CodeGroup(VerifierGroup):
    """The program passes the row's tests."""

    name: Literal["code"]
    timeout: Positive = 10.0
    """Seconds the tests of one completion may take."""
    memory_mb: Count = 512
    """Memory they may take, in MiB."""
    partial: bool = False
    """true = the share of tests passed counts."""


class PatternGroup(VerifierGroup):
    """A regular expression is found in the completion."""

    name: Literal["pattern"]
    pattern: str
    """The regular expression."""
    timeout: Positive = 1.0
    """Seconds the search may take."""


class AnswerFormatGroup(VerifierGroup):
    """The completion is <think>...</think><answer>...</answer>."""

    name: Literal["answer_format"]


class JsonSchemaGroup(VerifierGroup):
    """The completion is JSON that fits a schema."""

    name: Literal["json_schema"]
    # A field called schema would hide a method of pydantic's.
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    """The JSON schema."""

    @property
    def options(self) -> dict[str, Any]:
        return {"schema": self.schema_}

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"name": self.name, "weight": self.weight, "schema": self.schema_}


class LengthGroup(VerifierGroup):
    """The completion is not too long, nor too short."""

    name: Literal["length"]
    most: Count | None = None
    """Longest completion that scores 1; one of twice this length scores 0."""
    least: Count | None = None
    """Shortest completion that scores 1."""
    unit: Literal["words", "characters"] = "words"
    """What is counted; a Chinese or Japanese character is a word."""


class RepetitionGroup(VerifierGroup):
    """The completion does not repeat itself."""

    name: Literal["repetition"]
    n: Count = 3
    """Words in the n-grams that should differ."""


class ScriptGroup(VerifierGroup):
    """The completion is written in one script."""

    name: Literal["script"]
    script: str
    """latin, han, cyrillic, arabic, ... as Unicode names it."""


class FunctionGroup(VerifierGroup):
    """A Python function that scores completions."""

    name: str
    """module:function or path/to/file.py:function."""


AnyVerifier = (
    ExactGroup
    | NumericGroup
    | ChoiceGroup
    | MathsGroup
    | CodeGroup
    | PatternGroup
    | AnswerFormatGroup
    | JsonSchemaGroup
    | LengthGroup
    | RepetitionGroup
    | ScriptGroup
    | FunctionGroup
)
GROUPS: dict[str, type[VerifierGroup]] = {
    get_args(group.model_fields["name"].annotation)[0]: group
    for group in get_args(AnyVerifier)
    if group is not FunctionGroup
}


def _read(value: Any) -> list[VerifierGroup]:
    """One verifier or a list of them, each a name or a name with options."""
    problems: list[str] = []
    found = [
        group
        for item in (value if isinstance(value, list | tuple) else [value])
        if (group := _read_one({"name": item} if isinstance(item, str) else item, problems)) is not None
    ]
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _read_one(item: Any, problems: list[str]) -> VerifierGroup | None:
    if isinstance(item, VerifierGroup):
        return item
    if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
        problems.append(f"{shown(item, 60)} has no name; write a name, or {{name: numeric, weight: 1.0}}")
        return None
    name = item["name"]
    group = GROUPS.get(name, FunctionGroup)
    if group is FunctionGroup and not re.fullmatch(FUNCTION, name):
        problems.append(
            f"there is no verifier {shown(name, 60)!r}; there are {', '.join(GROUPS)}, and Python functions written "
            "module:function or path/to/file.py:function"
        )
        return None
    try:
        return group.model_validate(dict(item))
    except ValidationError as error:
        keys = [field.alias or key for key, field in group.model_fields.items()]
        for problem in error.errors(include_url=False, include_context=False):
            key = shown(".".join(map(str, problem["loc"])), 60)
            if problem["type"] == "extra_forbidden":
                problems.append(f"{shown(name, 60)} has no option {key!r}; its options are {', '.join(keys)}")
            elif problem["type"] == "missing":
                problems.append(f"{shown(name, 60)} needs its option {key!r}")
            else:
                said = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
                problems.append(f"{shown(name, 60)}: {key} = {shown(problem['input'], 40)}: {said}")
        return None


Verifiers = Annotated[list[AnyVerifier], BeforeValidator(_read)]
"""A list of verifiers; a single one is a list of one, and a name alone means its defaults."""
