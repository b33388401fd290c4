"""`onebase score`: scores every answer in a file with a reward role, as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from onebase.data.fit import Limits
from onebase.data.prepare import encode_rows
from onebase.data.selection import unusable_prompt
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.errors import DataError
from onebase.reading.formats import read_rows
from onebase.recipes.setup.saved import open_saved
from onebase.runs.progress import say
from onebase.shown import json_shown


def run(
    *,
    role: str,
    file: Path,
    rank: bool,
    columns: Mapping[str, str] | None = None,
    model: str | None,
    microbatch_tokens: int | None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> None:
    """Prints a line per row: `score` for one answer, `scores` for several, and with `rank` the answers from best to
    worst. Prints to stderr how often the scores agree with the rows' own grades.

    Raises:
        DataError: a row has no answer.
    """
    rows = read_rows(file, columns=columns)
    for row in rows:
        if reason := unusable_prompt(row):
            raise DataError(f"{row.place}: {reason}; correct the row")
        if not row.answers:
            raise DataError(
                f"{row.place}: the row has no answer to score; give it 'completion', 'chosen' and "
                "'rejected', or 'output' with one answer or a list"
            )
    base, chat = open_saved(
        {"reward": (role, ("reward",))}, model=model, dtype=dtype, quantization=quantization, device=device
    )
    examples = encode_rows(rows, chat, Limits(base.context_length, tell=lambda line: say(f"score: {line}")))
    tokens = microbatch_tokens or find_token_budget(base, "reward", longest=max(e.num_tokens for e in examples))
    scores = per_completion(
        base, examples, lambda batch: completion_scores(base, batch, role="reward"), budget=TokenBudget(tokens)
    )
    for row, scored in zip(rows, scores, strict=True):
        numbers = [round(score, 6) for score in scored.tolist()]
        line: dict[str, object] = {"row": row.place}
        line |= {"score": numbers[0]} if len(numbers) == 1 else {"scores": numbers}
        if rank:
            order = sorted(range(len(numbers)), key=lambda k: -numbers[k])
            line["ranking"] = [{"answer": k, "score": numbers[k], "text": row.answer(k).text} for k in order]
        print(json_shown(line))
    if told := agreement([(row.grades, scored.tolist()) for row, scored in zip(rows, scores, strict=True)]):
        say(told)
    moments, every = base.scalar_role("reward").moments, torch.cat(scores)
    if moments.measured:
        say(
            f"{len(every)} answers, mean {every.mean():.3f}; on held-out data the role had mean "
            f"{moments.mean:.3f}, deviation {moments.std:.3f}"
        )


def agreement(rows: Sequence[tuple[Sequence[float] | None, Sequence[float]]]) -> str:
    """Says how often a better answer scores above a worse one in its row; "" if there is nothing to compare.

    Args:
        rows: grades and scores of the answers. Tied scores count half; equal grades are not compared.
    """
    rights = [
        0.5 if worse == better else float(better > worse)
        for grades, scores in rows
        if grades is not None
        for i, better in enumerate(scores)
        for k, worse in enumerate(scores)
        if grades[i] > grades[k]
    ]
    compared = sum(1 for grades, _ in rows if grades is not None and len(set(grades)) > 1)
    if not rights:
        return ""
    share = sum(rights) / len(rights)
    return f"accuracy {share:.3f}: the better answer scores higher ({len(rights)} comparisons, {compared} rows)"
