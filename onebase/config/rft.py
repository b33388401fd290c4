"""Config of reinforcement fine-tuning: how a rollout becomes advantages, and advantages a loss."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from onebase.config.data_groups import PromptDataGroup
from onebase.config.groups import LoraGroup, MicrobatchGroup, ModelGroup, PPOOptimizerGroup, PromptEvaluationGroup
from onebase.config.ppo_groups import (
    ActorCriticGroup,
    GenerationGroup,
    RewardSourceGroup,
    pause_problems,
    sampling_problems,
)
from onebase.config.run import VerbConfig
from onebase.config.values import Count, Int, NonNegative, PathText, Positive, Whole, fail_on

OF_GAE = (
    "lam",
    "value_clip",
    "value_coefficient",
    "critic",
    "critic_start",
    "critic_learning_rate",
    "critic_warmup_rollouts",
    "whiten_advantages",
)
"""Keys that only a critic reads."""
GROUPED = ("group", "rloo")
"""Advantages that compare the completions of one prompt."""
OF_WHOLE_COMPLETIONS = ("gspo", "sequence_clip")
"""Policy losses whose ratio is that of a whole completion."""


class RFTGenerationGroup(GenerationGroup):
    """How completions are sampled."""

    max_new_tokens: Count = 256
    """Longest completion, in tokens."""
    samples_per_prompt: Count = 8
    """Completions per prompt (K)."""


class RFTGroup(ActorCriticGroup):
    """Reinforcement fine-tuning."""

    rollout_prompts: Count = 16
    """Prompts per rollout; each gets generation.samples_per_prompt completions."""
    minibatch_prompts: Count = 16
    """Prompts (with all their completions) per optimizer step; must divide rollout_prompts."""
    num_epochs: Count = 1
    """Passes over each rollout."""
    policy_loss: Literal["clip", "gspo", "sequence_clip", "kl_penalty", "a2c"] = "clip"
    """clip = each token's ratio; gspo, sequence_clip = a whole completion's; kl_penalty = no clip; a2c = no ratio."""
    normalizer: Literal["auto", "completion", "token", "constant"] = "auto"
    """completion: all completions weigh alike (GRPO); token: all tokens (DAPO); constant: Dr. GRPO."""
    deviation: Literal["group", "rollout", "none"] = "group"
    """For advantage group: divide by the deviation of the group's scores (GRPO), of all scores, or not (Dr. GRPO)."""
    overlong_buffer: Annotated[Int, Field(ge=1)] | None = None
    """Completions within this many tokens of max_new_tokens lose score, up to overlong_penalty at it; null = off."""
    overlong_penalty: Positive = 1.0
    """What a completion of max_new_tokens loses, with overlong_buffer."""
    dynamic_sampling: bool = False
    """Skip prompts whose completions all score the same, and sample others in their place."""
    max_refills: Whole = 4
    """With dynamic_sampling: sample at most this many times again before training on what there is."""
    penalty_coefficient: Positive = 1.0
    """For policy_loss kl_penalty: the weight of KL(old, new) at the start; it adapts to penalty_target."""
    penalty_target: Positive = 0.01
    """For policy_loss kl_penalty: how far the updates on a rollout should move the policy, in nats per token."""
    kl_coefficient: NonNegative = 0.0
    """Weight of the KL penalty to the reference (beta); 0 = no reference is held."""
    kl_placement: Literal["reward", "loss"] = "loss"
    """Subtract the KL penalty from each token's reward, or add it to the loss."""
    kl_estimator: Literal["auto", "k1", "k2", "k3"] = "auto"
    """k1 = log ratio, k2 = k1^2 / 2, k3 = k1 + exp(-k1) - 1; auto = k1 in the reward, k3 in the loss."""

    @property
    def learns_in_one_step(self) -> bool:
        """Whether a rollout is one optimizer step, so that the policy is still the one that sampled it."""
        return (
            self.num_epochs == 1 and self.minibatch_prompts == self.rollout_prompts and self.policy_loss != "kl_penalty"
        )

    @property
    def weighting(self) -> Literal["completion", "token", "constant"]:
        """The normalizer, with auto resolved: completions count alike where their ratio is clipped as a whole."""
        if self.normalizer == "auto":
            return "completion" if self.policy_loss in OF_WHOLE_COMPLETIONS else "token"
        return self.normalizer

    @property
    def estimator(self) -> Literal["k1", "k2", "k3"]:
        """The KL estimator, with auto resolved."""
        if self.kl_estimator == "auto":
            return "k1" if self.kl_placement == "reward" else "k3"
        return self.kl_estimator

    @model_validator(mode="after")
    def _keys_agree(self) -> RFTGroup:
        problems = []
        if self.rollout_prompts % self.minibatch_prompts:
            problems.append(
                f"'rft.minibatch_prompts' = {self.minibatch_prompts} does not divide "
                f"'rft.rollout_prompts' = {self.rollout_prompts}"
            )
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            problems.append(
                "'rft.kl_placement' = loss needs 'rft.kl_estimator' = k2 or k3: the gradient of k1 is zero on average"
            )
        if self.policy_loss == "a2c" and (self.num_epochs > 1 or self.minibatch_prompts != self.rollout_prompts):
            problems.append(
                "'rft.policy_loss' = a2c has no ratio to correct for a second step on a rollout: set rft.num_epochs to "
                "1 and rft.minibatch_prompts to rft.rollout_prompts"
            )
        readers = {
            "overlong_penalty": ("overlong_buffer", self.overlong_buffer is not None),
            "max_refills": ("dynamic_sampling", self.dynamic_sampling),
            "penalty_coefficient": ("policy_loss' = 'kl_penalty", self.policy_loss == "kl_penalty"),
            "penalty_target": ("policy_loss' = 'kl_penalty", self.policy_loss == "kl_penalty"),
            "kl_placement": ("kl_coefficient", self.kl_coefficient > 0),
            "kl_estimator": ("kl_coefficient", self.kl_coefficient > 0),
            **{
                key: ("policy_loss' = 'clip", self.policy_loss in ("clip", *OF_WHOLE_COMPLETIONS))
                for key in ("clip_low", "clip_high", "dual_clip")
            },
        }
        problems += [
            f"'rft.{key}' = {getattr(self, key)} would change nothing without 'rft.{needed}'; leave it out"
            for key, (needed, read) in readers.items()
            if not read and getattr(self, key) != type(self).model_fields[key].default
        ]
        fail_on(problems)
        return self


