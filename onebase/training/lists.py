"""What a loss over ranked lists reads, end to end from a microbatch's trees: log-probs, lengths, grades, pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onebase.engines.budget import TokenBudget
from onebase.engines.forward import token_logprobs
from onebase.engines.passes import per_completion
from onebase.models.base import OneBase
from onebase.objectives.masked import completion_sum
from onebase.objectives.preference import implicit_rewards, mean_logprobs
from onebase.records import Example, TreeBatch
from onebase.training.averages import Averages
from onebase.training.comparisons import PairTensors
from onebase.transfer import to_device


@dataclass(frozen=True, slots=True)
class Lists:
    """The losses' input for several lists laid end to end, `[N]` each, and their comparisons."""

    logprobs: Tensor
    """The policy's log-probs, summed over the counted tokens."""
    reference: Tensor
    """The reference's, summed likewise; zeros if no loss needs them."""
    lengths: Tensor
    grades: Tensor
    list_index: Tensor
    best: Tensor
    """`[L]` int64, the first of each list's best answers."""
    pairs: PairTensors


def lay_lists(
    base: OneBase,
    batch: TreeBatch,
    examples: Sequence[Example],
    comparisons: Sequence[Sequence[Any]],
    references: Sequence[Tensor] | None,
) -> Lists:
    """Collects a microbatch's log-probs under the policy and everything the losses compare them with."""
    logprobs = summed_logprobs(base, batch, role="policy")
    device, best, offset = logprobs.device, [], 0
    for example in examples:
        grades = list(example.grades or ())
        best.append(offset + grades.index(max(grades)))
        offset += len(example.completions)
    lengths = [sum(counted) for e in examples for counted in e.counted or [[True] * len(ids) for ids in e.completions]]
    reference = torch.zeros_like(logprobs) if references is None else to_device(torch.cat(list(references)), device)
    return Lists(
        logprobs=logprobs,
        reference=reference,
        lengths=to_device(torch.tensor(lengths), device),
        grades=to_device(torch.tensor([grade for e in examples for grade in e.grades or ()]), device),
        list_index=batch.tree_index,
        best=to_device(torch.tensor(best), device),
        pairs=PairTensors.of(examples, comparisons, device),
    )


def note_metrics(lists: Lists, metrics: Averages, beta: float, *, has_reference: bool) -> None:
    """Notes the usual metrics, with chosen and rejected apart because both falling is DPO's known failure."""
    pairs, counted = lists.pairs, ~lists.pairs.tie
    metrics.add("logps/chosen", lists.logprobs[pairs.better], counted)
    metrics.add("logps/rejected", lists.logprobs[pairs.worse], counted)
    rewards = implicit_rewards(lists.logprobs.detach(), lists.reference, beta=beta)
    if not has_reference:
        rewards = beta * mean_logprobs(lists.logprobs.detach(), lists.lengths)
    chosen, rejected = rewards[pairs.better], rewards[pairs.worse]
    metrics.add("rewards/margins", chosen - rejected, counted)
    metrics.add("rewards/accuracies", (chosen > rejected).float(), counted)
    if has_reference:
        metrics.add("rewards/chosen", chosen, counted)
        metrics.add("rewards/rejected", rejected, counted)


def summed_logprobs(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """log p of each completion given its prompt, summed over its counted tokens: `[N]`."""
    return completion_sum(token_logprobs(base, batch, role=role), batch.completion_index, batch.num_completions)


def completion_logprobs(base: OneBase, examples: Sequence[Example], *, role: str, budget: TokenBudget) -> list[Tensor]:
    """`summed_logprobs` for any number of examples, without gradient: one tensor `[K]` each."""
    return per_completion(base, examples, lambda batch: summed_logprobs(base, batch, role=role), budget=budget)
