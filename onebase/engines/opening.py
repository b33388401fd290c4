"""Opens a folder or hub name as a `OneBase` whose layout and engine have been tried."""

from __future__ import annotations

import gc

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from onebase.distributed.sharding import held_bytes, spread
from onebase.engines.exactness import Exactness, decoder_gives_the_same, detect_layout, why_no_flex
from onebase.models.base import OneBase
from onebase.models.base_config import context_note
from onebase.models.fingerprints import base_fingerprint, tensors_fingerprint
from onebase.models.hardware import keep_freed_memory, return_freed_memory
from onebase.models.loading import (
    check_finite,
    check_tokenizer,
    choose_device,
    hardware_dtype,
    load_model,
    load_tokenizer,
)
from onebase.processes import ALONE, Group

APPLE = "this machine has an Apple GPU (device mps); this version has never run on one, so the CPU is used"


def load_base(
    model_name_or_path: str,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    device: str = "auto",
    layout: str = "auto",
    group: Group = ALONE,
    shard: bool = False,
) -> OneBase:
    """Loads a causal language model and its tokenizer as a frozen base.

    Args:
        dtype: `auto` (see `hardware_dtype`), `float32` or `bfloat16`.
        quantization: `none`, or `nf4`: linear layers in 4 bits (QLoRA, Dettmers et al. 2023), computing in `dtype`.
        layout: `auto` checks once, on a tiny random tree, whether trees are exact for this model.
        group: the processes that share the work on this base.
        shard: spread the weights over the processes' devices; each process reads all of them into RAM first.

    Raises:
        ModelError: the model does not exist, is not causal or has no tokenizer; ids exceed the embedding; weights
            are missing, left over or not finite; or it cannot be spread.
        MissingExtraError: nf4 without bitsandbytes.
    """
    gc.collect()  # the weights of a run before in this process: a model in 4 bits is part of reference cycles
    chosen_device = choose_device(device, group)
    if chosen_device.type == "cpu":
        keep_freed_memory()
        return_freed_memory()  # of the run before, where one process runs several
    chosen_dtype = hardware_dtype(chosen_device) if dtype == "auto" else getattr(torch, dtype)
    shard = shard and group.count > 1
    model = load_model(model_name_or_path, chosen_dtype, quantization, torch.device("cpu") if shard else chosen_device)
    tokenizer = load_tokenizer(model_name_or_path)
    check_finite(model, model_name_or_path)
    fingerprint = base_fingerprint(model_name_or_path)
    base = wrap_model(
        model,
        tokenizer,
        layout=layout,
        name_or_path=model_name_or_path,
        fingerprint=fingerprint,
        group=group,
        spread_over=chosen_device if shard else None,
    )
    if chosen_device.type == "cpu":
        return_freed_memory()  # of weights that were laid together
    return base


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layout: str = "auto",
    name_or_path: str = "",
    fingerprint: str | None = None,
    group: Group = ALONE,
    spread_over: torch.device | None = None,
) -> OneBase:
    """Wraps a model that is already in memory in a `OneBase`.

    Args:
        spread_over: this process's device, to spread a model over that is still on the CPU, where its layout is tried.
            Only transformers runs such a model: the other engines read weights outside the layers that gather them.
    """
    check_tokenizer(tokenizer, model, name_or_path)
    model.eval()
    if fingerprint is None:
        fingerprint = tensors_fingerprint(dict(model.state_dict()))
    found = detect_layout(model) if layout == "auto" else Exactness(layout)
    packs = spread_over is None and found.layout == "tree" and decoder_gives_the_same(model, found.tolerance)
    no_flex = why_no_flex(model, found.tolerance) if found.layout == "tree" else "trees are not exact here"
    in_parts = ""
    if spread_over is not None:
        spread(model, group, spread_over)
        held, whole = held_bytes(model)
        in_parts = (
            f"the base is spread over {group.count} processes: each holds {held / 2**20:.1f} of its "
            f"{whole / 2**20:.1f} MiB"
        )
    apple = APPLE if model.device.type == "cpu" and torch.backends.mps.is_available() else ""
    slower = ""
    if no_flex and found.layout == "tree" and model.device.type == "cuda":
        slower = f"attention without FlexAttention ({no_flex}); its masks grow with the square of a tree's length"
    notes = [note for note in (_cost_of(found), context_note(model.config), in_parts, apple, slower) if note]
    return OneBase(
        model,
        tokenizer,
        fingerprint=fingerprint,
        layout=found.layout,
        name_or_path=name_or_path,
        packs=packs,
        flex=not no_flex,
        group=group,
        is_spread=spread_over is not None,
        notes=notes,
    )


def _cost_of(found: Exactness) -> str:
    """Why prompts are computed more than once; empty if they are not."""
    if not found.reason:
        return ""
    return (
        f"layout separate: {found.reason}; prompts are computed once per completion, and tokens are sampled much more "
        "slowly"
    )
