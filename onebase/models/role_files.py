"""Roles on disk: a PEFT folder that other tools read, with a `role.json` that says what it belongs to.

    policy/   adapter_config.json  adapter_model.safetensors  role.json, and the tokenizer with its chat template
    reward/   the same, as SEQ_CLS with its `score` head inside: plain transformers with PEFT gives the same scores

A role made on another base, with another tokenizer, or a scalar role without its head is refused.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from onebase.data.chat import ChatFormat
from onebase.errors import ModelError, RoleMismatchError
from onebase.files import atomic_folder
from onebase.models.base import OneBase
from onebase.models.fingerprints import tokenizer_fingerprint
from onebase.models.role_card import ADAPTER_FILE, CARD_FILE, SCALAR_KINDS, Kind, RoleCard, check_role_folder
from onebase.models.roles import Moments, Role, ScalarRole
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
    """Writes a role, whole or not at all, with the tokenizer and chat template it was trained with.

    A critic that is only a head on the policy's trunk is saved with a copy of the policy's adapter, so that its folder
    is complete.
    """
    role = base.roles[name]
    config, weights = _adapter_of(base, name)
    if isinstance(role, ScalarRole):
        weights[SCORE_KEY] = role.head.weight.detach().to("cpu", torch.float32, copy=True)
        # A classifier scores the last token, so a role that averages over tokens must not claim to be one.
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
            **(_scoring(role) if isinstance(role, ScalarRole) else {}),
        }
    )
    with atomic_folder(Path(folder)) as temporary:
        config.save_pretrained(str(temporary))
        save_file(weights, temporary / ADAPTER_FILE, metadata={"format": "pt"})
        standalone_tokenizer(base.tokenizer, chat).save_pretrained(temporary)
        (temporary / CARD_FILE).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def save_adapter(base: OneBase, name: str, folder: str | Path) -> None:
    """Writes a role's adapter alone, whole or not at all, for a server that puts it on the base itself.

    Raises:
        ModelError: the role is the base itself.
    """
    config, weights = _adapter_of(base, name)
    config.init_lora_weights = True  # how it was begun means nothing to a trained one, and servers refuse some ways
    with atomic_folder(Path(folder)) as temporary:
        config.save_pretrained(str(temporary))
        save_file(weights, temporary / ADAPTER_FILE, metadata={"format": "pt"})


def _adapter_of(base: OneBase, name: str) -> tuple[Any, dict[str, Tensor]]:
    """A role's adapter as it is saved: a copy of its configuration, and its tensors."""
    adapter = base.adapter_config(name)
    if adapter is None:
        raise ModelError(f"role '{name}' is the base itself and has no adapter to save")
    config: Any = copy.copy(adapter)
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # a set's order in the file would differ per process
    return config, base.adapter_weights(name)


def _scoring(role: ScalarRole) -> dict[str, Any]:
    """The card's entries for a scalar role; if all scores are equal there is no scale, and no deviation is saved."""
    moments = role.moments
    measured = {"score_mean": moments.mean, "score_std": moments.std or None} if moments.measured else {}
    return {"pooling": role.pooling, **measured}


def save_base(base: OneBase, folder: str | Path, *, chat: ChatFormat | None = None) -> None:
    """Writes the base and its tokenizer as a transformers folder, after full-parameter training.

    The chat template it was trained with becomes the tokenizer's own.
    """
    transformers_logging.disable_progress_bar()
    with atomic_folder(Path(folder)) as temporary:
        base.model.save_pretrained(temporary)
        tokenizer = copy.deepcopy(base.tokenizer)
        if chat is not None and chat.name is not None:
            tokenizer.chat_template = chat.template
        tokenizer.save_pretrained(temporary)


def standalone_tokenizer(tokenizer: PreTrainedTokenizerBase, chat: ChatFormat | None) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer whose `apply_chat_template` alone reproduces the prompts of training.

    It has the chat template in use, and the end token that answers end in.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if chat is None or chat.template is None:
        return tokenizer
    tokenizer.chat_template = chat.template
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(chat.end_token_id)
    return tokenizer


def load_role(base: OneBase, name: str, folder: str | Path, *, kinds: tuple[str, ...], trains: bool = False) -> Role:
    """Puts a saved role on this base under `name`; a policy gets no scalar head.

    Raises:
        ModelError: the folder is incomplete, or its adapter cannot be used.
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
        role = base.add_role(name, adapter=config, weights=weights, head=score is not None, trains=trains)
    except ModelError as error:
        raise ModelError(f"{shown(folder)}: {error}", remedy=error.remedy, **error.facts) from error
    if isinstance(role, ScalarRole) and score is not None:
        role.pooling = card.pooling
        if card.score_mean is not None and card.score_std is not None:
            role.moments = Moments(card.score_mean, card.score_std, measured=True)
        with torch.no_grad():
            role.head.weight.copy_(score)
    return role


def check_base(base: OneBase, card: RoleCard, folder: str | Path) -> None:
    """Raises RoleMismatchError unless the role was made on this base and with this tokenizer."""
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


def read_adapter(folder: str | Path) -> tuple[PeftConfig, dict[str, Tensor]]:
    """Reads a role folder's configuration and tensors, including the scalar head under `SCORE_KEY`."""
    path = Path(folder) / ADAPTER_FILE
    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
        weights = load_file(path)
    except Exception as error:  # safetensors has no error class of its own
        raise ModelError(f"{shown(folder)}: the adapter cannot be read: {shown(error, 200)}") from error
    if isinstance(config, LoraConfig):
        _check_lora(config, weights, folder)
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{shown(path)}: {shown(name, 100)!r} holds NaN or infinity; whatever runs through it is not a number. "
                "Train the role again, or use an earlier checkpoint of it"
            )
    config.modules_to_save = None  # we hold the head ourselves, outside PEFT
    config.task_type = "CAUSAL_LM"
    config.inference_mode = False
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True  # other settings, such as PiSSA, would change the base's own weights
    return config, weights


def _check_lora(config: LoraConfig, weights: dict[str, Tensor], folder: str | Path) -> None:
    """Raises ModelError if a LoRA configuration and the tensors beside it do not belong together."""
    alpha = config.lora_alpha
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(f"{shown(folder)}/adapter_config.json: lora_alpha is {shown(repr(alpha), 40)}, not a number")
    ranks = {tensor.shape[0] for name, tensor in weights.items() if name.endswith(".lora_A.weight")}
    if not config.rank_pattern and ranks - {config.r}:
        raise ModelError(
            f"{shown(folder)}/adapter_config.json: r is {shown(repr(config.r), 40)}, and the weights beside it have "
            f"rank {', '.join(map(str, sorted(ranks)))}"
        )
