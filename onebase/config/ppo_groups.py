"""Groups of keys for reinforcement learning: sampling, the reward source, PPO itself. See `groups` for the words."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from onebase.config.groups import LoraGroup, PromptEvaluationGroup
from onebase.config.values import (
    FUNCTION,
    Columns,
    Count,
    Float,
    Group,
    NonNegative,
    Paths,
    PathText,
    Positive,
    Probability,
    Said,
    Share,
    Strings,
    Url,
    Variable,
    Whole,
    fail_on,
)
from onebase.config.verifiers import Verifiers

SOURCES = "'reward.role', 'reward.callable', 'reward.model' and 'reward.url'"


class GenerationGroup(Group):
    """How completions are sampled."""

    max_new_tokens: Count = 64
    """Longest completion, in tokens."""
    random_min_new_tokens: Count | None = None
    """When set, each rollout draws its own length limit between this and max_new_tokens."""
    temperature: Positive = 1.0
    """The logits are divided by this."""
    top_k: Whole = 0
    """Sample among the k likeliest tokens; 0 = off."""
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 = off."""
    stop: Strings = []
    """Strings that end a completion, each a single token of the tokenizer."""
    samples_per_prompt: Count = 4
    """Completions per prompt (K)."""
    engine: Literal["own", "vllm"] = "own"
    """own = this process decodes; vllm = a vLLM server does, with the policy's adapter published to it."""
    url: Url | None = None
    """With engine vllm: where the server answers, such as http://127.0.0.1:8000."""
    url_key: Variable | None = None
    """Environment variable with the key of that server; null = it needs none."""
    start: Said | None = None
    """Command that starts the server with the run and is stopped with it; null = it runs already."""
    timeout: Positive = 600.0
    """With engine vllm: seconds that one answer may take."""
    check_every: Count = 1
    """With engine vllm: compare its log-probs with our own every so many rollouts."""
    ahead: Literal[0, 1] = 0
    """With engine vllm: 1 = sample the next rollout while training on this one, one policy behind."""

    def engine_problems(self) -> list[str]:
        """Keys that do not go with the engine."""
        if self.engine == "own":
            fields = type(self).model_fields
            return [
                f"'generation.{key}' = {getattr(self, key)} would change nothing without 'generation.engine' = vllm; "
                "leave it out"
                for key in ("url", "url_key", "start", "timeout", "check_every", "ahead")
                if getattr(self, key) != fields[key].default
            ]
        problems = []
        if self.url is None:
            problems.append("'generation.engine' = vllm needs 'generation.url', where the server answers")
        if self.top_k or self.top_p < 1:
            problems.append(
                f"'generation.top_k' = {self.top_k} and 'generation.top_p' = {self.top_p:g}: with 'generation.engine' "
                "= vllm the server's log-probs would be of another distribution than ours; leave them at 0 and 1"
            )
        return problems

    @model_validator(mode="after")
    def _engine_is_whole(self) -> GenerationGroup:
        fail_on(self.engine_problems())
        return self

    @model_validator(mode="after")
    def _lengths_are_ordered(self) -> GenerationGroup:
        if self.random_min_new_tokens is not None and self.random_min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"'generation.random_min_new_tokens' = {self.random_min_new_tokens} is above "
                f"'generation.max_new_tokens' = {self.max_new_tokens}; lower the first or raise the second"
            )
        return self


