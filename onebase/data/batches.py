"""Chooses the examples of each optimizer step, and splits them to fit memory.

A **minibatch** is one optimizer step; a **microbatch** is what fits in memory at once. The user chooses the minibatch,
which changes the result; microbatches only split it and never do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from onebase.records import Example
from onebase.seeds import mixed_seed


def num_minibatches(num_examples: int, size: int) -> int:
    """Minibatches per epoch; the last may be smaller."""
    return -(-num_examples // size)


def minibatch_indices(step: int, *, num_examples: int, size: int, seed: int) -> list[int]:
    """The examples of optimizer step `step`, counted from 0. A pure function, so the step number is the data cursor.

    Each epoch visits every example once, in an order drawn from `(seed, epoch)`.
    """
    epoch, position = divmod(step, num_minibatches(num_examples, size))
    order = _epoch_order(num_examples, mixed_seed("order", seed, epoch))
    return order[position * size : (position + 1) * size].tolist()


@lru_cache(maxsize=4)
def _epoch_order(num_examples: int, seed: int) -> Tensor:
    # Kept for the epoch's other steps: permuting a hundred million examples takes seconds.
    return torch.randperm(num_examples, generator=torch.Generator().manual_seed(seed))


def microbatch_indices(examples: Sequence[Example], max_tokens: int, *, layout: str = "tree") -> list[list[int]]:
    """Splits examples into batches of at most `max_tokens` tokens, counted as rows times the longest row, or in layout
    `packed` as the sum of the trees.

    Examples are sorted by length, so neighbouring rows are about equally long and need little padding. An example
    longer than the budget gets its own batch.
    """
    shapes = [row_shape(example, layout) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (-shapes[i][1], i))
    batches: list[list[int]] = []
    rows = width = 0
    for i in order:
        # A batch's first example has the longest row and sets the width.
        if layout == "packed" and batches and width + shapes[i][1] <= max_tokens:
            batches[-1].append(i)
            width += shapes[i][1]
        elif layout != "packed" and batches and (rows + shapes[i][0]) * width <= max_tokens:
            batches[-1].append(i)
            rows += shapes[i][0]
        else:
            batches.append([i])
            rows, width = shapes[i]
    return batches


def row_shape(example: Example, layout: str) -> tuple[int, int]:
    """How many rows an example takes (one for its tree, or one per completion) and the tokens of the longest."""
    if layout != "separate":
        return 1, example.num_tokens
    return len(example.completions), len(example.prompt_ids) + max(map(len, example.completions))
