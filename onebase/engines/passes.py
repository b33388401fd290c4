"""Forward passes over any number of examples, in microbatches that fit; results return in the examples' order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch, laid
from onebase.engines.budget import TokenBudget
from onebase.engines.engine import packs
from onebase.engines.packed import PackedEngine
from onebase.models.base import OneBase
from onebase.records import Example, LowerStates, TreeBatch


def lay_out(base: OneBase, examples: Sequence[Example]) -> TreeBatch:
    """Lays the examples out as one batch on the base's device."""
    return build_tree_batch(examples).to(base.device)


def num_counted(examples: Sequence[Example]) -> int:
    """Counted completion tokens over all examples: a step's normaliser."""
    return sum(example.num_counted for example in examples)


def with_lower_states(base: OneBase, examples: Sequence[Example], *, role: str, budget: TokenBudget) -> list[Example]:
    """The examples with the hidden states of the layers below the role's adapter, for all roles without one there.

    If the role adapts the lowest layer, or transformers runs it, the examples are only laid out.
    """
    examples = laid(examples)
    if not packs(base, role):
        return examples
    engine = PackedEngine(base, role)
    num_layers = engine.num_plain_layers()
    if num_layers == 0:
        return examples
    found: dict[int, Example] = {}
    for indices in budget.split(base, examples):
        chosen = [examples[i] for i in indices]
        lower = engine.lower_states(lay_out(base, chosen), num_layers)
        of_trees = lower.states.split([example.num_tokens for example in chosen])
        for i, example, states in zip(indices, chosen, of_trees, strict=True):
            assert example.tree is not None
            tree = replace(example.tree, lower=LowerStates(num_layers, states.clone()))
            found[i] = replace(example, tree=tree)
    return [found[i] for i in range(len(examples))]


def per_token(
    base: OneBase,
    examples: Sequence[Example],
    function: Callable[[TreeBatch], Mapping[str, Tensor]],
    *,
    budget: TokenBudget,
) -> dict[str, list[Tensor]]:
    """Runs `function` (batch -> fields by name, each `[M]`) over all examples, without gradient.

    Returns:
        For each field, one CPU tensor per example: its counted tokens' numbers, completion by completion.
    """
    return _over(base, examples, function, [example.num_counted for example in examples], budget)


def per_completion(
    base: OneBase, examples: Sequence[Example], function: Callable[[TreeBatch], Tensor], *, budget: TokenBudget
) -> list[Tensor]:
    """Runs `function` (batch -> `[N]`) over all examples, without gradient.

    Returns:
        One CPU tensor `[K]` per example.
    """
    sizes = [len(example.completions) for example in examples]
    return _over(base, examples, lambda batch: {"": function(batch)}, sizes, budget).get("", [])


@torch.no_grad()
def _over(
    base: OneBase,
    examples: Sequence[Example],
    function: Callable[[TreeBatch], Mapping[str, Tensor]],
    sizes: Sequence[int],
    budget: TokenBudget,
) -> dict[str, list[Tensor]]:
    mine = base.group.share([example.num_tokens for example in examples])
    results: dict[int, dict[str, Tensor]] = {}  # still on the device, which nothing waits for until the end

    longest = max((examples[i].num_tokens for i in mine), default=0)
    for attempt in budget.attempts(longest, can_repeat=not base.is_spread):
        with attempt, base.in_step():
            left = [i for i in mine if i not in results]
            for microbatch in budget.split(base, [examples[i] for i in left]):
                indices = [left[i] for i in microbatch]
                fields = function(lay_out(base, [examples[i] for i in indices]))
                split = {name: flat.float().split([sizes[i] for i in indices]) for name, flat in fields.items()}
                for n, i in enumerate(indices):
                    results[i] = {name: of_examples[n] for name, of_examples in split.items()}
    own = [dict[str, Tensor]() for _ in mine]
    for name in results[mine[0]] if mine else []:
        flat = torch.cat([results[i][name] for i in mine]).cpu()
        for fields, tensor in zip(own, flat.split([sizes[i] for i in mine]), strict=True):
            fields[name] = tensor
    found = base.group.gather_items(own, mine, len(examples))
    return {name: [fields[name] for fields in found] for name in (found[0] if found else {})}
