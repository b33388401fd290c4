"""Conversations as a chat template writes them: prompts, answers, where turns begin and end, and what is left out."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from os.path import commonprefix
from typing import TYPE_CHECKING

from onebase.data.templates import BUILT_IN_TEMPLATES, render
from onebase.errors import DataError, ModelError
from onebase.reading.tools import texts_of
from onebase.records import Message, Row
from onebase.shown import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "ONEBASEANSWER"
"""Placeholder for an answer, to see what a template writes around one. No template trims or splits it."""

RENDERED = 32
"""Texts that are kept, for the row being encoded."""
_CLOSED, _TAG = re.compile(r"</\w+>"), re.compile(r"</?\w+>")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, and the tools that the assistant may call in them."""

    messages: tuple[Message, ...]
    tools: tuple[str, ...] = ()
    """As in `Row`."""
    place: str = ""
    """Error messages start with it."""

    def until(self, index: int) -> Conversation:
        """The turns before this one."""
        return replace(self, messages=self.messages[:index])

    def then(self, turn: Message) -> Conversation:
        """The turns followed by one more."""
        return replace(self, messages=(*self.messages, turn))


def asked_in(row: Row) -> Conversation:
    """A row's prompt."""
    return Conversation(row.messages, row.tools, row.place)


@dataclass(frozen=True, slots=True)
class Ending:
    """What a template writes after an answer, and which part of it is kept."""

    suffix: str
    """All of it."""
    before: str
    """The part before the first special token, which is kept; empty if there is none."""
    closing: str
    """The special token as text; empty if there is none."""
    token_id: int
    """The special token; if there is none, the tokenizer's end token, which then replaces the suffix."""


