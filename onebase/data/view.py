"""An example as the model sees it: tokens as text, which are learned, what the template wrote, where answers end."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from onebase.data.chat import ChatFormat
from onebase.reading.tools import texts_of
from onebase.records import Example, Message, Prompt, Row
from onebase.shown import number_of, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST_CHARACTER = 4
"""Tokens of one byte that one character may take."""
FEWEST = 4
"""Characters of a cut text that are looked for; fewer stand anywhere."""
Scored = Literal["last", "mean"]
SCORED: dict[Scored, str] = {
    "last": "each has one score, read at its last token",
    "mean": "each has one score, the mean of its tokens' scores",
}
"""Where a reward role reads an answer's score, by its pooling; it learns from scores that are compared."""
OPENED, CLOSED = "⟦", "⟧"
"""Around what is learned, where colours may be missing."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The fewest tokens that make whole characters; usually one."""

    text: str
    ids: tuple[int, ...]
    learned: bool
    said: bool
    """Whether the text is the row's; otherwise the template wrote it."""
    ends: bool = False
    """Whether it is the end token of an answer."""


@dataclass(frozen=True, slots=True)
class Branch:
    """One answer, after the prompt that all answers share."""

    pieces: tuple[Piece, ...]
    grade: float | None
    scored: bool = False
    """Whether it is scored as a whole, and no token of it is learned."""

    @property
    def num_tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces)

    @property
    def num_learned(self) -> int:
        return sum(len(piece.ids) for piece in self.pieces if piece.learned)

    @property
    def ends(self) -> bool:
        """Whether it ends in an end token that is learned, or scored."""
        return self.pieces[-1].ends and (self.pieces[-1].learned or self.scored)

    @property
    def told(self) -> str:
        """Its grade and its lengths in a few words."""
        grade = f"grade {self.grade:g}, " if self.grade is not None else ""
        learned = "" if self.scored else f", {self.num_learned} learned"
        return f"{grade}{number_of(self.num_tokens, 'token')}{learned}"


@dataclass(frozen=True, slots=True)
class View:
    """An example in pieces: the prompt once, then each answer."""

    row: Row
    prompt: tuple[Piece, ...]
    branches: tuple[Branch, ...]
    end_token: str
    """As text."""
    scored: Scored | None = None
    """How a reward role reads it; None where tokens are learned one by one."""

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(piece.ids) for piece in self.prompt)

    @property
    def summary(self) -> str:
        """Lengths, what is learned, and whether the answers end, in one line."""
        prompt = f"tokens: prompt {self.num_prompt_tokens}"
        if not self.branches:
            return f"{prompt}, no answer"
        answers = [_told(branch) for branch in self.branches]
        ending = f"{sum(branch.ends for branch in self.branches)} of {len(answers)}"
        end = f"end token {shown(self.end_token)}"
        how = f"{end} at the end of {ending}; {SCORED[self.scored]}" if self.scored else f"{end} learned in {ending}"
        return f"{prompt}, answer{'s' * (len(answers) > 1)} {', '.join(answers)}; {how}"


def _told(branch: Branch) -> str:
    if branch.scored:
        return str(branch.num_tokens)
    learned = "all" if branch.num_learned == branch.num_tokens else branch.num_learned
    return f"{branch.num_tokens} ({learned} learned)"


def view_of(example: Example | Prompt, chat: ChatFormat, *, scored: Scored | None = None) -> View:
    """The example in pieces. Its row tells which text is the row's own.

    Args:
        scored: shows it as a reward role with this pooling reads it: whole answers are scored, and no token is learned
            by itself.
    """
    row = example.row or Row(())
    prompt = _pieces(chat.tokenizer, example.prompt_ids if isinstance(example, Example) else example.ids, None)
    if isinstance(example, Prompt):
        return View(row, _marked(prompt, row, row.messages), (), _spelled(chat, chat.end_token_id), scored)
    branches = []
    for k, ids in enumerate(example.completions):
        counted = [scored is None] * len(ids) if example.counted is None else list(example.counted[k])
        pieces = _pieces(chat.tokenizer, ids, counted)
        last = len(pieces) - 1
        unfinished = row.prefix is not None or (row.ended is not None and not row.ended[k])
        ends = set() if unfinished else {chat.end_token_id, int(chat.tokenizer.eos_token_id)}
        # Where every assistant turn counts, earlier ones end in the middle.
        pieces = tuple(
            replace(p, ends=True) if p.ids[-1] in ends and (n == last or (example.counted and p.learned)) else p
            for n, p in enumerate(pieces)
        )
        answer = [row.answer(k)] if k < len(row.answers) else []
        begun = [Message("assistant", row.prefix)] if row.prefix else []
        whole = _marked((*prompt, *pieces), row, [*row.messages, *begun, *answer])
        grade = None if example.grades is None else float(example.grades[k])
        branches.append(Branch(whole[len(prompt) :], grade, scored is not None))
    end = chat.end_token_id if row.messages else int(chat.tokenizer.eos_token_id)
    return View(row, whole[: len(prompt)], tuple(branches), _spelled(chat, end), scored)


