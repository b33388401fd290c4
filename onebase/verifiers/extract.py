"""Finds the final answer in a completion: by a mark, or else at its end. Every function takes linear time."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

import regex

from onebase.errors import ConfigError, DataError
from onebase.shown import shown
from onebase.verifiers.verifier import Task

Span = tuple[int, int]

HOW = ("auto", "tag", "boxed", "hash", "last")
"""Where an answer is looked for: in `<answer>` tags, in `\\boxed{}`, behind `####`, or at the end without any mark.
auto = the last mark of any kind, which may also be words (`the answer is`), and without one the end."""

_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_BRACE = re.compile(r"\\(?:boxed|fbox)\s{0,3}\{|\\.|[{}]", re.DOTALL)
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]{0,20}(?=\S)")
_WORDS = re.compile(
    r"(?:\banswer\b\**\s{0,3}(?:is\b|[:=])|答案\**\s{0,3}(?:应该|應該)?(?:是|为|為|:))(?:[\s:*]|\$\$|\\\[){0,20}(?=\S)",
    re.IGNORECASE,
)
_LINE_END = re.compile(r"\n|</|<\|")
_SENTENCE_END = re.compile(r"(?:(?<=\w\w)|(?<=[\d)}\]*\"'$]))[.!?](?=\s|$)|。|\n|</|<\|")
_MANY_MARKS = regex.compile(r"(\p{M}{30})\p{M}+")


def plain(text: str) -> str:
    """The text in Unicode's form NFKC, in which full-width letters and digits are the usual ones."""
    if text.isascii():
        return text
    # Ordering a long run of combining marks takes quadratic time; Unicode's own limit is 30 (UAX 15, stream-safe text).
    return unicodedata.normalize("NFKC", _MANY_MARKS.sub(r"\1", text))


def marked_spans(text: str, how: str = "auto") -> list[Span]:
    """Where marked answers stand in a plain text, the last first; at most one for each kind of mark."""
    kinds = {"tag": _in_tags, "boxed": _in_box, "hash": _behind_hashes, "words": _behind_words}
    wanted = list(kinds) if how == "auto" else [how] if how in kinds else []
    found = [span for kind in wanted for span in [_last(kinds[kind](text))] if span and text[slice(*span)].strip()]
    return sorted((_stripped(text, span) for span in found), reverse=True)


def answer_span(text: str, how: str = "auto") -> Span | None:
    """Where the final answer stands in a plain text: the last marked one, or the last line that is not blank."""
    marked = marked_spans(text, how)
    if marked:
        return marked[0]
    end = len(text.rstrip())
    if how not in ("auto", "last") or not end:
        return None
    return _stripped(text, (text.rfind("\n", 0, end) + 1, end))


def find_answer(completion: str, how: str = "auto") -> str | None:
    """The final answer's text in a completion, in NFKC; None if there is none. For `how` see `HOW`."""
    text = plain(completion)
    span = answer_span(text, how)
    return None if span is None else text[slice(*span)]


def wrapped(answer: str, how: str) -> str:
    """A text in which `find_answer` finds this answer."""
    forms = {"boxed": f"\\boxed{{{answer}}}", "hash": f"#### {answer}", "last": answer}
    return forms.get(how, f"<answer>{answer}</answer>")


def check_how(how: str) -> None:
    """Raises ConfigError unless `how` is one of `HOW`."""
    if how not in HOW:
        raise ConfigError(f"an answer cannot be looked for by {shown(how, 40)!r}; it is one of {', '.join(HOW)}")


def gold_text(gold: Any, task: Task) -> str:
    """The bare gold answer; of a full solution (`... #### 42`, `\\boxed{42}`, tags) only its final answer.

    Raises:
        DataError: the row has none.
    """
    if not isinstance(gold, str | int | float) or not str(gold).strip():
        what = "no gold answer" if gold is None else f"the gold answer {shown(repr(gold), 60)}, which is no text"
        raise DataError(f"{at(task)}{what}", remedy="no-gold")
    text = plain(str(gold))
    marked = [span for how in ("tag", "boxed", "hash") for span in marked_spans(text, how)]
    return text[slice(*max(marked))] if marked else text.strip()


def at(task: Task) -> str:
    """The beginning of a message about a row: its place."""
    return f"{shown(task.place, 200)}: " if task.place else ""


def _stripped(text: str, span: Span) -> Span:
    part = text[slice(*span)]
    start = span[0] + len(part) - len(part.lstrip())
    return start, start + len(part.strip())


def _last(spans: Iterator[Span]) -> Span | None:
    return max(spans, default=None)


def _in_tags(text: str) -> Iterator[Span]:
    start = None
    for found in _TAG.finditer(text):
        if not found[1]:
            start = found.end()
        elif start is not None:
            yield start, found.start()
            start = None


def _in_box(text: str) -> Iterator[Span]:
    """Every closed `\\boxed{...}`; braces nest, and `\\{` is no brace."""
    opened: list[int | None] = []
    for found in _BRACE.finditer(text):
        if found[0] == "}" and opened:
            start = opened.pop()
            if start is not None:
                yield start, found.start()
        elif found[0].endswith("{") and found[0] != "\\{":
            opened.append(found.end() if len(found[0]) > 1 else None)


def _behind_hashes(text: str) -> Iterator[Span]:
    return _behind_last(_HASH, _LINE_END, text)


def _behind_words(text: str) -> Iterator[Span]:
    return _behind_last(_WORDS, _SENTENCE_END, text)


def _behind_last(mark: re.Pattern[str], end: re.Pattern[str], text: str) -> Iterator[Span]:
    start = max((found.end() for found in mark.finditer(text)), default=None)
    if start is not None:
        stop = end.search(text, start)
        yield start, stop.start() if stop else len(text)
