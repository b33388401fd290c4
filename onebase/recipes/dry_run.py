"""What a run would refuse once its weights are loaded, found without loading them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onebase.config import RewardConfig, RunConfig
from onebase.config_files import dump_config
from onebase.models.loading import require_quantization
from onebase.models.role_files import check_role
from onebase.recipes.setup import new_lora
from onebase.rewards.learned import check_moments
from onebase.training.plan import BasePlan, describe_base
from onebase.training.run import check_writable
from onebase.training.trackers import require_trackers


def planned_base(config: RunConfig) -> BasePlan:
    """Describes the base, and checks by its configuration what a run on it needs before its first step: packages, the
    roles it starts from, the adapter's layers.

    Raises:
        ConfigError, CheckpointError: `output_dir` cannot be that of this run.
        ModelError: the base, a role or a layer is not there, or does not fit.
        MissingExtraError: a package is not installed.
    """
    keys: Any = config
    check_writable(Path(config.output_dir), dump_config(config))
    require_trackers(config.report_to)
    require_quantization(keys.model.quantization)
    base = describe_base(keys.model.model_name_or_path, keys.model.quantization, keys.model.dtype, keys.model.device)
    kinds = ("policy", "reward") if isinstance(config, RewardConfig) else ("policy",)
    started = [getattr(keys, key, None) for key in ("start_from", "policy")]
    for folder in filter(None, [*started, getattr(keys, "reference_role", None)]):
        if folder != "base":
            check_role(base, folder, kinds)
    lora = getattr(keys, "lora", None)
    if lora is not None and lora.r and not any(started):
        new_lora(base, lora)
    reward: Any = getattr(keys, "reward", None)
    if getattr(reward, "role", None) is not None:
        card = check_role(base, reward.role, ("reward",))
        if reward.normalize == "held_out":
            check_moments(card.score_mean, card.score_std)
    return base
