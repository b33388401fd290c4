"""What a person can set: one model per training verb, made of the groups in `config_groups`.

A key is written `group.key`, in the YAML file as nested mappings. The line under a key is its help text.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, model_validator

from onebase.config_groups import (
    LOSSES,
    READ_BY,
    BatchGroup,
    CheckpointGroup,
    Count,
    DataGroup,
    EpochsOptimizerGroup,
    EvaluationGroup,
    FilesGroup,
    Group,
    Int,
    LoraGroup,
    MicrobatchGroup,
    ModelGroup,
    OptionalModelGroup,
    PathText,
    PPOOptimizerGroup,
    PreferenceGroup,
    PretrainOptimizerGroup,
    PromptDataGroup,
    PromptEvaluationGroup,
    RewardGroup,
    RewardOptimizerGroup,
    SampleDataGroup,
    SFTDataGroup,
    SFTOptimizerGroup,
    TinyModelGroup,
    Trackers,
    fail_on,
)
from onebase.config_ppo import GenerationGroup, OptionalRewardSourceGroup, PPOGroup, RewardSourceGroup
from onebase.shown import shown


class RunConfig(Group):
    """What every verb that leaves a run has."""

    output_dir: PathText
    """Folder of the run: resolved config, metrics, checkpoints, roles."""
    seed: Annotated[Int, Field(ge=0, lt=2**32)] = 0
    """Seed of the order of the data, of new weights and of sampling."""
    report_to: Trackers = []
    """Trackers that get the metrics too, where they are installed: tensorboard, trackio, wandb."""
    threads: Count | None = None
    """CPU threads; null = one per core. Another number changes the last digits of results."""
    checkpoint: CheckpointGroup = CheckpointGroup()


class VerbConfig(RunConfig):
    """What every training verb has."""

    max_steps: Count | None = None
    """This many steps (in ppo: rollouts), whatever the epochs; null = until the data has been read."""


def _role_problems(model: OptionalModelGroup, lora: LoraGroup, start_from: str | None) -> list[str]:
    problems = []
    if model.quantization == "nf4" and lora.r == 0:
        problems.append(
            "'model.quantization' = nf4 cannot be trained in full: set lora.r >= 1, or quantization to none"
        )
    if start_from is not None and lora.r == 0:
        problems.append(
            "'lora.r' = 0 trains the whole base, and 'start_from' an adapter on it: set lora.r >= 1, or leave out "
            "start_from"
        )
    for key in ("alpha", "dropout", "target_modules", "layers") if lora.r == 0 else ():
        if (value := getattr(lora, key)) != LoraGroup.model_fields[key].default:
            problems.append(
                f"'lora.{key}' = {shown(value, 60)} would change nothing: 'lora.r' = 0 trains the whole base, "
                "without an adapter; leave one out"
            )
    return problems


class PretrainConfig(VerbConfig):
    """Train a language model on plain text, from scratch or further."""

    model: OptionalModelGroup = OptionalModelGroup()
    tiny: TinyModelGroup = TinyModelGroup()
    data: FilesGroup
    optimizer: PretrainOptimizerGroup = PretrainOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()
    block_length: Annotated[Int, Field(ge=2)] | None = None
    """Tokens of one training sequence; null = the longest the model holds, 1024 at most."""

    @model_validator(mode="after")
    def _keys_agree(self) -> PretrainConfig:
        problems = []
        if self.model.quantization == "nf4":
            problems.append("'model.quantization' = nf4: pretraining changes every weight of the base; set it to none")
        if self.model.chat_template is not None:
            problems.append(
                f"'model.chat_template' = {shown(self.model.chat_template, 60)} would change nothing: pretraining "
                "reads plain text; leave it out"
            )
        if not self.model.model_name_or_path and (self.block_length or 0) > self.tiny.max_length:
            problems.append(f"'block_length' = {self.block_length} is above 'tiny.max_length' = {self.tiny.max_length}")
        if self.model.model_name_or_path:
            for key, field in TinyModelGroup.model_fields.items():
                if (value := getattr(self.tiny, key)) != field.default:
                    problems.append(
                        f"'tiny.{key}' = {value} is for a new model, and 'model.model_name_or_path' names one that is "
                        "there; leave one out"
                    )
        fail_on(problems)
        return self


class SFTConfig(VerbConfig):
    """Train a policy on answers written by people or models."""

    start_from: PathText | None = None
    """Folder of a policy role to train further; null = a new role on the base."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: SFTDataGroup
    optimizer: SFTOptimizerGroup = SFTOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> SFTConfig:
        fail_on(_role_problems(self.model, self.lora, self.start_from))
        return self


