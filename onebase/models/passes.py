"""A forward pass over any number of examples, in batches that fit, the results sorted back to the examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase import processes
from onebase.data.batches import microbatch_indices
from onebase.data.tree import build_tree_batch, separate
from onebase.models.one_base import OneBase
from onebase.records import Example, LowerStates, TreeBatch


def lay_out(base: OneBase, examples: Sequence[Example]) -> TreeBatch:
    """The examples as a batch in the layout that is exact for this base, on its device."""
    if base.packs:
        num_tokens = sum(example.num_tokens for example in examples)
        return build_tree_batch(examples, max_row_tokens=num_tokens).to(base.device)
    chosen = examples if base.layout == "tree" else separate(examples)
    return build_tree_batch(chosen).to(base.device)


def split_to_fit(base: OneBase, examples: Sequence[Example], token_budget: int) -> list[list[int]]:
    """Microbatches of at most `token_budget` tokens, padding included where this base needs any."""
    return microbatch_indices(examples, token_budget, layout="packed" if base.packs else base.layout)


def num_counted(examples: Sequence[Example]) -> int:
    """Completion tokens that count, over all examples: the normaliser of a step."""
    return sum(
        sum(map(len, example.completions)) if example.counted is None else sum(map(sum, example.counted))
        for example in examples
    )


def with_lower_states(base: OneBase, examples: Sequence[Example], *, role: str, token_budget: int) -> list[Example]:
    """The examples with what the layers below the role's adapter make of them, for all roles that have none there.

    Unchanged where the role adapts the lowest layer, or where transformers runs the model.
    """
    if not base.packs:
        return list(examples)
    with base.role(role):
        num_layers = base.decoder.num_plain_layers()  # type: ignore[union-attr]
    if num_layers == 0:
        return list(examples)
    found: dict[int, Example] = {}
    for indices in split_to_fit(base, examples, token_budget):
        chosen = [examples[i] for i in indices]
        lower = base.decoder.lower_states(lay_out(base, chosen), num_layers)  # type: ignore[union-attr]
        parts = lower.states.split([example.num_tokens for example in chosen])
        for i, part in zip(indices, parts, strict=True):
            found[i] = replace(examples[i], lower=LowerStates(num_layers, part.clone()))
    return [found[i] for i in range(len(examples))]


@torch.no_grad()
def per_example(
    base: OneBase,
    examples: Sequence[Example],
    function: Callable[[TreeBatch], Tensor],
    *,
    token_budget: int,
    per_completion: bool = False,
    numbers_per_token: int = 1,
) -> list[Tensor]:
    """Runs `function` (batch -> `[M * numbers_per_token]`, or `[N]` with `per_completion`) over all examples, without
    gradient.

    Returns:
        One tensor per example on CPU: its counted tokens' numbers, completion by completion, or one per completion.
    """
    mine = processes.share([example.num_tokens for example in examples])
    results: dict[int, Tensor] = {}
    for part_of_mine in split_to_fit(base, [examples[i] for i in mine], token_budget):
        indices = [mine[i] for i in part_of_mine]
        chosen = [examples[i] for i in indices]
        flat = function(lay_out(base, chosen)).float().cpu()
        sizes = [len(e.completions) if per_completion else num_counted([e]) * numbers_per_token for e in chosen]
        for i, part in zip(indices, flat.split(sizes), strict=True):
            results[i] = part
    return processes.gather_items([results[i] for i in mine], mine, len(examples))
