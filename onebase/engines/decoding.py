"""Decoding with the packed engine: keys and values in slots, each row read as far as it goes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from onebase.engines.decoder import Decoder, Layer
from onebase.engines.slots import SlotCache


class PackedDecoding:
    """Decodes with every layer's weights, base and adapter, gathered once."""

    def __init__(self, decoder: Decoder, layers: Sequence[Layer], *, max_slots: int, max_length: int) -> None:
        self._decoder, self._layers = decoder, layers
        self._max_slots, self._max_length = max_slots, max_length
        self._filled: SlotCache | None = None

    @property
    def cache(self) -> SlotCache:
        assert self._filled is not None, "nothing was prefilled"
        return self._filled

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        last, filled = self._decoder.prefill(prompts)
        if self._filled is None:
            self._filled = SlotCache(filled, max_rows=self._max_slots, max_length=self._max_length)
        self._filled.admit(filled, [len(prompt) for prompt in prompts], copies=copies)
        return last.repeat_interleave(copies, dim=0)

    def step(self, ids: Tensor) -> Tensor:
        cache = self.cache
        allowed, blocks = cache.begin_step(), cache.blocks()

        def read(i: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
            keys, values = cache.slots[i].update(key[:, :, None], value[:, :, None])
            reads = [
                scaled_dot_product_attention(
                    query[rows, :, None],
                    keys[rows, :, :length],
                    values[rows, :, :length],
                    attn_mask=mask[rows, ..., :length],
                    scale=scaling,
                    enable_gqa=keys.shape[1] != query.shape[1],
                )
                for rows, length in blocks
            ]
            return torch.cat(reads)

        # An additive mask is used as it is; a boolean one would be converted to it in every layer.
        mask = torch.zeros(allowed.shape, dtype=self._decoder.dtype, device=ids.device).masked_fill_(
            ~allowed, -torch.inf
        )
        hidden = self._decoder.step(self._layers, ids, cache.lengths, read)
        cache.end_step()
        return hidden

    def keep(self, slots: Sequence[int]) -> None:
        self.cache.keep(slots)
