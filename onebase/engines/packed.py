"""The engine that runs Llama-like models without padding, in our own loop over their layers (`decoder.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from onebase.engines.captured import CapturedDecoding
from onebase.engines.decoder import Decoder, Layer
from onebase.engines.slots import SlotCache, kv_bytes
from onebase.models.base import OneBase
from onebase.records import LowerStates, TreeBatch


class PackedEngine:
    """Runs `role` of a base that `Decoder.runs` accepts; see `engine.Engine` for the methods."""

    def __init__(self, base: OneBase, role: str) -> None:
        self._base, self._role = base, role
        self._decoder = Decoder(base.model, flex=base.flex)

    def states(self, batch: TreeBatch, place: Tensor, completion: Tensor) -> Tensor:
        with self._base.role(self._role):
            return self._decoder.states(batch, place, recompute=self._base.recomputes)

    def num_plain_layers(self) -> int:
        """How many of the lowest layers the role does not adapt."""
        with self._base.role(self._role):
            adapted = [layer.is_adapted for layer in self._decoder.layers()]
        return adapted.index(True) if True in adapted else len(adapted)

    def lower_states(self, batch: TreeBatch, num_layers: int) -> LowerStates:
        """The lowest layers' output for a batch: the same for every role that adapts none of them. No gradient."""
        with self._base.role(self._role):
            return self._decoder.lower_states(batch, num_layers)

    def slot_bytes(self, length: int) -> int:
        return kv_bytes(self._base.model, length)

    def decode(self, *, max_slots: int, max_length: int) -> PackedDecoding | CapturedDecoding:
        with self._base.role(self._role):
            layers = self._decoder.layers()
        kind = PackedDecoding if self._base.device.type == "cpu" else CapturedDecoding
        return kind(self._decoder, layers, max_slots=max_slots, max_length=max_length)


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
