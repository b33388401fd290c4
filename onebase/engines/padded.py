"""The engine that runs a base through transformers, in padded rows: every architecture, adapter and device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from onebase.data.rows import Rows, attention_mask, lay_in_rows
from onebase.data.tree import is_plain_causal
from onebase.engines.slots import SlotCache, keys_and_values, kv_bytes
from onebase.models.base import OneBase
from onebase.records import TreeBatch
from onebase.transfer import to_device


class PaddedEngine:
    """Runs `role` of a base through transformers; see `engine.Engine` for the methods."""

    def __init__(self, base: OneBase, role: str) -> None:
        self._base, self._role = base, role

    def states(self, batch: TreeBatch, place: Tensor, completion: Tensor) -> Tensor:
        base, rows = self._base, lay_in_rows(batch, self._base.layout)
        with base.role(self._role), base.recomputing():
            hidden = trunk(base.model, rows, layout=base.layout, plain=is_plain_causal(batch))
        return at(hidden, *rows.locate(place, completion))

    def slot_bytes(self, prompt_tokens: int, new_tokens: int, *, copies: int) -> int:
        return 0 if self._base.layout == "separate" else kv_bytes(self._base.model, prompt_tokens + new_tokens)

    def decode(self, *, max_slots: int, max_length: int) -> PaddedDecoding | RereadDecoding:
        if self._base.layout == "separate":
            return RereadDecoding(self._base.model)
        return PaddedDecoding(self._base.model, max_slots=max_slots, max_length=max_length)


def trunk(model: PreTrainedModel, rows: Rows, *, layout: str, plain: bool) -> Tensor:
    """Runs the model without its output layer, with the adapters in force: `[R, C, H]`.

    Args:
        plain: whether every row is one prompt with one completion.
    """
    arguments: dict[str, Any] = {"input_ids": rows.input_ids, "use_cache": False}
    if layout == "separate":
        arguments["attention_mask"] = rows.is_token.long()
    else:
        arguments["position_ids"] = rows.position_ids
        arguments["attention_mask"] = _masks(model, rows, plain)
    return model.base_model(**arguments).last_hidden_state


def at(hidden: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """`hidden[row, column]`, `[R, C, H] -> [m, H]`, with its gradient summed in the same order every time.

    A prompt's last state predicts K first tokens. Plain indexing would add their K gradients in whatever order threads
    finish, and no two runs would end with the same bytes.
    """
    return row_of(hidden.flatten(0, 1), row * hidden.shape[1] + column)


def row_of(hidden: Tensor, place: Tensor) -> Tensor:
    """`hidden[place]`, `[T, H] -> [m, H]`, with its gradient summed in the same order every time."""
    return torch.nn.functional.embedding(place, hidden)


def sliding_window(model: PreTrainedModel) -> int | None:
    """Positions a sliding-window layer sees; None if the model uses no such layer."""
    config = model.config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def mask_argument(model: PreTrainedModel, full: Any, windowed: Any) -> Any:
    """The 4-D mask (a tensor or a block mask), or one mask per kind of layer, in the form this model takes."""
    if model.config.get_text_config()._attn_implementation == "eager":  # adds its mask instead of testing it
        full, windowed = _additive(full, model.dtype), _additive(windowed, model.dtype)
    if windowed is None:
        return full
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ["sliding_attention"])
    if kinds == {"sliding_attention"}:
        return windowed
    return {"full_attention": full, "sliding_attention": windowed}


def _masks(model: PreTrainedModel, rows: Rows, plain: bool) -> Tensor | dict[str, Tensor] | None:
    window = sliding_window(model)
    if window is not None and rows.longest <= window:
        window = None
    if window is None and plain:
        return None  # the kernels' own causal mask will do: padding is on the right, where no real token sees it
    full = attention_mask(rows)
    return mask_argument(model, full, None if window is None else attention_mask(rows, window=window))


def _additive(allowed: Any, dtype: torch.dtype) -> Any:
    if allowed is None:
        return None
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


class PaddedDecoding:
    """Decodes through transformers; each slot's keys and values have their own length."""

    def __init__(self, model: PreTrainedModel, *, max_slots: int, max_length: int) -> None:
        self._model, self._window = model, sliding_window(model)
        self._max_slots, self._max_length = max_slots, max_length
        self._cache: SlotCache | None = None

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        device = self._model.device
        lengths = [len(prompt) for prompt in prompts]
        padded = [[*prompt, *[0] * (max(lengths) - len(prompt))] for prompt in prompts]
        input_ids = to_device(torch.tensor(padded), device)
        # Padding is on the right, where the causal mask hides it from every real token.
        mask = None
        if self._window is not None and input_ids.shape[1] > self._window:
            order = torch.arange(input_ids.shape[1], device=device)
            causal = (order[:, None] >= order[None, :]).expand(len(prompts), 1, -1, -1)
            mask = mask_argument(self._model, causal, causal & (order[:, None] - order[None, :] < self._window))
        stored = DynamicCache()  # built without the model's configuration, it keeps all tokens of sliding layers too
        output = self._model.base_model(
            input_ids=input_ids, attention_mask=mask, past_key_values=stored, use_cache=True
        )
        filled = keys_and_values(stored, lengths)
        if self._cache is None:
            self._cache = SlotCache(filled, max_rows=self._max_slots, max_length=self._max_length)
        self._cache.admit(filled, lengths, copies=copies)
        ends = to_device(torch.tensor(lengths), device) - 1
        last = output.last_hidden_state[torch.arange(len(prompts), device=device), ends]
        return last.repeat_interleave(copies, dim=0)

    def step(self, ids: Tensor) -> Tensor:
        cache = self._cache
        assert cache is not None, "nothing was prefilled"
        positions = cache.lengths[:, None]
        visible = cache.begin_step()  # [slots, 1, 1, L]
        near = None
        if self._window is not None and visible.shape[-1] > self._window:
            order = torch.arange(visible.shape[-1], device=ids.device)
            near = visible & (positions - order[None, :] < self._window)[:, None, None, :]
        output = self._model.base_model(
            input_ids=ids[:, None],
            position_ids=positions,
            attention_mask=mask_argument(self._model, visible, near),
            past_key_values=cache,
            use_cache=True,
        )
        cache.end_step()
        return output.last_hidden_state[:, -1]

    def keep(self, slots: Sequence[int]) -> None:
        assert self._cache is not None, "nothing was prefilled"
        self._cache.keep(slots)


