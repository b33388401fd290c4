"""The keys and values of the rows being decoded, each row at its own length, in buffers allocated once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class _SlotLayer(CacheLayerMixin):
    """One layer's buffers `[max_rows, kv heads, max_length, head size]`; rows 0..B-1 are in use."""

    is_sliding = False

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
        assert self.keys is not None and self.values is not None
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
        like: a filled cache of the model, for the shapes.
    """

    def __init__(self, like: Cache, *, max_rows: int, max_length: int) -> None:
        super().__init__(layers=[_SlotLayer(layer.keys, layer.values, max_rows, max_length) for layer in like.layers])
        self.lengths = torch.zeros(0, dtype=torch.long, device=like.layers[0].keys.device)

    def admit(self, prefilled: Cache, lengths: Tensor, *, copies: int) -> None:
        """Copies each row of `prefilled` (padded on the right, `lengths` real tokens) into `copies` new slots."""
        start, width = len(self.lengths), int(lengths.max())
        stop = start + len(lengths) * copies
        for layer, source in zip(self.layers, prefilled.layers, strict=True):
            layer.keys[start:stop, :, :width] = source.keys[:, :, :width].repeat_interleave(copies, dim=0)
            layer.values[start:stop, :, :width] = source.values[:, :, :width].repeat_interleave(copies, dim=0)
        self.lengths = torch.cat([self.lengths, lengths.repeat_interleave(copies)])

    def begin_step(self) -> Tensor:
        """Prepares one new token per row; returns which columns each row sees, `[B, 1, 1, L]` bool."""
        view_length = int(self.lengths.max()) + 1
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        for layer in self.layers:
            layer.rows, layer.columns, layer.view_length = rows, self.lengths, view_length
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
            for layer in self.layers:
                layer.keys[targets, :, :width] = layer.keys[sources, :, :width]
                layer.values[targets, :, :width] = layer.values[sources, :, :width]
        self.lengths = self.lengths[kept]
