"""Opening what earlier runs saved: roles, and the one base they stand on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from onebase.data.chat import ChatFormat, chat_format
from onebase.errors import ModelError
from onebase.models.loading import load_base
from onebase.models.one_base import OneBase
from onebase.models.role_card import TEMPLATE_FILE, read_card
from onebase.models.role_files import load_role
from onebase.recipes.setup.named_folders import check_opened
from onebase.runs.progress import say
from onebase.shown import shown
from onebase.training.threads import use_threads

NO_TEMPLATE = hashlib.sha256(b"").hexdigest()
"""The fingerprint where there was none: plain text needs none."""


def open_saved(
    roles: Mapping[str, tuple[str, tuple[str, ...]]],
    *,
    model: str | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str = "auto",
) -> tuple[OneBase, ChatFormat]:
    """Loads the base that these folders need, once and as they were trained on it, and puts them on it.

    Args:
        roles: name on the base -> (folder, kinds of role it may be). A folder that is a model of its own (a base, or
            what full-parameter training left) is the base itself, with adapters off.
        model: the base, where it is not where the roles say.
        dtype: of the base, and `quantization`; None: as the roles were trained on it.

    Raises:
        ModelError: folders of several models, a model where a reward role is needed, or the base is not where a role
            says.
    """
    use_threads(None)
    wanted, cards = check_opened(roles, model=model)
    folders = {name: Path(folder) for name, (folder, _) in roles.items()}
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
                    f"{shown(folder)} and {shown(wanted)} are two models; roles of one base are compared, or one model"
                )
            base.add_role(name)
        else:
            load_role(base, name, folder, kinds=kinds)
    template = next((str(folders[n] / TEMPLATE_FILE) for n, card in cards.items() if card.chat_template), None)
    if not cards and base.tokenizer.chat_template is None:
        template = "plain"  # a base model without a template continues the text as it stands
    chat = chat_format(base.tokenizer, template)
    for name in cards:
        warn_of_template(folders[name], chat)
    return base, chat


def warn_of_template(folder: str | Path, chat: ChatFormat) -> None:
    """Says so where a role was trained with another chat template than the one in use: it knows other turn marks."""
    card = read_card(folder)
    if chat.template is not None and card.chat_template_fingerprint not in ("", chat.fingerprint, NO_TEMPLATE):
        own = "the tokenizer's own"
        say(
            f"warning: {shown(folder)} was trained with another chat template ({shown(card.chat_template or own)}) "
            f"than the one in use ({shown(chat.name or own)})"
        )
