"""Lays trees from `data/tree.py` in padded rows, as transformers models read them.

layout `tree`       a row per tree, with the tree's mask
layout `separate`   a row per completion, each after its own copy of the prompt, for models that trees are not exact for
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from onebase.records import TreeBatch


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch's tokens in `R` rows of `C` columns, padded on the right."""

    input_ids: Tensor
    """`[R, C]` int64; 0 on padding."""
    position_ids: Tensor
    """`[R, C]` int64. Padding continues the count, so a row with one completion has positions 0..C-1."""
    branch: Tensor
    """`[R, C]` int64, as in the batch; 0 on padding."""
    is_token: Tensor
    """`[R, C]` bool, False on padding."""
    row: Tensor
    """`[N]` int64, the row that holds each completion."""
    start: Tensor
    """`[N]` int64, the place in the batch where that row's tree begins."""
    skipped: Tensor
    """`[N]` int64, how many places of other completions lie between the prompt and this completion; the row leaves them
    out. 0 in layout `tree`."""
    first: Tensor
    """`[N]` int64, the place of each completion's first token."""
    longest: int
    """Tokens in the longest prompt and completion together: its positions are 0..longest-1."""

    def locate(self, place: Tensor, completion: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column, each `[m]`, of the batch's places `[m]`, in the row of the completion `[m]` each is read for.

        In layout `separate` a prompt is in every completion's row, and its last state is read in each.
        """
        behind_prompt = place >= self.first[completion]
        left_out = torch.where(behind_prompt, self.skipped[completion], 0)
        return self.row[completion], place - self.start[completion] - left_out


def lay_in_rows(batch: TreeBatch, layout: str) -> Rows:
    """Lays a batch's trees in rows: one per tree, or in layout `separate` one per completion."""
    device, num_places = batch.input_ids.device, len(batch.input_ids)
    start = batch.start[batch.tree_index]  # [N]
    if layout == "separate":
        row, row_start = torch.arange(batch.num_completions, device=device), start
        prompt = batch.prompt_length[batch.tree_index]
        skipped = batch.first - start - prompt
        length = prompt + batch.last + 1 - batch.first
    else:
        row, row_start = batch.tree_index, batch.start
        ends = torch.cat([batch.start[1:], torch.full((1,), num_places, device=device)])
        length = prompt = ends - batch.start
        skipped = torch.zeros_like(start)
    columns = torch.arange(batch.longest if layout == "separate" else max(batch.tree_lengths), device=device)
    jump = skipped[:, None] if layout == "separate" else 0
    place = row_start[:, None] + columns + torch.where(columns >= prompt[:, None], jump, 0)
    is_token = columns < length[:, None]
    place = torch.where(is_token, place, 0)
    past_the_end = columns.clamp(max=batch.longest - 1)
    return Rows(
        input_ids=torch.where(is_token, batch.input_ids[place], 0),
        position_ids=torch.where(is_token, batch.position_ids[place], past_the_end),
        branch=torch.where(is_token, batch.branch[place], 0),
        is_token=is_token,
        row=row,
        start=start,
        skipped=skipped,
        first=batch.first,
        longest=batch.longest,
    )


def attention_mask(rows: Rows, *, window: int | None = None) -> Tensor:
    """`[R, 1, C, C]` bool, True where query i (third axis) may attend to key j (fourth axis).

    `window` limits the distance in positions, not columns, for models with sliding-window attention. A padding token
    attends to itself, so that no softmax row is empty.
    """
    num_columns = rows.branch.shape[1]
    order = torch.arange(num_columns, device=rows.branch.device)
    causal = order[:, None] >= order[None, :]  # [C, C]
    visible = (rows.branch[:, None, :] == 0) | (rows.branch[:, None, :] == rows.branch[:, :, None])
    allowed = causal & visible & rows.is_token[:, :, None]
    if window is not None:
        allowed &= rows.position_ids[:, :, None] - rows.position_ids[:, None, :] < window
    return (allowed | torch.eye(num_columns, dtype=torch.bool, device=allowed.device))[:, None]
