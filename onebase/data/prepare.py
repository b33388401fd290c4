"""From files to examples: read, split, leave out what cannot be used, encode, fit to the context."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from onebase.data.chat import ChatFormat, TrainOn, fit_example, require_counted
from onebase.data.formats import drop_unusable, read_files, split_by_prompt
from onebase.errors import DataError
from onebase.records import Example, Row


@dataclass(frozen=True, slots=True)
class Limits:
    """How long prompts and completions may be, in tokens."""

    context: int
    """Positions of the model: prompt and completion together."""
    max_prompt: int | None = None
    max_completion: int | None = None
    truncate_prompt: Literal["error", "left"] = "error"


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
    """Rows with answers as examples within the limits; completions that are too long are cut on the right.

    Raises:
        PromptTooLongError: a prompt is too long and `truncate_prompt` is `error`.
        DataError: a row has no answer, or nothing of it counts.
    """
    examples = [_fit(chat.encode_example(row, train_on=train_on), chat, limits) for row in rows]
    require_counted(examples)
    if not examples:
        raise DataError("no rows are left to train on; look at data.train, data.limit and data.eval_fraction")
    return examples


def encode_prompts(
    rows: Iterable[Row], chat: ChatFormat, limits: Limits, *, max_new_tokens: int, opening_tokens: int
) -> list[Example]:
    """Prompts to sample from, as examples without completions.

    A plain text gives its first `opening_tokens` tokens, which the policy goes on from.
    """
    most = min(limits.max_prompt or limits.context, limits.context - max_new_tokens)
    if most < 1:
        raise DataError(
            f"generation.max_new_tokens = {max_new_tokens} leaves no room for a prompt in the model's context of "
            f"{limits.context}; lower it"
        )
    prompts = []
    for row in rows:
        if row.messages:
            ids = chat.encode_prompt(row.messages, prefix=row.prefix, place=row.place)
        else:
            text = chat.encode_example(row)
            # Without the end token: the policy goes on from here.
            ids = [*text.prompt_ids, *text.completions[0][:-1]][: min(opening_tokens, most)]
        prompt = Example(ids, [], row=row)
        prompts.append(
            fit_example(
                prompt,
                max_prompt_tokens=most,
                max_completion_tokens=None,
                truncate_prompt=limits.truncate_prompt,
                bos_token_id=chat.tokenizer.bos_token_id,
            )
        )
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
    return replace(row, answers=(row.answers[row.grades.index(max(row.grades))],), grades=None, margin=None)


def dropped_line(dropped: dict[str, list[str]]) -> str:
    """What was left out, in words; empty where nothing was."""
    parts = [f"{len(places)} with {reason} ({', '.join(places[:3])})" for reason, places in dropped.items()]
    return f"left out: {'; '.join(parts)}" if parts else ""


def _fit(example: Example, chat: ChatFormat, limits: Limits) -> Example:
    # The prompt gives way to the completions down to half of the context, or nothing would be left of them.
    longest = min(max(map(len, example.completions)), limits.max_completion or limits.context, limits.context // 2)
    fitted = fit_example(
        example,
        max_prompt_tokens=min(limits.max_prompt or limits.context, limits.context - max(1, longest)),
        max_completion_tokens=limits.max_completion,
        truncate_prompt=limits.truncate_prompt,
        bos_token_id=chat.tokenizer.bos_token_id,
    )
    return fit_example(
        fitted, max_prompt_tokens=None, max_completion_tokens=limits.context - len(fitted.prompt_ids)
    )
