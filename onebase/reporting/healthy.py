"""The healthy range of each metric that has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Band(NamedTuple):
    """The healthy range of a metric."""

    low: float | None
    high: float | None
    outside: str
    """What a value outside the range means."""

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"above {self.low:g}" if self.low is not None else f"below {self.high:g}"


CHANCE = Band(0.5, 1, "0.5 is chance")
HEALTHY = {
    # A rule of thumb; ours counts only tokens whose gradient the clip took.
    "policy/clipfrac": Band(0, 0.3, "above 0.3, a rollout is updated on too long or too fast: lower the learning rate"),
    # OpenAI's Spinning Up, PPO: the KL that stops an update is "usually small, 0.01 or 0.05".
    "policy/approxkl": Band(0, 0.05, "above 0.05 nats, an update goes further than its samples justify"),
    # TRL's PPO documentation: it should stay around 1; far from 1 the updates are too drastic.
    "policy/ratio": Band(0.8, 1.2, "far from 1, the policy has left its samples behind: lower the learning rate"),
    # 1 - Var(return - value) / Var(return): a constant critic gets 0.
    "val/explained_variance": Band(0, 1, "below 0 the critic does worse than a constant; aim for more than 0.2"),
    # The reward source scores a cut-off answer as if it were complete.
    "completions/ended": Band(0.9, 1, "the others were cut off at generation.max_new_tokens and scored unfinished"),
    "groups/without_variance": Band(0, 0.9, "above 0.9, nearly all prompts are too easy or too hard to learn from"),
    "accuracy": CHANCE,
    "rewards/accuracies": CHANCE,
    "learn/eval_accuracy": CHANCE,
    # Training starts at 0: chosen and rejected are not yet apart.
    "margin": Band(0, None, "below 0, the rejected answers are preferred"),
    "rewards/margins": Band(0, None, "below 0, the rejected answers are preferred"),
}
"""Healthy ranges by the first metric of a panel. A score, a loss or a gradient norm has none that fits every model."""


def healthy_bands(config: Mapping[str, Any]) -> dict[str, Band]:
    """Returns `HEALTHY` with the limits set in the run's configuration.

    Args:
        config: by dotted name.
    """
    bands = dict(HEALTHY)
    for key in ("ppo.kl_target", "ppo.kl_budget"):
        if _is_limit(config.get(key)):
            bands["objective/kl"] = Band(0, config[key], f"the policy is further than {key} from its reference")
    if _is_limit(config.get("ppo.max_kl")):
        bands["policy/approxkl"] = Band(0, config["ppo.max_kl"], "above ppo.max_kl, a rollout's epochs are cut short")
    return bands


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0
