"""Encodes rows within the limits, or takes their tokens from the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import onebase.data
from onebase.data.chat import ChatFormat, TrainOn
from onebase.data.fit import Cuts, Limits, fit_row
from onebase.data.token_cache import Array, TokenCache, cache_root, code_of, row_key
from onebase.records import Example, Row

TURNS, TOKENS, COMPLETIONS, DROPPED = 1, 2, 4, 8
"""What was cut, in an entry's first number."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """How rows become examples."""

    chat: ChatFormat
    train_on: TrainOn = "completion"
    cache: TokenCache | None = None

    def __call__(self, row: Row, cuts: Cuts) -> Example | None:
        """An example; None if the row is dropped. Notes in `cuts` what was cut, from the cache too.

        Raises:
            PromptTooLongError, DataError, ModelError: as `fit_row`.
        """
        if self.cache is None:
            return fit_row(row, self.chat, cuts, train_on=self.train_on)
        key = row_key(row)
        if (entry := self.cache.get(key)) is not None:
            return _example(entry, row, cuts)
        own = Cuts(cuts.limits)
        example = fit_row(row, self.chat, own, train_on=self.train_on)
        flags = TURNS * bool(own.turns) + TOKENS * bool(own.tokens) + COMPLETIONS * bool(own.completions)
        self.cache.put(key, _entry(example, flags + DROPPED * bool(own.dropped)))
        _note(cuts, flags + DROPPED * bool(own.dropped), row.place, own.reason)
        return example


def _entry(example: Example | None, flags: int) -> list[int]:
    if example is None:
        return [flags, 0, 0, 0]
    completions = example.completions
    entry = [flags, int(example.counted is not None), len(example.prompt_ids), len(completions)]
    entry += [len(ids) for ids in completions]
    entry += example.prompt_ids
    for ids in completions:
        entry += ids
    for counted in example.counted or ():
        entry += map(int, counted)
    return entry


def _example(entry: Array, row: Row, cuts: Cuts) -> Example | None:
    flags, has_counted, prompt, count = map(int, entry[:4])
    _note(cuts, flags, row.place, "as when these rows were first tokenized")
    if not count:
        return None
    numbers = entry.tolist()
    lengths, place = numbers[4 : 4 + count], 4 + count
    prompt_ids, place = numbers[place : place + prompt], place + prompt

    def parts(place: int) -> list[list[int]]:
        found = []
        for length in lengths:
            found.append(numbers[place : place + length])
            place += length
        return found

    completions = parts(place)
    counted: Sequence[Sequence[bool]] | None = None
    if has_counted:
        counted = [list(map(bool, part)) for part in parts(place + sum(lengths))]
    return Example(prompt_ids, completions, counted, row.grades, row.margin, row)


def _note(cuts: Cuts, flags: int, place: str, reason: str) -> None:
    for flag, places in (
        (TURNS, cuts.turns),
        (TOKENS, cuts.tokens),
        (COMPLETIONS, cuts.completions),
        (DROPPED, cuts.dropped),
    ):
        if flags & flag:
            places.append(place)
    if flags and not cuts.reason:
        cuts.reason = reason


def open_cache(chat: ChatFormat, limits: Limits, train_on: TrainOn) -> TokenCache | None:
    """The cache for rows encoded this way; None if caching is off."""
    if (root := cache_root()) is None:
        return None
    lengths = (limits.context, limits.max_prompt, limits.max_completion, limits.truncate_prompt)
    return TokenCache(root / f"tokens-{tokens_key(chat, lengths, train_on)}")


def tokens_key(chat: ChatFormat, *more: object) -> str:
    """Changes with what decides how rows become tokens: the tokenizer, the template, the code, and `more`."""
    tokenizer = getattr(chat.tokenizer, "backend_tokenizer", None)
    told = tokenizer.to_str() if tokenizer is not None else repr(sorted(chat.tokenizer.get_vocab().items()))
    special = (chat.tokenizer.bos_token_id, chat.tokenizer.eos_token_id, type(chat.tokenizer).__name__)
    parts = (code_of(onebase.data), told, special, chat.fingerprint, *more)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
