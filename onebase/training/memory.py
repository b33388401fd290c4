"""How many tokens fit in one microbatch, measured rather than guessed."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import psutil
import torch
from torch import Tensor

from onebase.data.tree import build_tree_batch
from onebase.errors import DoesNotFitError
from onebase.models.forward import token_logprobs
from onebase.models.one_base import OneBase
from onebase.records import Example

SHARE_OF_FREE_MEMORY = 0.5
"""The rest is for decoding, the optimizer and whatever else runs on the machine."""
MOST_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Beyond these a larger microbatch is not faster: the processor is busy already."""
PROBE_TOKENS = 64


def find_token_budget(one: OneBase, role: str, *, longest: int) -> int:
    """Tokens of a microbatch: what half of the free memory holds, measured on one small tree.

    Args:
        longest: tokens of the longest tree there is; it cannot be split.

    Raises:
        DoesNotFitError: the longest tree alone needs more than the free memory.
    """
    per_token = saved_bytes_per_token(one, role)
    free = free_memory(one.device)
    # The attention mask of a row grows with the square of its length, a byte per pair of tokens.
    fits = int(free * SHARE_OF_FREE_MEMORY / (per_token + longest))
    if longest * (per_token + longest) > free:
        raise DoesNotFitError(
            f"the longest example has {longest} tokens and its backward pass needs about "
            f"{longest * (per_token + longest) / 2**20:.0f} MiB ({per_token / 2**10:.0f} KiB a token), but only "
            f"{free / 2**20:.0f} MiB are free; lower data.max_prompt_tokens or data.max_completion_tokens, "
            "or adapt only upper layers (lora.layers: upper-half)"
        )
    return max(longest, min(fits, MOST_TOKENS.get(one.device.type, 4096)))


def saved_bytes_per_token(one: OneBase, role: str) -> float:
    """Bytes that autograd keeps for the backward pass per token of a tree, counted tensor by tensor."""
    parameters = {p.untyped_storage().data_ptr() for p in one.model.parameters()}
    seen: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    half = PROBE_TOKENS // 2
    example = Example(prompt_ids=[0] * half, completions=[[0] * half])
    batch = build_tree_batch([example]).to(one.device)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        kept = token_logprobs(one, batch, role=role)
    del kept
    return max(1.0, sum(seen.values()) / PROBE_TOKENS)


def free_memory(device: torch.device) -> int:
    """Bytes free on the device; on CPU, within the limit of the container too."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    free = psutil.virtual_memory().available
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, int(text) - int(used.read_text()))
    return max(free, 0)


def peak_memory_mb(device: torch.device) -> float:
    """The most memory this process has held: on the GPU, or of the process where there is none. MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB on Linux, bytes on macOS
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
