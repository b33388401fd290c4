"""The prompt tree: K completions laid behind one copy of their prompt.

    input_ids     p0 p1 p2 | a0 a1 a2 | b0 b1
    position_ids   0  1  2 |  3  4  5 |  3  4
    branch         0  0  0 |  1  1  1 |  2  2

A token attends to earlier tokens of the prompt and of its own branch, never to another branch:

    allowed(i, j) = j <= i  and  tree[i] == tree[j]  and  (branch[j] == 0 or branch[j] == branch[i])

so the hidden states are those of K separate rows, and the prompt is paid for once. Positions, masks and the shift by
one token between a prediction and its target are known here and nowhere else in the project.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from onebase.records import Example, LowerStates, TreeBatch


def separate(examples: Sequence[Example]) -> list[Example]:
    """One example per completion: the layout of models for which a tree is not exact."""
    return [
        replace(
            example,
            completions=[completion],
            counted=None if example.counted is None else [example.counted[k]],
            grades=None if example.grades is None else [example.grades[k]],
            lower=None,
        )
        for example in examples
        for k, completion in enumerate(example.completions)
    ]


def build_tree_batch(examples: Sequence[Example], *, pad_id: int = 0, max_row_tokens: int = 0) -> TreeBatch:
    """Lays examples in rows, padded on the right.

    Each example is one tree. A row takes trees in the order given while they fit `max_row_tokens`; with 0 every tree
    has a row of its own. Padding is marked by `tree == -1` and never read from the ids, so any `pad_id` will do.

    Raises:
        ValueError: an example has no prompt token, no completion, or an empty completion.
    """
    rows = _rows(examples, max_row_tokens)
    num_columns = max(sum(examples[i].num_tokens for i in row) for row in rows)
    shape = (len(rows), num_columns)
    input_ids = torch.full(shape, pad_id)
    position_ids = torch.zeros(shape, dtype=torch.long)
    tree = torch.full(shape, -1)
    branch = torch.zeros(shape, dtype=torch.long)
    targets, source_row, source_column, token_column, completion_index = [], [], [], [], []
    last_row: list[int] = []
    last_column: list[int] = []
    example_index: list[int] = []

    for r, row in enumerate(rows):
        column = 0
        for t, e in enumerate(row):
            example = examples[e]
            prompt_length, start = len(example.prompt_ids), column
            ids, positions, branches = list(example.prompt_ids), list(range(prompt_length)), [0] * prompt_length
            for k, completion in enumerate(example.completions):
                first = start + len(ids)
                # The first token of every branch is predicted by the last token of the prompt.
                sources = [start + prompt_length - 1, *range(first, first + len(completion) - 1)]
                counted = None if example.counted is None else example.counted[k]
                for c, token in enumerate(completion):
                    if counted is None or counted[c]:
                        targets.append(token)
                        source_row.append(r)
                        source_column.append(sources[c])
                        token_column.append(first + c)
                        completion_index.append(len(last_row))
                ids += completion
                positions += range(prompt_length, prompt_length + len(completion))
                branches += [k + 1] * len(completion)
                last_row.append(r)
                last_column.append(start + len(ids) - 1)
                example_index.append(e)
            column = start + len(ids)
            input_ids[r, start:column] = torch.tensor(ids)
            position_ids[r, start:column] = torch.tensor(positions)
            branch[r, start:column] = torch.tensor(branches)
            tree[r, start:column] = t

    # Padding goes on counting, so that a row of one completion has positions 0..T-1 and needs no mask of its own.
    columns = torch.arange(num_columns).clamp(max=int(position_ids.max()))
    position_ids = torch.where(tree >= 0, position_ids, columns)

    def column_of(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long)

    return TreeBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        tree=tree,
        branch=branch,
        targets=column_of(targets),
        source_row=column_of(source_row),
        source_column=column_of(source_column),
        token_column=column_of(token_column),
        completion_index=column_of(completion_index),
        last_row=column_of(last_row),
        last_column=column_of(last_column),
        example_index=column_of(example_index),
        lower=_lower_states(examples) if len(rows) == 1 else None,
    )


def _lower_states(examples: Sequence[Example]) -> LowerStates | None:
    """Those of the examples end to end, None unless all have them below the same layer."""
    found = [example.lower for example in examples if example.lower is not None]
    if len(found) < len(examples) or len({lower.num_layers for lower in found}) > 1:
        return None
    return LowerStates(found[0].num_layers, torch.cat([lower.states for lower in found]))


def attention_mask(batch: TreeBatch, *, window: int | None = None) -> Tensor:
    """`[R, 1, T, T]` bool, True where query i (third axis) may attend to key j (fourth axis).

    `window` limits the distance in positions, not in columns, for models with sliding-window attention. A padding
    token attends to itself, so that no row of the softmax is empty.
    """
    num_columns = batch.tree.shape[1]
    order = torch.arange(num_columns, device=batch.tree.device)
    causal = order[:, None] >= order[None, :]  # [T, T]
    same_tree = batch.tree[:, :, None] == batch.tree[:, None, :]  # [R, T, T]
    visible = (batch.branch[:, None, :] == 0) | (batch.branch[:, None, :] == batch.branch[:, :, None])
    allowed = causal & same_tree & visible & (batch.tree >= 0)[:, :, None]
    if window is not None:
        allowed &= batch.position_ids[:, :, None] - batch.position_ids[:, None, :] < window
    return (allowed | torch.eye(num_columns, dtype=torch.bool, device=allowed.device))[:, None]


def is_plain_causal(batch: TreeBatch) -> bool:
    """Whether every row is one prompt with one completion: then the ordinary causal mask is already the tree's."""
    return bool((batch.branch <= 1).all()) and bool((batch.tree <= 0).all())


def _rows(examples: Sequence[Example], max_row_tokens: int) -> list[list[int]]:
    rows: list[list[int]] = []
    used = 0
    for e, example in enumerate(examples):
        if not example.prompt_ids or not example.completions or not all(example.completions):
            place = example.row.place if example.row else f"example {e}"
            raise ValueError(f"{place}: a tree needs a prompt token and completions of at least one token each")
        if rows and used + example.num_tokens <= max_row_tokens:
            rows[-1].append(e)
            used += example.num_tokens
        else:
            rows.append([e])
            used = example.num_tokens
    if not rows:
        raise ValueError("no examples to lay out")
    return rows
