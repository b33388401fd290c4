"""Decoding with the packed engine on a CPU: a prompt's keys and values are kept once, for all its completions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from onebase.engines.decoder import Decoder, Layer
from onebase.engines.forked_cache import ForkedCache


class PackedDecoding:
    """Decodes with every layer's weights, base and adapter, gathered once."""

    def __init__(self, decoder: Decoder, layers: Sequence[Layer], *, max_slots: int) -> None:
        self._decoder, self._layers = decoder, layers
        self._max_slots = max_slots
        self._cache: ForkedCache | None = None

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        last, filled = self._decoder.prefill(prompts)
        if self._cache is None:
            self._cache = ForkedCache(filled, max_rows=self._max_slots)
        self._cache.admit(filled, [len(prompt) for prompt in prompts], copies=copies)
        return last.repeat_interleave(copies, dim=0)

    def step(self, ids: Tensor) -> Tensor:
        cache = self._filled
        positions = cache.begin_step()
        hidden = self._decoder.step(self._layers, ids, positions, cache.read)
        cache.end_step()
        return hidden

    def keep(self, slots: Sequence[int]) -> None:
        self._filled.keep(slots)

    @property
    def _filled(self) -> ForkedCache:
        assert self._cache is not None, "nothing was prefilled"
        return self._cache
