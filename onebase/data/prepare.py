"""From files to examples: read, split, drop what cannot be used, encode, fit to the context."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from onebase.data.chat import ChatFormat, TrainOn
from onebase.data.encoded import Encoder
from onebase.data.fit import Cuts, Limits, fit_prompt, require_counted
from onebase.data.mixing import Source, read_sources
from onebase.data.remarks import check_split
from onebase.data.selection import drop_unusable, split_by_prompt
from onebase.data.token_cache import FEWEST_ROWS, TokenCache
from onebase.errors import DataError
from onebase.reading.formats import read_files
from onebase.records import Example, Message, Prompt, Row


def read_split(
    train: Sequence[Source],
    held_out: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    eval_fraction: float,
    limit: int | None,
    seed: int,
    max_dropped_share: float,
) -> tuple[list[Row], list[Row], dict[str, list[str]]]:
    """Training rows, held-out rows, and the places of the dropped rows by reason.

    Without held-out files, part of the training rows is held out; rows with the same prompt stay together. Nothing is
    held out of a replayed source.
    """
    check_split([path for source in train for path in source.paths], held_out)
    rows, dropped = drop_unusable(read_sources(train, limit=limit), max_share=max_dropped_share)
    if held_out:
        others, dropped_others = drop_unusable(read_files(held_out, columns=columns), max_share=max_dropped_share)
        for reason, places in dropped_others.items():
            dropped.setdefault(reason, []).extend(places)
        return rows, others, dropped
    own = [row for row in rows if not train[row.source].replayed]
    kept, split_off = split_by_prompt(own, eval_fraction, seed)
    asked = {row.messages for row in split_off if row.messages}
    replayed = [row for row in rows if train[row.source].replayed]
    if leaking := [row.place for row in replayed if row.messages in asked]:
        dropped.setdefault("the prompt of a held-out row", []).extend(leaking)
        replayed = [row for row in replayed if row.messages not in asked]
    return kept + replayed, split_off, dropped


def encode_rows(
    rows: Iterable[Row],
    chat: ChatFormat,
    limits: Limits,
    *,
    train_on: TrainOn = "completion",
    cache: TokenCache | None = None,
) -> list[Example]:
    """Encodes rows with answers within the limits; reports what was cut or dropped.

    Raises:
        PromptTooLongError: a prompt is too long and `truncate_prompt` is `error`.
        DataError: a row has no answer or no token that counts, or too many rows were dropped.
    """
    cuts, rows = Cuts(limits), list(rows)
    encode = Encoder(chat, train_on, cache if len(rows) >= FEWEST_ROWS else None)
    fitted = [encode(row, cuts) for row in rows]
    if encode.cache is not None:
        encode.cache.flush()
    cuts.finish(len(rows))
    examples = [example for example in fitted if example is not None]
    require_counted(examples)
    if not examples:
        raise DataError("no rows are left to train on", remedy="no-rows-left")
    return examples


def encode_prompts(
    rows: Iterable[Row], chat: ChatFormat, limits: Limits, *, max_new_tokens: int, opening_tokens: int
) -> list[Prompt]:
    """Encodes prompts to sample from, without completions; reports what was cut or dropped.

    A plain text gives its first `opening_tokens` tokens, which the policy continues.
    """
    most, reason = limits.sampling_room(max_new_tokens)
    cuts, rows = Cuts(limits), list(rows)
    fitted = [fit_prompt(row, chat, cuts, most=most, reason=reason, opening_tokens=opening_tokens) for row in rows]
    cuts.finish(len(rows))
    prompts = [prompt for prompt in fitted if prompt is not None]
    if not prompts:
        raise DataError("no prompts are left to sample from", remedy="no-rows-left")
    return prompts


def with_system(rows: Sequence[Row], text: str | None) -> list[Row]:
    """The rows, with a system turn of this text before conversations that have none."""
    if not text:
        return list(rows)
    turn = Message("system", text)
    return [
        replace(row, messages=(turn, *row.messages)) if row.messages and row.messages[0].role != "system" else row
        for row in rows
    ]


def best_answer(row: Row) -> Row:
    """A row that compares answers, reduced to the first of the best ones: what SFT learns from preferences."""
    if row.grades is None or len(row.answers) < 2:
        return row
    return replace(row.only([row.grades.index(max(row.grades))]), grades=None, margin=None)


def dropped_line(dropped: dict[str, list[str]]) -> str:
    """What was dropped, in words; empty if nothing was."""
    parts = [f"{len(places)} with {reason} ({', '.join(places[:3])})" for reason, places in dropped.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""
