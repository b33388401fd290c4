"""From a folder or a hub name to a `OneBase`: weights, tokenizer, dtype, quantisation, layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from onebase import processes
from onebase.errors import MissingExtraError, ModelError
from onebase.models.base_config import cannot_load, context_note, empty_model, read_base_config
from onebase.models.exactness import Exactness, detect_layout, find_decoder
from onebase.models.fingerprints import base_fingerprint, tensors_fingerprint
from onebase.models.hardware import keep_freed_memory
from onebase.models.one_base import OneBase
from onebase.shown import shown

_LEFT_OUT = re.compile(r"inv_freq$|masked_bias$|attn\.bias$|(^|\.)(vision|visual|audio|multi_modal|mtp)")
"""Stored tensors that no causal language model reads: tables of older versions, parts for pictures and for sound."""


def load_base(
    model_name_or_path: str,
    *,
    dtype: str = "auto",
    quantization: str = "none",
    device: str = "auto",
    layout: str = "auto",
) -> OneBase:
    """Loads a causal language model and its tokenizer as a frozen base.

    Args:
        dtype: `auto` (see `hardware_dtype`), `float32` or `bfloat16`.
        quantization: `none`, or `nf4`: linear layers in 4 bits (QLoRA, Dettmers et al. 2023), computing in `dtype`.
        layout: `auto` checks once on a tiny random tree whether trees are exact for this model.

    Raises:
        ModelError: no such model or not a causal one, no tokenizer, ids beyond the embedding, or weights that are
            missing, left over or not finite.
        MissingExtraError: nf4 without bitsandbytes.
    """
    chosen_device = choose_device(device)
    if chosen_device.type == "cpu":
        keep_freed_memory()
    chosen_dtype = hardware_dtype(chosen_device) if dtype == "auto" else getattr(torch, dtype)
    model = _load_model(model_name_or_path, chosen_dtype, quantization, chosen_device)
    tokenizer = load_tokenizer(model_name_or_path)
    check_finite(model, model_name_or_path)
    fingerprint = base_fingerprint(model_name_or_path)
    return wrap_model(model, tokenizer, layout=layout, name_or_path=model_name_or_path, fingerprint=fingerprint)


def choose_device(name: str) -> torch.device:
    """`auto`: the first GPU, of several processes each its own; else the CPU.

    Raises:
        ModelError: no such device on this machine.
    """
    try:
        found = processes.local_device() or ("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(found if name == "auto" else name)
        torch.ones(1, device=device).item()  # a device without memory (meta) holds no number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shown(error, 80)
        raise ModelError(f"model.device: {shown(name)!r} is not available here: {reason}; try auto or cpu") from error
    return device


def wrap_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layout: str = "auto",
    name_or_path: str = "",
    fingerprint: str | None = None,
) -> OneBase:
    """A `OneBase` around a model that is in memory already."""
    check_tokenizer(tokenizer, model, name_or_path)
    model.eval()
    if fingerprint is None:
        fingerprint = tensors_fingerprint(dict(model.state_dict()))
    found = detect_layout(model) if layout == "auto" else Exactness(layout)
    decoder = find_decoder(model, found.tolerance) if found.layout == "tree" else None
    notes = [note for note in (_cost_of(found), context_note(model.config)) if note]
    return OneBase(
        model,
        tokenizer,
        fingerprint=fingerprint,
        layout=found.layout,
        name_or_path=name_or_path,
        decoder=decoder,
        notes=notes,
    )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name_or_path: str) -> None:
    """Raises ModelError for a tokenizer with ids beyond the model's embedding; needs no weights."""
    try:
        rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    except (AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"{type(model).__name__}: this architecture cannot be used, it has no embedding of its tokens"
        ) from error
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {shown(name_or_path) or 'this model'} has {len(tokenizer)} ids and the embedding only "
            f"{rows} rows: they belong to different models, or the tokenizer names a special token that the model does "
            "not have"
        )


def check_finite(model: PreTrainedModel, name_or_path: str) -> None:
    """Raises ModelError for a weight that holds NaN or infinity, with its name: everything computed would be NaN."""
    for name, weight in model.named_parameters():
        scales = getattr(getattr(weight, "quant_state", None), "absmax", None)  # of 4-bit weights, block by block
        numbers = weight if weight.is_floating_point() else scales
        # The sum of all shows it in one pass and without a copy; it may overflow where no weight does.
        if numbers is None or bool(numbers.detach().sum(dtype=torch.float32).isfinite()):
            continue
        count = int((~numbers.detach().isfinite()).sum())
        if count:
            raise ModelError(
                f"{shown(name_or_path)}: {count} numbers of the weight '{shown(name, 100)}' are NaN or infinite; the "
                "model was damaged in training or in storing. Use another copy of it"
            )


def _cost_of(found: Exactness) -> str:
    """Why prompts are computed more than once, if they are."""
    if not found.reason:
        return ""
    return (
        f"layout separate: {found.reason}; prompts are computed once per completion, and tokens are sampled much more "
        "slowly"
    )


def hardware_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32.

    Native means compute capability 8.0 or higher on NVIDIA GPUs (older ones only emulate it), AVX-512 BF16 or AMX on
    x86 processors, and the arm64 BF16 extension, which PyTorch does not report: float32 there.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        # Older PyTorch does not report them: float32 there.
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model.

    Raises:
        ModelError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # tokenizers has no error class of its own
        raise cannot_load(name_or_path, "tokenizer", error) from error


def _load_model(name: str, dtype: torch.dtype, quantization: str, device: torch.device) -> PreTrainedModel:
    read_base_config(name)
    config = None
    require_quantization(quantization)
    if quantization == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    placed = {"": device} if config is not None else None
    model: Any = _from_folder(name, dtype=dtype, quantization_config=config, device_map=placed)
    if config is None:
        model = model.to(device)
    for module in model.modules():
        # On processors with AVX-512 BF16, bitsandbytes repacks a layer at its first forward without gradients, for a
        # kernel that has no backward: from then on the gradients through the base would silently be missing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def stored_shapes(name: str) -> PreTrainedModel:
    """The model without weights; where it is a folder, after a look at which weights are stored there.

    Raises:
        ModelError: no such model, or one that cannot be a base; stored weights are missing, left over or of another
            shape, or their files are damaged.
    """
    config = read_base_config(name)
    return _from_folder(name, device_map={"": "meta"}) if Path(name).is_dir() else empty_model(config, name)


def _from_folder(name: str, **arguments: Any) -> PreTrainedModel:
    transformers_logging.disable_progress_bar()
    loaded: Any  # the model, and what was missing
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            name,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
            trust_remote_code=False,
            **arguments,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # safetensors, the configuration's checks and the hub have classes of their own
        raise cannot_load(name, "model", error) from error
    model, report = loaded
    # transformers would start these from random numbers.
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise ModelError(
            f"{shown(name)}: no model could be loaded: {len(absent)} weights are missing or of another shape than "
            f"config.json says, the first is '{shown(absent[0], 100)}'; is this the complete folder of a causal "
            "language model?"
        )
    left_over = sorted(key for key in report["unexpected_keys"] if not _LEFT_OUT.search(key))
    if left_over:
        raise ModelError(
            f"{shown(name)}: no model could be loaded: {len(left_over)} stored weights have no place in the model that "
            f"config.json describes, the first is '{shown(left_over[0], 100)}'; the two belong to different models"
        )
    return model


def require_quantization(quantization: str) -> None:
    """Raises MissingExtraError unless the package for this quantisation can be imported."""
    if quantization == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise MissingExtraError('nf4 needs bitsandbytes: pip install "onebase[quant]"') from error
