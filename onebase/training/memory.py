"""How many tokens fit in one microbatch, measured rather than guessed."""

from __future__ import annotations

import resource
import sys

import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch
from onebase.errors import DoesNotFitError
from onebase.models.forward import token_logprobs
from onebase.models.hardware import free_memory
from onebase.models.one_base import OneBase
from onebase.records import Example

SHARE_OF_FREE_MEMORY = 0.5
"""The rest is for decoding, the optimizer and whatever else runs on the machine."""
MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Beyond these a larger microbatch is not faster: the processor is busy already."""
PROBE_TOKENS = 64


def find_token_budget(base: OneBase, role: str, *, longest: int) -> int:
    """Tokens of a microbatch: what half of the free memory holds, measured on one small tree.

    Args:
        longest: tokens of the longest tree there is; it cannot be split.

    Raises:
        DoesNotFitError: the longest tree alone needs more than the free memory.
    """
    # The attention mask of a row grows with the square of its length.
    per_token = saved_bytes_per_token(base, role) + longest * mask_bytes_per_pair(base, role)
    free = free_memory(base.device)
    fits = int(free * SHARE_OF_FREE_MEMORY / per_token)
    if longest * per_token > free:
        raise DoesNotFitError(
            f"the longest example has {longest} tokens and its backward pass needs about "
            f"{longest * per_token / 2**20:.0f} MiB ({per_token / 2**10:.0f} KiB a token), but only "
            f"{free / 2**20:.0f} MiB are free; lower data.max_prompt_tokens or data.max_completion_tokens, "
            "adapt only upper layers (lora.layers: upper-half), or set model.gradient_checkpointing: true"
        )
    return max(longest, min(fits, MOST_TOKENS.get(base.device.type, 4096)))


def saved_bytes_per_token(base: OneBase, role: str) -> float:
    """Bytes that autograd keeps for the backward pass per token of a row, its mask apart, counted tensor by tensor.

    With gradient checkpointing these are the layers' inputs, and what one layer keeps while it is computed again.
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
    """Bytes of the attention masks of a tree per pair of tokens of its row.

    One for the mask itself; where attention does not take it as it is, every layer keeps a copy in the model's dtype.
    Without padding there is one mask for all layers, in float32 and in the model's dtype.
    """
    if base.packs:
        return 4.0 + base.model.dtype.itemsize
    if base.layout != "tree":
        return 0.0  # one completion a row needs no mask
    copies = _saved_bytes(base, role, num_completions=2) - _saved_bytes(base, role, num_completions=1)
    return 1.0 + max(0, copies) / PROBE_TOKENS**2


def _saved_bytes(base: OneBase, role: str, *, num_completions: int) -> int:
    parameters = {p.untyped_storage().data_ptr() for p in base.model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = PROBE_TOKENS // 2
    example = Example([0] * half, [[0] * (half // num_completions)] * num_completions)
    batch = build_tree_batch([example]).to(base.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = token_logprobs(base, batch, role=role)
    del kept
    return sum(seen.values())


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held: on the GPU, or of the process where there is none. MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
