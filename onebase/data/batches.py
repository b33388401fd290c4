"""Which examples meet in an optimizer step, and how they are split to fit memory.

A **minibatch** is one optimizer step; a **microbatch** is what fits in memory at once. The first is chosen by the
user and changes the result; the second is only a split of the first and never does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from onebase.records import Example


def num_minibatches(num_examples: int, size: int) -> int:
    """Minibatches of an epoch; the last may be smaller."""
    return -(-num_examples // size)


def minibatch_indices(step: int, *, num_examples: int, size: int, seed: int) -> list[int]:
    """The examples of optimizer step `step`, counted from 0: a pure function, so a step number is a data cursor.

    Every epoch visits each example once, in an order drawn from `(seed, epoch)`.
    """
    epoch, position = divmod(step, num_minibatches(num_examples, size))
    generator = torch.Generator().manual_seed(mixed_seed("order", seed, epoch))
    order = torch.randperm(num_examples, generator=generator)
    return order[position * size : (position + 1) * size].tolist()


def mixed_seed(stream: str, *numbers: int) -> int:
    """A seed below 2**32 that depends on every bit of the numbers: torch's CPU generator reads the low 32 bits alone.

    Args:
        stream: names what is drawn, so that the same numbers give another use another seed.
    """
    name = "/".join([stream, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")


def microbatch_indices(examples: Sequence[Example], max_tokens: int, *, layout: str = "tree") -> list[list[int]]:
    """Splits examples into batches of at most `max_tokens` tokens: rows times the longest row, or where trees are
    `packed` end to end their sum.

    Sorted by length, so that a row's neighbours are about as long as it is and little is padding. An example longer
    than the budget gets a batch of its own.
    """
    shapes = [row_shape(example, layout) for example in examples]
    order = sorted(range(len(examples)), key=lambda i: (-shapes[i][1], i))
    batches: list[list[int]] = []
    rows = width = 0
    for i in order:
        # The first of a batch has the longest row, and sets the width of all.
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
    """Rows an example takes and the tokens of its longest: one tree, or a row per completion."""
    if layout != "separate":
        return 1, example.num_tokens
    return len(example.completions), len(example.prompt_ids) + max(map(len, example.completions))