def plain(pieces: Sequence[Piece]) -> str:
    """The pieces as one text: `⟦learned⟧`, and line ends marked."""
    text, inside = "", False
    for piece in pieces:
        if piece.learned != inside:
            text += CLOSED if inside else OPENED
            inside = piece.learned
        text += visible(piece.text)
    return text + CLOSED * inside


def visible(text: str) -> str:
    """The text with line ends marked and control characters escaped."""
    return shown(text.replace("\n", "↵\n"), lines=True)


def first_lines(
    example: Example | Prompt, chat: ChatFormat, *, scored: Scored | None = None, width: int = 100
) -> list[str]:
    """A plan's lines about an example: its layout and template, its lengths, and each part in a line.

    Args:
        scored: as in `view_of`.
    """
    view = view_of(example, chat, scored=scored)
    template = "no template" if not view.row.messages else f"template {chat.name or 'of the tokenizer'}"
    layout = f", read as {view.row.layout}" if view.row.layout else ""
    lines = [f"example     {shown(view.row.place)}{layout}; {template}", f"            {view.summary}"]
    for pieces in (view.prompt, *(branch.pieces for branch in view.branches)):
        text = plain(pieces).replace("\n", "")
        half = (width - 3) // 2
        short = text if len(text) <= width else f"{text[:half]}...{text[-half:]}"
        lines.append(f"            {short}")
    return lines


def _spelled(chat: ChatFormat, token: int) -> str:
    return str(chat.tokenizer.convert_ids_to_tokens(token))


def _pieces(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], counted: Sequence[bool] | None
) -> tuple[Piece, ...]:
    flags = [False] * len(ids) if counted is None else counted
    return tuple(Piece(text, tuple(ids[a:b]), flags[a], False) for text, a, b in _characters(tokenizer, ids, flags))


def _characters(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], flags: Sequence[bool]
) -> Iterator[tuple[str, int, int]]:
    """Texts and their ranges in `ids`; a character of several tokens is one range."""

    def decoded(a: int, b: int) -> str:
        return str(tokenizer.decode(list(ids[a:b]), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    start = 0
    while start < len(ids):
        # After the token before it, because some tokenizers take the blank off a text's first word.
        first = max(0, start - 1)
        before = decoded(first, start)
        for stop in range(start + 1, min(len(ids), start + LONGEST_CHARACTER) + 1):
            whole = decoded(first, stop)
            text = whole[len(before) :] if whole.startswith(before) else decoded(start, stop)
            if not text.endswith("\ufffd") or (stop < len(ids) and flags[stop] != flags[start]):
                break
        yield text, start, stop
        start = stop


def _marked(pieces: Sequence[Piece], row: Row, messages: Sequence[Message]) -> tuple[Piece, ...]:
    """The pieces, with `said` set where the text is that of the row's tools and of these turns, one after the other."""
    whole = "".join(piece.text for piece in pieces)
    owned = [False] * len(whole)
    place = 0
    for text in texts_of([], row.tools):
        for at, length in _everywhere(whole, text):
            owned[at : at + length] = [True] * length
    for message in messages:
        # The calls' own texts stand in JSON that the template writes.
        for text in texts_of([message], ()) if message.tool_calls else ():
            for at, length in _everywhere(whole[place:], text)[:1]:
                owned[place + at : place + at + length] = [True] * length
        at, length = _place_of(whole, message.content.strip(), place)
        owned[at : at + length] = [True] * length
        place = at + length
    marked, at = [], 0
    for piece in pieces:
        marked.append(replace(piece, said=any(owned[at : at + len(piece.text)])))
        at += len(piece.text)
    return tuple(marked)


def _everywhere(whole: str, text: str) -> list[tuple[int, int]]:
    """Where the text stands between quotes, and how long it is there."""
    quoted = json.dumps(text, ensure_ascii=False)
    found = [match.start() for match in re.finditer(re.escape(quoted), whole)]
    return [(at + 1, len(quoted) - 2) for at in found]


def _place_of(whole: str, text: str, place: int) -> tuple[int, int]:
    """Where the text stands from `place` on, and how long it is; only its end or its beginning if the rest was cut."""
    for form in (text, json.dumps(text, ensure_ascii=False)[1:-1]):
        if form and (at := whole.find(form, place)) >= 0:
            return at, len(form)
    rest = whole[place:]
    end = bisect_left(range(len(text) + 1), True, key=lambda size: text[len(text) - size :] not in rest) - 1
    beginning = bisect_left(range(len(text) + 1), True, key=lambda size: text[:size] not in rest) - 1
    kept = text[len(text) - end :] if end > beginning else text[:beginning]
    return (place + rest.find(kept), len(kept)) if len(kept) >= FEWEST else (place, 0)
