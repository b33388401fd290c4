"""Roles on disk: the PEFT folder other tools read, and `role.json` that says what it belongs to.

    policy/   adapter_config.json  adapter_model.safetensors  role.json
    reward/   the same, as SEQ_CLS with its `score` head inside: plain transformers and PEFT score alike

A role made on another base, with another tokenizer, or a scalar role without its head is refused.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from onebase.data.chat import ChatFormat
from onebase.errors import ModelError, RoleMismatchError
from onebase.files import atomic_folder
from onebase.models.loading import tokenizer_fingerprint
from onebase.models.one_base import OneBase, Role

SCORE_KEY = "base_model.model.score.weight"
TEMPLATE_FILE = "chat_template.jinja"
SCALAR_KINDS = ("reward", "critic")


@dataclass(frozen=True, slots=True)
class RoleCard:
    """What `role.json` says of a role."""

    kind: str
    """`policy`, `reward` or `critic`."""
    base: str
    """Folder or hub name of the base."""
    base_fingerprint: str
    tokenizer_fingerprint: str
    dtype: str = "float32"
    """Of the base when the role was trained: loaded in another one its scores differ in the third digit."""
    quantization: str = "none"
    chat_template: str | None = None
    """The template as configured, its text beside this in `chat_template.jinja`; None: the tokenizer's own."""
    chat_template_fingerprint: str = ""
    pooling: str = "last"
    score_mean: float | None = None
    score_std: float | None = None
    """Of the held-out scores; null where none were measured."""


