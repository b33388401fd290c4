"""Decoding on a GPU with buffers that never move, so that a step can be recorded once and replayed (a CUDA graph).

A step of a model reading one token per row is hundreds of small kernels; launching them one by one takes longer than
running them. Shapes inside a graph are fixed, so rows are rounded up to a power of two and columns to a multiple of
128, and one graph is recorded for each such size. Rows beyond those in use compute something that nobody reads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from onebase.engines.decoder import Decoder, Layer
from onebase.engines.slots import SlotCache
from onebase.runs.progress import say

FEWEST_ROWS, COLUMNS = 8, 128
RUNS_BEFORE_RECORDING = 2
"""Steps of one size that run as usual first: they load every kernel, and few steps are not worth a recording."""


class CapturedDecoding:
    """Decodes with every layer's weights, base and adapter, gathered once, and replays recorded steps."""

    can_record = True
    """False in a process whose device could not record a step."""

    def __init__(self, decoder: Decoder, layers: Sequence[Layer], *, max_slots: int, max_length: int) -> None:
        self._decoder, self._layers = decoder, layers
        self._max_slots, self._max_length = max_slots, -(-max_length // COLUMNS) * COLUMNS
        self._filled: SlotCache | None = None
        self._ids = torch.zeros(max_slots, dtype=torch.long, device=decoder.device)
        self._runs: Counter[tuple[int, int]] = Counter()
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._records = decoder.device.type == "cuda"
        self._pool = torch.cuda.graph_pool_handle() if self._records else None
        """Shared by all graphs, which run one after another."""

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

    def keep(self, slots: Sequence[int]) -> None:
        self.cache.keep(slots)

    def step(self, ids: Tensor) -> Tensor:
        self._ids[: len(ids)] = ids
        size = self._size()
        due = self._records and self.can_record and self._runs[size] >= RUNS_BEFORE_RECORDING
        if size not in self._graphs and due:
            self._record(size)
        self._runs[size] += 1
        if size in self._graphs:
            graph, hidden = self._graphs[size]
            graph.replay()
            hidden = hidden.clone()  # the next replay writes it again
        else:
            hidden = self._run(*size)
        self.cache.end_step()
        return hidden[: len(ids)]

    def _size(self) -> tuple[int, int]:
        """Rows and columns of the next step."""
        counts = self.cache.counts
        rows = max(FEWEST_ROWS, 1 << (len(counts) - 1).bit_length())
        columns = -(-(max(counts) + 1) // COLUMNS) * COLUMNS
        return min(rows, self._max_slots), columns

    def _run(self, num_rows: int, num_columns: int) -> Tensor:
        """One step over the first rows and columns of the buffers: the states after it, `[rows, H]`."""
        lengths = self.cache.all_lengths[:num_rows]
        rows, columns = (torch.arange(n, device=lengths.device) for n in (num_rows, num_columns))
        hidden = (columns[None, :] > lengths[:, None])[:, None, None, :]
        mask = torch.zeros(hidden.shape, dtype=self._decoder.dtype, device=hidden.device)
        mask.masked_fill_(hidden, -torch.inf)

        def read(i: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
            keys, values = self.cache.slots[i].keys, self.cache.slots[i].values
            keys[rows, :, lengths], values[rows, :, lengths] = key, value
            # The query heads that share a key head are its queries, so no key is copied.
            by_key_head = query.unflatten(1, (keys.shape[1], -1))
            found = scaled_dot_product_attention(
                by_key_head,
                keys[:num_rows, :, :num_columns],
                values[:num_rows, :, :num_columns],
                attn_mask=mask,
                scale=scaling,
            )
            return found.flatten(1, 2)

        # cuDNN's attention would plan anew for every size.
        with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
            return self._decoder.step(self._layers, self._ids[:num_rows], lengths, read)

    def _record(self, size: tuple[int, int]) -> None:
        """Records the step of this size; if the device cannot, all steps go on as before."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool):
                hidden = self._run(*size)
        except RuntimeError as error:  # an operation that waits for the device, in a quantised layer say
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own
            CapturedDecoding.can_record = False
            say(f"decoding runs kernel by kernel: a step could not be recorded as a CUDA graph ({error})")
            return
        self._graphs[size] = graph, hidden
