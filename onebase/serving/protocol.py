"""The bodies that clients send, in the shape of OpenAI's API, and how their fields are checked."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from onebase.records import Message
from onebase.shown import shown

MOST_CHOICES = 128
MOST_STOPS = 16
IGNORED = frozenset(
    "audio metadata modalities moderation parallel_tool_calls prediction prompt_cache_key prompt_cache_retention "
    "reasoning_effort safety_identifier service_tier store stream_options user verbosity web_search_options".split()
)
"""Fields of OpenAI's API that change nothing here."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}
"""Fields that would change the answer and are not supported, with the values that ask for nothing."""


def _whole_number(value: Any) -> Any:
    if isinstance(value, bool | str) or (isinstance(value, float) and value % 1):
        raise ValueError("it should be a whole number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError("it should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_whole_number), Field(ge=0)]
Count = Annotated[int, BeforeValidator(_whole_number), Field(ge=1)]
Number = Annotated[float, BeforeValidator(_number)]


class Body(BaseModel):
    """A request's body. Unknown fields are ignored, as OpenAI's are; `misspelt` tells of those nearly known."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> Body:
        for name, value in (self.model_extra or {}).items():
            if name in NEUTRAL and value is not None and value not in NEUTRAL[name]:
                raise ValueError(f"'{name}' is not supported here; leave it out")
        return self

    def misspelt(self) -> list[str]:
        """A sentence for each field that was ignored and looks like a known one."""
        known = [*type(self).model_fields, *IGNORED, *NEUTRAL]
        found = []
        for name in self.model_extra or {}:
            if name not in known and (near := difflib.get_close_matches(name, known, n=1, cutoff=0.75)):
                found.append(f"{shown(name, 60)} was ignored; did you mean {near[0]}?")
        return found


class Part(BaseModel):
    """A part of a message."""

    type: str
    text: str | None = None


class Turn(BaseModel):
    """One message of a conversation; other fields, such as `name`, are ignored."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]

    @field_validator("content")
    @classmethod
    def _only_text(cls, value: str | list[Part]) -> str | list[Part]:
        for part in value if isinstance(value, list) else ():
            if part.type != "text" or part.text is None:
                raise ValueError(f"a part of type {shown(repr(part.type), 40)} is not supported, only text is")
        return value

    def message(self) -> Message:
        """The turn as a chat template takes it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text or "" for part in self.content)
        return Message("system" if self.role == "developer" else self.role, text)


Turns = Annotated[list[Turn], Field(min_length=1)]
Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    BeforeValidator(lambda value: [value] if isinstance(value, str) else ([] if value is None else value)),
    Field(max_length=MOST_STOPS),
]


class SamplingBody(Body):
    """How an answer is drawn; null = the role's own default."""

    temperature: Annotated[Number, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, BeforeValidator(_whole_number), Field(ge=-1)] | None = None
    max_tokens: Count | None = None
    stop: Stops = []
    seed: int | None = None


class StreamOptions(BaseModel):
    include_usage: bool | None = False


class AnswerBody(SamplingBody):
    """What chat and completions have in common."""

    model: str
    n: Annotated[Count, Field(le=MOST_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None


class ChatBody(AnswerBody):
    """The body of /v1/chat/completions."""

    messages: Turns
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Whole, Field(le=20)] | None = None


class CompletionBody(AnswerBody):
    """The body of /v1/completions."""

    prompt: str | list[int] | list[str] | list[list[int]] = ""
    logprobs: Annotated[Whole, Field(le=20)] | None = None


class ScoreBody(Body):
    """The body of /v1/score."""

    model: str
    messages: Turns | None = None
    prompt: str | None = None
    completions: Annotated[list[str], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _one_prompt(self) -> ScoreBody:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either 'messages' or 'prompt'")
        return self


class CompareBody(SamplingBody):
    """The body of /v1/compare."""

    messages: Turns
    models: Annotated[list[str], Field(min_length=1, max_length=16)]
    reward: str | None = None


class RoleBody(Body):
    """The body of /v1/roles."""

    name: str
    role: str
