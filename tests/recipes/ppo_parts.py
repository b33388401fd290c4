"""The parts of a PPO run side by side, for tests that look at one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from onebase.config.rollouts import PPOConfig
from onebase.engines.budget import TokenBudget
from onebase.engines.passes import num_counted
from onebase.models.base import OneBase
from onebase.recipes import ppo
from onebase.recipes.setup.data import order_of
from onebase.recipes.setup.ppo import set_up
from onebase.recipes.setup.shared import open_run
from onebase.records import Example, Scores
from onebase.rollouts.collect import Measured, Roles, Rollout, collect
from onebase.seeds import sample_seeds


class Trained:
    """What `ppo.train` sets up, and its steps one by one."""

    def __init__(self, config: PPOConfig) -> None:
        self.setup, self.state, self.update = set_up(config, open_run(config))

    @property
    def base(self) -> OneBase:
        return self.setup.base

    @property
    def ptx(self) -> list[Example]:
        return self.setup.ptx

    def rollout(self, index: int = 0) -> Rollout:
        """A rollout of the first prompts, as `train_rollout` collects it."""
        samples = self.setup.config.generation.samples_per_prompt
        return collect(
            self.base,
            self.setup.chat,
            self.setup.prompts[:4],
            sampler=self.setup.sampler,
            sampling=self.setup.sampling,
            seeds=sample_seeds(0, num_prompts=4, samples_per_prompt=samples, stream=str(index)),
            samples_per_prompt=samples,
            budget=TokenBudget(2048),
            reward=self.setup.reward,
            roles=Roles("policy", "reference", "critic"),
        )

    def train_rollout(self, index: int) -> dict[str, float]:
        return ppo.train_rollout(self.setup, self.state, self.update, index)

    def shape_scores(self, rollout: Rollout) -> Tensor:
        return ppo.shape_scores(rollout, scores_of(rollout), self.setup.config.ppo, self.state)

    def estimate(self, rollout: Rollout) -> ppo.Targets:
        return ppo.estimate(rollout, self.setup, self.state)[0]

    def update_on(self, rollout: Rollout, targets: ppo.Targets, index: int = 0) -> dict[str, float]:
        return ppo.update_on(rollout, targets, self.setup, self.state, self.update, index)

    def minibatch(self, rollout: Rollout, targets: ppo.Targets, chosen: Sequence[int]) -> dict[str, float]:
        """One optimizer step on these prompts."""
        examples = [rollout.examples[i] for i in chosen]
        losses = ppo.minibatch_losses(targets, chosen, self.setup, self.state, num_tokens=num_counted(examples))
        parts: list[Any] = [(examples, loss) for loss in losses]
        return self.update.step(*parts, *([ppo.ptx_part(self.setup, self.state)] if self.ptx else []))

    def with_prompts(self, count: int) -> None:
        """Leaves the first prompts alone."""
        left, config = self.setup.prompts[:count], self.setup.config
        self.setup = replace(self.setup, prompts=left, order=order_of(config.data, left, config.seed))


def scores_of(rollout: Rollout) -> Tensor:
    assert rollout.scores is not None
    return rollout.scores.total


def measured(rollout: Rollout) -> Measured:
    assert rollout.measured is not None
    return rollout.measured


def rescored(rollout: Rollout, scores: Tensor) -> Rollout:
    """The rollout with other scores."""
    return replace(rollout, scores=Scores(scores))
