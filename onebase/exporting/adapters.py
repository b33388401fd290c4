"""Adapter folders for servers that put adapters on the base themselves, and what such servers do not take."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from onebase.data.chat import chat_format
from onebase.errors import ModelError
from onebase.exporting.source import Source
from onebase.models.base import OneBase
from onebase.models.fingerprints import base_fingerprint
from onebase.models.loading import load_tokenizer, stored_shapes
from onebase.models.role_card import TEMPLATE_FILE
from onebase.models.role_files import load_role
from onebase.records import Message
from onebase.shown import shown

COPIED = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Endings of a role's files: adapter, tokenizer, template, `role.json`."""


def check_adapter(source: Source, engine: str) -> None:
    """Checks that an engine can put a role's adapter on its base.

    Raises:
        ModelError: the role is no plain LoRA adapter for generating text, does not fit the base, or its chat template
            is gone or invalid.
        RoleMismatchError: it was made on another base, or with another tokenizer.
    """
    name = shown(source.folder)
    if source.card is None:
        raise ModelError(f"{name} is a full model and has no adapter; {engine} serves its folder as it is")
    for reason in _reasons(source):
        raise ModelError(f"{name}: {engine} does not take {reason}; make it a plain model with onebase merge")
    # The base's shapes are enough; the weights of one that is named on the Hub may not be here, and need not be.
    local = Path(source.base).is_dir()
    fingerprint = base_fingerprint(source.base) if local else source.card.base_fingerprint
    base = OneBase(
        stored_shapes(source.base),
        load_tokenizer(source.base),
        fingerprint=fingerprint,
        layout="tree",
        name_or_path=source.base,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that copying to a tensor without weights does nothing
        load_role(base, source.kind, source.folder, kinds=(source.kind,))
    if source.card.chat_template:
        chat = chat_format(base.tokenizer, str(Path(source.folder) / TEMPLATE_FILE))
        chat.encode_prompt((Message("user", "Hello"),))  # a template is read when it is used


def _reasons(source: Source) -> Iterator[str]:
    """What a server of LoRA adapters would refuse, or worse, ignore."""
    config = source.adapter
    if source.kind != "policy":
        yield "a trained head, which a reward role has beside its adapter"
    kind = str(config.get("peft_type") or "none")
    if kind != "LORA":
        yield f"adapters of the kind {shown(kind, 40)}, only LoRA"
    for key, what in (
        ("use_dora", "DoRA"),
        ("lora_bias", "a bias in the adapter (lora_bias)"),
        ("modules_to_save", "layers trained in full beside the adapter (modules_to_save)"),
        ("layer_replication", "replicated layers (layer_replication)"),
        ("alora_invocation_tokens", "adapters that begin in mid-text (aLoRA)"),
        ("rank_pattern", "ranks that differ from layer to layer (rank_pattern)"),
        ("alpha_pattern", "alphas that differ from layer to layer (alpha_pattern)"),
        ("trainable_token_indices", "trained tokens (trainable_token_indices)"),
    ):
        if config.get(key):
            yield what
    if config.get("bias") not in (None, "none"):
        yield "trained biases (bias)"
    if config.get("fan_in_fan_out"):
        yield "adapters on GPT-2's layers (Conv1D)"


def rank_of(source: Source) -> int:
    """The adapter's rank."""
    return int(source.adapter["r"])


def write_adapter(source: Source, folder: Path) -> Any:
    """Copies a role's adapter, tokenizer and template into a folder, and writes the end tokens it was trained with.

    Returns:
        The role's tokenizer.
    """
    for path in sorted(Path(source.folder).iterdir()):
        if path.is_file() and path.suffix in COPIED:
            shutil.copyfile(path, folder / path.name)
    # How the adapter was begun means nothing to a trained one, and servers refuse some beginnings.
    config = source.adapter | {"init_lora_weights": True, "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(source.folder)
    ends = end_tokens(source)
    settings = GenerationConfig(eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id)
    settings.save_pretrained(folder)
    return tokenizer


def end_tokens(source: Source) -> tuple[int, ...]:
    """The tokens at which the role stops, the one it was trained to end with first."""
    trained = load_tokenizer(source.folder).eos_token_id
    try:
        configured: Any = GenerationConfig.from_pretrained(source.base).eos_token_id
    except OSError:  # the base has no generation settings
        configured = None
    listed = configured if isinstance(configured, list) else [configured]
    found = (trained, load_tokenizer(source.base).eos_token_id, *listed)
    return tuple(dict.fromkeys(int(i) for i in found if i is not None))
