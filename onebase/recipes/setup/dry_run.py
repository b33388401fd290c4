"""Finds what a run would refuse after loading its weights, without loading them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onebase.config.files import dump_config
from onebase.config.groups import LoraGroup
from onebase.config.preferences import RewardConfig
from onebase.config.run import RunConfig
from onebase.models.base import OneBase
from onebase.models.loading import require_quantization
from onebase.models.role_files import load_role
from onebase.models.roles import Role, ScalarRole
from onebase.recipes.setup.shared import load_start, new_lora
from onebase.rewards.learned import check_moments, open_classifier
from onebase.runs.trackers import require_trackers
from onebase.training.plan import BasePlan, describe_base
from onebase.training.run import check_writable


def planned_base(config: RunConfig) -> BasePlan:
    """Describes the base, and checks from its configuration what a run needs before its first step: packages, the roles
    it starts from, the adapter's layers.

    Raises:
        ConfigError, CheckpointError: this run cannot use `output_dir`.
        ModelError: the base, a role or a layer does not exist or does not fit.
        MissingExtraError: a package is not installed.
    """
    keys: Any = config
    check_writable(Path(config.output_dir), dump_config(config))
    require_trackers(config.report_to)
    require_quantization(keys.model.quantization)
    base = describe_base(keys.model.model_name_or_path, keys.model.quantization, keys.model.dtype, keys.model.device)
    kinds = ("policy", "reward") if isinstance(config, RewardConfig) else ("policy",)
    start = getattr(keys, "start_from", None)
    lora = getattr(keys, "lora", None)
    if lora is not None and lora.r and not start:
        new_lora(base, lora)
    named = [(folder, kinds) for folder in (getattr(keys, "reference_role", None),) if folder]
    reward: Any = getattr(keys, "reward", None)
    if getattr(reward, "role", None) is not None:
        named.append((reward.role, ("reward",)))
    others = [(folder, allowed) for folder, allowed in named if folder != "base"]
    roles = _put_on(base, [(start, kinds)] if start else [], others, lora)
    if getattr(reward, "role", None) is not None and reward.normalize == "held_out":
        scalar = roles[-1]
        assert isinstance(scalar, ScalarRole)
        check_moments(scalar.moments)
    if getattr(reward, "model", None) is not None and Path(reward.model).is_dir():
        open_classifier(reward.model, device_map={"": "meta"})
    return base


def _put_on(
    base: BasePlan,
    started: Sequence[tuple[str, tuple[str, ...]]],
    others: Sequence[tuple[str, tuple[str, ...]]],
    lora: LoraGroup | None,
) -> list[Role]:
    """Puts saved roles on the base without weights; a misfit raises the same error as in the run."""
    if not started and not others:
        return []
    weightless = OneBase(
        base.model, base.tokenizer, fingerprint=base.fingerprint, layout="separate", name_or_path=base.name_or_path
    )
    roles: list[Role] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that copying to a tensor without weights does nothing
        for folder, kinds in started:
            name = f"role {len(roles)}"
            roles.append(load_start(weightless, name, folder, lora or LoraGroup(), kinds=kinds, trains=False))
        for folder, kinds in others:
            roles.append(load_role(weightless, f"role {len(roles)}", folder, kinds=kinds))
    return roles
