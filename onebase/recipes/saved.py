"""Opening what earlier runs saved: roles, and the one base they stand on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from onebase.data.chat import ChatFormat, chat_format
from onebase.errors import ModelError
from onebase.models.loading import load_base
from onebase.models.one_base import OneBase
from onebase.models.role_files import load_role, read_card


def open_saved(roles: Mapping[str, tuple[str, tuple[str, ...]]], *, model: str | None = None) -> tuple[OneBase, ChatFormat]:
    """Loads the base that these folders need, once, and puts them on it.

    Args:
        roles: name on the base -> (folder, kinds of role it may be). A folder that is a model of its own (a base, or
            what full-parameter training left) is the base itself, with adapters off.
        model: the base, where it is not where the roles say.

    Raises:
        ModelError: folders of several models, a model where a reward role is needed, or the base is not where a role
            says.
    """
    folders = {name: Path(folder) for name, (folder, _) in roles.items()}
    bases = {name: _is_model(folder) for name, folder in folders.items()}
    for name, (folder, kinds) in roles.items():
        if bases[name] and "policy" not in kinds:
            raise ModelError(
                f"{folder}: this is a model of its own, and a {' or '.join(kinds)} role is needed here; a reward model "
                "trained with lora.r = 0 is a transformers classifier, for reward.model in ppo"
            )
    cards = {name: read_card(folder) for name, folder in folders.items() if not bases[name]}
    wanted = model or next((str(folders[name]) for name, is_model in bases.items() if is_model), None)
    if wanted is None:
        card = next(iter(cards.values()))
        wanted = card.base
        if Path(wanted).is_absolute() and not Path(wanted).is_dir():
            raise ModelError(f"{wanted}: the base of {next(iter(folders.values()))} is no longer there; name it by --model")
    one = load_base(wanted)
    for name, (folder, kinds) in roles.items():
        if bases[name]:
            if Path(folder).resolve() != Path(wanted).resolve():
                raise ModelError(f"{folder} and {wanted} are two models; roles of one base are compared, or one model")
            one.add_role(name)
        else:
            load_role(one, name, folder, kinds=kinds)
    template = next((card.chat_template for card in cards.values()), None)
    if not cards and one.tokenizer.chat_template is None:
        template = "plain"  # a base model that was never told a template goes on from the text as it is
    return one, chat_format(one.tokenizer, template)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()
