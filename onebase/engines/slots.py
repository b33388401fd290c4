"""Keys and values of the rows being decoded, each row with its own length, in buffers allocated once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache

from onebase.models.base_config import attention_heads
from onebase.transfer import to_device


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
    """Slots for rows that come and go. The lengths are known here too, so that nothing waits for the device.

    Args:
        like: each layer's keys and values, `[any, kv heads, d]`, as a pattern for the buffers.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], *, max_rows: int, max_length: int) -> None:
        self.slots = [_SlotLayer(keys, values, max_rows, max_length) for keys, values in like]
        super().__init__(layers=list(self.slots))
        self.counts: list[int] = []
        """Tokens stored for each row in use."""
        self.all_lengths = torch.zeros(max_rows, dtype=torch.long, device=self.slots[0].keys.device)
        """The same on the device, `[max_rows]`; 0 for rows not in use."""

    @property
    def lengths(self) -> Tensor:
        """Tokens stored for each row in use, `[B]`."""
        return self.all_lengths[: len(self.counts)]

    def admit(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], *, copies: int) -> None:
        """Puts each prompt's keys and values into `copies` slots.

        Args:
            prefilled: each layer's keys and values `[T, kv heads, d]`, the prompts end to end.
            lengths: `[B]`, one per prompt.
        """
        device, first = self.all_lengths.device, len(self.counts)
        prompts, columns = (to_device(x, device) for x in places_end_to_end(lengths))
        for copy in range(copies):
            rows = first + prompts * copies + copy
            for slot, (keys, values) in zip(self.slots, prefilled, strict=True):
                slot.keys[rows, :, columns] = keys
                slot.values[rows, :, columns] = values
        self.counts += [length for length in lengths for _ in range(copies)]
        self.all_lengths[first : len(self.counts)] = to_device(torch.tensor(self.counts[first:]), device)

    def begin_step(self) -> Tensor:
        """Prepares one new token per row; returns the columns each row sees, `[B, 1, 1, L]` bool."""
        view_length, lengths = max(self.counts) + 1, self.lengths
        rows = torch.arange(len(lengths), device=lengths.device)
        for slot in self.slots:
            slot.rows, slot.columns, slot.view_length = rows, lengths, view_length
        columns = torch.arange(view_length, device=lengths.device)
        return (columns[None, :] <= lengths[:, None])[:, None, None, :]

    def end_step(self) -> None:
        self.lengths.add_(1)
        self.counts = [count + 1 for count in self.counts]

    def keep(self, kept: Sequence[int]) -> None:
        """Drops all other rows (`kept` holds indices in order) and closes the gaps; only rows that move are copied."""
        moved = [(source, target) for target, source in enumerate(kept) if source != target]
        if moved:
            sources, targets = to_device(torch.tensor(moved), self.all_lengths.device).t()
            width = max(self.counts)
            for slot in self.slots:
                slot.keys[targets, :, :width] = slot.keys[sources, :, :width]
                slot.values[targets, :, :width] = slot.values[sources, :, :width]
        self.counts = [self.counts[i] for i in kept]
        self.all_lengths.zero_()
        self.lengths.copy_(to_device(torch.tensor(self.counts, dtype=torch.long), self.all_lengths.device))


def places_end_to_end(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which sequence each token is in and where in it, for sequences laid end to end: two tensors `[T]` on the CPU."""
    sizes = torch.tensor(lengths, dtype=torch.long)
    which = torch.arange(len(sizes)).repeat_interleave(sizes)
    return which, torch.arange(len(which)) - (sizes.cumsum(0) - sizes)[which]


def keys_and_values(cache: DynamicCache, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Each layer's keys and values `[T, kv heads, d]`: the rows end to end, cut to their lengths `[B]`."""
    pairs = []
    places = places_end_to_end(lengths)
    for layer in cache.layers:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        assert isinstance(keys, Tensor) and isinstance(values, Tensor), "every layer of this model has keys and values"
        row, column = (to_device(place, keys.device) for place in places)
        pairs.append((keys[row, :, column], values[row, :, column]))
    return pairs


def kv_bytes(model: PreTrainedModel, length: int) -> int:
    """Bytes that the keys and values of `length` tokens take."""
    _, key_heads, head_size = attention_heads(model.config)
    num_layers = model.config.get_text_config().num_hidden_layers
    return 2 * num_layers * key_heads * head_size * model.dtype.itemsize * length