class RewardConfig(VerbConfig):
    """Train a reward role on preferences: pairs or ranked lists."""

    start_from: PathText | None = None
    """Folder of a policy role whose adapter the reward role starts from; null = a new one on the base."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: DataGroup
    reward: RewardGroup = RewardGroup()
    optimizer: RewardOptimizerGroup = RewardOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> RewardConfig:
        problems = _role_problems(self.model, self.lora, self.start_from)
        if self.lora.r == 0 and self.reward.pooling == "mean":
            problems.append(
                "'reward.pooling' = mean cannot be saved with 'lora.r' = 0, as a sequence classifier reads the last "
                "token: set lora.r >= 1, or pooling to last"
            )
        fail_on(problems)
        return self


def _loss_terms(loss: str) -> list[tuple[str, float]]:
    """The terms of a mixture as they are written: name and weight; a weight that cannot be read stays in the name."""
    terms = []
    for term in loss.split("+"):
        weight, _, name = term.strip().rpartition(" ")
        number = weight.strip().rstrip("*").strip()
        known = re.fullmatch(r"(\d+(\.\d*)?|\.\d+)(e-?\d+)?", number)
        terms.append((name if known or not number else term.strip(), float(number) if known else 1.0))
    return terms


def _loss_problems(loss: str, preference: PreferenceGroup) -> list[str]:
    problems = []
    terms = _loss_terms(loss)
    names = [name for name, _ in terms]
    for name in dict.fromkeys(names):
        if name not in LOSSES:
            near = get_close_matches(name, LOSSES, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(LOSSES)}; mixed: a + 0.1 b"
            problems.append(f"'loss' = {shown(name, 60)} is unknown; {meant}")
        elif names.count(name) > 1:
            problems.append(f"'loss' = {shown(loss, 60)} names {name} twice; give it once, with one weight")
    if not all(0 < weight < float("inf") for _, weight in terms):
        problems.append(f"'loss' = {shown(loss, 60)}: every weight should be a finite number above 0")
    if "kto" in names and set(names) - {"kto"}:
        problems.append("'loss': kto learns from single answers, and is not mixed with losses over pairs or lists")
    for key, readers in READ_BY.items():
        value, able = getattr(preference, key), [name for name in LOSSES if name in readers]
        if not problems and value != PreferenceGroup.model_fields[key].default and not readers & set(names):
            problems.append(
                f"'preference.{key}' = {value} would change nothing: 'loss' = {shown(loss, 60)} does not read it, "
                f"only {', '.join(able)} {'does' if len(able) == 1 else 'do'}; leave it out"
            )
    return problems


class DPOConfig(VerbConfig):
    """Train a policy on preferences directly: DPO and its family."""

    loss: str = "sigmoid"
    """sigmoid, sigmoid_norm, robust, hinge, ipo, step_dpo, cpo, simpo, orpo, kto, rrhf, plackett_luce; a + 0.1 nll."""
    start_from: PathText | None = None
    """Folder of the policy role to start from; null = a new role on the base."""
    reference_role: PathText | None = None
    """Folder of the policy role that is the reference, or base; null = a frozen copy of what the policy starts from."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: DataGroup
    preference: PreferenceGroup = PreferenceGroup()
    optimizer: EpochsOptimizerGroup = EpochsOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()

    def loss_weights(self) -> dict[str, float]:
        """The losses that are added up, with their weights, as they are written."""
        return dict(_loss_terms(self.loss))

    @model_validator(mode="after")
    def _keys_agree(self) -> DPOConfig:
        problems = _loss_problems(self.loss, self.preference)
        if self.reference_role is not None and not problems and not READ_BY["reference"] & set(self.loss_weights()):
            problems.append(
                f"'reference_role' = {shown(self.reference_role, 60)} would change nothing: 'loss' = {self.loss} needs "
                "no reference; leave it out"
            )
        if self.lora.r == 0:
            problems.append("'lora.r' = 0 would change the base that is the reference too; set lora.r >= 1")
        fail_on(problems)
        return self


