"""From files to examples: read, split, drop what cannot be used, encode, fit to the context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from onebase.data.chat import ChatFormat, TrainOn
from onebase.data.fit import Cuts, Limits, fit_prompt, fit_row, require_counted
from onebase.data.formats import read_files
from onebase.data.remarks import check_split
from onebase.data.selection import drop_unusable, split_by_prompt
from onebase.errors import DataError
from onebase.records import Example, Prompt, Row


def read_split(
    train: Sequence[str],
    held_out: Sequence[str],
    *,
    eval_fraction: float,
    limit: int | None,
    seed: int,
    max_dropped_share: float,
) -> tuple[list[Row], list[Row], dict[str, list[str]]]:
    """Training rows, held-out rows, and the places of the dropped rows by reason.

    Without held-out files, part of the training rows is held out; rows with the same prompt stay together.
    """
    check_split(train, held_out)
    rows, dropped = drop_unusable(read_files(train, limit=limit), max_share=max_dropped_share)
    if held_out:
        others, dropped_others = drop_unusable(read_files(held_out), max_share=max_dropped_share)
        for reason, places in dropped_others.items():
            dropped.setdefault(reason, []).extend(places)
        return rows, others, dropped
    kept, split_off = split_by_prompt(rows, eval_fraction, seed)
    return kept, split_off, dropped


def encode_rows(
    rows: Iterable[Row], chat: ChatFormat, limits: Limits, *, train_on: TrainOn = "completion"
) -> list[Example]:
    """Encodes rows with answers within the limits; reports what was cut or dropped.

    Raises:
        PromptTooLongError: a prompt is too long and `truncate_prompt` is `error`.
        DataError: a row has no answer or no token that counts, or too many rows were dropped.
    """
    cuts, rows = Cuts(limits), list(rows)
    fitted = [fit_row(row, chat, cuts, train_on=train_on) for row in rows]
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


def best_answer(row: Row) -> Row:
    """A row that compares answers, reduced to the first of the best ones: what SFT learns from preferences."""
    if row.grades is None or len(row.answers) < 2:
        return row
    return replace(row.only([row.grades.index(max(row.grades))]), grades=None, margin=None)


def dropped_line(dropped: dict[str, list[str]]) -> str:
    """What was dropped, in words; empty if nothing was."""
    parts = [f"{len(places)} with {reason} ({', '.join(places[:3])})" for reason, places in dropped.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""
