"""Scores of completions by a reward role, raw, normalised and ranked."""

from __future__ import annotations

from typing import Any

from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.models.base import OneBase
from onebase.records import Example
from onebase.serving.roles import Served


def scores_of(base: OneBase, served: Served, example: Example) -> list[dict[str, Any]]:
    """One entry per completion, in their order.

    `normalised` is (score - mean) / deviation of the role's held-out scores, None if there were none; `rank` is 1 for
    the best, and equal scores share a rank.
    """
    (scores,) = per_completion(
        base,
        [example],
        lambda batch: completion_scores(base, batch, role=served.role),
        budget=TokenBudget(example.num_tokens),
    )
    # Equal completions of one tree differ in the last bits.
    moments, numbers = base.scalar_role(served.role).moments, [round(score, 6) for score in scores.tolist()]
    return [
        {
            "index": k,
            "score": score,
            "normalised": (score - moments.mean) / moments.std if moments.measured else None,
            "rank": 1 + sum(other > score for other in numbers),
        }
        for k, score in enumerate(numbers)
    ]
