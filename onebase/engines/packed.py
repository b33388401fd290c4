"""The engine that runs Llama-like models without padding, in our own loop over their layers (`decoder.py`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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

    def decode(self, *, max_slots: int, max_length: int) -> PackedDecoding:
        with self._base.role(self._role):
            layers = self._decoder.layers()
        return PackedDecoding(self._decoder, layers, max_slots=max_slots, max_length=max_length)


class PackedDecoding:
    """Decodes with every layer's weights, base and adapter, gathered once."""

    def __init__(self, decoder: Decoder, layers: Sequence[Layer], *, max_slots: int, max_length: int) -> None:
        self._decoder, self._layers = decoder, layers
        self._max_slots, self._max_length = max_slots, max_length
        self._cache: SlotCache | None = None

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        device = self._decoder.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
        last, filled = self._decoder.prefill(ids, lengths)
        if self._cache is None:
            self._cache = SlotCache(filled, max_rows=self._max_slots, max_length=self._max_length)
        self._cache.admit(filled, lengths, copies=copies)
        return last.repeat_interleave(copies, dim=0)

    def step(self, ids: Tensor) -> Tensor:
        cache = self._cache
        assert cache is not None, "nothing was prefilled"
        hidden = self._decoder.step(self._layers, ids, cache, cache.begin_step())
        cache.end_step()
        return hidden

    def keep(self, slots: Tensor) -> None:
        assert self._cache is not None, "nothing was prefilled"
        self._cache.keep(slots)
