"""How hard rows are, from 0 (easy) to 1 (hard): by a role's loss on them, or by how often samples were wrong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from onebase.errors import DataError
from onebase.quality.texts import normalised
from onebase.reading.containers import read_content
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import shown


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
    say(f"data clean: measured the difficulty of {len(found)} of {len(rows)} rows")
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


def _losses(rows: Sequence[Row], role: str, **opening: Any) -> dict[str, float]:
    """The role's loss on each row it can be measured on, by place."""
    # torch takes seconds to import, which samples in a file need not wait for.
    from torch.nn.functional import logsigmoid

    from onebase.data.fit import Limits
    from onebase.data.prepare import best_answer, encode_rows
    from onebase.engines.budget import TokenBudget, find_token_budget
    from onebase.engines.forward import completion_scores, token_logprobs
    from onebase.engines.passes import per_completion, per_token
    from onebase.models.role_card import read_card
    from onebase.recipes.setup.saved import open_saved

    ranking = (Path(role) / "role.json").is_file() and read_card(role).kind == "reward"
    name = "reward" if ranking else "policy"
    if ranking:
        chosen = [row for row in rows if row.grades is not None and len(set(row.grades)) > 1]
        chosen = [row.only([_index(row, max), _index(row, min)]) for row in chosen]
    else:
        chosen = [best_answer(row) for row in rows if row.answers and all(answer.strip() for answer in row.answers)]
    if not chosen:
        return {}
    base, chat = open_saved({name: (role, (name,))}, **opening)
    examples = encode_rows(chosen, chat, Limits(base.context_length, tell=lambda line: say(f"data clean: {line}")))
    budget = TokenBudget(find_token_budget(base, name, longest=max(example.num_tokens for example in examples)))
    places = [example.row.place if example.row else "" for example in examples]
    if ranking:
        scores = per_completion(base, examples, lambda b: completion_scores(base, b, role=name), budget=budget)
        return {p: -float(logsigmoid(s[0] - s[1])) for p, s in zip(places, scores, strict=True)}
    found = per_token(base, examples, lambda b: {"logp": token_logprobs(base, b, role=name)}, budget=budget)["logp"]
    return {place: -float(logprobs.mean()) for place, logprobs in zip(places, found, strict=True)}


def _index(row: Row, which: Any) -> int:
    assert row.grades is not None
    return row.grades.index(which(row.grades))
