"""Describes what a run would do and need, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onebase.engines.passes import num_counted
from onebase.models.base_config import context_length, context_note
from onebase.models.fingerprints import base_fingerprint
from onebase.models.loading import check_tokenizer, choose_device, hardware_dtype, load_tokenizer, stored_shapes
from onebase.records import Example
from onebase.shown import number_of, shown
from onebase.streaming.examples import OnDemand, Streamed

NF4_BYTES_PER_WEIGHT = 0.5625
"""4 bits, and a float32 scale for every 64 weights (Dettmers et al. 2023, section 3, without double quantisation)."""


@dataclass(frozen=True, slots=True)
class BasePlan:
    """The base, as described by its configuration."""

    name_or_path: str
    model: PreTrainedModel
    """The model with shapes but no weights."""
    tokenizer: PreTrainedTokenizerBase
    context: int
    num_parameters: int
    lines: list[str]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the stored weights, which are read on each call."""
        return base_fingerprint(self.name_or_path)


def describe_base(name_or_path: str, quantization: str, dtype: str, device_name: str = "auto") -> BasePlan:
    """Describes the base and its size without loading its weights.

    Raises:
        ModelError: the model does not exist or cannot be a base, or its tokenizer does not fit it.
    """
    model = stored_shapes(name_or_path)
    config = model.config
    tokenizer = load_tokenizer(name_or_path)
    check_tokenizer(tokenizer, model, name_or_path)
    device = choose_device(device_name)
    chosen = hardware_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    count = sum(p.numel() for p in model.parameters())
    # Neither the embedding nor a separate output layer is quantised.
    outer: tuple[Any, Any] = (model.get_input_embeddings(), model.get_output_embeddings())
    ends = {id(layer.weight): layer.weight.numel() for layer in outer}
    kept = sum(ends.values())
    per_weight = NF4_BYTES_PER_WEIGHT if quantization == "nf4" else float(chosen.itemsize)
    size = (count - kept) * per_weight + kept * chosen.itemsize
    context, note = context_length(config), context_note(config)
    return BasePlan(
        name_or_path,
        model,
        tokenizer,
        context,
        count,
        [
            f"base        {shown(name_or_path)}: {type(model).__name__}, {count / 1e6:.1f} M parameters, "
            f"{note or f'context {context}'}",
            f"weights     {size / 2**20:.1f} MiB frozen, once for all roles "
            f"({quantization if quantization != 'none' else str(chosen).removeprefix('torch.')})",
        ],
    )


def amount(examples: Sequence[Example]) -> str:
    """How many examples and counted tokens there are, in words."""
    if isinstance(examples, Streamed):
        mean = num_counted(examples.sample()) / len(examples.sample())
        return f"{number_of(len(examples), 'streamed row')}, about {mean * len(examples):.0f} counted tokens"
    return f"{number_of(len(examples), 'example')}, {number_of(num_counted(examples), 'counted token')}"


def describe_steps(train: Sequence[Example], held_out: Sequence[object], *, steps: int, minibatch: int) -> list[str]:
    """Returns the plan's lines on data and optimizer steps."""
    seen = train.sample() if isinstance(train, OnDemand) else train
    lengths = sorted(example.num_tokens for example in seen)
    return [
        f"data        {amount(train)}; {len(held_out)} held out; "
        f"tokens per example: median {lengths[len(lengths) // 2]}, longest {lengths[-1]}",
        f"steps       {number_of(steps, 'optimizer step')} of {number_of(min(minibatch, len(train)), 'example')}",
    ]
