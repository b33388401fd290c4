"""Decoding from prompts kept once: a row reads what attention over its whole sequence reads, whoever comes and goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from onebase.engines.forked_cache import FIRST_COLUMNS, ForkedCache

NUM_LAYERS, HEADS, SIZE, SCALING = 2, 4, 8, 0.3


class Rows:
    """Every row's keys and values whole, as a reference."""

    def __init__(self, key_heads: int, dtype: torch.dtype) -> None:
        self.key_heads, self.dtype = key_heads, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.cache = ForkedCache([(self.drawn(1), self.drawn(1))] * NUM_LAYERS, max_rows=12)
        self.kept: list[list[tuple[Tensor, Tensor]]] = []
        """For each row, each layer's keys and values `[tokens, kv heads, d]`."""

    def drawn(self, *shape: int, heads: int | None = None) -> Tensor:
        size = (*shape, heads or self.key_heads, SIZE)
        return torch.randn(size, generator=self.generator).mul_(2).to(self.dtype)

    def admit(self, lengths: list[int], copies: int) -> None:
        layers = [(self.drawn(sum(lengths)), self.drawn(sum(lengths))) for _ in range(NUM_LAYERS)]
        self.cache.admit(layers, lengths, copies=copies)
        start = 0
        for length in lengths:
            own = [(keys[start : start + length], values[start : start + length]) for keys, values in layers]
            self.kept += [list(own) for _ in range(copies)]
            start += length

    def step(self) -> float:
        """Reads one token for every row; returns the largest difference from the reference."""
        positions = self.cache.begin_step()
        assert positions.tolist() == [len(row[0][0]) for row in self.kept]
        largest = 0.0
        for i in range(NUM_LAYERS):
            count = len(self.kept)
            query, key, value = self.drawn(count, heads=HEADS), self.drawn(count), self.drawn(count)
            found = self.cache.read(i, query, key, value, SCALING)
            for row, kept in enumerate(self.kept):
                keys, values = (
                    torch.cat([old, new[row][None]]) for old, new in zip(kept[i], (key, value), strict=True)
                )
                kept[i] = keys, values
                largest = max(largest, float((found[row].double() - reference(query[row], keys, values)).abs().max()))
            assert found.dtype == self.dtype and found.shape == query.shape
        self.cache.end_step()
        return largest

    def keep(self, rows: list[int]) -> None:
        self.cache.keep(rows)
        self.kept = [self.kept[row] for row in rows]


def reference(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of one token `[heads, d]` in float64."""
    repeated = [x.double().repeat_interleave(HEADS // keys.shape[1], dim=1) for x in (keys, values)]
    weights = torch.einsum("hd,thd->ht", query.double(), repeated[0]).mul(SCALING).softmax(-1)
    return torch.einsum("ht,thd->hd", weights, repeated[1])


@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
def test_rows_read_their_prompt_and_their_own_tokens_whoever_comes_and_goes(
    dtype: torch.dtype, close: float, key_heads: int
) -> None:
    rows = Rows(key_heads, dtype)
    rows.admit([9, 5, 1], 3)
    assert max(rows.step() for _ in range(4)) < close
    rows.keep([0, 1, 2, 5, 8])  # one row of the second prompt and one of the third are left
    assert max(rows.step() for _ in range(2)) < close
    rows.admit([6, 2], 2)
    assert max(rows.step() for _ in range(3)) < close
    rows.keep([3, 6])  # of five prompts, two are left
    assert len(rows.cache._prompt_lengths) == 2 and rows.step() < close
    rows.admit([30], 1)  # longer than any before it
    assert max(rows.step() for _ in range(FIRST_COLUMNS)) < close  # more own tokens than there was room for at first
    rows.keep([2])
    assert rows.step() < close
    rows.keep([])
    rows.admit([4], 2)
    assert rows.step() < close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_completion_of_each_prompt_reads_the_same_way(dtype: torch.dtype) -> None:
    rows = Rows(2, dtype)
    rows.admit([7, 7, 3, 2, 1, 1, 1], 1)
    assert max(rows.step() for _ in range(3)) < (1e-5 if dtype == torch.float32 else 0.06)


def test_a_prompt_is_kept_once_for_all_its_rows() -> None:
    rows = Rows(2, torch.float32)
    rows.admit([50, 20], 6)
    layer = rows.cache._layers[0]
    assert layer.prompt_keys.shape == (2, 2, 50, SIZE) and layer.keys.shape == (12, 2, FIRST_COLUMNS, SIZE)