def save_role(
    one: OneBase,
    name: str,
    folder: str | Path,
    *,
    kind: str,
    chat: ChatFormat | None = None,
) -> RoleCard:
    """Writes a role, whole or not at all.

    A critic that is only a head on the policy's trunk is saved with a copy of that adapter, so that its folder stands
    alone.
    """
    role = one.roles[name]
    config = LoraConfig(**{**one.lora_config(name).to_dict(), "inference_mode": True})
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # else their order in the file is another in each process
    weights = one.adapter_weights(name)
    if role.head is not None:
        weights[SCORE_KEY] = role.head.weight.detach().to("cpu", torch.float32, copy=True)
        # A classifier scores the last token: a role that takes the mean over tokens is not one, and does not say so.
        config.task_type = "SEQ_CLS" if role.pooling == "last" else "FEATURE_EXTRACTION"
        config.modules_to_save = ["score"] if role.pooling == "last" else None
    local = Path(one.name_or_path)
    config.base_model_name_or_path = str(local.resolve()) if local.is_dir() else one.name_or_path
    card = RoleCard(
        kind=kind,
        base=config.base_model_name_or_path,
        base_fingerprint=one.fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint(one.tokenizer),
        dtype=str(one.model.dtype).removeprefix("torch."),
        quantization="nf4" if getattr(one.model, "is_quantized", False) else "none",
        chat_template=chat.name if chat else None,
        chat_template_fingerprint=chat.fingerprint if chat else "",
        pooling=role.pooling,
        score_mean=role.score_mean,
        score_std=role.score_std,
    )
    with atomic_folder(Path(folder)) as temporary:
        config.save_pretrained(str(temporary))
        save_file(weights, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        if chat is not None and chat.name is not None and chat.template is not None:
            (temporary / TEMPLATE_FILE).write_text(chat.template, encoding="utf-8")
        (temporary / "role.json").write_text(json.dumps(asdict(card), indent=2) + "\n")
    return card


def save_base(one: OneBase, folder: str | Path, *, chat: ChatFormat | None = None) -> None:
    """Writes the base and its tokenizer as a transformers folder: what full-parameter training leaves.

    The template it was trained with becomes the tokenizer's own.
    """
    transformers_logging.disable_progress_bar()
    with atomic_folder(Path(folder)) as temporary:
        one.model.save_pretrained(temporary)
        tokenizer = copy.deepcopy(one.tokenizer)
        if chat is not None and chat.name is not None:
            tokenizer.chat_template = chat.template
        tokenizer.save_pretrained(temporary)


def read_card(folder: str | Path) -> RoleCard:
    """Reads `role.json`.

    Raises:
        ModelError: no such folder, no role in it, or a file that cannot be read.
    """
    path = Path(folder) / "role.json"
    if not Path(folder).is_dir():
        raise ModelError(f"{folder}: no such folder; a role is the folder `policy` or `reward` inside a run")
    if not path.is_file():
        inside = sorted(child.name for child in Path(folder).iterdir() if (child / "role.json").is_file())
        if (Path(folder) / "config.json").is_file():
            raise ModelError(
                f"{folder}: this is a model of its own and no role; give it as model.model_name_or_path, or a "
                "classifier as reward.model"
            )
        hint = f"did you mean {Path(folder) / inside[0]}?" if inside else "it is not a role saved by onebase"
        raise ModelError(f"{folder}: no role.json; {hint}")
    try:
        return RoleCard(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: cannot be read: {error}") from error


def load_role(one: OneBase, name: str, folder: str | Path, *, kinds: tuple[str, ...], trains: bool = False) -> Role:
    """Puts a saved role on this base under `name`; a policy becomes a role without head.

    Raises:
        RoleMismatchError: the role is of another kind, was made on another base or with another tokenizer, or lacks
            its head.
    """
    card = check_role(one, folder, kinds)
    config, weights = read_adapter(folder)
    score = weights.pop(SCORE_KEY, None)
    if card.kind in SCALAR_KINDS and score is None:
        raise RoleMismatchError(
            f"{folder}: a {card.kind} role without its head: adapter_model.safetensors has no '{SCORE_KEY}'; "
            "its scores would be random. Train it again, or copy the whole folder"
        )
    if score is not None and score.shape != (1, one.hidden_size):
        raise RoleMismatchError(
            f"{folder}: its head has shape {tuple(score.shape)}, this base needs {(1, one.hidden_size)}"
        )
    role = one.add_role(name, lora=config, weights=weights, head=score is not None, trains=trains)
    role.pooling, role.score_mean, role.score_std = card.pooling, card.score_mean, card.score_std
    if score is not None and role.head is not None:
        with torch.no_grad():
            role.head.weight.copy_(score)
    return role


class Base(Protocol):
    """What tells one base from another, loaded or only planned."""

    @property
    def name_or_path(self) -> str: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...


def check_role(base: Base, folder: str | Path, kinds: tuple[str, ...]) -> RoleCard:
    """Reads a role's card; needs no weights of the base.

    Raises:
        RoleMismatchError: the role is of another kind, or was made on another base or with another tokenizer.
    """
    card = read_card(folder)
    if card.kind not in kinds:
        raise RoleMismatchError(f"{folder}: this is a {card.kind} role, and a {' or '.join(kinds)} role is needed here")
    check_base(base, card, folder)
    return card


def check_base(one: Base, card: RoleCard, folder: str | Path) -> None:
    """Raises RoleMismatchError unless the role was made on this base, with this tokenizer."""
    if card.base_fingerprint != one.fingerprint:
        raise RoleMismatchError(
            f"{folder}: made on another base: {card.base} (fingerprint {card.base_fingerprint}), while this is "
            f"{one.name_or_path} ({one.fingerprint}); load that base, or train the role again on this one"
        )
    here = tokenizer_fingerprint(one.tokenizer)
    if card.tokenizer_fingerprint != here:
        raise RoleMismatchError(
            f"{folder}: made with another tokenizer (fingerprint {card.tokenizer_fingerprint}, here {here}): its "
            "adapter would read other words; use the tokenizer it was trained with"
        )


def read_adapter(folder: str | Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The configuration and tensors of a role's folder, the scalar head among them under `SCORE_KEY`."""
    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        raise ModelError(f"{path}: missing; the folder is not complete")
    try:
        config = LoraConfig.from_pretrained(str(folder))
        weights = load_file(path)
    except Exception as error:  # safetensors has no error class of its own
        raise ModelError(f"{folder}: the adapter cannot be read: {error}") from error
    config.modules_to_save = None  # the head is ours to hold, outside PEFT
    config.task_type = "CAUSAL_LM"
    config.inference_mode = False
    return config, weights
