"""Fingerprints that identify a base and its tokenizer, so that roles made on another one are refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

SAMPLED_VECTORS, SAMPLED_NUMBERS = 32, 4096
"""Per tensor: how many vectors along its last axis, spread over all of it, and how many numbers from them in total."""

Read = Callable[[tuple[slice, ...]], Tensor]


def base_fingerprint(name_or_path: str) -> str:
    """Identifies the base's weights as stored, whatever dtype, device and quantisation they are loaded in.

    Hashes names, shapes and a sample spread over each tensor in the weight files rather than all bytes, so an 8 B model
    takes a second. Sharding does not matter.
    """
    files = _weight_files(name_or_path)
    if not files:
        return "unknown"
    entries: dict[str, bytes] = {}
    for file in files:
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():
                stored = handle.get_slice(name)
                entries[name] = _entry(name, stored.get_shape(), partial(_read_stored, handle, name, stored))
    return _digest(entries)


def _read_stored(handle: Any, name: str, part: Any, place: tuple[slice, ...]) -> Tensor:
    return part[place] if place else handle.get_tensor(name)


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """Like `base_fingerprint`, for tensors in memory."""
    return _digest(_entries(tensors))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies the mapping from text to ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    # The vocabulary does not say how text is split and normalised; this text shows most differences.
    text = "Don't\u00a0ZÜRICH, naïve ＡＢ 12345  \n\tfoo_bar(x) 东京 🙂"
    probe = tokenizer(text, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, special, probe]).encode()).hexdigest()[:16]


def _entries(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {name: _entry(name, list(tensor.shape), tensor.__getitem__) for name, tensor in tensors.items()}


def _entry(name: str, shape: list[int], read: Read) -> bytes:
    """A tensor's name, shape and sample, as bytes."""
    sample = read(()) if math.prod(shape) <= SAMPLED_NUMBERS else torch.cat(_sampled(shape, read))
    numbers = sample.detach().reshape(-1).float().cpu().contiguous().numpy()
    return f"{name}{shape}".encode() + numbers.tobytes()


def _sampled(shape: list[int], read: Read) -> list[Tensor]:
    """Numbers from some vectors along the last axis, including the first and last, each from different columns."""
    *rows, width = shape
    count = min(math.prod(rows), SAMPLED_VECTORS)
    taken = min(width, SAMPLED_NUMBERS // count)
    columns = torch.arange(taken) * (width - 1) // max(1, taken - 1)
    found = []
    for k in range(count):
        place: list[slice] = []
        flat = k * (math.prod(rows) - 1) // max(1, count - 1)
        for size in reversed(rows):
            flat, index = divmod(flat, size)
            place.insert(0, slice(index, index + 1))
        vector = read((*place, slice(0, width))).reshape(-1)
        found.append(vector[((columns + k) % width).to(vector.device)])
    return found


def _digest(entries: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(entries):
        digest.update(entries[name])
    return digest.hexdigest()[:16]


def _weight_files(name_or_path: str) -> list[Path]:
    """The safetensors files that transformers reads the weights from."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return sorted(folder.glob("model*.safetensors"))
    for entry in ("model.safetensors", "model.safetensors.index.json"):
        found = cached_file(name_or_path, entry, _raise_exceptions_for_missing_entries=False)
        if found:
            return sorted(Path(found).parent.glob("model*.safetensors"))
    return []
