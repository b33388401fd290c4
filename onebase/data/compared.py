"""Prepares answers for comparison: pairs labelled texts, ranks scored answers, drops completions of the same tokens."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import replace

from onebase.errors import DataError
from onebase.records import Example, Row


def pair_labelled(rows: Sequence[Row], *, seed: int) -> list[Row]:
    """Pairs labelled texts, without a prompt: each text of the higher label with one of the lower.

    Other rows are returned as they are. Each text is used once; the larger side loses its surplus. The
    texts of a pair come from one source.

    Raises:
        DataError: all labels are equal.
    """
    if not rows or not all(not row.messages and row.grades is not None and len(row.answers) == 1 for row in rows):
        return list(rows)
    if len(sources := sorted({row.source for row in rows})) > 1:
        of_each = [[row for row in rows if row.source == source] for source in sources]
        return [pair for some in of_each for pair in pair_labelled(some, seed=seed)]
    labels = sorted({row.grades[0] for row in rows if row.grades})
    if len(labels) != 2:
        raise DataError(
            f"{rows[0].place}: labelled texts are paired, better with worse, which needs two labels; found "
            f"{', '.join(f'{label:g}' for label in labels)}"
        )
    worse = [row for row in rows if row.grades == (labels[0],)]
    better = [row for row in rows if row.grades == (labels[1],)]
    order = random.Random(seed)
    order.shuffle(worse)
    order.shuffle(better)
    return [
        Row(
            messages=(),
            answers=(b.answers[0], w.answers[0]),
            grades=(1.0, 0.0),
            place=f"{b.place} and {w.place}",
            ended=(b.ended or (True,)) + (w.ended or (True,)),
            source=b.source,
        )
        for b, w in zip(better, worse, strict=False)
    ]


def rank_scored(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Joins answers that were scored one by one into a ranked list per prompt, where the prompt's first one stood.

    Other rows are returned as they are. Also returns how many answers are left over: those whose prompt has no other
    answer with another score.
    """
    lists: dict[Hashable, list[Row]] = {}
    for row in rows:
        if _is_scored(row):
            lists.setdefault((row.messages, row.prefix), []).append(row)
    ranked: list[Row] = []
    left = 0
    for row in rows:
        if not _is_scored(row):
            ranked.append(row)
            continue
        same = lists.pop((row.messages, row.prefix), [])
        if len({one.grades for one in same}) < 2:
            left += len(same)
            continue
        ranked.append(
            replace(
                same[0],
                answers=tuple(one.answers[0] for one in same),
                grades=tuple(one.grades[0] for one in same if one.grades),
                ended=tuple((one.ended or (True,))[0] for one in same),
                place=" and ".join(one.place for one in same[:3]) + " and more" * (len(same) > 3),
            )
        )
    return ranked, left


def unranked_line(left: int) -> str:
    """What `rank_scored` left over, in words; empty if nothing."""
    return f"answers scored one by one are ranked by prompt; {left} have none to be compared with" if left else ""


def _is_scored(row: Row) -> bool:
    return bool(row.messages) and row.grades is not None and len(row.answers) == 1


def drop_equal_completions(
    examples: Sequence[Example], *, max_share: float
) -> tuple[list[Example], dict[str, list[str]]]:
    """Keeps only the best of a prompt's completions that are the same tokens, as texts or because they were cut.

    Comparing them teaches nothing, and in a list `a > b > a` the two comparisons with `b` contradict each other. An
    example whose completions are all equal is dropped. Returns the others, and the places of what was dropped by
    reason.

    Raises:
        DataError: more than `max_share` of the examples would be dropped.
    """
    kept: list[Example] = []
    equal: list[str] = []
    repeated: list[str] = []
    for example in examples:
        place, count = example.row.place if example.row else "", len(example.completions)
        chosen = _best_of_equal(example)
        if len(chosen) == 1 < count:
            equal.append(place)
            continue
        repeated += [place] * (count - len(chosen))
        kept.append(example if len(chosen) == count else _with_only(example, chosen))
    if len(equal) > max_share * len(examples):
        raise DataError(
            f"the answers of {len(equal)} of {len(examples)} rows were cut to the same tokens, more than the allowed "
            f"share of {max_share:g} (first {', '.join(equal[:3])})",
            remedy="answers-cut-to-equal",
        )
    reasons = {"answers cut to the same tokens": equal, "the tokens of a better answer to the same prompt": repeated}
    return kept, {reason: places for reason, places in reasons.items() if places}


def _best_of_equal(example: Example) -> list[int]:
    grades = example.grades or [0.0] * len(example.completions)
    best: dict[tuple[int, ...], int] = {}
    for k, ids in enumerate(map(tuple, example.completions)):
        if ids not in best or grades[k] > grades[best[ids]]:
            best[ids] = k
    return sorted(best.values())


def _with_only(example: Example, chosen: Sequence[int]) -> Example:
    return replace(
        example,
        completions=[example.completions[k] for k in chosen],
        counted=example.counted and [example.counted[k] for k in chosen],
        grades=None if example.grades is None else tuple(example.grades[k] for k in chosen),
        row=example.row and example.row.only(chosen),
    )
