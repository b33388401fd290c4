"""Keys and values of completions being decoded: a prompt's once for all its completions, and each completion's own.

Attention reads the two parts apart and joins them (`partial_attention.py`). The completions of a prompt are then the
queries of one matrix product with its keys, where a row each would read the same keys K times from memory (Juravsky et
al. 2024, Hydragen).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from onebase.engines.partial_attention import attend, join
from onebase.engines.slots import kv_bytes, places_end_to_end

FIRST_COLUMNS = 32
"""Own tokens a row has room for at first; the room doubles whenever it is full."""
MOST_BLOCKS = 4
FEWEST_PROMPTS = 2
"""Per block of prompts that attention reads together."""
SHARE_IN_USE = 0.75
"""Prompts whose completions have all left are dropped once no more than this share is in use: dropping copies the
others."""


@dataclass(slots=True)
class _Layer:
    prompt_keys: Tensor
    """`[G, kv heads, P, d]` in the base's number format; a shorter prompt has zeros behind it."""
    prompt_values: Tensor
    keys: Tensor
    """`[max rows, kv heads, columns, d]` float32: PyTorch reads one bfloat16 query several times slower on a CPU."""
    values: Tensor


class ForkedCache:
    """The rows being decoded, those of a prompt next to each other; rows come and go.

    Args:
        like: each layer's keys and values, `[any, kv heads, d]`, as a pattern for the buffers.
    """

    def __init__(self, like: Sequence[tuple[Tensor, Tensor]], *, max_rows: int) -> None:
        def layer(keys: Tensor, values: Tensor) -> _Layer:
            prompts = (x.new_zeros(0, x.shape[1], 0, x.shape[2]) for x in (keys, values))
            own = (
                x.new_zeros(max_rows, x.shape[1], FIRST_COLUMNS, x.shape[2], dtype=torch.float32)
                for x in (keys, values)
            )
            return _Layer(*prompts, *own)

        self._layers = [layer(keys, values) for keys, values in like]
        self._prompt_lengths: list[int] = []
        self._prompt_of: list[int] = []
        """The prompt of each row in use, ascending."""
        self._counts: list[int] = []
        """Own tokens stored for each row in use."""

    def admit(self, prefilled: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], *, copies: int) -> None:
        """Adds prompts, each with `copies` rows.

        Args:
            prefilled: each layer's keys and values `[T, kv heads, d]`, the prompts end to end.
            lengths: `[B]`, one per prompt.
        """
        first, places = len(self._prompt_lengths), places_end_to_end(lengths)
        for layer, (keys, values) in zip(self._layers, prefilled, strict=True):
            layer.prompt_keys = _stacked(layer.prompt_keys, keys, lengths, places)
            layer.prompt_values = _stacked(layer.prompt_values, values, lengths, places)
        self._prompt_lengths += lengths
        self._prompt_of += [first + i for i in range(len(lengths)) for _ in range(copies)]
        self._counts += [0] * (len(lengths) * copies)
        self._lay_out()

    def begin_step(self) -> Tensor:
        """Prepares one new token per row; returns the tokens' positions `[B]`."""
        width = max(self._counts) + 1
        if width > self._layers[0].keys.shape[2]:
            for layer in self._layers:
                layer.keys, layer.values = (pad(x, (0, 0, 0, x.shape[2])) for x in (layer.keys, layer.values))
        self._column = torch.tensor(self._counts)
        later = torch.arange(width)[None, :] > self._column[:, None]
        self._own_mask = torch.zeros(later.shape).masked_fill_(later, -torch.inf)[:, None, None, :]
        return self._length_of + self._column

    def read(self, i: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Stores each row's next token in layer `i` and attends to the row's tokens so far: `[B, heads, d]`.

        Args:
            query: `[B, heads, d]`. key, value: `[B, kv heads, d]`.
        """
        layer, num_rows, key_heads = self._layers[i], len(query), key.shape[1]
        rows = torch.arange(num_rows)
        layer.keys[rows, :, self._column], layer.values[rows, :, self._column] = key.float(), value.float()
        # The query heads that share a key head are its queries, so no key is copied.
        by_key_head = query.unflatten(1, (key_heads, -1))  # [B, kv heads, n, d]
        width = self._own_mask.shape[-1]
        own = attend(
            by_key_head.float(),
            layer.keys[:num_rows, :, :width],
            layer.values[:num_rows, :, :width],
            scaling=scaling,
            mask=self._own_mask,
        )
        return join(*own, *self._read_prompts(layer, by_key_head, scaling))[0].to(query.dtype).flatten(1, 2)

    def _read_prompts(self, layer: _Layer, query: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
        """What each row reads from its prompt, `[B, kv heads, n, d]`, and the log of the softmax's sum, without d."""
        shape = len(self._prompt_lengths), self._rows_per_prompt
        placed = query.new_zeros(shape[0] * shape[1], *query.shape[1:])
        placed[self._place] = query
        by_prompt = placed.unflatten(0, shape).transpose(1, 2).flatten(2, 3)  # [G, kv heads, rows x n, d]
        reads: list[Tensor] = []
        sums: list[Tensor] = []
        for prompts, length, mask in self._blocks:
            found, lse = attend(
                by_prompt[prompts],
                layer.prompt_keys[prompts, :, :length],
                layer.prompt_values[prompts, :, :length],
                scaling=scaling,
                mask=mask,
            )
            reads.append(found)
            sums.append(lse)

        def by_row(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).unflatten(2, (shape[1], -1)).transpose(1, 2).flatten(0, 1)[self._place]

        return by_row(reads), by_row(sums)

    def end_step(self) -> None:
        self._counts = [count + 1 for count in self._counts]

    def keep(self, kept: Sequence[int]) -> None:
        """Drops all other rows (`kept` holds indices in order) and closes the gaps; only rows that move are copied."""
        moved = [(source, target) for target, source in enumerate(kept) if source != target]
        if moved:
            sources, targets = torch.tensor(moved).t()
            width = max(self._counts)
            for layer in self._layers:
                for own in (layer.keys, layer.values):
                    own[targets, :, :width] = own[sources, :, :width]
        self._counts = [self._counts[i] for i in kept]
        self._prompt_of = [self._prompt_of[i] for i in kept]
        used = sorted(set(self._prompt_of))
        if len(used) <= SHARE_IN_USE * len(self._prompt_lengths):
            self._prompt_lengths = [self._prompt_lengths[prompt] for prompt in used]
            longest = max(self._prompt_lengths, default=0)
            for layer in self._layers:
                layer.prompt_keys = layer.prompt_keys[used, :, :longest]
                layer.prompt_values = layer.prompt_values[used, :, :longest]
            self._prompt_of = [used.index(prompt) for prompt in self._prompt_of]
        if kept:
            self._lay_out()

    def _lay_out(self) -> None:
        """Where each row's query stands beside its prompt's others, and the blocks of prompts read together.

        Attention reads each block only as far as that block's longest prompt, not the longest of all.
        """
        keys = self._layers[0].prompt_keys
        lengths, dtype = self._prompt_lengths, keys.dtype
        rows_of = Counter(self._prompt_of)
        # PyTorch reads one bfloat16 query in more time than two.
        self._rows_per_prompt = max(*rows_of.values(), 2 if dtype != torch.float32 else 1)
        seen: Counter[int] = Counter()
        places = []
        for prompt in self._prompt_of:
            places.append(prompt * self._rows_per_prompt + seen[prompt])
            seen[prompt] += 1
        self._place = torch.tensor(places)
        self._length_of = torch.tensor([lengths[prompt] for prompt in self._prompt_of])
        size = max(FEWEST_PROMPTS, -(-len(lengths) // MOST_BLOCKS))
        self._blocks: list[tuple[slice, int, Tensor]] = []
        for start in range(0, len(lengths), size):
            of_block = torch.tensor(lengths[start : start + size])
            longest = int(of_block.max())
            behind = torch.arange(longest)[None, :] >= of_block[:, None]
            mask = torch.zeros(behind.shape, dtype=dtype).masked_fill_(behind, -torch.inf)
            self._blocks.append((slice(start, start + size), longest, mask[:, None, None, :]))


def forked_row_bytes(model: PreTrainedModel, prompt_tokens: int, new_tokens: int, *, copies: int) -> int:
    """Bytes that a row takes: its own keys and values, and its share of its prompt's, which has `copies` rows."""
    columns = max(FIRST_COLUMNS, 1 << (new_tokens - 1).bit_length())
    own = kv_bytes(model, columns) * torch.float32.itemsize // model.dtype.itemsize
    return own + -(-kv_bytes(model, prompt_tokens) // copies)


def _stacked(before: Tensor, new: Tensor, lengths: Sequence[int], places: tuple[Tensor, Tensor]) -> Tensor:
    """The prompts so far `[G, kv heads, P, d]` and new ones `[T, kv heads, d]` end to end, padded to the longest."""
    longest = max(before.shape[2], *lengths)
    added = new.new_zeros(len(lengths), new.shape[1], longest, new.shape[2])
    prompts, columns = places
    added[prompts, :, columns] = new
    return torch.cat([pad(before, (0, 0, 0, longest - before.shape[2])), added]) if len(before) else added