class RereadDecoding:
    """Decodes models that trees do not suit (ALiBi, state-space): every token reads its whole row again.

    Such models handle caches or positions in their own way; a prompt's slots are equally long and need neither mask nor
    cache. Exact but slow: cost grows with the square of the length.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._prompts: list[Tensor] = []
        """Slots by prompt, each `[slots, tokens so far]`."""

    def prefill(self, prompts: Sequence[Sequence[int]], copies: int) -> Tensor:
        entering = [to_device(torch.tensor([list(prompt)] * copies), self._model.device) for prompt in prompts]
        self._prompts += entering
        return self._read(entering)

    def step(self, ids: Tensor) -> Tensor:
        sizes = [len(rows) for rows in self._prompts]
        self._prompts = [
            torch.cat([rows, new[:, None]], dim=1) for rows, new in zip(self._prompts, ids.split(sizes), strict=True)
        ]
        return self._read(self._prompts)

    def keep(self, slots: Sequence[int]) -> None:
        kept, begin = [], 0
        for rows in self._prompts:
            mine = [slot - begin for slot in slots if begin <= slot < begin + len(rows)]
            begin += len(rows)
            if mine:
                kept.append(rows[to_device(torch.tensor(mine), rows.device)])
        self._prompts = kept

    def _read(self, prompts: Sequence[Tensor]) -> Tensor:
        found = [self._model.base_model(input_ids=rows, use_cache=False).last_hidden_state[:, -1] for rows in prompts]
        return torch.cat(found)
