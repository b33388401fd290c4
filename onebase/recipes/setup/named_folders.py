"""The folders that a command names, checked before torch is imported: a wrong path is answered at once."""

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
        ModelError: no such folder, or not what is needed there.
    """
    keys: Any = config
    if keys.model.model_name_or_path is not None:
        check_model_name(keys.model.model_name_or_path)
    reward: Any = getattr(keys, "reward", None)
    if getattr(reward, "model", None) is not None:
        check_model_name(reward.model, key="reward.model")
    if getattr(reward, "role", None) is not None:
        check_role_folder(reward.role, ("reward",))
    for key in ("start_from", "reference_role", "policy"):
        folder = getattr(keys, key, None)
        if folder is not None and (key, folder) != ("reference_role", "base"):
            goes_on_from_reward = key == "start_from" and isinstance(config, RewardConfig)
            check_role_folder(folder, ("policy", "reward") if goes_on_from_reward else ("policy",))


def check_opened(
    roles: Mapping[str, tuple[str, tuple[str, ...]]], *, model: str | None = None
) -> tuple[str, dict[str, RoleCard]]:
    """Returns folder or hub name of the base that these folders stand on, and the cards of those that are roles.

    Args:
        roles: name -> (folder, kinds of role it may be); what is no role is a model of its own.
        model: the base, where it is not where the roles say.

    Raises:
        ModelError: no such folder, not what is needed there, or the base is not where a role says.
    """
    cards: dict[str, RoleCard] = {}
    for name, (folder, kinds) in roles.items():
        if not is_model(folder):
            cards[name] = check_role_folder(folder, kinds)
        elif "policy" not in kinds:
            raise ModelError(
                f"{shown(folder)}: this is a model of its own, and a {' or '.join(kinds)} role is needed here; a "
                "reward model trained with lora.r = 0 is a transformers classifier, for reward.model in ppo"
            )
    base = model or next((folder for name, (folder, _) in roles.items() if name not in cards), None)
    if base is None:
        name, card = next(iter(cards.items()))
        base = card.base
        if not base or (Path(base).is_absolute() and not Path(base).is_dir()):
            raise ModelError(
                f"{shown(base) or '(no name)'}: the base of {shown(roles[name][0])} is no longer there; name it by "
                "--model"
            )
    check_model_name(base, key="--model")
    return base, cards
