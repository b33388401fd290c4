"""A regular expression is found in the completion."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from onebase.errors import ConfigError, VerifierError
from onebase.shown import shown
from onebase.verifiers.verifier import Task, Verdict


@dataclass(frozen=True)
class Pattern:
    """Scores 1 if the regular expression is found anywhere in the completion, else 0."""

    pattern: str
    timeout: float = 1.0
    """Seconds the search may take; some expressions take for ever on some texts."""

    name = "pattern"
    decides = False

    def __post_init__(self) -> None:
        check_pattern(self.pattern)

    def verify(self, completion: str, task: Task) -> Verdict:
        try:
            found = regex.search(self.pattern, completion, timeout=self.timeout)
        except TimeoutError as error:
            raise VerifierError(
                f"the search for {shown(self.pattern, 60)!r} took more than {self.timeout:g} seconds; write it without "
                "repetitions inside repetitions"
            ) from error
        return Verdict(1.0 if found else 0.0)

    def accepted(self, task: Task) -> None:
        return None

    def rejected(self, task: Task) -> None:
        return None


def check_pattern(pattern: str) -> None:
    """Raises ConfigError unless the text is a regular expression."""
    try:
        regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ConfigError(f"{shown(pattern, 60)!r} is not a regular expression: {shown(error, 100)}") from error