@dataclass(frozen=True)
class Rendering:
    """A template in use with a tokenizer."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    called: str
    """The template in messages."""

    def prompt(self, asked: Conversation) -> str:
        """The conversation up to where the answer begins.

        Raises:
            DataError: the template leaves out a turn or a tool.
        """
        text = self.text(asked, opens_answer=True)
        # Assistant turns may be rewritten: some templates drop earlier thinking.
        for message in asked.messages:
            if message.role not in ("assistant", "tool") and message.content.strip() not in text:
                raise DataError(
                    f"{_at(asked)}{self.called} drops the {message.role} turn {shown(repr(message.content), 40)}",
                    remedy="template-loses-turn",
                )
        self._check_tools(asked, text)
        return text

    def text(self, asked: Conversation, *, opens_answer: bool = False) -> str:
        """The conversation; with `opens_answer`, up to where the answer begins."""
        return self._kept(asked, opens_answer)

    @cached_property
    def _kept(self) -> Callable[[Conversation, bool], str]:
        # A row's encoding asks for the same text several times.
        return lru_cache(maxsize=RENDERED)(self._render)

    def _render(self, asked: Conversation, opens_answer: bool) -> str:
        if self.template is None:
            name = self.tokenizer.name_or_path or type(self.tokenizer).__name__
            names = ", ".join(BUILT_IN_TEMPLATES)
            raise ModelError(f"the tokenizer {name} has no chat template", remedy="no-template", names=names)
        return render(
            self.tokenizer,
            self.template,
            asked.messages,
            asked.place,
            self.called,
            tools=asked.tools,
            generation=opens_answer,
        )

    def rewritten(self, asked: Conversation) -> bool:
        """Whether an earlier assistant turn loses text, such as its thinking, when turns follow it."""
        turns = [turn.content.strip() for turn in asked.messages if turn.role == "assistant"]
        text = self.text(asked, opens_answer=True) if any(turns) else ""
        return any(turn not in text for turn in turns)

    def ending(self, asked: Conversation) -> Ending:
        """How the template ends the answer to this conversation."""
        rendered = self.text(asked.then(Message("assistant", _MARK)))
        _, mark, suffix = rendered.rpartition(_MARK)
        if not mark:
            raise ModelError(f"{self.called} drops what the assistant says", remedy="template-loses-answer")
        found = self._special.search(suffix)
        if not found:
            return Ending(suffix, "", "", int(self.tokenizer.eos_token_id))
        token_id = self.tokenizer.convert_tokens_to_ids(found[0])
        assert isinstance(token_id, int)
        return Ending(suffix, suffix[: found.start()], found[0], token_id)

    def opening(self, asked: Conversation, answers: Sequence[Message]) -> str:
        """The prompt, up to where all of these answers begin.

        A template that closes an empty thought before every answer writes an answer that thinks in its place: the
        prompt then ends where the thought begins, as when the template is told to think.

        Raises:
            DataError: only some of the answers begin elsewhere than after the prompt.
        """
        prompt = self.prompt(asked)
        wholes = [self.text(asked.then(answer)) for answer in answers]
        elsewhere = [whole for whole, turn in zip(wholes, answers, strict=True) if _thinks(prompt, whole, turn.content)]
        if not elsewhere:
            return prompt
        if len(elsewhere) < len(wholes):
            raise DataError(
                f"{_at(asked)}{self.called} begins answers that think in another way than the others, and here only "
                "some do, so they share no prompt",
                remedy="answers-begin-apart",
            )
        return commonprefix([prompt, *elsewhere])

    def begun(self, asked: Conversation, prompt: str, beginning: str) -> str:
        """The beginning of an answer as the template writes it after the prompt, with the turn left open."""
        if not beginning:
            return ""
        # With a word after it, the end of the beginning is safe from templates that trim answers.
        opened = self.text(asked.then(Message("assistant", beginning + _MARK))).rpartition(_MARK)[0]
        return opened[len(prompt) :] if opened.startswith(prompt) else _after_opened(prompt, beginning)

    def answer(self, asked: Conversation, prompt: str, answer: Message, ending: Ending) -> str:
        """The text between the prompt and the end token.

        It is taken from the rendered conversation, because templates trim an answer or put a blank before it. If that
        does not begin with the prompt (some templates drop an answer's thinking), it is the answer itself.

        Raises:
            DataError: the template leaves out a tool call.
        """
        whole = self.text(asked.then(answer))
        if whole.startswith(prompt) and whole[len(prompt) :].endswith(ending.suffix):
            text = whole[len(prompt) : len(whole) - len(ending.suffix)] + ending.before
        else:
            text = _after_opened(prompt, answer.content)
        for name, times in texts_of([answer], ()).items():
            if _count(text, name) < times:
                raise self._without_tools(asked, name)
        if answer.tool_calls and answer.content.strip() not in text:
            raise DataError(
                f"{_at(asked)}{self.called} drops what the answer says beside its tool call, "
                f"{shown(repr(answer.content), 40)}",
                remedy="template-loses-turn",
            )
        return text

    def turn(self, asked: Conversation, index: int, text: str, *, after: int) -> tuple[int, int]:
        """Where an earlier assistant turn begins and ends in the text of the whole prompt, its end token included.

        It begins where its answer would be sampled. What differs when another text stands in its place is the turn.

        Args:
            asked: the whole prompt.
            index: the turn.
            text: `prompt(asked)`.
            after: where the turn before it ended.

        Raises:
            DataError: the template does not leave the turn where it was.
        """
        before = asked.until(index)
        other = replace(asked, messages=(*before.messages, Message("assistant", _MARK), *asked.messages[index + 1 :]))
        head, mark, tail = self.text(other, opens_answer=True).partition(_MARK)
        start = len(commonprefix([head, text]))
        opened = self.text(before, opens_answer=True)
        if text.startswith(opened) and head.startswith(opened):
            start = min(start, len(opened))
        stop = len(text) - len(commonprefix([tail[::-1], text[::-1]]))
        asks = asked.messages[index - 1].content.strip()
        if (
            not mark
            or not after <= start <= stop
            or (asked.messages[index - 1].role == "user" and asks not in text[:start])
        ):
            raise DataError(
                f"{_at(asked)}the chat template rewrites an assistant turn once others follow, so turns cannot be "
                "learned in one sequence",
                remedy="template-rewrites-turns",
            )
        ending = self.ending(before)
        closing = ending.before + ending.closing
        return start, stop + (len(closing) if ending.closing and text.startswith(closing, stop) else 0)

    def _check_tools(self, asked: Conversation, text: str) -> None:
        """Raises DataError if the template leaves out a tool, a call or a result.

        What it writes is compared with what it writes without them, so no list of templates says which know tools.
        """
        wanted = texts_of(asked.messages, asked.tools)
        if not wanted:
            return
        without = [
            replace(turn, tool_calls=(), content="" if turn.role == "tool" else turn.content) for turn in asked.messages
        ]
        try:
            bare = self.text(Conversation(tuple(without), (), asked.place), opens_answer=True)
        except (DataError, ModelError):
            bare = ""  # it insists on the calls, so what it writes of them can only be looked for
        for words, times in wanted.items():
            if _count(text, words) - _count(bare, words) < times:
                raise self._without_tools(asked, words)
        for turn in asked.messages:
            if turn.tool_calls and "</think>" not in turn.content and turn.content.strip() not in text:
                raise DataError(
                    f"{_at(asked)}{self.called} drops what the assistant says beside a tool call, "
                    f"{shown(repr(turn.content), 40)}",
                    remedy="template-loses-turn",
                )

    def _without_tools(self, asked: Conversation, words: str) -> DataError:
        return DataError(
            f"{_at(asked)}{self.called} does not write {shown(repr(words), 40)} of the row's tools, calls and results",
            remedy="template-without-tools",
        )

    @cached_property
    def _special(self) -> re.Pattern[str]:
        # Some tokenizers add runs of blanks as tokens; these end nothing. Longest first: one may begin another.
        names = {*self.tokenizer.all_special_tokens, *self.tokenizer.get_added_vocab()}
        return re.compile("|".join(re.escape(name) for name in sorted(filter(str.strip, names), key=len, reverse=True)))


def _thinks(prompt: str, whole: str, answer: str) -> bool:
    """Whether a template wrote an answer's thoughts in place of those that its prompt has closed already."""
    shared = len(commonprefix([prompt, whole]))
    return bool(_CLOSED.search(prompt, shared)) and all(
        part.strip() in whole[shared:] for part in _TAG.split(answer) if part.strip()
    )


def _after_opened(prompt: str, answer: str) -> str:
    """An answer without the beginning that the prompt already ends in, such as `<think>`."""
    lines = answer.lstrip().splitlines(keepends=True)
    opened = lines[0] if lines else ""
    if opened.strip().startswith("<") and opened.strip().endswith(">") and prompt.rstrip().endswith(opened.strip()):
        return answer.lstrip()[len(opened) :]
    return answer


def _count(text: str, words: str) -> int:
    """How often the words stand in the text, plain or as JSON writes them."""
    forms = {words, json.dumps(words, ensure_ascii=False)[1:-1], json.dumps(words)[1:-1]}
    return max(text.count(form) for form in forms)


def _at(asked: Conversation) -> str:
    return f"{asked.place}: " if asked.place else ""
