"""Loads a model and its tokenizer from a folder or hub name: weights, dtype, quantisation, device."""

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

from onebase.errors import MissingExtraError, ModelError
from onebase.models.base_config import cannot_load, empty_model, read_base_config
from onebase.processes import ALONE, Group
from onebase.shown import number_of, shown

_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")
"""One of these holds a tokenizer's vocabulary."""
_LEFT_OUT = re.compile(r"inv_freq$|masked_bias$|attn\.bias$|(^|\.)(vision|visual|audio|multi_modal|mtp)")
"""Stored tensors that no causal language model reads: tables from older versions, modules for images and sound."""


def choose_device(name: str, group: Group = ALONE) -> torch.device:
    """The device by this name; `auto`: the first GPU, or each process's own if several share a machine, else the CPU.

    Raises:
        ModelError: this machine has no such device.
    """
    try:
        found = group.local_device() or ("cuda" if torch.cuda.is_available() else "cpu")
        device = torch.device(found if name == "auto" else name)
        torch.ones(1, device=device).item()  # a device without memory (meta) holds no number
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = shown(error, 80)
        raise ModelError(f"the device {shown(name)!r} is not available here: {reason}", remedy="no-device") from error
    return device


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
            f"{number_of(int(rows), 'row')}: they belong to different models, or the tokenizer names a special token "
            "that the model does "
            "not have"
        )


def check_finite(model: PreTrainedModel, name_or_path: str) -> None:
    """Raises ModelError for a weight that holds NaN or infinity, with its name: everything computed would be NaN."""
    for name, weight in model.named_parameters():
        scales = getattr(getattr(weight, "quant_state", None), "absmax", None)  # of 4-bit weights, block by block
        numbers = weight if weight.is_floating_point() else scales
        # The sum shows NaN and infinity in one pass without a copy; it may also overflow where every weight is finite.
        if numbers is None or bool(numbers.detach().sum(dtype=torch.float32).isfinite()):
            continue
        count = int((~numbers.detach().isfinite()).sum())
        if count:
            raise ModelError(
                f"{shown(name_or_path)}: {count} numbers of the weight '{shown(name, 100)}' are NaN or infinite; the "
                "model was damaged in training or in storing. Use another copy of it"
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
    """Loads the tokenizer stored beside a model.

    Raises:
        ModelError: there is no tokenizer, or it cannot be loaded.
    """
    packed = [name for name in _TOKENIZER_FILES if (Path(name_or_path) / f"{name}.gz").is_file()]
    if packed and not any((Path(name_or_path) / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelError(
            f"{shown(name_or_path)}: no tokenizer could be loaded: {packed[0]}.gz is packed, and has to be unpacked "
            "(gunzip, in a copy of the folder if it should stay as it is)"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
    except Exception as error:  # tokenizers has no error class of its own
        raise cannot_load(name_or_path, "tokenizer", error) from error
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):  # made from its configuration: no text would have a token
        raise ModelError(
            f"{shown(name_or_path)}: no tokenizer could be loaded: it knows special tokens alone; add its vocabulary "
            "(tokenizer.json)"
        )
    return tokenizer


def load_model(name: str, dtype: torch.dtype, quantization: str, device: torch.device) -> PreTrainedModel:
    """Loads the model onto its device.

    Raises:
        ModelError: the model does not exist, or weights are missing or left over.
        MissingExtraError: nf4 without bitsandbytes.
    """
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
        # On processors with AVX-512 BF16, bitsandbytes repacks a layer in its first forward pass without gradients, for
        # a kernel without a backward pass: from then on gradients through the base would silently be missing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def stored_shapes(name: str) -> PreTrainedModel:
    """Builds the model without weights; for a folder, also checks which weights are stored there.

    Raises:
        ModelError: the model does not exist or cannot be a base; stored weights are missing, left over or of another
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
            use_safetensors=True,  # pickled weights can run code
            **arguments,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # safetensors, the configuration's checks and the hub each raise their own classes
        raise cannot_load(name, "model", error) from error
    model, report = loaded
    # transformers would fill these with random numbers.
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
