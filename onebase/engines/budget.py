"""How many tokens fit in one microbatch: measured before the first step, halved when memory runs out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

import torch
from torch import Tensor

from onebase.data.batches import microbatch_indices
from onebase.data.tree import build_tree_batch
from onebase.distributed.sharding import gathered_weights, weight_storages
from onebase.engines.engine import any_pads, packs, runs_flat
from onebase.engines.forward import token_logprobs
from onebase.errors import DoesNotFitError
from onebase.models.base import OneBase
from onebase.models.hardware import free_memory
from onebase.records import Example
from onebase.runs.progress import say

SHARE_OF_FREE_MEMORY = 0.5
"""The other half is left for decoding, the optimizer and whatever else runs on the machine."""
MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Larger microbatches are no faster: the processor is already busy."""
PROBE_TOKENS = 64


class TokenBudget:
    """How many tokens a microbatch may hold, padding included; all passes of a run share one object.

    When the device runs out of memory, the budget is halved and the pass repeated, with the same result.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def split(self, base: OneBase, examples: Sequence[Example]) -> list[list[int]]:
        """The examples' indices, split into microbatches that fit."""
        return microbatch_indices(examples, self.tokens, layout=base.layout if any_pads(base) else "packed")

    def attempts(
        self, longest: int, *, forget: Callable[[], None] = lambda: None, can_repeat: bool = True
    ) -> Iterator[Attempt]:
        """Yields attempts, each with smaller microbatches than the last, until one does not run out of memory.

            for attempt in budget.attempts(longest):
                with attempt:
                    ...

        Args:
            longest: tokens of the longest example, which cannot be split.
            forget: undoes what a failed attempt left behind.
            can_repeat: whether a process may repeat its passes by itself; not where the base is spread over several,
                which take part in each other's.

        Raises:
            DoesNotFitError: the longest example does not fit by itself, or a microbatch where none can be repeated.
        """
        while True:
            attempt = Attempt(can_shrink=self.tokens > longest, can_repeat=can_repeat, longest=longest)
            yield attempt
            if not attempt.out_of_memory:
                return
            forget()
            torch.cuda.empty_cache()
            self.tokens = max(longest, self.tokens // 2)
            say(f"out of memory: microbatches of {self.tokens} tokens from here on; the result is the same")


class Attempt:
    """One attempt from `TokenBudget.attempts`: a context manager that records whether the device ran out of memory."""

    def __init__(self, *, can_shrink: bool, longest: int, can_repeat: bool = True) -> None:
        self._can_shrink, self._can_repeat, self._longest = can_shrink, can_repeat, longest
        self.out_of_memory = False

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        # cuBLAS says it in its own way.
        if not isinstance(error, torch.OutOfMemoryError) and "CUBLAS_STATUS_ALLOC_FAILED" not in str(error):
            return False
        if not self._can_shrink:
            raise DoesNotFitError(
                f"an example of {self._longest} tokens alone does not fit the device's memory",
                remedy="example-out-of-memory",
            ) from error
        if not self._can_repeat:
            raise DoesNotFitError(
                "out of memory, and where the base is spread over several processes none can repeat its part alone",
                remedy="microbatch-out-of-memory",
            ) from error
        self.out_of_memory = True
        return True


def find_token_budget(base: OneBase, role: str, *, longest: int) -> int:
    """How many tokens a microbatch may hold: as many as fit half of the free memory, measured on one small tree.

    Args:
        longest: tokens of the longest tree, which cannot be split.

    Raises:
        DoesNotFitError: the longest tree alone needs more than the free memory.
    """
    # A row's attention mask grows with the square of its length.
    per_token = saved_bytes_per_token(base, role) + longest * mask_bytes_per_pair(base, role)
    free = free_memory(base.device)
    if longest * per_token > free:
        raise DoesNotFitError(
            f"the longest example has {longest} tokens and its backward pass needs about "
            f"{longest * per_token / 2**20:.0f} MiB ({per_token / 2**10:.0f} KiB a token), but only "
            f"{free / 2**20:.0f} MiB are free",
            remedy="example-does-not-fit",
        )
    return tokens_that_fit(free, per_token, longest=longest, device=base.device.type)


def tokens_that_fit(free: float, per_token: float, *, longest: int, device: str) -> int:
    """How many tokens a microbatch holds: as many as fit half of `free` bytes at `per_token` bytes each, up to a size
    from which larger ones are no faster, and at least `longest`, the tokens of a tree that cannot be split.
    """
    fits = int(free * SHARE_OF_FREE_MEMORY / per_token)
    return max(longest, min(fits, MOST_TOKENS.get(device, 4096)))


def saved_bytes_per_token(base: OneBase, role: str) -> float:
    """Bytes that autograd keeps for the backward pass per token of a row, without its mask, counted tensor by tensor.

    With gradient checkpointing these are the layers' inputs plus what one layer keeps while it is recomputed.
    """
    kept = _saved_bytes(base, role, num_completions=1)
    if base.recomputes:
        base.recomputes = False
        try:
            everything = _saved_bytes(base, role, num_completions=1)
        finally:
            base.recomputes = True
        kept += max(0, everything - kept) // int(base.model.config.get_text_config().num_hidden_layers)
    return max(1.0, kept / PROBE_TOKENS)


def mask_bytes_per_pair(base: OneBase, role: str) -> float:
    """Bytes that a tree's attention masks take per pair of tokens in its row.

    The mask itself takes one; where attention cannot use it as it is, every layer also keeps a copy in the model's
    dtype. Without padding, all layers share one mask, held in float32 and in the model's dtype; a tree that
    is read in parts holds less. FlexAttention has none.
    """
    if runs_flat(base) or (base.flex and packs(base, role)):
        return 0.0
    if packs(base, role):
        return 4.0 + base.model.dtype.itemsize
    if base.layout != "tree":
        return 0.0  # one completion a row needs no mask
    copies = _saved_bytes(base, role, num_completions=2) - _saved_bytes(base, role, num_completions=1)
    return 1.0 + max(0, copies) / PROBE_TOKENS**2


def _saved_bytes(base: OneBase, role: str, *, num_completions: int) -> int:
    parameters = weight_storages(base.model.parameters())
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = PROBE_TOKENS // 2
    example = Example([0] * half, [[0] * (half // num_completions)] * num_completions)
    batch = build_tree_batch([example]).to(base.device)
    with (
        torch.enable_grad(),
        gathered_weights(base.model, parameters),
        torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor),
    ):
        kept = token_logprobs(base, batch, role=role)
    del kept
    return sum(seen.values())
