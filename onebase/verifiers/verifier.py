"""What a verifier is: it reads a completion and the row it answers, and gives a score in [0, 1]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True, slots=True)
class Task:
    """What a completion answers."""

    prompt: str
    """The prompt in words, as the policy saw it."""
    gold: Any = None
    """The right answer alone (`42`, `B`), as its data file writes it; None if the row has none."""
    solution: str | None = None
    """The row's own full answer (`... so it is 42.\\n#### 42`); None if the row has none."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns."""
    place: str = ""
    """`file:row`, for messages."""


class Verdict(NamedTuple):
    """What a verifier found."""

    score: float
    """In [0, 1]; 1 means right."""
    answer: str | None = None
    """The answer found in the completion, in a form in which equal answers are equal texts; None if there is none."""
    note: str | None = None
    """Why the score is what it is, in a few words fit for one line; None if there is nothing to say."""


class Verifier(Protocol):
    """Checks completions against a rule."""

    name: str
    decides: bool
    """Whether its verdict says if the answer is right; False for rules of form (format, length, language)."""

    def verify(self, completion: str, task: Task) -> Verdict:
        """Checks one completion, whatever text it is. May be called from several threads at once.

        Raises:
            VerifierError: it could not be checked (out of time or memory, say); this costs one completion its score.
        """
        ...

    def accepted(self, task: Task) -> str | None:
        """A completion that has to score 1, made from the row's gold answer; None if the row cannot give one.

        Raises:
            DataError: the row lacks what every completion is checked against.
        """
        ...

    def rejected(self, task: Task) -> str | None:
        """A corrupted twin of `accepted` that has to score below 1; None if the rule has none."""
        ...
