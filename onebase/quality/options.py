"""The filters by name, each with its options; what is given on the command line is checked here, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from onebase.errors import ConfigError
from onebase.shown import shown

SCRIPTS = (
    "Latin", "Han", "Hiragana", "Katakana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Bengali",
    "Tamil", "Telugu", "Thai", "Khmer", "Georgian", "Armenian", "Ethiopic",
)  # fmt: skip
"""Scripts that are told apart; letters of others count as `Other`."""


@dataclass(frozen=True)
class Encoding:
    """Text that was decoded wrongly: replacement and control characters, and mojibake."""

    name: ClassVar[str] = "encoding"


@dataclass(frozen=True)
class Length:
    """Answers that are too short or too long, or prompts where there are no answers; empty ones by default."""

    least: int = 1
    most: int | None = None
    unit: str = "characters"
    """`characters`, or `words` (each Chinese or Japanese character is one)."""

    name: ClassVar[str] = "length"

    def __post_init__(self) -> None:
        _check(self.unit in ("characters", "words"), "length: unit", self.unit, "characters or words")
        _check(self.least >= 0, "length: least", self.least, "0 or more")
        _check(
            self.most is None or self.most >= max(1, self.least), "length: most", self.most, "at least 1 and 'least'"
        )


@dataclass(frozen=True)
class Repetition:
    """Answers that repeat themselves: too few of their n-grams of words are distinct."""

    n: int = 3
    distinct: float = 0.5
    """The least share of distinct n-grams."""

    name: ClassVar[str] = "repetition"

    def __post_init__(self) -> None:
        _check(self.n >= 1, "repetition: n", self.n, "at least 1")
        _check(0 <= self.distinct <= 1, "repetition: distinct", self.distinct, "from 0 to 1")


@dataclass(frozen=True)
class Script:
    """Rows written in another script of Unicode, by the share of their letters: latin, han, [han, hiragana], .."""

    script: str | list[str] = ""
    share: float = 0.5
    """The least share of letters in these scripts."""

    name: ClassVar[str] = "script"

    def __post_init__(self) -> None:
        known = {script.casefold() for script in SCRIPTS}
        right = bool(self.scripts) and all(script.casefold() in known for script in self.scripts)
        _check(right, "script: script", self.script, f"one of {', '.join(sorted(known))}, or a list of these")
        _check(0 < self.share <= 1, "script: share", self.share, "above 0 and at most 1")

    @property
    def scripts(self) -> list[str]:
        return [self.script] if isinstance(self.script, str) else list(self.script)


@dataclass(frozen=True)
class EqualAnswers:
    """Rows whose compared answers are the same text, chosen = rejected among them."""

    name: ClassVar[str] = "equal_answers"


@dataclass(frozen=True)
class Leaks:
    """Rows that hold a prompt of the files given with --against: the same, a near-duplicate, or long runs of it."""

    similarity: float = 0.8
    """The least Jaccard similarity of two prompts."""
    run: int = 50
    """Characters of a run; 0.4 times as many where it starts in a Chinese, Japanese or Korean one."""
    share: float = 0.5
    """The least share of a test prompt's runs found in the row. Runs in more than three test prompts do not count."""

    name: ClassVar[str] = "leaks"

    def __post_init__(self) -> None:
        _check(0 < self.similarity <= 1, "leaks: similarity", self.similarity, "above 0 and at most 1")
        _check(self.run >= 5, "leaks: run", self.run, "at least 5")
        _check(0 < self.share <= 1, "leaks: share", self.share, "above 0 and at most 1")


@dataclass(frozen=True)
class Contradictions:
    """Preferences that other rows reverse (a > b and b > a), and labels they deny; the majority of the rows stays."""

    name: ClassVar[str] = "contradictions"


@dataclass(frozen=True)
class Consistency:
    """Gold answers that other rows with the same prompt deny; the majority of the rows stays."""

    name: ClassVar[str] = "consistency"


@dataclass(frozen=True)
class Duplicates:
    """Rows that say exactly what an earlier one says: the same prompt, answers and verdict."""

    name: ClassVar[str] = "duplicates"


@dataclass(frozen=True)
class NearDuplicates:
    """Rows that say nearly what an earlier one says: each part shares most of its runs of characters."""

    similarity: float = 0.8
    """The least Jaccard similarity of the runs, prompt with prompt and answer with answer."""

    name: ClassVar[str] = "near_duplicates"

    def __post_init__(self) -> None:
        _check(0.3 <= self.similarity <= 1, "near_duplicates: similarity", self.similarity, "from 0.3 to 1")


@dataclass(frozen=True)
class Difficulty:
    """Rows that are too easy or too hard for the role or by the samples given with --difficulty."""

    low: float = 0.1
    high: float = 0.9
    """The difficulties kept, on a scale from 0 to 1: the share of wrong samples, or the rank of the role's loss."""

    name: ClassVar[str] = "difficulty"

    def __post_init__(self) -> None:
        right = 0 <= self.low < self.high <= 1
        _check(
            right, "difficulty: low and high", f"{self.low:g} and {self.high:g}", "two numbers from 0 to 1, in order"
        )


@dataclass(frozen=True)
class Noise:
    """Preferences and labels that heads trained on the other folds of the data disbelieve, the largest losses first."""

    probability: float = 0.2
    """The least probability, by a head that has not seen the prompt, that the row's verdict is right."""
    share: float = 0.1
    """The largest share of the rows with a verdict that may be dropped."""
    folds: int = 5

    name: ClassVar[str] = "noise"

    def __post_init__(self) -> None:
        _check(0 < self.probability < 1, "noise: probability", self.probability, "between 0 and 1")
        _check(0 < self.share <= 1, "noise: share", self.share, "above 0 and at most 1")
        _check(2 <= self.folds <= 50, "noise: folds", self.folds, "from 2 to 50")


Filter = (
    Encoding
    | Length
    | Repetition
    | Script
    | EqualAnswers
    | Leaks
    | Contradictions
    | Consistency
    | Duplicates
    | NearDuplicates
    | Difficulty
    | Noise
)

FILTERS: dict[str, type[Filter]] = {
    kind.name: kind
    for kind in (
        Encoding,
        Length,
        Repetition,
        Script,
        EqualAnswers,
        Leaks,
        Contradictions,
        Consistency,
        Duplicates,
        NearDuplicates,
        Difficulty,
        Noise,
    )
}
"""In the order in which they run, whatever the order they are given in: a row counts for the first that drops it."""

STANDARD = tuple(name for name in FILTERS if name not in ("script", "leaks", "difficulty", "noise"))
"""What runs by default: the filters that need no option, file or role, and that only drop what is clearly wrong."""


def in_order(filters: Iterable[Filter]) -> list[Filter]:
    """The filters in the order in which they run.

    Raises:
        ConfigError: a filter is named twice.
    """
    found: dict[str, Filter] = {}
    for given in filters:
        if given.name in found:
            raise ConfigError(f"the filter {given.name} is given twice; give it once, with all its options")
        found[given.name] = given
    return [found[name] for name in FILTERS if name in found]


def described(given: Filter) -> dict[str, Any]:
    """The filter's name and options."""
    return {"name": given.name, **asdict(given)}


def _check(right: bool, what: str, value: object, needed: str) -> None:
    if not right:
        raise ConfigError(f"{what} is {shown(repr(value), 60)}; it should be {needed}")
