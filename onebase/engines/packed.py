"""The engine that runs Llama-like models without padding, in our own loop over their layers (`decoder.py`)."""

from __future__ import annotations

from torch import Tensor

from onebase.engines.captured import CapturedDecoding
from onebase.engines.decoder import Decoder
from onebase.engines.decoding import PackedDecoding
from onebase.engines.forked_cache import forked_row_bytes
from onebase.engines.slots import kv_bytes
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

    def slot_bytes(self, prompt_tokens: int, new_tokens: int, *, copies: int) -> int:
        if self._base.device.type == "cpu":
            return forked_row_bytes(self._base.model, prompt_tokens, new_tokens, copies=copies)
        return kv_bytes(self._base.model, prompt_tokens + new_tokens)

    def decode(self, *, max_slots: int, max_length: int) -> PackedDecoding | CapturedDecoding:
        with self._base.role(self._role):
            layers = self._decoder.layers()
        if self._base.device.type == "cpu":
            return PackedDecoding(self._decoder, layers, max_slots=max_slots)
        return CapturedDecoding(self._decoder, layers, max_slots=max_slots, max_length=max_length)
