"""What a client is told when its request cannot be answered: OpenAI's shape, one sentence, the right status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onebase.errors import DataError, DoesNotFitError, ModelError, OnebaseError, PromptTooLongError
from onebase.shown import shown


class Refusal(OnebaseError):
    """A request that gets no answer.

    Args:
        message: what is wrong, and what to do.
        param: the field of the body that is wrong.
        code: OpenAI's word for it, where there is one.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, kind: str = ""
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.kind = kind or KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")

    def body(self) -> dict[str, Any]:
        """The error in OpenAI's shape."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


BRANCHES = ("str", "int", "float")
"""What pydantic adds to a place for the types that a field may have."""
KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def unknown_model(name: str, known: Sequence[str], *, param: str = "model") -> Refusal:
    """404 for a name that nothing answers to here."""
    return Refusal(
        404,
        f"there is no model {shown(repr(name), 80)} here; there are {', '.join(known) or 'none of this kind'}",
        param=param,
        code="model_not_found",
    )


def from_error(error: BaseException) -> Refusal:
    """What a client is told of an error that was raised while its request was answered."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, PromptTooLongError):
        return Refusal(400, str(error), code="context_length_exceeded")
    if isinstance(error, DataError | ModelError):
        return Refusal(400, str(error))
    if isinstance(error, DoesNotFitError):
        return Refusal(503, str(error))
    return Refusal(500, "the server failed on this request; its log says where")


def from_validation(problems: Sequence[Mapping[str, Any]]) -> Refusal:
    """400 for a body that is not JSON, or has a field of a wrong type or out of range."""
    first = next((problem for problem in problems if problem.get("type") == "value_error"), problems[0])
    place = [str(part) for part in first.get("loc", ()) if part not in ("body", *BRANCHES)]
    if first.get("type") == "json_invalid":
        return Refusal(400, f"the body is not valid JSON: {shown(first.get('ctx', {}).get('error', ''), 200)}")
    # Of several types a field may have, the one that was meant is not known; their names in the place say nothing.
    param = ".".join(part for part in place if not any(sign in part for sign in "[]()-")) or None
    said = shown(first.get("msg", "it cannot be read"), 200).removeprefix("Value error, ")
    if first.get("type") == "missing":
        return Refusal(400, f"'{param}' is missing" if param else "the body is missing", param=param)
    given = shown(repr(first.get("input")), 60)
    return Refusal(400, f"'{param or 'body'}' = {given}: {said}", param=param)
