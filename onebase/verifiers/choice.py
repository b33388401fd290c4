"""The answer is the letter of the right option."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onebase.errors import DataError
from onebase.shown import shown
from onebase.verifiers.exact import same_text
from onebase.verifiers.extract import Span, answer_span, at, check_how, gold_text, marked_spans, plain, wrapped
from onebase.verifiers.verifier import Task, Verdict

_OPTION = re.compile(r"(?<!\S)(?:\((?P<inner>[A-Za-z])\)|(?P<letter>[A-Z])[).:、])[ \t]{0,9}")
_OPENING = re.compile(
    r"[\s\"'`*_$]{0,9}(?:(?:option|choice)\s|选项?|選項?)?[\s*]{0,3}"
    r"(?:\((?P<inner>[A-Za-z])\)|(?P<letter>[A-Za-z])(?=[).:,、\]}*。]|\s*$|\s+-\s|\s+(?:is|because|since|as)\b))",
    re.IGNORECASE,
)
_STANDING_ALONE = re.compile(
    r"\((?P<inner>[A-Za-z])\)"
    # A and I are also words.
    r"|(?<![\w'’])(?P<letter>[B-HJ-Z]|[AI](?=\s{0,3}(?:$|[^\w\s]|(?:or|and)\b)))(?![\w'’])"
)


@dataclass(frozen=True)
class Choice:
    """Scores 1 if the answer is the right option's letter or text, `wrong` if it is another option's, 0 if none's.

    The options are read from the prompt: `A. text`, `A) text` or `(A) text`, on lines of their own or in one; of
    several questions in a prompt, the last one's. From a prompt that was cut they may be gone: then they are those of
    the row's column `options` or `choices`.
    """

    wrong: float = 0.1
    extract: str = "auto"

    name = "choice"
    decides = True

    def __post_init__(self) -> None:
        check_how(self.extract)

    def verify(self, completion: str, task: Task) -> Verdict:
        options = self._options(task)
        gold = self._gold(task, options)
        letter, _ = self._found(plain(completion), self.extract, options)
        return Verdict(0.0) if letter is None else Verdict(1.0 if letter == gold else self.wrong, letter)

    def accepted(self, task: Task) -> str:
        options = self._options(task)
        gold = self._gold(task, options)
        if task.solution is None:
            return wrapped(gold, self.extract)
        solution = plain(task.solution)
        if self._found(solution, self.extract, options)[0] is not None:
            return task.solution
        return f"{task.solution}\n{wrapped(self._found(solution, 'auto', options)[0] or gold, self.extract)}"

    def rejected(self, task: Task) -> str:
        right = plain(self.accepted(task))
        options = self._options(task)
        gold = self._gold(task, options)
        other = next(letter for letter in options if letter != gold)
        start, end = self._found(right, self.extract, options)[1]
        return right[:start] + other + right[end:]

    def _options(self, task: Task) -> dict[str, str]:
        options = options_in(task.prompt)
        if len(options) < 2:
            options = options_of(task.columns)
        if len(options) < 2:
            raise DataError(
                f"{at(task)}the prompt, as the policy sees it, lists no options to choose from, and the row has none "
                "in a column 'options' or 'choices'; write each as 'A. text', 'A) text' or '(A) text'",
                remedy="no-gold",
            )
        return options

    def _gold(self, task: Task, options: Mapping[str, str]) -> str:
        gold = gold_text(task.gold, task)
        letter = _letter(gold, options)
        if letter is None:
            raise DataError(
                f"{at(task)}the gold answer {shown(repr(gold), 60)} is none of the options {', '.join(options)} in the "
                "prompt; write its letter",
                remedy="no-gold",
            )
        return letter

    def _found(self, text: str, how: str, options: Mapping[str, str]) -> tuple[str | None, Span]:
        """The chosen letter, and where the whole answer stands."""
        spans = marked_spans(text, how)
        last = answer_span(text, "last") if how in ("auto", "last") else None
        for span in [*spans, last]:
            if span is not None and (letter := _letter(text[slice(*span)], options)) is not None:
                return letter, span
        return None, (0, len(text))


def options_in(prompt: str) -> dict[str, str]:
    """The last question's options in a prompt: their texts by letter, from A on without a gap.

    An `A:` without a `B` behind it is where the answer goes (`Q: ... A:`).
    """
    text = plain(prompt)
    found = list(_OPTION.finditer(text))
    letters = "".join((mark["inner"] or mark["letter"]).upper() for mark in found)
    options: dict[str, str] = {}
    for i, (letter, mark) in enumerate(zip(letters, found, strict=True)):
        line_end = text.find("\n", mark.end())
        end = min(found[i + 1].start() if i + 1 < len(found) else len(text), line_end if line_end >= 0 else len(text))
        if letter == "A" and "B" in letters[i + 1 :].partition("A")[0]:
            options = {}
        if letter == chr(ord("A") + len(options)):
            options[letter] = text[mark.end() : end].strip()
    return options


def options_of(columns: Mapping[str, Any]) -> dict[str, str]:
    """The options that a row has as a column of their own, by letter; empty if it has none that are read."""
    value = columns.get("options", columns.get("choices"))
    if isinstance(value, Mapping):
        value = value.get("text", list(value.values()))
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value) or len(value) > 26:
        return {}
    texts = {chr(ord("A") + i): plain(text).strip() for i, text in enumerate(value)}
    marks = {letter: _OPTION.match(text) for letter, text in texts.items()}
    lettered = all(mark and letter in (mark["inner"], mark["letter"]) for letter, mark in marks.items())
    return {
        letter: text[mark.end() :] if lettered and mark else text
        for (letter, text), mark in zip(texts.items(), marks.values(), strict=True)
    }


def _letter(answer: str, options: Mapping[str, str]) -> str | None:
    """The option that a short answer names: by a letter in front, by its text, or by the only letter in it."""
    opening = _OPENING.match(answer)
    if opening and (letter := (opening["inner"] or opening["letter"]).upper()) in options:
        return letter
    same = same_text(answer)
    by_text = [letter for letter, text in options.items() if text and same_text(text) == same]
    if len(by_text) == 1:
        return by_text[0]
    named = {(found["inner"] or found["letter"]).upper() for found in _STANDING_ALONE.finditer(answer)} & set(options)
    return named.pop() if len(named) == 1 else None