class RFTConfig(VerbConfig):
    """Reinforcement fine-tuning: train a policy on rewards that are checked, not learned (GRPO, RLOO, ReFT)."""

    advantage: Literal["gae", "group", "rloo", "reinforce++"] = "group"
    """gae = with a critic (ReFT); group = GRPO; rloo = leave one out; reinforce++ = one baseline for the rollout."""
    start_from: PathText | None = None
    """Folder of the policy role to start from; a frozen copy is the reference. null = a new role on the base."""
    on_finding: Literal["warn", "pause", "off"] = "warn"
    """What the flight recorder does when the run goes wrong: warn; restore the best roles and pause; or nothing."""
    lang: Literal["en", "zh"] = "en"
    """Language of the flight recorder's warnings."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: PromptDataGroup
    reward: RewardSourceGroup
    generation: RFTGenerationGroup = RFTGenerationGroup()
    rft: RFTGroup = RFTGroup()
    optimizer: PPOOptimizerGroup = PPOOptimizerGroup()
    batch: MicrobatchGroup = MicrobatchGroup()
    evaluation: PromptEvaluationGroup = PromptEvaluationGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> RFTConfig:
        rft, count = self.rft, self.generation.samples_per_prompt
        problems = sampling_problems("rft", self.lora, self.generation)
        if self.advantage in GROUPED and count < 2:
            problems.append(
                f"'advantage' = {self.advantage} compares completions of one prompt, and "
                f"'generation.samples_per_prompt' = {count} leaves nothing to compare; set it to 2 or more"
            )
        if rft.dynamic_sampling and count < 2:
            problems.append(
                "'rft.dynamic_sampling' skips prompts whose completions score the same, as one completion always does; "
                "set 'generation.samples_per_prompt' to 2 or more"
            )
        if rft.policy_loss in OF_WHOLE_COMPLETIONS and self.advantage not in GROUPED:
            problems.append(
                f"'rft.policy_loss' = {rft.policy_loss} has one ratio for a completion, and 'advantage' = "
                f"{self.advantage} another advantage for each token; use group or rloo"
            )
        idle = [] if self.advantage == "gae" else list(OF_GAE)
        idle += [] if self.advantage in ("gae", "reinforce++") else ["gamma"]
        idle += [] if self.advantage == "group" else ["deviation"]
        problems += [
            f"'rft.{key}' = {getattr(rft, key)} would change nothing: 'advantage' = {self.advantage} does not read it; "
            "leave it out"
            for key in idle
            if getattr(rft, key) != RFTGroup.model_fields[key].default
        ]
        if rft.overlong_buffer is not None and rft.overlong_buffer > self.generation.max_new_tokens:
            problems.append(
                f"'rft.overlong_buffer' = {rft.overlong_buffer} is above 'generation.max_new_tokens' = "
                f"{self.generation.max_new_tokens}; lower it"
            )
        if rft.overlong_buffer is not None and self.generation.random_min_new_tokens is not None:
            problems.append(
                "'rft.overlong_buffer' counts from 'generation.max_new_tokens', and "
                "'generation.random_min_new_tokens' gives every rollout a limit of its own; leave one out"
            )
        if rft.critic == "head" and rft.critic_start != "auto":
            problems.append(
                f"'rft.critic_start' = {rft.critic_start} would change nothing: with 'rft.critic' = head the critic "
                "stands on the policy's own states; leave it out"
            )
        elif self.advantage == "gae" and rft.critic_start == "reward" and self.reward.role is None:
            problems.append("'rft.critic_start' = reward needs 'reward.role'; set it to policy")
        problems += pause_problems(self.on_finding, self.evaluation)
        fail_on(problems)
        return self
