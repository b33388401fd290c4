"""How long a completion is, and how much it repeats itself."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onebase.errors import ConfigError
from onebase.verifiers.extract import plain
from onebase.verifiers.verifier import Task, Verdict

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+(?:['’][^\W{_CJK}]+)*")

UNITS = ("words", "characters")


def words_of(text: str) -> list[str]:
    """The words of a text; each Chinese or Japanese character is one, as these scripts write no spaces."""
    return _WORD.findall(plain(text).casefold())


@dataclass(frozen=True)
class Length:
    """Scores 1 from `least` to `most` words or characters; above, falls to 0 at twice `most`; below, to 0 at none."""

    most: int | None = None
    least: int | None = None
    unit: str = "words"

    name = "length"
    decides = False

    def __post_init__(self) -> None:
        if self.unit not in UNITS:
            raise ConfigError(f"a length is in words or characters, not in {self.unit!r}")
        if self.most is None and self.least is None:
            raise ConfigError("a length needs a limit: most, least or both")
        if (self.most is not None and self.most < 1) or (self.least is not None and self.least < 1):
            raise ConfigError("a limit of length is at least 1")
        if self.most is not None and self.least is not None and self.most < self.least:
            raise ConfigError(f"a length of at least {self.least} and at most {self.most} does not exist; swap them")

    def verify(self, completion: str, task: Task) -> Verdict:
        length = len(words_of(completion)) if self.unit == "words" else len(completion.strip())
        if self.most is not None and length > self.most:
            return Verdict(max(0.0, 2 - length / self.most))
        if self.least is not None and length < self.least:
            return Verdict(length / self.least)
        return Verdict(1.0)

    def accepted(self, task: Task) -> None:
        return None

    def rejected(self, task: Task) -> None:
        return None


@dataclass(frozen=True)
class Repetition:
    """Scores the share of the completion's n-grams of words that are distinct: 1 if nothing repeats."""

    n: int = 3

    name = "repetition"
    decides = False

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"repetition counts n-grams of at least 1 word, not of {self.n}")

    def verify(self, completion: str, task: Task) -> Verdict:
        words = words_of(completion)
        grams = list(zip(*(words[i:] for i in range(min(self.n, len(words) + 1))), strict=False))
        return Verdict(len(set(grams)) / len(grams) if grams else 1.0)

    def accepted(self, task: Task) -> None:
        return None

    def rejected(self, task: Task) -> None:
        return None
