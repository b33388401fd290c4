"""Roles on disk: the PEFT folder other tools read, and `role.json` that says what it belongs to.

    policy/   adapter_config.json  adapter_model.safetensors  role.json, and the tokenizer with its chat template
    reward/   the same, as SEQ_CLS with its `score` head inside: plain transformers and PEFT score alike

A role made on another base, with another tokenizer, or a scalar role without its head is refused.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from onebase.data.chat import ChatFormat
from onebase.errors import ModelError, RoleMismatchError
from onebase.files import atomic_folder
from onebase.models.fingerprints import tokenizer_fingerprint
from onebase.models.one_base import OneBase, Role
from onebase.models.role_card import ADAPTER_FILE, CARD_FILE, SCALAR_KINDS, Kind, RoleCard, check_role_folder
from onebase.shown import shown

SCORE_KEY = "base_model.model.score.weight"


def save_role(
    base: OneBase,
    name: str,
    folder: str | Path,
    *,
    kind: Kind,
    chat: ChatFormat | None = None,
) -> RoleCard:
    """Writes a role, whole or not at all, with the tokenizer and chat template that it was trained with.

    A critic that is only a head on the policy's trunk is saved with a copy of that adapter, so that its folder stands
    alone.
    """
    role = base.roles[name]
    config = LoraConfig(**{**base.lora_config(name).to_dict(), "inference_mode": True})
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # else their order in the file is another in each process
    weights = base.adapter_weights(name)
    if role.head is not None:
        weights[SCORE_KEY] = role.head.weight.detach().to("cpu", torch.float32, copy=True)
        # A classifier scores the last token: a role that takes the mean over tokens is not one, and does not say so.
        config.task_type = "SEQ_CLS" if role.pooling == "last" else "FEATURE_EXTRACTION"
        config.modules_to_save = ["score"] if role.pooling == "last" else None
    local = Path(base.name_or_path)
    config.base_model_name_or_path = str(local.resolve()) if local.is_dir() else base.name_or_path
    card = RoleCard.model_validate(
        {
            "kind": kind,
            "base": config.base_model_name_or_path,
            "base_fingerprint": base.fingerprint,
            "tokenizer_fingerprint": tokenizer_fingerprint(base.tokenizer),
            "dtype": str(base.model.dtype).removeprefix("torch."),
            "quantization": "nf4" if getattr(base.model, "is_quantized", False) else "none",
            "chat_template": chat.name if chat else None,
            "chat_template_fingerprint": chat.fingerprint if chat else "",
            "pooling": role.pooling,
            "score_mean": role.score_mean,
            "score_std": role.score_std or None,  # equal scores have no scale
        }
    )
    with atomic_folder(Path(folder)) as temporary:
        config.save_pretrained(str(temporary))
        save_file(weights, temporary / ADAPTER_FILE, metadata={"format": "pt"})
        standalone_tokenizer(base.tokenizer, chat).save_pretrained(temporary)
        (temporary / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def save_base(base: OneBase, folder: str | Path, *, chat: ChatFormat | None = None) -> None:
    """Writes the base and its tokenizer as a transformers folder: what full-parameter training leaves.

    The template it was trained with becomes the tokenizer's own.
    """
    transformers_logging.disable_progress_bar()
    with atomic_folder(Path(folder)) as temporary:
        base.model.save_pretrained(temporary)
        tokenizer = copy.deepcopy(base.tokenizer)
        if chat is not None and chat.name is not None:
            tokenizer.chat_template = chat.template
        tokenizer.save_pretrained(temporary)


def standalone_tokenizer(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with which `apply_chat_template` alone gives the prompts of training.

    Its chat template is the one in use, and its end token is the one that answers end in.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if chat is None or chat.template is None:
        return tokenizer
    tokenizer.chat_template = chat.template
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(chat.end_token_id)
    return tokenizer


def load_role(base: OneBase, name: str, folder: str | Path, *, kinds: tuple[str, ...], trains: bool = False) -> Role:
    """Puts a saved role on this base under `name`; a policy becomes a role without head.

    Raises:
        ModelError: the folder is not complete, or its adapter cannot be used.
        RoleMismatchError: the role is of another kind, was made on another base or with another tokenizer, or lacks
            its head.
    """
    card = check_role_folder(folder, kinds)
    check_base(base, card, folder)
    config, weights = read_adapter(folder)
    score = weights.pop(SCORE_KEY, None)
    if card.kind in SCALAR_KINDS and score is None:
        raise RoleMismatchError(
            f"{folder}: a {card.kind} role without its head: adapter_model.safetensors has no '{SCORE_KEY}'; "
            "its scores would be random. Train it again, or copy the whole folder"
        )
    if score is not None and score.shape != (1, base.hidden_size):
        raise RoleMismatchError(
            f"{folder}: its head has shape {tuple(score.shape)}, this base needs {(1, base.hidden_size)}"
        )
    try:
        role = base.add_role(name, lora=config, weights=weights, head=score is not None, trains=trains)
    except ModelError as error:
        raise ModelError(f"{shown(folder)}: {error}") from error
    role.pooling, role.score_mean, role.score_std = card.pooling, card.score_mean, card.score_std
    if score is not None and role.head is not None:
        with torch.no_grad():
            role.head.weight.copy_(score)
    return role


def check_base(base: OneBase, card: RoleCard, folder: str | Path) -> None:
    """Raises RoleMismatchError unless the role was made on this base, with this tokenizer."""
    if card.base_fingerprint != base.fingerprint:
        raise RoleMismatchError(
            f"{folder}: made on another base: {card.base} (fingerprint {card.base_fingerprint}), while this is "
            f"{base.name_or_path} ({base.fingerprint}); load that base, or train the role again on this one"
        )
    here = tokenizer_fingerprint(base.tokenizer)
    if card.tokenizer_fingerprint != here:
        raise RoleMismatchError(
            f"{folder}: made with another tokenizer (fingerprint {card.tokenizer_fingerprint}, here {here}): its "
            "adapter would read other words; use the tokenizer it was trained with"
        )


def read_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The configuration and tensors of a role's folder, the scalar head among them under `SCORE_KEY`."""
    path = Path(folder) / ADAPTER_FILE
    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = load_file(path)
    except Exception as error:  # safetensors has no error class of its own
        raise ModelError(f"{shown(folder)}: the adapter cannot be read: {shown(error, 200)}") from error
    if not isinstance(config, LoraConfig):
        kind = str(config.peft_type).removeprefix("PeftType.")
        raise ModelError(f"{shown(folder)}: its adapter is {shown(kind, 40)}, and only LoRA can be used")
    alpha = config.lora_alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"{shown(folder)}/adapter_config.json: lora_alpha is {shown(repr(alpha), 40)}, not a number")
    ranks = {tensor.shape[0] for name, tensor in weights.items() if name.endswith(".lora_A.weight")}
    if not config.rank_pattern and ranks - {config.r}:
        raise ModelError(
            f"{shown(folder)}/adapter_config.json: r is {shown(repr(config.r), 40)}, and the weights beside it have "
            f"rank {', '.join(map(str, sorted(ranks)))}"
        )
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{shown(path)}: {shown(name, 100)!r} holds NaN or infinity; whatever runs through it is not a number. "
                "Train the role again, or use an earlier checkpoint of it"
            )
    config.modules_to_save = None  # the head is ours to hold, outside PEFT
    config.task_type = "CAUSAL_LM"
    config.inference_mode = False
    config.init_lora_weights = True  # others, PiSSA among them, would change the base's own weights
    return config, weights