class OptionalRewardSourceGroup(Group):
    """What scores the completions: verifiers, one of role, callable, model and url, or both."""

    verifiers: Verifiers = []
    """Rules that check an answer: a name, a mapping with its options and weight, or a list of these."""
    gold: str | None = None
    """The data's column with the right answer; null = `gold`, or else `answer`."""
    weight: Float = 1.0
    """Beside verifiers: the weight of the role's, function's or model's score in the sum."""

    role: PathText | None = None
    """Folder of a reward role made on the same base."""
    callable: str | None = None
    """A Python function, or class with score(request): module:name, or path/to/file.py:name."""
    timeout: Positive | None = 600.0
    """Seconds that importing or calling that function, or an answer from reward.url, may take; null = no limit."""
    model: PathText | None = None
    """Folder or hub name of a sequence-classification model with one label."""
    url: Url | None = None
    """Where `onebase serve` answers with a reward role, such as http://127.0.0.1:8000."""
    url_role: str | None = None
    """The role's name there; null = the only reward role."""
    url_key: Variable | None = None
    """Environment variable with the API key of that server; null = it needs none."""
    normalize: Literal["none", "held_out"] = "none"
    """held_out = standardize the reward role's scores by the mean and deviation of its held-out scores."""

    allow_code_execution: Annotated[bool, Field(exclude=True)] = False
    """Let the verifier `code` run the policy's answers, in a sandbox; only on the command line."""

    @property
    def source(self) -> str | None:
        """The configured source in words: verifiers, a role folder, a function, a model or a server."""
        named = [verifier.name for verifier in self.verifiers]
        return " + ".join([*named, *filter(None, (self.role, self.callable, self.model, self.url))]) or None

    @model_validator(mode="after")
    def _one_source_at_most(self) -> OptionalRewardSourceGroup:
        given = [key for key in ("role", "callable", "model", "url") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"'reward' takes one of {SOURCES}; got {' and '.join(given)}")
        for key in ("url_role", "url_key"):
            if getattr(self, key) is not None and self.url is None:
                raise ValueError(f"'reward.{key}' would change nothing without 'reward.url'; leave it out")
        if self.weight != 1 and not (given and self.verifiers):
            raise ValueError(
                "'reward.weight' weighs a role, function or model against 'reward.verifiers'; without both it would "
                "change nothing: leave it out"
            )
        if self.gold is not None and not self.verifiers:
            raise ValueError("'reward.gold' is for 'reward.verifiers', and there are none; leave it out")
        if self.normalize == "held_out" and self.role is None and self.url is None:
            raise ValueError(
                "'reward.normalize' = held_out needs 'reward.role' or 'reward.url': other sources have no held-out "
                "scores; set it to none"
            )
        if self.callable is not None and not re.fullmatch(FUNCTION, self.callable):
            raise ValueError(
                f"'reward.callable' = {self.callable!r}: it should be written module:function or "
                "path/to/file.py:function"
            )
        return self


class RewardSourceGroup(OptionalRewardSourceGroup):
    """What scores the completions: verifiers, one of role, callable, model and url, or both."""

    @model_validator(mode="after")
    def _some_source(self) -> RewardSourceGroup:
        if self.source is None:
            raise ValueError(f"'reward' needs 'reward.verifiers', or one of {SOURCES}; got none of them")
        return self


class ActorCriticGroup(Group):
    """What PPO and reinforcement fine-tuning share: the rollout, the clip and the critic."""

    rollout_prompts: Count = 32
    """Prompts per rollout; each gets generation.samples_per_prompt completions."""
    minibatch_prompts: Count = 8
    """Prompts (with all their completions) per optimizer step; must divide rollout_prompts."""
    gamma: Probability = 1.0
    """Discount per token."""
    lam: Probability = 0.95
    """Decay of generalized advantage estimation, per token."""
    clip_low: Share = 0.2
    """The probability ratio is clipped below at 1 - clip_low."""
    clip_high: Positive = 0.2
    """The probability ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[Float, Field(gt=1)] | None = None
    """Bound on the loss of a negative advantage, as a multiple of its size (above 1, often 3); null = off."""
    value_clip: Positive | None = 0.2
    """The value loss clips a new value to within this of the old one; null = off."""
    value_coefficient: NonNegative = 0.1
    """Weight of the value loss."""
    critic: Literal["adapter", "head"] = "adapter"
    """adapter = the critic has its own adapter; head = a value head on the policy's own hidden states."""
    critic_start: Literal["auto", "reward", "policy"] = "auto"
    """Role the critic's adapter is copied from; auto = the reward role if there is one, else the policy."""
    critic_learning_rate: Positive | None = None
    """Learning rate of the critic; null = optimizer.learning_rate."""
    critic_warmup_rollouts: Whole = 0
    """Rollouts at the start that train only the critic."""
    whiten_advantages: bool = True
    """Scale advantages to mean 0 and standard deviation 1 over the rollout."""
    entropy_coefficient: NonNegative = 0.0
    """Weight of the entropy bonus."""


