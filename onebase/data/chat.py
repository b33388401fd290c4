"""Turns words into ids: applies the chat template, and finds where answers begin and end and which tokens count.

All answers to a prompt share its ids. An answer is encoded as the continuation of its prompt and ends in exactly one
end token. Nothing here pads, and no id is treated as padding. What a template writes is in `data/rendering.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from onebase.data.rendering import Conversation, Rendering, asked_in
from onebase.data.templates import BUILT_IN_TEMPLATES, built_in, check_template, template_text
from onebase.errors import DataError, ModelError
from onebase.records import Example, Message, Row
from onebase.shown import number_of, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["completion", "assistant", "all"]

_ANCHORS = ("\n", "a", "0", "。", "=")
"""Put before a text to encode it as a continuation; the first one that does not merge with the text is used."""
_GREETING = Conversation((Message("user", "Hi"),))


def chat_format(tokenizer: PreTrainedTokenizerBase, template: str | None = None) -> ChatFormat:
    """How conversations become ids with this tokenizer.

    Args:
        tokenizer: not changed.
        template: the name of a shipped template (`BUILT_IN_TEMPLATES`), the path of a .jinja file, or None for the
            tokenizer's own template. The shipped ones write the beginning token if the tokenizer itself puts one
            before a text.

    Raises:
        ModelError: the tokenizer has no end token, or the template is unknown or cannot be read.
    """
    check_tokenizer(tokenizer)
    if template in BUILT_IN_TEMPLATES:
        return ChatFormat(tokenizer, built_in(template, with_bos=adds_bos(tokenizer)), template)
    if template is not None:
        return ChatFormat(tokenizer, check_template(template_text(template), template), template)
    if not tokenizer.chat_template:
        return ChatFormat(tokenizer, None)
    try:
        return ChatFormat(tokenizer, check_template(tokenizer.get_chat_template(), f"of {_name(tokenizer)}"))
    except ValueError:
        # It has several named templates and none is called default.
        names = ", ".join(map(shown, tokenizer.chat_template))
        raise ModelError(
            f"the tokenizer {_name(tokenizer)} has chat templates named {names} and no default",
            remedy="no-default-template",
        ) from None


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ModelError for a tokenizer without an end token. It may pad with the end token."""
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer {_name(tokenizer)} has no end token, so no answer could end; "
            "set eos_token in its tokenizer_config.json"
        )


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer itself puts the beginning token before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer and the chat template it is used with."""

    tokenizer: PreTrainedTokenizerBase
    template: str | None
    """Jinja text; None if there is no template, which is enough for plain text."""
    name: str | None = None
    """As configured: a built-in name or a path; None for the tokenizer's own."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the template's text, in hexadecimal; a role trained with another template does not fit."""
        return hashlib.sha256((self.template or "").encode()).hexdigest()

    @cached_property
    def end_token_id(self) -> int:
        """The token that ends an answer: the one that closes the template's assistant turns, or the tokenizer's own."""
        return self.rendering.ending(_GREETING).token_id if self.template else self._eos

    @cached_property
    def rendering(self) -> Rendering:
        """The template in use with the tokenizer."""
        return Rendering(
            self.tokenizer, self.template, f"the chat template {self.name or f'of {_name(self.tokenizer)}'}"
        )

    def render_prompt(self, messages: Sequence[Message], *, tools: Sequence[str] = (), place: str = "") -> str:
        """The conversation as text, up to where the answer begins. Error messages start with `place`."""
        return self.rendering.prompt(Conversation(tuple(messages), tuple(tools), place))

    def encode_prompt(
        self, messages: Sequence[Message], *, tools: Sequence[str] = (), prefix: str | None = None, place: str = ""
    ) -> list[int]:
        """The ids of `render_prompt`, the same as from `tokenizer.apply_chat_template(add_generation_prompt=True)`.

        A prefix is appended as the beginning of the answer, and the turn stays open.
        """
        asked = Conversation(tuple(messages), tuple(tools), place)
        return self._prompt_ids(self._head(asked, self.rendering.prompt(asked), prefix)[1], place)

    def encode_example(self, row: Row, *, train_on: TrainOn = "completion", add_end: bool = True) -> Example:
        """Encodes a row: one prompt, and one completion per answer.

        `train_on` says which tokens count: with `completion` the answer; with `assistant` every assistant turn, the
        prompt then being everything before the first one; with `all` everything after the first token. A turn before
        the last counts as the template writes it once others follow, with its end token if there is one there. Plain
        text counts whole. In a row of next steps the prefix is part of the prompt; with `assistant` it counts, because
        the assistant said it.

        Args:
            add_end: whether answers get an end token. Answers marked as unfinished never do, nor do next steps, which
                do not end their turn (the code of Lai et al. 2024 gives them none either).

        Raises:
            DataError: the row has no answer or no token to predict, or the template refuses it.
        """
        if not row.answers:
            raise DataError(
                f"{_at(row.place)}the row has no answer to learn from; add 'completion' or 'answer' (its other keys "
                f"are {', '.join(map(shown, row.columns)) or 'none'}), or use it only as a prompt"
            )
        if not row.messages:
            prompt_ids, completions, counted = self._encode_text(row, add_end)
        elif train_on == "assistant":
            prompt_ids, completions, counted = self._encode_turns(row, add_end)
        else:
            text, head = self._head(asked_in(row), self._opening(row), row.prefix)
            prompt_ids, counted = self._prompt_ids(head, row.place), None
            completions = self._encode_answers(row, text, head, add_end)
            if train_on == "all":
                prompt_ids, completions = prompt_ids[:1], [prompt_ids[1:] + ids for ids in completions]
        if not all(completions):
            raise DataError(f"{_at(row.place)}an answer has no token to predict; drop the row, or add the end token")
        return Example(prompt_ids, completions, counted, row.grades, row.margin, row)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def single_tokens(self, texts: Sequence[str]) -> list[int]:
        """The ids of stop strings.

        Raises:
            ModelError: a stop string is not a single token of this tokenizer.
        """
        ids = []
        for text in texts:
            found = self._continue("\n", self._ids("\n"), text)
            if len(found) != 1:
                raise ModelError(
                    f"the stop string {shown(repr(text), 40)} is {number_of(len(found), 'token')} of "
                    f"{_name(self.tokenizer)}, and "
                    "only a single token can stop a completion",
                    remedy="stop-of-several-tokens",
                )
            ids += found
        return ids

    def _encode_text(self, row: Row, add_end: bool) -> tuple[list[int], list[list[int]], None]:
        """Plain text, after the beginning token if the tokenizer writes one, otherwise after an end token (as if of the
        text before), so that the first token of a text is predicted too."""
        if len(row.answers) != 1 and row.grades is None:
            raise DataError(
                f"{_at(row.place)}{number_of(len(row.answers), 'text')} and no prompt; plain text has one text per row"
            )
        first = int(self.tokenizer.bos_token_id) if self._adds_bos else self._eos
        texts = [_without_end(self._ids(text), self._eos) for text in row.answers]
        texts = [ids if ids[:1] == [first] else [first, *ids] for ids in texts]
        ends = [[self._eos] * (add_end and ended) for ended in _endings(row)]
        return texts[0][:1], [(ids + end)[1:] for ids, end in zip(texts, ends, strict=True)], None

    def _opening(self, row: Row) -> str:
        """The rendered prompt, up to where all of the row's answers begin."""
        if row.prefix is not None:
            return self.rendering.prompt(asked_in(row))
        return self.rendering.opening(asked_in(row), [row.answer(k) for k in range(len(row.answers))])

    def _encode_answers(self, row: Row, prompt: str, head: list[int], add_end: bool) -> list[list[int]]:
        """Encodes each answer as the continuation of the rendered prompt; `head`: the prompt's ids with its prefix."""
        asked = asked_in(row)
        if row.prefix is not None:
            return [self._continue(prompt, head, self._step_text(row, answer)) for answer in row.answers]
        ending = self.rendering.ending(asked)
        completions = []
        for k, ended in enumerate(_endings(row)):
            if ended:
                text = self.rendering.answer(asked, prompt, row.answer(k), ending)
            else:
                text = self.rendering.begun(asked, prompt, row.answers[k])
            ids = _without_end(self._continue(prompt, head, text), ending.token_id)
            completions.append(ids + [ending.token_id] * (add_end and ended))
        return completions

    def _encode_turns(self, row: Row, add_end: bool) -> tuple[list[int], list[list[int]], list[list[bool]]]:
        """Encodes a row so that every assistant turn counts; the prompt stops where the first one begins."""
        asked = asked_in(row)
        prompt, whole = self.rendering.prompt(asked), self._opening(row)
        turns: list[tuple[int, int]] = []
        for index, message in enumerate(row.messages):
            if message.role == "assistant" and index:
                turns.append(self.rendering.turn(asked, index, prompt, after=turns[-1][1] if turns else 0))
        starts = [*(start for start, _ in turns), len(whole)]
        prompt_ids = self._prompt_ids(self._ids(whole[: starts[0]]), row.place)
        ids: list[int] = []
        counted: list[bool] = []
        for (start, stop), following in zip(turns, starts[1:], strict=True):
            for begin, end, counts in ((start, stop, True), (stop, following, False)):
                before = whole[:begin]
                piece = self._continue(before, self._ids(before), whole[begin:end])
                ids += piece
                counted += [counts] * len(piece)
        begun, head = self._head(asked, whole, row.prefix)
        said = head[len(self._ids(whole)) :]
        answers = [said + last for last in self._encode_answers(row, begun, head, add_end)]
        return prompt_ids, [ids + last for last in answers], [counted + [True] * len(last) for last in answers]

    def _head(self, asked: Conversation, text: str, prefix: str | None) -> tuple[str, list[int]]:
        """A rendered prompt and its ids, followed by the prefix, encoded like the beginning of an answer."""
        ids = self._ids(text)
        if not prefix:
            return text, ids
        begun = self.rendering.begun(asked, text, prefix)
        return text + begun, ids + self._continue(text, ids, begun)

    def _step_text(self, row: Row, step: str) -> str:
        """What a next step adds to the turn that its row's prefix began."""
        assert row.prefix is not None, "only a row with a prefix holds steps"
        asked = asked_in(row)
        prompt = self.rendering.prompt(asked)
        before, after = (self.rendering.begun(asked, prompt, text) for text in (row.prefix, row.prefix + step))
        return after[len(before) :] if after.startswith(before) else step

    @property
    def _eos(self) -> int:
        return int(self.tokenizer.eos_token_id)

    def _ids(self, text: str) -> list[int]:
        try:
            return list(self.tokenizer.encode(text, add_special_tokens=False, verbose=False))
        except TypeError:
            raise DataError(
                f"the text {shown(repr(text), 60)} holds half of a surrogate pair, or bytes that are not UTF-8; "
                "correct it"
            ) from None

    def _prompt_ids(self, head: list[int], place: str) -> list[int]:
        if not head:
            raise DataError(f"{_at(place)}the prompt is empty and gives no tokens; write one, or drop the row")
        return head

    @cached_property
    def _adds_bos(self) -> bool:
        return adds_bos(self.tokenizer)

    def _continue(self, before: str, before_ids: list[int], text: str) -> list[int]:
        """The ids of `text` after `before`, whose own ids stay as they are."""
        whole = self._ids(before + text)
        if whole[: len(before_ids)] == before_ids:
            return whole[len(before_ids) :]
        # A token spans the boundary. Encoded alone, `text` would start with a blank in Llama's tokenizers, so it is
        # encoded after a text it does not merge with.
        for anchor in _ANCHORS:
            head, whole = self._ids(anchor), self._ids(anchor + text)
            if whole[: len(head)] == head:
                return whole[len(head) :]
        raise ModelError(
            f"the tokenizer {_name(self.tokenizer)} merges {text[:20]!r} with any text before it, so it cannot "
            "continue a prompt; use another tokenizer"
        )


def _endings(row: Row) -> tuple[bool, ...]:
    return (True,) * len(row.answers) if row.ended is None else row.ended


def _without_end(ids: list[int], end_token_id: int) -> list[int]:
    """Ids without the text's own final end tokens, so that the one added is the only one."""
    while ids and ids[-1] == end_token_id:
        ids = ids[:-1]
    return ids


def _at(place: str) -> str:
    return f"{place}: " if place else ""


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__
