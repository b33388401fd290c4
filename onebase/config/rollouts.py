"""Configs of the verbs that sample: ppo, best-of, iterate."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from onebase.config.data_groups import PromptDataGroup, SampleDataGroup
from onebase.config.groups import (
    BatchGroup,
    EpochsOptimizerGroup,
    LoraGroup,
    MicrobatchGroup,
    ModelGroup,
    PPOOptimizerGroup,
    PreferenceGroup,
    PromptEvaluationGroup,
)
from onebase.config.ppo_groups import (
    SOURCES,
    GenerationGroup,
    OptionalRewardSourceGroup,
    PPOGroup,
    RewardSourceGroup,
    pause_problems,
    sampling_problems,
)
from onebase.config.preferences import loss_problems
from onebase.config.run import RunConfig, VerbConfig
from onebase.config.values import Count, FunctionName, PathText, fail_on
from onebase.shown import number_of


class PPOConfig(VerbConfig):
    """Train a policy by PPO against any reward source, with four roles on one base."""

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
    generation: GenerationGroup = GenerationGroup()
    ppo: PPOGroup = PPOGroup()
    optimizer: PPOOptimizerGroup = PPOOptimizerGroup()
    batch: MicrobatchGroup = MicrobatchGroup()
    evaluation: PromptEvaluationGroup = PromptEvaluationGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> PPOConfig:
        problems = sampling_problems("ppo", self.lora, self.generation)
        if self.ppo.critic == "adapter" and self.ppo.critic_start == "reward" and self.reward.role is None:
            problems.append(
                "'ppo.critic_start' = reward needs 'reward.role'; "
                "with another reward source set ppo.critic_start to policy"
            )
        problems += pause_problems(self.on_finding, self.evaluation)
        completions = self.ppo.rollout_prompts * self.generation.samples_per_prompt
        if self.ppo.kl_target is not None and completions >= 5 * self.ppo.kl_horizon:
            problems.append(
                f"'ppo.kl_horizon' = {self.ppo.kl_horizon:g} is too short for rollouts of "
                f"{number_of(completions, 'completion')}: "
                f"one rollout could turn the coefficient to 0; set it above {completions / 5:g}"
            )
        fail_on(problems)
        return self


class BestOfConfig(RunConfig):
    """Sample K answers to every prompt and keep the best by any reward source, as data for sft and dpo."""

    start_from: PathText | None = None
    """Folder of the policy role that samples; null = the base itself."""
    chosen: Literal["best", "data"] = "best"
    """A pair's chosen answer: best = the best sample, against the worst; data = the data's, against each (SPIN)."""
    judge: FunctionName | None = None
    """A second scoring function, named as in reward.callable, that chooses nothing: its scores are written beside."""
    model: ModelGroup
    data: SampleDataGroup
    reward: OptionalRewardSourceGroup = OptionalRewardSourceGroup()
    generation: GenerationGroup = GenerationGroup()
    batch: MicrobatchGroup = MicrobatchGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> BestOfConfig:
        problems = _sampling_problems(self.chosen, self.reward, self.generation)
        if self.judge is not None and self.reward.source is None:
            problems.append("'judge' would change nothing: its scores are written beside the reward's; leave it out")
        fail_on(problems)
        return self


def _sampling_problems(chosen: str, reward: OptionalRewardSourceGroup, generation: GenerationGroup) -> list[str]:
    problems = []
    if generation.ahead:
        problems.append(
            "'generation.ahead' = 1 overlaps sampling with training, and nothing is trained on these samples; leave it "
            "out"
        )
    if chosen == "data":
        return problems
    if reward.source is None:
        problems.append(
            f"'reward' needs 'reward.verifiers', or one of {SOURCES}, to choose by; or set chosen: data to take the "
            "data's answer as the chosen one"
        )
    if generation.samples_per_prompt < 2:
        problems.append("'generation.samples_per_prompt' = 1 leaves nothing to choose from; set it to 2 or more")
    return problems


class IterateConfig(RunConfig):
    """Rounds of best-of and dpo (or sft): iterative and online DPO, iterated RAFT, SPIN."""

    start_from: PathText | None = None
    """Folder of the policy role to start from; null = the base itself."""
    learn: Literal["dpo", "sft"] = "dpo"
    """What a round does with its samples: dpo on the pairs, or sft on the best (RAFT)."""
    loss: str = "sigmoid"
    """The loss of dpo; see `onebase dpo --help`."""
    rounds: Count = 4
    """Rounds; each samples, scores, pairs and learns."""
    prompts_per_round: Count = 256
    """Prompts per round, drawn anew each time; few make it online DPO, all of them iterative DPO."""
    reference: Literal["renewed", "kept"] = "renewed"
    """The reference of dpo: renewed = the policy the round starts from; kept = the one the first round started from."""
    chosen: Literal["best", "data"] = "best"
    """A pair's chosen answer: best = the best sample, against the worst; data = the data's, against each (SPIN)."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: SampleDataGroup
    reward: OptionalRewardSourceGroup = OptionalRewardSourceGroup()
    generation: GenerationGroup = GenerationGroup()
    preference: PreferenceGroup = PreferenceGroup()
    optimizer: EpochsOptimizerGroup = EpochsOptimizerGroup()
    batch: BatchGroup = BatchGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> IterateConfig:
        problems = loss_problems(self.loss, self.preference)
        problems += _sampling_problems(self.chosen, self.reward, self.generation)
        if self.learn == "sft":
            idle = [key for key in ("loss", "reference") if getattr(self, key) != type(self).model_fields[key].default]
            defaults = PreferenceGroup()
            idle += [f"preference.{key}" for key, value in self.preference if value != getattr(defaults, key)]
            problems += [f"'{key}' would change nothing: it is for 'learn' = dpo; leave it out" for key in idle]
        if self.learn == "sft" and self.chosen == "data":
            problems.append("'chosen' = data is for 'learn' = dpo: sft on the data's answers needs no samples")
        if self.lora.r == 0:
            problems.append("'lora.r' = 0 would train the base, which is also the reference; set lora.r >= 1")
        fail_on(problems)
        return self