class PPOGroup(ActorCriticGroup):
    """Proximal policy optimization."""

    num_ppo_epochs: Count = 2
    """Passes over each rollout."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k1"
    """Estimate of KL(policy, reference) per token: k1 = log ratio, k2 = k1^2 / 2, k3 = k1 + exp(-k1) - 1."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """Subtract the KL penalty from each token's reward, or add it to the loss."""
    kl_coefficient: NonNegative = 0.05
    """Weight of the KL penalty (beta)."""
    kl_target: Positive | None = None
    """Target KL in nats per completion, to which kl_coefficient adapts; null = fixed coefficient."""
    kl_horizon: Positive = 10000.0
    """Time constant of an adaptive kl_coefficient, in completions."""
    max_kl: Positive | None = None
    """Stop training on a rollout when the approximate KL from the sampling policy exceeds this, nats per token."""
    kl_budget: Positive | None = None
    """Stop the run when a rollout's KL to the reference exceeds this, nats per completion; keeps the policy before."""
    score_clip: Positive | None = None
    """Scores are clipped to plus and minus this; null = off."""
    score_baseline: Float = 0.0
    """Subtracted from every score before scaling."""
    score_scaling: Literal["none", "running"] = "none"
    """running = divide scores by their running standard deviation, once they differ."""
    missing_end_penalty: NonNegative = 0.0
    """Subtracted from the score of a completion that did not end by itself."""
    length_penalty: NonNegative = 0.0
    """Subtracted from the score for every completion token."""
    whiten_rewards: bool = False
    """Scale per-token rewards to standard deviation 1 over the rollout, keeping their mean."""
    ptx_coefficient: NonNegative = 0.0
    """Weight of the language-model loss on ptx_data."""
    ptx_data: Paths = []
    """Files of text or conversations for the language-model loss."""
    ptx_columns: Columns | None = None
    """Their keys to read, as in data.columns; null = known by their usual names."""

    @model_validator(mode="after")
    def _keys_agree(self) -> PPOGroup:
        problems = []
        if self.rollout_prompts % self.minibatch_prompts:
            problems.append(
                f"'ppo.minibatch_prompts' = {self.minibatch_prompts} does not divide "
                f"'ppo.rollout_prompts' = {self.rollout_prompts}"
            )
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            problems.append(
                "'ppo.kl_placement' = loss needs 'ppo.kl_estimator' = k2 or k3: the gradient of k1 is zero on average"
            )
        if self.kl_target is None and self.kl_horizon != PPOGroup.model_fields["kl_horizon"].default:
            problems.append(f"'ppo.kl_horizon' = {self.kl_horizon:g} has no effect without 'ppo.kl_target'; set it")
        if self.kl_target is not None and self.kl_coefficient == 0:
            problems.append("'ppo.kl_target' needs 'ppo.kl_coefficient' above 0: adapting only multiplies it")
        if bool(self.ptx_data) != (self.ptx_coefficient > 0):
            missing = "ptx_coefficient" if self.ptx_data else "ptx_data"
            problems.append(f"'ppo.ptx_data' and 'ppo.ptx_coefficient' go together; 'ppo.{missing}' is not set")
        if self.ptx_columns and not self.ptx_data:
            problems.append("'ppo.ptx_columns' would change nothing without 'ppo.ptx_data'; set it, or leave it out")
        fail_on(problems)
        return self


def sampling_problems(verb: str, lora: LoraGroup, generation: GenerationGroup) -> list[str]:
    """What a verb that trains on its own samples cannot do with these keys."""
    problems = []
    if lora.dropout > 0:
        problems.append("'lora.dropout' above 0 would add noise to the probability ratios; leave it at 0")
    if lora.r == 0:
        problems.append(
            f"{verb} trains adapters: with 'lora.r' = 0 the base would change under the other roles; set lora.r >= 1"
        )
    if generation.top_k or generation.top_p < 1:
        problems.append(
            f"'generation.top_k' = {generation.top_k} and 'generation.top_p' = {generation.top_p:g} would sample from "
            f"a different distribution than {verb} trains, which biases its ratios and its KL; leave them at 0 and 1"
        )
    return problems


def pause_problems(on_finding: str, evaluation: PromptEvaluationGroup) -> list[str]:
    """Whether pausing has something to go back to."""
    if on_finding != "pause" or evaluation.every_steps is not None:
        return []
    return [
        "'on_finding' = pause restores the best roles on held-out prompts, which are known only with "
        "'evaluation.every_steps'; set it"
    ]
