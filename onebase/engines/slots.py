"""Keys and values of the rows being decoded, each row with its own length, in buffers allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

MOST_BLOCKS = 4
FEWEST_ROWS = 8
"""Per block of rows that attention reads together."""


class _SlotLayer(CacheLayerMixin):
    """One layer's buffers `[max_rows, kv heads, max_length, head size]`; rows 0..B-1 are in use."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, like_keys: Tensor, like_values: Tensor, max_rows: int, max_length: int) -> None:
        super().__init__()
        self.keys, self.values = (
            like.new_zeros(max_rows, like.shape[1], max_length, like.shape[2]) for like in (like_keys, like_values)
        )
        self.is_initialized = True
        self.rows = torch.zeros(0, dtype=torch.long)
        self.columns = torch.zeros(0, dtype=torch.long)
        self.view_length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes one new token per row at that row's column; returns the keys and values attention reads."""
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
    """Slots for rows that come and go. `lengths [B]` counts the tokens stored for each row in use.

    Args:
        like: each layer's keys and values, `[any, kv heads, d]`, as a pattern for the buffers.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], *, max_rows: int, max_length: int) -> None:
        self.slots = [_SlotLayer(keys, values, max_rows, max_length) for keys, values in like]
        super().__init__(layers=list(self.slots))
        self.lengths = torch.zeros(0, dtype=torch.long, device=self.slots[0].keys.device)

    def admit(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Tensor, *, copies: int) -> None:
        """Puts each prompt's keys and values into `copies` slots.

        Args:
            prefilled: each layer's keys and values `[T, kv heads, d]`, the prompts end to end.
            lengths: `[B]`, one per prompt.
        """
        prompts, columns = places_end_to_end(lengths)
        for copy in range(copies):
            rows = len(self.lengths) + prompts * copies + copy
            for slot, (keys, values) in zip(self.slots, prefilled, strict=True):
                slot.keys[rows, :, columns] = keys
                slot.values[rows, :, columns] = values
        self.lengths = torch.cat([self.lengths, lengths.repeat_interleave(copies)])

    def begin_step(self) -> Tensor:
        """Prepares one new token per row; returns the columns each row sees, `[B, 1, 1, L]` bool."""
        view_length = int(self.lengths.max()) + 1
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        for slot in self.slots:
            slot.rows, slot.columns, slot.view_length = rows, self.lengths, view_length
        columns = torch.arange(view_length, device=self.lengths.device)
        return (columns[None, :] <= self.lengths[:, None])[:, None, None, :]

    def blocks(self) -> list[tuple[slice, int]]:
        """The rows in use, split into a few blocks, and how many columns each block's longest row sees.

        Attention then reads each block only as far as that block's longest row, not the longest of all.
        """
        lengths = (self.lengths + 1).tolist()
        size = max(FEWEST_ROWS, -(-len(lengths) // MOST_BLOCKS))
        return [(slice(i, i + size), max(lengths[i : i + size])) for i in range(0, len(lengths), size)]

    def end_step(self) -> None:
        self.lengths = self.lengths + 1

    def keep(self, kept: Tensor) -> None:
        """Drops all other rows (`kept` holds indices in order) and closes the gaps; only rows that move are copied."""
        target = torch.arange(len(kept), device=kept.device)
        moved = kept != target
        if bool(moved.any()):
            sources, targets, width = kept[moved], target[moved], int(self.lengths.max())
            for slot in self.slots:
                slot.keys[targets, :, :width] = slot.keys[sources, :, :width]
                slot.values[targets, :, :width] = slot.values[sources, :, :width]
        self.lengths = self.lengths[kept]


def places_end_to_end(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Which sequence each token is in and where in it, for sequences laid end to end: two tensors `[T]`."""
    which = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)
    starts = lengths.cumsum(0) - lengths
    return which, torch.arange(len(which), device=lengths.device) - starts[which]


def keys_and_values(cache: DynamicCache, lengths: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values `[T, kv heads, d]`: the rows end to end, cut to their lengths `[B]`."""
    pairs = []
    row, column = places_end_to_end(lengths)
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor), "every layer of this model has keys and values"
        pairs.append((keys[row, :, column], values[row, :, column]))
    return pairs


def kv_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes that the keys and values of `length` tokens take."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_size * model.dtype.itemsize * length
