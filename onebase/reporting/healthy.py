"""Where a metric is when all is well, as far as that is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Band(NamedTuple):
    """Where a metric is when all is well."""

    low: float | None
    high: float | None
    outside: str
    """What it means to be elsewhere."""

    def __contains__(self, value: object) -> bool:
        assert isinstance(value, int | float)
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}"
        return f"above {self.low:g}" if self.low is not None else f"below {self.high:g}"


CHANCE = Band(0.5, 1, "0.5 is what a coin gets right")
HEALTHY = {
    # A rule of thumb; ours counts only tokens whose gradient the clip took.
    "policy/clipfrac": Band(0, 0.3, "above 0.3 a rollout is trained on too long, or too fast: lower the learning rate"),
    # OpenAI's Spinning Up, PPO: the KL at which an update is stopped is "usually small, 0.01 or 0.05".
    "policy/approxkl": Band(0, 0.05, "above 0.05 nats an update goes further than its samples tell"),
    # TRL's documentation of PPO: it should float around 1, far from it the updates are too drastic.
    "policy/ratio": Band(0.8, 1.2, "far from 1 the policy leaves its samples behind: lower the learning rate"),
    # 1 - Var(return - value) / Var(return): 0 is a critic that says the same everywhere.
    "val/explained_variance": Band(0, 1, "below 0 the critic does worse than a constant; aim for more than 0.2"),
    # The reward source scores what is there: of an answer that was cut off, a beginning.
    "completions/ended": Band(0.9, 1, "the others are cut off at generation.max_new_tokens, and scored unfinished"),
    "accuracy": CHANCE,
    "rewards/accuracies": CHANCE,
    "learn/eval_accuracy": CHANCE,
    # 0 is where training starts: chosen and rejected apart by nothing.
    "margin": Band(0, None, "below 0 the rejected answers are liked better"),
    "rewards/margins": Band(0, None, "below 0 the rejected answers are liked better"),
}
"""By the first metric of a panel. One without an entry has no level that is healthy for every model: a score, a loss, a
gradient norm."""


def healthy_bands(config: Mapping[str, Any]) -> dict[str, Band]:
    """`HEALTHY`, with the limits that the run itself was given.

    Args:
        config: by dotted names.
    """
    bands = dict(HEALTHY)
    for key in ("ppo.kl_target", "ppo.kl_budget"):
        if _is_limit(config.get(key)):
            bands["objective/kl"] = Band(0, config[key], f"the policy is further from its reference than {key}")
    if _is_limit(config.get("ppo.max_kl")):
        bands["policy/approxkl"] = Band(0, config["ppo.max_kl"], "above ppo.max_kl the epochs of a rollout are ended")
    return bands


def _is_limit(value: Any) -> bool:
    return isinstance(value, int | float) and value > 0
