"""Checks the folders that a command names before torch is imported, so that a wrong path is answered at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from onebase.config.preferences import RewardConfig
from onebase.errors import ModelError
from onebase.models.role_card import RoleCard, check_model_name, check_role_folder, is_model
from onebase.shown import shown


def check_named(config: BaseModel) -> None:
    """Checks the base and the roles that a verb's configuration names.

    Raises:
        ModelError: a folder does not exist, or holds something else.
    """
    keys: Any = config
    if keys.model.model_name_or_path is not None:
        check_model_name(keys.model.model_name_or_path)
    reward: Any = getattr(keys, "reward", None)
    if getattr(reward, "model", None) is not None:
        check_model_name(reward.model, key="reward.model")
    if getattr(reward, "role", None) is not None:
        check_role_folder(reward.role, ("reward",))
    for key in ("start_from", "reference_role"):
        folder = getattr(keys, key, None)
        if folder is not None and (key, folder) != ("reference_role", "base"):
            may_be_reward = key == "start_from" and isinstance(config, RewardConfig)
            check_role_folder(folder, ("policy", "reward") if may_be_reward else ("policy",))


def check_opened(
    roles: Mapping[str, tuple[str, tuple[str, ...]]], *, model: str | None = None
) -> tuple[str, dict[str, RoleCard]]:
    """Returns the folder or hub name of the base these folders need, and the cards of the ones that are roles.

    Args:
        roles: name -> (folder, kinds of role it may be); a folder that is not a role is a full model.
        model: the base, if it is no longer where the roles say.

    Raises:
        ModelError: a folder does not exist or holds something else, or the base is not where a role says.
    """
    cards: dict[str, RoleCard] = {}
    for name, (folder, kinds) in roles.items():
        if not is_model(folder):
            cards[name] = check_role_folder(folder, kinds)
        elif "policy" not in kinds:
            raise ModelError(
                f"{shown(folder)}: this folder is a full model, and a {' or '.join(kinds)} role is needed here; a "
                "reward model trained with lora.r = 0 is a transformers classifier, for reward.model in ppo"
            )
    base = model or next((folder for name, (folder, _) in roles.items() if name not in cards), None)
    if base is None:
        name, card = next(iter(cards.items()))
        base = card.base
        if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
            raise ModelError(
                f"{shown(base) or '(no name)'}: the base of {shown(roles[name][0])} is no longer there; name it with "
                "--model"
            )
    check_model_name(base, key="--model")
    return base, cards
