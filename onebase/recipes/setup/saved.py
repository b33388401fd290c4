"""Opens roles saved by earlier runs, on the one base they need."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from onebase.data.chat import ChatFormat, chat_format
from onebase.engines.opening import load_base
from onebase.errors import ModelError
from onebase.models.base import OneBase
from onebase.models.role_card import TEMPLATE_FILE, RoleCard, read_card
from onebase.models.role_files import load_role
from onebase.recipes.setup.named_folders import check_opened
from onebase.runs.progress import say
from onebase.shown import shown
from onebase.training.threads import use_threads

NO_TEMPLATE = hashlib.sha256(b"").hexdigest()
"""The fingerprint of no template, as for plain text."""


def open_saved(
    roles: Mapping[str, tuple[str, tuple[str, ...]]],
    *,
    model: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> tuple[OneBase, ChatFormat]:
    """Loads the base that these folders need, once and as in their training, and puts the roles on it.

    Args:
        roles: name on the base -> (folder, kinds of role it may be). A folder that is a full model (a base, or the
            result of full-parameter training) is the base itself, with adapters off.
        model: the base, if it is no longer where the roles say.
        dtype, quantization: how to load the base; None: as when the roles were trained.

    Raises:
        ModelError: the folders need several models, a model is given for a reward role, or the base is not where a role
            says.
    """
    use_threads(None)
    base, cards = open_base(roles, model=model, dtype=dtype, quantization=quantization, device=device)
    folders = {name: Path(folder) for name, (folder, _) in roles.items()}
    template = next((str(folders[n] / TEMPLATE_FILE) for n, card in cards.items() if card.chat_template), None)
    if not cards and base.tokenizer.chat_template is None:
        template = "plain"  # a base model without a template continues the text as it stands
    chat = chat_format(base.tokenizer, template)
    for name in cards:
        warn_of_template(folders[name], chat)
    return base, chat


def open_base(
    roles: Mapping[str, tuple[str, tuple[str, ...]]],
    *,
    model: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> tuple[OneBase, dict[str, RoleCard]]:
    """Loads the base that these folders need, with the roles on it; returns it with the cards of those that have one.

    Arguments and errors are those of `open_saved`, but there may be no role where a model is given.
    """
    wanted, cards = check_opened(roles, model=model)
    first = next(iter(cards.values()), None)
    base = load_base(
        wanted,
        dtype=dtype or (first.dtype if first else "auto"),
        quantization=quantization or (first.quantization if first else "none"),
        device=device,
    )
    for note in base.notes:
        say(note)
    for name, (folder, kinds) in roles.items():
        if name not in cards:
            if Path(folder).resolve() != Path(wanted).resolve():
                raise ModelError(
                    f"{shown(folder)} and {shown(wanted)} are two models; name roles on one base, or one model"
                )
            base.add_role(name)
        else:
            load_role(base, name, folder, kinds=kinds)
    return base, cards


def warn_of_template(folder: str | Path, chat: ChatFormat) -> None:
    """Warns if a role was trained with a chat template other than the one in use, and so knows other turn marks."""
    card = read_card(folder)
    if chat.template is not None and card.chat_template_fingerprint not in ("", chat.fingerprint, NO_TEMPLATE):
        own = "the tokenizer's own"
        say(
            f"warning: {shown(folder)} was trained with another chat template ({shown(card.chat_template or own)}) "
            f"than the one in use ({shown(chat.name or own)})"
        )
