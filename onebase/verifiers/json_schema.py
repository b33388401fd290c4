"""The completion is JSON that fits a schema."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from onebase.errors import ConfigError, MissingExtraError, VerifierError
from onebase.shown import shown
from onebase.verifiers.verifier import Task, Verdict

JSON_ALONE = 0.1
FENCE = "```"


@dataclass(frozen=True)
class JsonSchema:
    """Scores 1 if the completion, or its one fenced block, is JSON that fits the schema; 0.1 if it is other JSON.

    NaN, Infinity and numbers that overflow are not JSON. References in the schema are never fetched.

    Raises:
        MissingExtraError: without jsonschema.
        ConfigError: the schema is none, or refers to what it does not hold.
    """

    schema: Mapping[str, Any]

    name = "json_schema"
    decides = False

    def __post_init__(self) -> None:
        self._validator  # noqa: B018 - a wrong schema is found before training

    def verify(self, completion: str, task: Task) -> Verdict:
        value = _parsed(completion)
        if value is _NO_JSON:
            return Verdict(0.0)
        from referencing.exceptions import Unresolvable

        try:
            return Verdict(1.0 if self._validator.is_valid(value) else JSON_ALONE)
        except Unresolvable as error:
            raise ConfigError(
                f"the JSON schema refers to {shown(error.ref, 100)}, which it does not hold; put it under $defs"
            ) from error
        except (RecursionError, ArithmeticError) as error:
            raise VerifierError(f"the JSON cannot be checked: {shown(error, 100)}") from error

    def accepted(self, task: Task) -> None:
        return None

    def rejected(self, task: Task) -> None:
        return None

    @cached_property
    def _validator(self) -> Any:
        try:
            from jsonschema import SchemaError, validators
            from referencing import Registry
        except ImportError as error:
            raise MissingExtraError("checking JSON needs jsonschema: pip install 'onebase[rft]'") from error
        kind = validators.validator_for(self.schema, default=validators.Draft202012Validator)
        try:
            kind.check_schema(self.schema)
        except SchemaError as error:
            place = ".".join(map(str, error.absolute_path))
            raise ConfigError(
                f"not a JSON schema: {f'{shown(place, 60)}: ' if place else ''}{shown(error.message, 100)}"
            ) from error
        return kind(self.schema, registry=Registry())


_NO_JSON = object()


def _parsed(completion: str) -> Any:
    """The value of the completion, or of its only fenced block; `_NO_JSON` if it is not JSON."""
    parts = completion.split(FENCE)
    text = parts[1].partition("\n")[2] if len(parts) == 3 else completion
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):  # ValueError also for an integer of thousands of digits
        return _NO_JSON


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a number in JSON")
    return number
