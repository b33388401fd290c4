"""The frozen features that heads are trained on: what the score head of a reward role reads of each answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch

from onebase.active_learning.heads import Floats
from onebase.data.fit import Limits
from onebase.data.prepare import encode_rows
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.engine import engine_of
from onebase.engines.passes import per_completion
from onebase.labels.judged import NewTask
from onebase.models.base import OneBase
from onebase.models.roles import ScalarRole
from onebase.recipes.setup.saved import open_saved
from onebase.records import Row, TreeBatch
from onebase.runs.progress import say

MOST_DIRECTIONS = 64
"""Features are reduced to the directions in which answers to one prompt differ most, or a head would take minutes."""


@dataclass(frozen=True, slots=True)
class Answers:
    """The answers to one task, as a role sees them."""

    features: Floats
    """`[K, F]`."""
    scores: Floats | None
    """`[K]`; None if the role has no score head."""


def answers_of(
    tasks: Mapping[str, NewTask], role: str, *, model: str | None = None, device: str = "auto"
) -> dict[str, Answers]:
    """What a role reads of each task's answers, by the tasks' names; tasks too long for the model are left out.

    The features are the last layer's states of an answer's last token, or their mean over its tokens where the role
    pools so; a policy role or a base gives its last token's.
    """
    rows = [
        Row(task.prompt, task.answers, place=name, ended=task.ended, tools=task.tools) for name, task in tasks.items()
    ]
    base, chat = open_saved({"features": (role, ("reward", "policy"))}, model=model, device=device)
    examples = encode_rows(rows, chat, Limits(base.context_length, tell=lambda line: say(f"label: {line}")))
    longest = max(example.num_tokens for example in examples)
    budget = TokenBudget(find_token_budget(base, "features", longest=longest))
    states = per_completion(base, examples, lambda batch: _states(base, batch), budget=budget)
    head = _scalar(base).head if _is_scalar(base) else None
    found = {}
    for example, own in zip(examples, states, strict=True):
        assert example.row is not None, "encoded from rows"
        with torch.no_grad():
            scores = None if head is None else head(own.to(base.device)).cpu().double().numpy()
        found[example.row.place] = Answers(own.double().numpy(), scores)
    return found


def _is_scalar(base: OneBase) -> bool:
    return isinstance(base.roles["features"], ScalarRole)


def _scalar(base: OneBase) -> ScalarRole:
    return base.scalar_role("features")


def _states(base: OneBase, batch: TreeBatch) -> torch.Tensor:
    engine = engine_of(base, "features")
    if _is_scalar(base) and _scalar(base).pooling == "mean":
        states = engine.states(batch, batch.token, batch.completion_index)
        # The head is linear: the mean of its scores is its score of the mean.
        sums = torch.zeros(batch.num_completions, states.shape[1], device=states.device)
        sums.index_add_(0, batch.completion_index, states.float())
        return sums / torch.bincount(batch.completion_index, minlength=batch.num_completions)[:, None]
    return engine.states(batch, batch.last, torch.arange(batch.num_completions, device=batch.last.device))


def comparable(features: Sequence[Floats]) -> list[Floats]:
    """The features less their mean over each task's answers, all of about the same size: `[K, D]` each, D at most 64.

    What all answers to a prompt share says nothing about which is better. Features are divided by their deviation, so
    that one of large numbers does not drown the others, and the principal components are kept that hold most of what
    differs. No judgement is looked at.
    """
    centred = [own - own.mean(0) for own in features]
    flat = numpy.concatenate(centred)
    deviation = flat.std(0)
    scaled = flat / numpy.where(deviation > 1e-9 * max(1.0, float(deviation.max())), deviation, numpy.inf)
    if scaled.shape[1] > MOST_DIRECTIONS:
        _, vectors = numpy.linalg.eigh(scaled.T @ scaled)
        scaled = scaled @ vectors[:, -MOST_DIRECTIONS:]
    return numpy.split(scaled, numpy.cumsum([len(own) for own in features])[:-1])
