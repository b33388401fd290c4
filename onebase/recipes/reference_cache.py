"""Log-probs of a frozen reference, computed once and kept beside the run for the next one on the same data."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.files import atomic_folder, settle_leftovers
from onebase.models.one_base import OneBase
from onebase.records import Example
from onebase.training.progress import say

FOLDER = "reference-logprobs"


def computed_once(
    one: OneBase, examples: Sequence[Example], compute: Callable[[], list[Tensor]], *, folder: Path
) -> list[Tensor]:
    """What `compute` gives for the role `reference`: a tensor `[K]` per example, read from `folder` where it was kept.

    Another base, number format, layout, reference, row or cut gives another key, and so another computation.
    """
    kept = folder / FOLDER / fingerprint(one, examples)
    sizes = [len(example.completions) for example in examples]
    try:
        flat = load_file(kept / "logprobs.safetensors")["logprobs"]
        if flat.numel() == sum(sizes) and bool(flat.isfinite().all()):
            say(f"dpo: log-probs of the reference read from {kept}")
            return list(flat.split(sizes))
    except (OSError, SafetensorError, KeyError):
        pass
    logprobs = compute()
    kept.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(kept.parent, os.O_RDONLY)
    try:
        # Runs side by side write one after the other, so that what is half-written is nobody's.
        fcntl.flock(lock, fcntl.LOCK_EX)
        settle_leftovers(kept.parent)
        with atomic_folder(kept) as temporary:
            save_file({"logprobs": torch.cat(logprobs)}, temporary / "logprobs.safetensors")
    finally:
        os.close(lock)
    return logprobs


def fingerprint(one: OneBase, examples: Sequence[Example]) -> str:
    """Of everything these log-probs depend on: base and its number format, layout, the role's weights, the tokens."""
    digest = hashlib.sha256()
    quantized = getattr(one.model, "is_quantized", False)
    digest.update(f"{one.fingerprint} {one.model.dtype} {quantized} {one.layout} {one.device.type}".encode())
    if one.roles["reference"].adapter is not None:
        settings = one.lora_config("reference")
        digest.update(f" {settings.r} {settings.lora_alpha} {settings.use_rslora}".encode())
        for name, weight in sorted(one.adapter_weights("reference").items()):
            digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    for example in examples:
        counted = None if example.counted is None else [list(map(int, row)) for row in example.counted]
        digest.update(repr((list(example.prompt_ids), [list(c) for c in example.completions], counted)).encode())
    return digest.hexdigest()[:16]
