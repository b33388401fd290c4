"""The table of verbs that leave a run. To add one, add its line, its config and its recipe."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb of the command line."""

    about: str
    """One line for `--help`."""
    config: str
    """`module:class` of its config. A name, not an import: `--help` should not wait for pydantic."""
    recipe: str
    """Module with `run(config)` and `plan(config)`. A name, not an import: it brings torch."""
    step: str = "step"
    """What one step is called."""


VERBS = {
    "pretrain": Verb(
        "Train a language model on plain text, from scratch or further.",
        config="onebase.config.language:PretrainConfig",
        recipe="onebase.recipes.pretrain",
    ),
    "sft": Verb(
        "Train a policy on answers written by people or models.",
        config="onebase.config.language:SFTConfig",
        recipe="onebase.recipes.sft",
    ),
    "reward": Verb(
        "Train a reward role on preferences: pairs or ranked lists.",
        config="onebase.config.preferences:RewardConfig",
        recipe="onebase.recipes.reward",
    ),
    "dpo": Verb(
        "Train a policy on preferences directly: DPO and its family.",
        config="onebase.config.preferences:DPOConfig",
        recipe="onebase.recipes.dpo",
    ),
    "best-of": Verb(
        "Sample K answers to every prompt and keep the best by any reward source, as data for sft and dpo.",
        config="onebase.config.rollouts:BestOfConfig",
        recipe="onebase.recipes.best_of",
        step="prompt",
    ),
    "iterate": Verb(
        "Rounds of best-of and dpo (or sft): iterative and online DPO, iterated RAFT, SPIN.",
        config="onebase.config.rollouts:IterateConfig",
        recipe="onebase.recipes.iterate",
        step="round",
    ),
    "ppo": Verb(
        "Train a policy by PPO against any reward source, with four roles on one base.",
        config="onebase.config.rollouts:PPOConfig",
        recipe="onebase.recipes.ppo",
        step="rollout",
    ),
    "rft": Verb(
        "Reinforcement fine-tuning: train a policy on rewards that are checked, not learned (GRPO, RLOO, ReFT).",
        config="onebase.config.rft:RFTConfig",
        recipe="onebase.recipes.rft",
        step="rollout",
    ),
}
