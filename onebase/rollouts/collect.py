"""Collects completions: sample, score, measure. PPO, best-of and policy evaluation all start here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from onebase.data.chat import ChatFormat
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import source_states, token_logprobs, token_values
from onebase.engines.output_layer import head_logprobs
from onebase.engines.passes import per_token, with_lower_states
from onebase.models.base import OneBase
from onebase.records import Example, Prompt, RewardSource, ScoreRequest, Scores, TreeBatch
from onebase.sampling.sampler import Sample, Sampler, Sampling


@dataclass(frozen=True, slots=True)
class Roles:
    """The roles that measure the completions."""

    policy: str = "policy"
    """Gives log-probs and entropy."""
    reference: str | None = None
    """Gives log-probs; None: not measured."""
    critic: str | None = None
    """Gives values; None: not measured."""


@dataclass(slots=True)
class Measured:
    """What the roles measured: one tensor `[m]` per prompt, over the tokens of its K completions."""

    logprobs: list[Tensor]
    """The policy's, from the same forward pass that trains it."""
    entropy: list[Tensor]
    """The policy's, in nats."""
    reference_logprobs: list[Tensor] | None
    values: list[Tensor] | None
    """The critic's V before each token."""


@dataclass(slots=True)
class Rollout:
    """The samples, with their scores and measurements. Lists have one entry per prompt unless stated otherwise."""

    examples: list[Example]
    samples: list[Sample]
    """One per completion, prompt by prompt."""
    request: ScoreRequest
    """The input for reward sources."""
    scores: Scores | None = None
    measured: Measured | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the time went: `generate`, `score` and `logprobs`."""

    @property
    def sampled_logprobs(self) -> Tensor:
        """Log-probs `[M]` as the sampler saw them; they should differ from the measured ones only by rounding."""
        return torch.tensor([logprob for sample in self.samples for logprob in sample.logprobs])

    @property
    def completion_lengths(self) -> list[int]:
        return [len(sample.ids) for sample in self.samples]

    @property
    def completion_index(self) -> Tensor:
        """The completion each token belongs to, over the whole rollout: `[M]`."""
        lengths = torch.tensor(self.completion_lengths)
        return torch.arange(len(lengths)).repeat_interleave(lengths)


def collect(
    base: OneBase,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    *,
    sampler: Sampler,
    sampling: Sampling,
    seeds: Sequence[int],
    samples_per_prompt: int,
    budget: TokenBudget,
    reward: RewardSource | None = None,
    roles: Roles | None = None,
) -> Rollout:
    """Samples K completions of every prompt, scores them, and measures them with the roles.

    Args:
        seeds: one per completion.
        reward: scores the completions; None: nothing is scored.
        roles: measure the completions; None: nothing is measured.
    """
    started = time.monotonic()
    samples = sampler.sample(
        [prompt.ids for prompt in prompts], sampling, seeds=seeds, samples_per_prompt=samples_per_prompt
    )
    generated = time.monotonic()
    examples = with_samples(prompts, samples)
    if roles is not None:
        examples = with_lower_states(base, examples, role=roles.policy, budget=budget)
    lowered = time.monotonic()
    rollout = Rollout(examples, samples, score_request(chat, examples))
    if reward is not None:
        rollout.scores = reward.score(rollout.request)
    scored = time.monotonic()
    if roles is not None:
        rollout.measured = measure(base, examples, roles, temperature=sampling.temperature or 1.0, budget=budget)
    rollout.seconds = {
        "generate": generated - started,
        "score": scored - lowered,
        "logprobs": time.monotonic() - scored + lowered - generated,
    }
    return rollout


def measured(
    base: OneBase, rollout: Rollout, roles: Roles, *, sampling: Sampling, budget: TokenBudget, as_sampled: bool = False
) -> Rollout:
    """The rollout, collected without roles, with what the roles measure of it.

    Args:
        as_sampled: take the policy's log-probs from the sampler instead of a pass, and minus these as its entropy,
            which they estimate without bias. They differ from a pass's by rounding.
    """
    started = time.monotonic()
    examples = with_lower_states(base, rollout.examples, role=roles.policy, budget=budget)
    sampled = None
    if as_sampled:
        sampled = list(rollout.sampled_logprobs.split([example.num_counted for example in examples]))
    temperature = sampling.temperature or 1.0
    found = measure(base, examples, roles, temperature=temperature, budget=budget, sampled=sampled)
    seconds = {**rollout.seconds, "logprobs": time.monotonic() - started}
    return replace(rollout, examples=examples, measured=found, seconds=seconds)


def with_samples(prompts: Sequence[Prompt], samples: Sequence[Sample]) -> list[Example]:
    """Joins each prompt with the completions drawn for it."""
    completions: list[list[list[int]]] = [[] for _ in prompts]
    for sample in samples:
        completions[sample.prompt].append(sample.ids)
    return [prompt.with_completions(drawn) for prompt, drawn in zip(prompts, completions, strict=True)]


def score_request(chat: ChatFormat, examples: Sequence[Example]) -> ScoreRequest:
    """The examples in words, for sources that read text; includes only columns that every row has."""
    per_completion = [example for example in examples for _ in example.completions]
    shared = set.intersection(*(set(e.row.columns) if e.row else set() for e in examples)) if examples else set()
    return ScoreRequest(
        examples=examples,
        prompts=[chat.decode(example.prompt_ids) for example in per_completion],
        completions=[chat.decode(ids) for example in examples for ids in example.completions],
        columns={
            name: [example.row.columns[name] for example in per_completion if example.row] for name in sorted(shared)
        },
    )


def measure(
    base: OneBase,
    examples: Sequence[Example],
    roles: Roles,
    *,
    temperature: float,
    budget: TokenBudget,
    sampled: list[Tensor] | None = None,
) -> Measured:
    """The roles' log-probs, entropy and values of every completion token.

    Args:
        temperature: divides the policy's and the reference's logits, as in sampling.
        sampled: the policy's log-probs, if it need not be asked again; a critic on its trunk needs that pass anyway.
    """
    critic = roles.critic
    shared_trunk = critic is not None and base.roles[critic].adapter == base.roles[roles.policy].adapter

    def policy_pass(batch: TreeBatch) -> dict[str, Tensor]:
        states = source_states(base, batch, role=roles.policy)
        logprobs, entropy = head_logprobs(base, states, batch, temperature=temperature, with_entropy=True)
        fields = {"logprobs": logprobs, "entropy": entropy}
        # A critic that is a head on the policy's trunk reads the policy's states.
        return fields | {"values": base.scalar_role(critic).head(states)} if shared_trunk and critic else fields

    def reference_pass(batch: TreeBatch) -> dict[str, Tensor]:
        assert roles.reference is not None
        return {"logprobs": token_logprobs(base, batch, role=roles.reference, temperature=temperature)}

    def critic_pass(batch: TreeBatch) -> dict[str, Tensor]:
        assert critic is not None
        return {"values": token_values(base, batch, role=critic)}

    if sampled is not None and not shared_trunk:
        found = {"logprobs": sampled, "entropy": [-logprobs for logprobs in sampled]}
    else:
        found = per_token(base, examples, policy_pass, budget=budget)
    reference = None
    if roles.reference is not None:
        reference = per_token(base, examples, reference_pass, budget=budget)["logprobs"]
    if critic is not None and not shared_trunk:
        found |= per_token(base, examples, critic_pass, budget=budget)
    return Measured(found["logprobs"], found["entropy"], reference, found.get("values"))