class PPOConfig(VerbConfig):
    """Train a policy against a reward source by PPO, four roles on one base."""

    policy: PathText | None = None
    """Folder of the policy role to start from, whose frozen copy is the reference; null = a new role on the base."""
    on_finding: Literal["warn", "pause", "off"] = "warn"
    """What the flight recorder does when the run goes wrong: say so; pause, with the best roles in place; nothing."""
    lang: Literal["en", "zh"] = "en"
    """Language of what the flight recorder says."""
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
        problems = []
        if self.lora.dropout > 0:
            problems.append("'lora.dropout' above 0 would make noise of PPO's probability ratios; leave it at 0")
        if self.lora.r == 0:
            problems.append(
                "ppo trains adapters: with 'lora.r' = 0 the base would change under the other roles; set lora.r >= 1"
            )
        if self.generation.top_k or self.generation.top_p < 1:
            problems.append(
                f"'generation.top_k' = {self.generation.top_k} and 'generation.top_p' = {self.generation.top_p:g} "
                "would sample from another distribution than the one PPO trains, which biases its ratios and its KL; "
                "leave them at 0 and 1"
            )
        if self.ppo.critic == "adapter" and self.ppo.critic_start == "reward" and self.reward.role is None:
            problems.append(
                "'ppo.critic_start' = reward needs 'reward.role'; "
                "with another reward source set ppo.critic_start to policy"
            )
        if self.on_finding == "pause" and self.evaluation.every_steps is None:
            problems.append(
                "'on_finding' = pause goes back to the best roles on held-out prompts, and without "
                "'evaluation.every_steps' none are known; set it"
            )
        completions = self.ppo.rollout_prompts * self.generation.samples_per_prompt
        if self.ppo.kl_target is not None and completions >= 5 * self.ppo.kl_horizon:
            problems.append(
                f"'ppo.kl_horizon' = {self.ppo.kl_horizon:g} is too short for rollouts of {completions} completions: "
                f"one could turn the coefficient to 0; set it above {completions / 5:g}"
            )
        fail_on(problems)
        return self


class BestOfConfig(RunConfig):
    """Sample K answers to every prompt and keep the best, by any reward source, as data for sft and dpo."""

    policy: PathText | None = None
    """Folder of the policy role that samples; null = the base itself."""
    chosen: Literal["best", "data"] = "best"
    """The chosen answer of a pair: the best sample, against the worst; or the data's, against each sample (SPIN)."""
    model: ModelGroup
    data: SampleDataGroup
    reward: OptionalRewardSourceGroup = OptionalRewardSourceGroup()
    generation: GenerationGroup = GenerationGroup()
    batch: MicrobatchGroup = MicrobatchGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> BestOfConfig:
        fail_on(_sampling_problems(self.chosen, self.reward, self.generation))
        return self


def _sampling_problems(chosen: str, reward: OptionalRewardSourceGroup, generation: GenerationGroup) -> list[str]:
    if chosen == "data":
        return []
    problems = []
    if reward.source is None:
        problems.append(
            "'reward' needs one of 'reward.role', 'reward.callable' and 'reward.model' to choose by; or set chosen: "
            "data, where the data's answer is the chosen one"
        )
    if generation.samples_per_prompt < 2:
        problems.append("'generation.samples_per_prompt' = 1 leaves nothing to choose from; set it to 2 or more")
    return problems


class IterateConfig(RunConfig):
    """Rounds of best-of and dpo (or sft): iterative and online DPO, iterated RAFT, SPIN."""

    policy: PathText | None = None
    """Folder of the policy role to start from; null = the base itself."""
    learn: Literal["dpo", "sft"] = "dpo"
    """What a round does with its samples: dpo on the pairs, or sft on the best (RAFT)."""
    loss: str = "sigmoid"
    """The loss of dpo, as there."""
    rounds: Count = 4
    """Rounds of sample, score, pair, learn."""
    prompts_per_round: Count = 256
    """Prompts of a round, drawn anew; few are online DPO, all of them iterative DPO."""
    reference: Literal["renewed", "kept"] = "renewed"
    """The reference of dpo: in each round what its policy started from, or in all of them what the first one did."""
    chosen: Literal["best", "data"] = "best"
    """The chosen answer of a pair: the best sample, against the worst; or the data's, against each sample (SPIN)."""
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
        problems = _loss_problems(self.loss, self.preference)
        problems += _sampling_problems(self.chosen, self.reward, self.generation)
        if self.learn == "sft":
            idle = [key for key in ("loss", "reference") if getattr(self, key) != type(self).model_fields[key].default]
            defaults = PreferenceGroup()
            idle += [f"preference.{key}" for key, value in self.preference if value != getattr(defaults, key)]
            problems += [f"'{key}' would change nothing: it is for 'learn' = dpo; leave it out" for key in idle]
        if self.learn == "sft" and self.chosen == "data":
            problems.append("'chosen' = data is for 'learn' = dpo: sft on the data's answers needs no samples")
        if self.lora.r == 0:
            problems.append("'lora.r' = 0 would change the base that is the reference too; set lora.r >= 1")
        fail_on(problems)
        return self


VERB_CONFIGS: dict[str, type[RunConfig]] = {
    "pretrain": PretrainConfig,
    "sft": SFTConfig,
    "reward": RewardConfig,
    "dpo": DPOConfig,
    "best-of": BestOfConfig,
    "iterate": IterateConfig,
    "ppo": PPOConfig,
}
"""The model of each training verb."""


def verb_of(keys: Collection[str]) -> str:
    """The verb whose config has these keys at its top; of one written by another version the nearest."""
    return min(VERB_CONFIGS, key=lambda verb: len(set(keys) ^ set(VERB_CONFIGS[verb].model_fields)))
