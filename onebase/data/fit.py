"""Fits examples into the model's context: cuts prompts and answers, and counts what was cut."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from onebase.data.chat import ChatFormat, TrainOn
from onebase.data.rendering import asked_in
from onebase.errors import DataError, ModelError, PromptTooLongError
from onebase.records import Example, Prompt, Row
from onebase.shown import number_of

Truncation = Literal["left", "drop", "error"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long prompts and completions may be, in tokens, and what happens to longer prompts.

    Raises:
        ModelError: the context is too short for a prompt and an answer.
    """

    context: int
    """The model's positions, shared by prompt and completion."""
    max_prompt: int | None = None
    max_completion: int | None = None
    truncate_prompt: Truncation = "left"
    """`left` cuts the oldest turns, except a system turn and the last user turn, and then the beginning of that turn's
    text; a row that is too long without any of it is dropped. `drop` drops the row; `error` stops."""
    max_dropped_share: float = 0.05
    tell: Callable[[str], object] = str
    """Called with a line about what was cut, if anything was."""

    def __post_init__(self) -> None:
        if self.context < 2:
            raise ModelError(
                f"the model's context of {number_of(self.context, 'token')} (max_position_embeddings in its "
                "config.json) has no "
                "room for a prompt and an answer; use another model"
            )

    def prompt_room(self, completion: int) -> tuple[int, str]:
        """The longest prompt that fits before a completion of `completion` tokens, and what limits it.

        At most half of the context is kept free for a long completion, so that something is left of the prompt.
        """
        kept = max(1, min(completion, self.max_completion or self.context, self.context // 2))
        return self._room(kept, f"{kept} of the model's {self.context} positions are kept for the answer")

    def sampling_room(self, max_new_tokens: int) -> tuple[int, str]:
        """The same before `max_new_tokens` sampled tokens. Raises DataError if no room is left."""
        if self.context - max_new_tokens < 1:
            raise DataError(
                f"{max_new_tokens} new tokens leave no room for a prompt in the model's context of {self.context}",
                remedy="no-room-for-prompts",
            )
        reason = f"new tokens take {max_new_tokens} of the model's {number_of(self.context, 'position')}"
        return self._room(max_new_tokens, reason)

    def _room(self, kept: int, reason: str) -> tuple[int, str]:
        if self.max_prompt is not None and self.max_prompt <= self.context - kept:
            return self.max_prompt, f"prompts are limited to {number_of(self.max_prompt, 'token')}"
        above = f", which leaves less than the {number_of(self.max_prompt, 'token')} allowed" if self.max_prompt else ""
        return self.context - kept, reason + above


@dataclass(slots=True)
class Cuts:
    """The places where something was cut, by kind."""

    limits: Limits
    turns: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    completions: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    reason: str = ""
    """What limited the last prompt that was too long."""

    def finish(self, rows: int) -> None:
        """Reports what was cut.

        Raises:
            DataError: more than the allowed share of the rows was dropped.
        """
        if len(self.dropped) > self.limits.max_dropped_share * rows:
            fact = (
                f"{len(self.dropped)} of {rows} rows have prompts that are too long, more than the allowed share of "
                f"{self.limits.max_dropped_share:g} (first {', '.join(self.dropped[:3])}): {self.reason}"
            )
            if self.limits.truncate_prompt == "drop":
                raise DataError(fact, remedy="prompts-dropped")
            raise DataError(fact, remedy="prompts-do-not-fit")
        said = [
            f"{number_of(len(places), thing)} {one if len(places) == 1 else many} ({', '.join(places[:3])})"
            for places, thing, one, many in (
                (self.turns, "prompt", "lost its oldest turns", "lost their oldest turns"),
                (
                    self.tokens,
                    "prompt",
                    "lost the beginning of its last user turn",
                    "lost the beginning of their last user turn",
                ),
                (self.dropped, "row", "with a longer prompt was left out", "with longer prompts were left out"),
                (
                    self.completions,
                    "row",
                    "had an answer cut at the end, which then teaches no end token",
                    "had answers cut at the end, which then teach no end token",
                ),
            )
            if places
        ]
        if said:
            why = f"; {self.reason}" if self.reason else ""
            self.limits.tell(f"of {number_of(rows, 'row')}, {'; '.join(said)}{why}")
        if self.rewritten:
            self.limits.tell(
                f"the chat template leaves out parts of earlier answers (thinking, say) in {len(self.rewritten)} of "
                f"{number_of(rows, 'row')} ({', '.join(self.rewritten[:3])})"
            )


def fit_row(row: Row, chat: ChatFormat, cuts: Cuts, *, train_on: TrainOn = "completion") -> Example | None:
    """Encodes a row within the limits; None if it is dropped. Completions that are too long lose their end.

    Raises:
        PromptTooLongError: the prompt is too long and `truncate_prompt` is `error`.
    """
    limits, example = cuts.limits, chat.encode_example(row, train_on=train_on)
    most, reason = limits.prompt_room(max(map(len, example.completions)))
    if len(example.prompt_ids) > most:
        if not may_cut(row, len(example.prompt_ids), most, reason, cuts):
            return None
        shorter = cut_to_fit(row, lambda cut: len(_prompt_ids(chat, cut, train_on)) <= most, cuts)
        if shorter is None:
            return None
        example = replace(chat.encode_example(shorter, train_on=train_on), row=row)
    room = min(limits.max_completion or limits.context, limits.context - len(example.prompt_ids))
    if any(message.role == "assistant" for message in row.messages) and chat.rendering.rewritten(asked_in(row)):
        cuts.rewritten.append(row.place)
    if all(len(ids) <= room for ids in example.completions):
        return example
    cuts.completions.append(row.place)
    counted = example.counted and [flags[:room] for flags in example.counted]
    return replace(example, completions=[ids[:room] for ids in example.completions], counted=counted)


def fit_prompt(row: Row, chat: ChatFormat, cuts: Cuts, *, most: int, reason: str, opening_tokens: int) -> Prompt | None:
    """Encodes a row's prompt in at most `most` tokens, without completions; None if it is dropped. A plain text gives
    its first `opening_tokens` tokens."""
    if not row.messages:
        text = chat.encode_example(row, add_end=False)
        return Prompt(text.tokens(0)[: min(opening_tokens, most)], row)

    def encoded(cut: Row) -> Sequence[int]:
        return chat.encode_prompt(cut.messages, tools=cut.tools, prefix=cut.prefix, place=cut.place)

    ids = encoded(row)
    if len(ids) > most:
        if not may_cut(row, len(ids), most, reason, cuts):
            return None
        shorter = cut_to_fit(row, lambda cut: len(encoded(cut)) <= most, cuts)
        if shorter is None:
            return None
        ids = encoded(shorter)
    return Prompt(ids, row)


def may_cut(row: Row, length: int, most: int, reason: str, cuts: Cuts) -> bool:
    """Whether a prompt that is too long is cut; False if its row is dropped. Raises PromptTooLongError."""
    cuts.reason = reason
    if cuts.limits.truncate_prompt == "error":
        raise PromptTooLongError(
            f"{row.place}{': ' if row.place else ''}the prompt has {number_of(length, 'token')}, and only {most} "
            f"fit: {reason}",
            remedy="prompt-too-long",
        )
    if cuts.limits.truncate_prompt == "drop":
        cuts.dropped.append(row.place)
        return False
    return True


def cut_to_fit(row: Row, fits: Callable[[Row], bool], cuts: Cuts) -> Row | None:
    """The row without as much of its oldest turns, and then of the beginning of its last user turn, as it takes to fit.

    None if it is dropped, because what is left beside that turn is too long already: the system turn, tools and their
    results, what the template writes. No turn ever loses what the template writes around it.
    """
    shorter = without_oldest_turns(row, fits)
    cut = shorter if fits(shorter) else without_beginning(shorter, fits)
    if cut is None:
        cuts.dropped.append(row.place)
        return None
    if shorter is not row:
        cuts.turns.append(row.place)
    if cut is not shorter:
        cuts.tokens.append(row.place)
    return cut


def without_oldest_turns(row: Row, fits: Callable[[Row], bool]) -> Row:
    """Drops as many of the oldest turns as it takes to fit, down to the system turn and the last user turn.

    What is left begins with a user turn, after the system turn.
    """
    system = [message for message in row.messages if message.role == "system"]
    turns = [message for message in row.messages if message.role != "system"]
    starts = [index for index, message in enumerate(turns) if message.role == "user" and index]
    for start in starts:
        row = replace(row, messages=(*system, *turns[start:]))
        if fits(row):
            break
    return row


def without_beginning(row: Row, fits: Callable[[Row], bool]) -> Row | None:
    """The row with as much of the end of its last user turn's text as fits; None if none of it does."""
    index = max((n for n, message in enumerate(row.messages) if message.role == "user"), default=None)
    if index is None:
        return None
    text = row.messages[index].content

    def cut(start: int) -> Row:
        turn = replace(row.messages[index], content=text[start:])
        return replace(row, messages=(*row.messages[:index], turn, *row.messages[index + 1 :]))

    start = bisect_left(range(len(text)), True, key=lambda start: fits(cut(start)))
    return cut(start) if text[start:].strip() else None


def require_counted(examples: Sequence[Example]) -> None:
    """Raises DataError for an example without a completion token that counts: it would train nothing."""
    for index, example in enumerate(examples):
        if example.counted is not None and not any(any(flags) for flags in example.counted):
            place = example.row.place if example.row else ""
            raise DataError(
                f"{place or f'example {index}'}: no completion token counts, so nothing is learned from this row; "
                "allow longer completions, or drop the row"
            )


def require_end(
    examples: Sequence[Example],
    chat: ChatFormat,
    tell: Callable[[str], object] = str,
    *,
    preferred: bool = False,
) -> None:
    """Refuses data of which no answer's end is learned, because the policy would never stop.

    Rows of next steps end no turn and are not counted; nor is an example without a row. Where the file itself says that
    no answer ends, as samples of a policy may, `tell` is called with a line.

    Args:
        preferred: count only answers that are better than another of their row, or labelled good. What ends only in
            worse answers is unlearned.

    Raises:
        DataError: answers end in the file, but in none the end is learned.
    """
    ends = {chat.end_token_id, int(chat.tokenizer.eos_token_id)}
    cut = unfinished = 0
    for example in examples:
        row = example.row
        if row is None or row.prefix is not None:
            continue
        for k, ids in enumerate(example.completions):
            if preferred and not _is_preferred(example, row, k):
                continue
            if ids[-1] in ends and (example.counted is None or example.counted[k][-1]):
                return
            finished = row.ended is None or row.ended[k]
            cut, unfinished = cut + finished, unfinished + (not finished)
    better = "better " if preferred else ""
    marked = f"{unfinished} are marked as unfinished (ended: false)"
    if cut:
        raise DataError(
            f"no {better}answer's end token is learned, so the policy would never stop: of {cut + unfinished} "
            f"{better}answers, {cut} are cut at the limit on their length{f' and {marked}' if unfinished else ''}",
            remedy="no-end-learned",
        )
    if unfinished:
        tell(f"warning: no {better}answer's end token is learned: {marked}, which is all of them")


def _is_preferred(example: Example, row: Row, k: int) -> bool:
    if example.grades is not None and len(example.grades) > 1:
        return example.grades[k] > min(example.grades)
    return bool(row.columns.get("label", True))


def _prompt_ids(chat: ChatFormat, row: Row, train_on: TrainOn) -> Sequence[int]:
    if train_on == "completion":
        return chat.encode_prompt(row.messages, tools=row.tools, prefix=row.prefix, place=row.place)
    return chat.encode_example(row, train_on=train_on).prompt_ids
