"""From a folder or a hub name to a `OneBase`: weights, tokenizer, dtype, quantisation, layout."""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from onebase import processes
from onebase.data.tree import build_tree_batch, separate
from onebase.errors import MissingExtraError, ModelError
from onebase.models.decoder import Decoder
from onebase.models.forward import adjust_logits, final_logits, trunk
from onebase.models.hardware import keep_freed_memory
from onebase.models.one_base import OneBase
from onebase.records import Example

EXACTNESS_TOLERANCE = 1e-4
"""Largest difference in a log-prob between a tree and separate rows, in float32, for the tree to be used."""


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
        ModelError: no such model, no tokenizer, or ids beyond the embedding.
        MissingExtraError: nf4 without bitsandbytes.
    """
    chosen_device = choose_device(device)
    if chosen_device.type == "cpu":
        keep_freed_memory()
    chosen_dtype = hardware_dtype(chosen_device) if dtype == "auto" else getattr(torch, dtype)
    model = _load_model(model_name_or_path, chosen_dtype, quantization, chosen_device)
    tokenizer = load_tokenizer(model_name_or_path)
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
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = _one_line(error)[:80]
        raise ModelError(f"model.device: {name!r} is not available here: {reason}; try auto or cpu") from error
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
    rows = model.get_input_embeddings().weight.shape[0]  # type: ignore[index]
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {name_or_path or 'this model'} has {len(tokenizer)} ids and the embedding only {rows} "
            "rows: they belong to different models"
        )
    model.eval()
    if fingerprint is None:
        fingerprint = tensors_fingerprint(dict(model.state_dict()))
    if layout == "auto":
        layout = detect_layout(model)
    decoder = find_decoder(model) if layout == "tree" else None
    return OneBase(
        model, tokenizer, fingerprint=fingerprint, layout=layout, name_or_path=name_or_path, decoder=decoder
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
        return AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{name_or_path}: no tokenizer could be loaded: {_one_line(error)}") from error


def detect_layout(model: PreTrainedModel) -> str:
    """`tree` where a tree gives the log-probs of separate rows within `EXACTNESS_TOLERANCE`, else `separate`.

    Tried on one tiny random tree. ALiBi and state-space models fail: they read distances from columns.

    Raises:
        ModelError: the model's own logits are not reproduced either, so neither layout can be trusted.
    """
    (example,) = _random_examples(model)
    with torch.no_grad():
        rows = build_tree_batch(separate([example])).to(model.device)
        expected = _own_logprobs(model, rows.input_ids, rows.tree >= 0)[rows.source_row, rows.source_column]
        expected = expected.gather(-1, rows.targets[:, None])
        tolerance = EXACTNESS_TOLERANCE
        if model.dtype != torch.float32:
            # bf16 and 4-bit kernels depend on a batch's shape: a layout may differ by as much as one row alone does.
            alone = _logprobs(model, [replace(example, completions=example.completions[:1])], "separate")
            assert alone is not None
            noise = float((alone - expected[: len(alone)]).abs().max())
            # A log-prob of 14 nats in bfloat16 is one of 8 bits: half a unit of its last is 0.03.
            tolerance = max(0.02, 4 * noise, float(expected.abs().max()) * 2**-8)
        separate_rows = _logprobs(model, [example], "separate")
        if separate_rows is None or (separate_rows - expected).abs().max() > tolerance:
            raise ModelError(
                f"{type(model).__name__}: the log-probs from its trunk and output layer differ from its own logits; "
                "this architecture is not supported"
            )
        if _hides_by_column(model) or not _takes_positions(model):
            return "separate"
        in_tree = _logprobs(model, [example], "tree")
    exact = in_tree is not None and (in_tree - expected).abs().max() <= tolerance
    return "tree" if exact else "separate"


def find_decoder(model: PreTrainedModel) -> Decoder | None:
    """What runs this model without transformers, or None.

    On a CPU, where it was measured to pay; only for architectures made of the same operations; and only if it gives
    the log-probs that transformers gives, tried on a tiny random tree.
    """
    if model.device.type != "cpu" or not Decoder.runs(model):
        return None
    decoder, examples = Decoder(model), _random_examples(model)
    with torch.no_grad():
        expected = _logprobs(model, examples, "tree")
        batch = build_tree_batch(examples)
        states = decoder.states(batch, batch.source_row, batch.source_column)
        found = _head_logprobs(model, states, batch.targets)
    tolerance = EXACTNESS_TOLERANCE
    if model.dtype != torch.float32:
        tolerance = max(0.02, float(found.abs().max()) * 2**-7)
    if expected is None or (found - expected).abs().max() > tolerance:
        return None
    decoder.lay_weights_together()
    return decoder


def _random_examples(model: PreTrainedModel) -> list[Example]:
    generator = torch.Generator().manual_seed(0)
    size = model.config.get_text_config().vocab_size

    def random_ids(count: int) -> list[int]:
        return torch.randint(0, size, (count,), generator=generator).tolist()

    return [Example(random_ids(7), [random_ids(5), random_ids(3), random_ids(4)])]


def _hides_by_column(model: PreTrainedModel) -> bool:
    """Whether some layer sees only a window or a chunk of columns, longer than the random tree that is tried.

    Sliding windows are known, and counted in positions; others (GPT-Neo's local attention, Llama 4's chunks) are not.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention", "sliding_attention"}
    local = "local" in str(getattr(config, "attention_types", ""))
    chunks = [getattr(config, name, None) for name in ("attention_chunk_size", "attention_window", "local_window_size")]
    return bool(kinds) or local or any(chunks)


