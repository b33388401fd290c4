"""Caches a frozen reference's log-probs in the run's folder, for the next run on the same data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from onebase.files import atomic_folder
from onebase.models.base import OneBase
from onebase.records import Example
from onebase.runs.progress import say

FOLDER = "reference-logprobs"


def computed_once(
    base: OneBase, examples: Sequence[Example], compute: Callable[[], list[Tensor]], *, folder: Path
) -> list[Tensor]:
    """Returns `compute()` for the role `reference`, one tensor `[K]` per example, computing it only if not cached.

    The result is kept in `folder`, the run's own, and read from there or from a run beside it. A different base, number
    format, layout, reference, row or cut gives a different key, and so is computed anew.
    """
    name = f"{fingerprint(base, examples)}.safetensors"
    sizes = [len(example.completions) for example in examples]
    # One process looks for all: if one found them and another did not, they would wait for each other.
    kept = base.group.from_main(lambda: _find(name, sum(sizes), folder))
    if kept is not None:
        say(f"dpo: log-probs of the reference read from {kept[0]}")
        return list(kept[1].split(sizes))
    logprobs = compute()
    with atomic_folder(folder / FOLDER) as temporary:
        save_file({"logprobs": torch.cat(logprobs)}, temporary / name)
    return logprobs


def _find(name: str, count: int, folder: Path) -> tuple[Path, Tensor] | None:
    for path in [folder / FOLDER / name, *sorted(folder.parent.glob(f"*/{FOLDER}/{name}"))]:
        try:
            flat = load_file(path)["logprobs"]
        except (OSError, SafetensorError, KeyError):
            continue  # missing, unreadable or damaged
        if flat.shape == (count,) and bool(flat.isfinite().all()):
            return path, flat
    return None


def fingerprint(base: OneBase, examples: Sequence[Example]) -> str:
    """Hash of all that these log-probs depend on: base, number format, layout, the role's weights, the tokens."""
    digest = hashlib.sha256()
    quantized = getattr(base.model, "is_quantized", False)
    digest.update(f"{base.fingerprint} {base.model.dtype} {quantized} {base.layout} {base.device.type}".encode())
    settings = base.adapter_config("reference")
    if settings is not None:
        told = settings.to_dict() | {"inference_mode": None, "base_model_name_or_path": None, "revision": None}
        digest.update(repr(sorted((k, sorted(v) if isinstance(v, set) else str(v)) for k, v in told.items())).encode())
        for name, weight in sorted(base.adapter_weights("reference").items()):
            digest.update(name.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
    for example in examples:
        counted = None if example.counted is None else [list(map(int, row)) for row in example.counted]
        digest.update(repr((list(example.prompt_ids), [list(c) for c in example.completions], counted)).encode())
    return digest.hexdigest()[:16]
