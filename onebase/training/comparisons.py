"""Draws the comparisons of ranked lists and lays them out as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebase.objectives.reward import Comparison, comparison_weights, ranking_pairs
from onebase.records import Example
from onebase.seeds import comparison_seed
from onebase.transfer import to_device


@dataclass(frozen=True, slots=True)
class PairTensors:
    """The comparisons of several lists, each field `[P]`; `better` and `worse` index their completions end to end."""

    better: Tensor
    worse: Tensor
    weight: Tensor
    """1 / the list's number of comparisons, so that a list counts as much as a pair."""
    tie: Tensor
    margin: Tensor

    @staticmethod
    def of(
        examples: Sequence[Example], comparisons: Sequence[Sequence[Comparison]], device: torch.device
    ) -> PairTensors:
        rows: list[tuple[int, int, float, bool, float]] = []
        offset = 0
        for example, pairs in zip(examples, comparisons, strict=True):
            for pair, weight in zip(pairs, comparison_weights(pairs), strict=True):
                margin = 0.0 if example.margin is None else example.margin
                rows.append((offset + pair.better, offset + pair.worse, weight, pair.tie, margin))
            offset += len(example.completions)
        return PairTensors(*(to_device(torch.tensor(column), device) for column in zip(*rows, strict=True)))


def draw_comparisons(example: Example, *, max_pairs: int, seed: int, visit: tuple[int, int]) -> list[Comparison]:
    """Returns a list's comparisons: all, or `max_pairs` of them, drawn anew at each visit from the run's seed."""
    assert example.grades is not None, "only graded examples are compared"
    generator = torch.Generator().manual_seed(comparison_seed(seed, *visit))
    return ranking_pairs(example.grades, max_pairs, generator)
