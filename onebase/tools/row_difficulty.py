"""What a role, or samples, say of rows: how hard they are, from 0 to 1, and how clearly one answer wins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from onebase.data.prepare import best_answer
from onebase.errors import DataError
from onebase.quality.texts import normalised
from onebase.reading.containers import read_content
from onebase.records import Example, Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown

if TYPE_CHECKING:
    from onebase.engines.budget import TokenBudget
    from onebase.models.base import OneBase


def difficulties(
    rows: Sequence[Row],
    source: str,
    *,
    model: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """The difficulty of each row that could be measured, by its place.

    Args:
        source: a file of samples as `onebase eval --output` writes them: the share of a question's samples that are
            wrong. Or the folder of a policy role (or a base): the rank of the mean negative log-likelihood per token
            of the row's best answer. Or of a reward role: the rank of -log sigmoid(score of the best answer - score of
            the worst).

    Raises:
        DataError: no row could be measured.
    """
    if Path(source).is_file():
        found = wrong_shares(rows, Path(source))
    else:
        found = ranks(_losses(rows, source, model=model, dtype=dtype, quantization=quantization, device=device))
    if not found:
        raise DataError(f"{shown(source)}: no row's difficulty could be measured; are these samples of these rows?")
    say(f"data clean: measured the difficulty of {len(found)} of {number_of(len(rows), 'row')}")
    return found


def wrong_shares(rows: Sequence[Row], samples: Path) -> dict[str, float]:
    """The share of wrong samples of each row's question, by the row's place; questions are matched by their text."""
    verdicts: dict[str, list[bool]] = {}
    for number, line in read_content(samples).rows:
        prompt, right = line.get("prompt"), line.get("right")
        if not isinstance(prompt, str) or not isinstance(right, bool):
            raise DataError(
                f"{shown(samples)}:{number}: a sample has 'prompt' (a text) and 'right' (true or false); give the file "
                "that 'onebase eval --output' wrote"
            )
        verdicts.setdefault(normalised(prompt), []).append(right)
    found = {}
    for row in rows:
        own = verdicts.get(normalised(row.messages[-1].content)) if row.messages else None
        if own:
            found[row.place] = 1 - sum(own) / len(own)
    return found


def ranks(losses: dict[str, float]) -> dict[str, float]:
    """Each value's rank from 0 to 1; equal values share the mean of their ranks."""
    if len(losses) < 2:
        return dict.fromkeys(losses, 0.5)
    _, place, sizes = numpy.unique(list(losses.values()), return_inverse=True, return_counts=True)
    middle = (numpy.cumsum(sizes) - 1 - (sizes - 1) / 2) / (len(losses) - 1)
    return dict(zip(losses, middle[place].tolist(), strict=True))


def margins(rows: Sequence[Row], role: str, **opening: Any) -> dict[str, float]:
    """The reward role's score of the best answer minus that of the worst, of each row that ranks answers, by its place.

    Raises:
        DataError: no row ranks answers.
    """
    found = _margins(rows, role, **opening)
    if not found:
        raise DataError(f"{shown(role)} judges answers that are compared, and no row compares any; take --reward out")
    say(f"data clean: {shown(role)} judged {len(found)} of {number_of(len(rows), 'row')}")
    return found


def _margins(rows: Sequence[Row], role: str, **opening: Any) -> dict[str, float]:
    # torch takes seconds to import, which samples in a file need not wait for.
    from onebase.engines.forward import completion_scores
    from onebase.engines.passes import per_completion

    compared = [row for row in rows if row.grades is not None and len(set(row.grades)) > 1]
    pairs = [row.only([_index(row, max), _index(row, min)]) for row in compared]
    if not pairs:
        return {}
    base, examples, budget = _opened(pairs, role, "reward", **opening)
    scores = per_completion(base, examples, lambda b: completion_scores(base, b, role="reward"), budget=budget)
    return {_place(e): float(better - worse) for e, (better, worse) in zip(examples, scores, strict=True)}


def _losses(rows: Sequence[Row], role: str, **opening: Any) -> dict[str, float]:
    """The role's loss on each row it can be measured on, by place."""
    from onebase.engines.forward import token_logprobs
    from onebase.engines.passes import per_token
    from onebase.models.role_card import read_card

    if (Path(role) / "role.json").is_file() and read_card(role).kind == "reward":
        found = _margins(rows, role, **opening)
        return {place: float(numpy.logaddexp(0, -margin)) for place, margin in found.items()}
    answered = [best_answer(row) for row in rows if row.answers and all(answer.strip() for answer in row.answers)]
    if not answered:
        return {}
    base, examples, budget = _opened(answered, role, "policy", **opening)
    logps = per_token(base, examples, lambda b: {"logp": token_logprobs(base, b, role="policy")}, budget=budget)["logp"]
    return {_place(e): -float(logprobs.mean()) for e, logprobs in zip(examples, logps, strict=True)}


def _opened(rows: Sequence[Row], role: str, name: str, **opening: Any) -> tuple[OneBase, list[Example], TokenBudget]:
    """The base with the role on it, and the rows as it reads them."""
    from onebase.data.fit import Limits
    from onebase.data.prepare import encode_rows
    from onebase.engines.budget import TokenBudget, find_token_budget
    from onebase.recipes.setup.saved import open_saved

    base, chat = open_saved({name: (role, (name,))}, **opening)
    examples = encode_rows(rows, chat, Limits(base.context_length, tell=lambda line: say(f"data clean: {line}")))
    longest = max(example.num_tokens for example in examples)
    return base, examples, TokenBudget(find_token_budget(base, name, longest=longest))


def _place(example: Example) -> str:
    return example.row.place if example.row else ""


def _index(row: Row, which: Any) -> int:
    assert row.grades is not None
    return row.grades.index(which(row.grades))
