"""From files to examples: read, split, leave out what cannot be used, encode, fit to the context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from onebase.data.chat import ChatFormat, TrainOn
from onebase.data.fit import Cuts, Limits, fit_prompt, fit_row, require_counted
from onebase.data.formats import drop_unusable, read_files, split_by_prompt
from onebase.data.remarks import check_split
from onebase.errors import DataError
from onebase.records import Example, Row


def read_split(
    train: Sequence[str],
    held_out: Sequence[str],
    *,
    eval_fraction: float,
    limit: int | None,
    seed: int,
    max_dropped_share: float,
) -> tuple[list[Row], list[Row], dict[str, list[str]]]:
    """Training and held-out rows, and the places of the rows left out by reason.

    Where no held-out files are given, a part of the training rows is held out; rows with one prompt stay together.
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
    """Rows with answers as examples within the limits; what had to be cut or left out is told.

    Raises:
        PromptTooLongError: a prompt is too long and `truncate_prompt` is `error`.
        DataError: a row has no answer, or nothing of it counts, or too many were left out.
    """
    cuts, rows = Cuts(limits), list(rows)
    fitted = [fit_row(row, chat, cuts, train_on=train_on) for row in rows]
    cuts.finish(len(rows))
    examples = [example for example in fitted if example is not None]
    require_counted(examples)
    if not examples:
        raise DataError("no rows are left to train on; look at data.train, data.limit and data.eval_fraction")
    return examples


def encode_prompts(
    rows: Iterable[Row], chat: ChatFormat, limits: Limits, *, max_new_tokens: int, opening_tokens: int
) -> list[Example]:
    """Prompts to sample from, as examples without completions; what had to be cut or left out is told.

    A plain text gives its first `opening_tokens` tokens, which the policy continues.
    """
    most, reason = limits.sampling_room(max_new_tokens)
    cuts, rows = Cuts(limits), list(rows)
    fitted = [fit_prompt(row, chat, cuts, most=most, reason=reason, opening_tokens=opening_tokens) for row in rows]
    cuts.finish(len(rows))
    prompts = [prompt for prompt in fitted if prompt is not None]
    if not prompts:
        raise DataError("no prompts are left to sample from; look at data.train, data.limit and data.eval_fraction")
    return prompts


def with_completions(prompt: Example, completions: Sequence[Sequence[int]]) -> Example:
    """The prompt's tree with these completions."""
    return replace(prompt, completions=list(completions), counted=None, grades=None)


def best_answer(row: Row) -> Row:
    """Of a row that compares answers, the first of the best: what SFT learns from preferences."""
    if row.grades is None or len(row.answers) < 2:
        return row
    return replace(row.only([row.grades.index(max(row.grades))]), grades=None, margin=None)


def dropped_line(dropped: dict[str, list[str]]) -> str:
    """What was left out, in words; empty where nothing was."""
    parts = [f"{len(places)} with {reason} ({', '.join(places[:3])})" for reason, places in dropped.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""
