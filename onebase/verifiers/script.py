"""The completion is written in one script."""

from __future__ import annotations

from dataclasses import dataclass

import regex

from onebase.errors import ConfigError
from onebase.shown import shown
from onebase.verifiers.verifier import Task, Verdict

_LETTER = regex.compile(r"\p{L}")


@dataclass(frozen=True)
class Script:
    """Scores the share of a completion's letters that are in one script of Unicode: latin, han, cyrillic, arabic, ...

    A text without letters (`42`) is in no other script and scores 1; a blank one scores 0.
    """

    script: str

    name = "script"
    decides = False

    def __post_init__(self) -> None:
        check_script(self.script)

    def verify(self, completion: str, task: Task) -> Verdict:
        letters = _LETTER.findall(completion)
        if not letters:
            return Verdict(1.0 if completion.strip() else 0.0)
        return Verdict(len(_letters_of(self.script).findall("".join(letters))) / len(letters))

    def accepted(self, task: Task) -> None:
        return None

    def rejected(self, task: Task) -> None:
        return None


def check_script(script: str) -> None:
    """Raises ConfigError unless the text names a script of Unicode."""
    try:
        _letters_of(script)
    except regex.error:
        raise ConfigError(f"{shown(script, 40)!r} is not a script of Unicode, such as latin, han or cyrillic") from None


def _letters_of(script: str) -> regex.Pattern[str]:
    if not script.isidentifier():
        raise regex.error("not a name")
    return regex.compile(rf"\p{{Script={script}}}")