def _takes_positions(model: PreTrainedModel) -> bool:
    """Whether positions are an argument; where they are not (ALiBi), a model reads them from the columns."""
    return "position_ids" in inspect.signature(type(model.base_model).forward).parameters


def _logprobs(model: PreTrainedModel, examples: list[Example], layout: str) -> Tensor | None:
    batch = build_tree_batch(examples if layout == "tree" else separate(examples)).to(model.device)
    try:
        hidden = trunk(model, batch, layout=layout)
    except (TypeError, ValueError, RuntimeError):
        return None  # takes no position_ids, or no 4-D mask
    return _head_logprobs(model, hidden[batch.source_row, batch.source_column], batch.targets)


def _head_logprobs(model: PreTrainedModel, states: Tensor, targets: Tensor) -> Tensor:
    logits = adjust_logits(model.get_output_embeddings()(states).float(), final_logits(model))
    return logits.log_softmax(-1).gather(-1, targets[:, None])


def _own_logprobs(model: PreTrainedModel, input_ids: Tensor, attended: Tensor) -> Tensor:
    return model(input_ids=input_ids, attention_mask=attended.long(), use_cache=False).logits.float().log_softmax(-1)


def _load_model(name: str, dtype: torch.dtype, quantization: str, device: torch.device) -> PreTrainedModel:
    if _looks_local(name) and not Path(name).is_dir():
        raise ModelError(f"{name}: no such folder; model.model_name_or_path takes a folder or a hub name")
    config = None
    require_quantization(quantization)
    if quantization == "nf4":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    transformers_logging.disable_progress_bar()
    loaded: Any  # the model, and what was missing
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype,
            quantization_config=config,
            device_map={"": device} if config is not None else None,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # safetensors, the configuration's checks and the hub have classes of their own
        raise ModelError(f"{name}: no model could be loaded: {_one_line(error)}") from error
    model, report = loaded
    # transformers would start these from random numbers.
    absent = sorted({*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])})
    if absent:
        raise ModelError(
            f"{name}: no model could be loaded: {len(absent)} weights are missing or of another shape than config.json "
            f"says, the first is '{absent[0]}'; is this the complete folder of a causal language model?"
        )
    if config is None:
        return model.to(device)
    for module in model.modules():
        # On processors with AVX-512 BF16, bitsandbytes repacks a layer at its first forward without gradients, for a
        # kernel that has no backward: from then on the gradients through the base would silently be missing.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def require_quantization(quantization: str) -> None:
    """Raises MissingExtraError unless the package for this quantisation can be imported."""
    if quantization == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise MissingExtraError('nf4 needs bitsandbytes: pip install "onebase[quant]"') from error


def _looks_local(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name.split("/")[0]).is_dir()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


# ------------------------------------------------------------------------------------------------- fingerprints


def base_fingerprint(name_or_path: str) -> str:
    """Identifies the base's weights as stored: the same for every dtype, device and quantisation it is loaded in.

    Read from the weight files: names, shapes, and a sample of each tensor's elements, not all bytes, so that an
    8 B model takes a second. Sharding does not matter.
    """
    files = _weight_files(name_or_path)
    if not files:
        return "unknown"
    entries: dict[str, bytes] = {}
    for file in files:
        if file.suffix == ".bin":
            entries |= _entries(torch.load(file, map_location="cpu", mmap=True, weights_only=True))
            continue
        with safe_open(file, framework="pt") as handle:
            for name in handle.keys():
                part = handle.get_slice(name)
                first = part[: min(64, part.get_shape()[0])] if part.get_shape() else handle.get_tensor(name)
                entries[name] = _entry(name, part.get_shape(), first)
    return _digest(entries)


def tensors_fingerprint(tensors: dict[str, Tensor]) -> str:
    """As `base_fingerprint`, of tensors in memory."""
    return _digest(_entries(tensors))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies the mapping from text to ids."""
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id]
    # How text is split and normalised is not in the vocabulary: a text that most differences would show in.
    text = "Don't\u00a0ZÜRICH, naïve ＡＢ 12345  \n\tfoo_bar(x) 东京 🙂"
    probe = tokenizer(text, add_special_tokens=False)["input_ids"]
    return hashlib.sha256(json.dumps([vocabulary, special, probe]).encode()).hexdigest()[:16]


def _entries(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    return {
        name: _entry(name, list(tensor.shape), tensor[:64] if tensor.dim() else tensor)
        for name, tensor in tensors.items()
    }


def _entry(name: str, shape: list[int], first_rows: Tensor) -> bytes:
    sample = first_rows.reshape(-1).float()
    sample = sample[:: max(1, sample.numel() // 1024)].cpu().contiguous()
    return f"{name}{list(shape)}".encode() + sample.numpy().tobytes()


def _digest(entries: dict[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(entries):
        digest.update(entries[name])
    return digest.hexdigest()[:16]


def _weight_files(name_or_path: str) -> list[Path]:
    """The files transformers reads the weights from: safetensors where there are any, else `pytorch_model*.bin`."""
    folder = Path(name_or_path)
    if folder.is_dir():
        return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        for entry in (f"{stem}.{suffix}", f"{stem}.{suffix}.index.json"):
            found = cached_file(name_or_path, entry, _raise_exceptions_for_missing_entries=False)
            if found:
                return sorted(Path(found).parent.glob(f"{stem}*.{suffix}"))
    return []
