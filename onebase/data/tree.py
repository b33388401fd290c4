"""The prompt tree: K completions after one copy of their prompt.

    input_ids     p0 p1 p2 | a0 a1 a2 | b0 b1
    position_ids   0  1  2 |  3  4  5 |  3  4
    branch         0  0  0 |  1  1  1 |  2  2

A token attends to earlier tokens of the prompt and of its own branch, never to another branch:

    allowed(i, j) = j <= i  and  tree[i] == tree[j]  and  (branch[j] == 0 or branch[j] == branch[i])

so the hidden states equal those of K separate rows, and the prompt is computed once. Only this file knows positions and
the one-token shift between a prediction and its target; `data/rows.py` has the masks.

An example is laid out once (`lay`), and a batch puts trees end to end, the same for every role and engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase.records import Example, LowerStates, Tree, TreeBatch


def separate(examples: Sequence[Example]) -> list[Example]:
    """Splits examples into one per completion."""
    return [
        replace(
            example,
            completions=[completion],
            counted=None if example.counted is None else [example.counted[k]],
            grades=None if example.grades is None else [example.grades[k]],
            tree=None,
        )
        for example in examples
        for k, completion in enumerate(example.completions)
    ]


def lay(example: Example, *, name: str = "example") -> Tree:
    """Lays out one example.

    Args:
        name: what an error calls the example if it has no row with a place.

    Raises:
        ValueError: the example has no prompt token, no completion, or an empty completion.
    """
    if not example.prompt_ids or not example.completions or not all(example.completions):
        place = example.row.place if example.row else name
        raise ValueError(f"{place}: a tree needs a prompt token and completions of at least one token each")
    prompt_length = len(example.prompt_ids)
    ids, positions, branches = list(example.prompt_ids), list(range(prompt_length)), [0] * prompt_length
    targets, source, token, completion_index, firsts, lasts = [], [], [], [], [], []
    for k, completion in enumerate(example.completions):
        first = len(ids)
        # The prompt's last token predicts the first token of every branch.
        sources = [prompt_length - 1, *range(first, first + len(completion) - 1)]
        counted = None if example.counted is None else example.counted[k]
        for c, target in enumerate(completion):
            if counted is None or counted[c]:
                targets.append(target)
                source.append(sources[c])
                token.append(first + c)
                completion_index.append(k)
        ids += completion
        positions += range(prompt_length, prompt_length + len(completion))
        branches += [k + 1] * len(completion)
        firsts.append(first)
        lasts.append(len(ids) - 1)
    return Tree(
        input_ids=_integers(ids),
        position_ids=_integers(positions),
        branch=_integers(branches),
        targets=_integers(targets),
        source=_integers(source),
        token=_integers(token),
        completion_index=_integers(completion_index),
        first=_integers(firsts),
        last=_integers(lasts),
        longest=max(positions) + 1,
    )


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def laid(examples: Sequence[Example]) -> list[Example]:
    """The examples with their trees, for code that passes over them many times."""
    return [replace(example, tree=lay(example, name=f"example {e}")) for e, example in enumerate(examples)]


def build_tree_batch(examples: Sequence[Example]) -> TreeBatch:
    """Puts examples end to end in the given order, laying out those that bring no tree.

    Raises:
        ValueError: as `lay`, or there are no examples.
    """
    if not examples:
        raise ValueError("no examples to lay out")
    trees = [example.tree or lay(example, name=f"example {e}") for e, example in enumerate(examples)]
    sizes = torch.tensor([len(tree.input_ids) for tree in trees])
    counts = torch.tensor([len(tree.last) for tree in trees])
    start, first_completion = sizes.cumsum(0) - sizes, counts.cumsum(0) - counts

    def end_to_end(name: str, offset: Tensor | None = None) -> Tensor:
        found = [getattr(tree, name) for tree in trees]
        flat = torch.cat(found)
        return flat if offset is None else flat + offset.repeat_interleave(torch.tensor([len(f) for f in found]))

    return TreeBatch(
        input_ids=end_to_end("input_ids"),
        position_ids=end_to_end("position_ids"),
        tree=torch.arange(len(trees)).repeat_interleave(sizes),
        branch=end_to_end("branch"),
        targets=end_to_end("targets"),
        source=end_to_end("source", start),
        token=end_to_end("token", start),
        completion_index=end_to_end("completion_index", first_completion),
        first=end_to_end("first", start),
        last=end_to_end("last", start),
        tree_index=torch.arange(len(trees)).repeat_interleave(counts),
        start=start,
        prompt_length=torch.tensor([int(tree.first[0]) for tree in trees]),
        tree_lengths=tuple(len(tree.input_ids) for tree in trees),
        branches=tuple(len(tree.last) for tree in trees),
        longest=max(tree.longest for tree in trees),
        lower=_lower_states(trees),
    )


def _lower_states(trees: Sequence[Tree]) -> LowerStates | None:
    """All trees' lower states end to end; None unless every tree has them, from equally many layers."""
    found = [tree.lower for tree in trees if tree.lower is not None]
    if len(found) < len(trees) or len({lower.num_layers for lower in found}) > 1:
        return None
    return LowerStates(found[0].num_layers, torch.cat([lower.states for lower in found]))


def is_plain_causal(batch: TreeBatch) -> bool:
    """Whether every tree is one prompt with one completion, so that the ordinary causal mask is the tree's mask."""
    return max(batch.branches) == 1
