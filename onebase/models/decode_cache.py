"""The keys and values of the rows being decoded, each row at its own length, in buffers allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


class _SlotLayer(CacheLayerMixin):
    """One layer's buffers `[max_rows, kv heads, max_length, head size]`; rows 0..B-1 are in use."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, like_keys: Tensor, like_values: Tensor, max_rows: int, max_length: int) -> None:
        super().__init__()
        self.keys = like_keys.new_zeros(max_rows, like_keys.shape[1], max_length, like_keys.shape[3])
        self.values = like_values.new_zeros(max_rows, like_values.shape[1], max_length, like_values.shape[3])
        self.is_initialized = True
        self.rows = torch.zeros(0, dtype=torch.long)
        self.columns = torch.zeros(0, dtype=torch.long)
        self.view_length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one new token per row at that row's own column; returns what attention reads."""
        self.keys[self.rows, :, self.columns] = key_states[:, :, 0]
        self.values[self.rows, :, self.columns] = value_states[:, :, 0]
        num_rows = len(self.rows)
        return self.keys[:num_rows, :, : self.view_length], self.values[:num_rows, :, : self.view_length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("the buffers exist from the start")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.view_length, 0

    def get_seq_length(self) -> int:
        return self.view_length

    def get_max_length(self) -> int:
        return -1


class SlotCache(Cache):
    """Slots for rows that come and go. `lengths [B]` counts the tokens each row in use has stored.

    Args:
        like: keys and values of each layer, for the shapes.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], *, max_rows: int, max_length: int) -> None:
        self.slots = [_SlotLayer(keys, values, max_rows, max_length) for keys, values in like]
        super().__init__(layers=list(self.slots))
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.slots[0].keys.device)

    def admit(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Tensor, *, copies: int) -> None:
        """Copies each row of each layer's keys and values, padded behind `lengths`, into `copies` slots."""
        start, width = len(self.lengths), int(lengths.max())
        stop = start + len(lengths) * copies
        for slot, (keys, values) in zip(self.slots, prefilled, strict=True):
            slot.keys[start:stop, :, :width] = keys[:, :, :width].repeat_interleave(copies, dim=0)
            slot.values[start:stop, :, :width] = values[:, :, :width].repeat_interleave(copies, dim=0)
        self.lengths = torch.cat([self.lengths, lengths.repeat_interleave(copies)])

    def begin_step(self) -> Tensor:
        """Prepares one new token per row; returns which columns each row sees, `[B, 1, 1, L]` bool."""
        view_length = int(self.lengths.max()) + 1
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        for slot in self.slots:
            slot.rows, slot.columns, slot.view_length = rows, self.lengths, view_length
        columns = torch.arange(view_length, device=self.lengths.device)
        return (columns[None, :] <= self.lengths[:, None])[:, None, None, :]

    def end_step(self) -> None:
        self.lengths = self.lengths + 1

    def keep(self, kept: Tensor) -> None:
        """Drops all rows but these (indices in order) and closes the gaps; only rows that move are copied."""
        target = torch.arange(len(kept), device=kept.device)
        moved = kept != target
        if bool(moved.any()):
            sources, targets, width = kept[moved], target[moved], int(self.lengths.max())
            for slot in self.slots:
                slot.keys[targets, :, :width] = slot.keys[sources, :, :width]
                slot.values[targets, :, :width] = slot.values[sources, :, :width]
        self.lengths = self.lengths[kept]


def keys_and_values(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Each layer's `[B, kv heads, T, d]`."""
    pairs = []
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor), "every layer of this model has keys and values"
        pairs.append((keys, values))
    return pairs
