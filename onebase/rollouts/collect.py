"""Collecting a rollout: K completions of every prompt, and all that is known of them before an update."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from onebase.data.chat import ChatFormat
from onebase.data.prepare import with_completions
from onebase.models.forward import head_logprobs, source_states, token_logprobs, token_values
from onebase.models.one_base import OneBase
from onebase.models.passes import per_example, with_lower_states
from onebase.records import Example, RewardSource, ScoreRequest, TreeBatch
from onebase.sampling.local import Sample, Sampling, generate


@dataclass(slots=True)
class Rollout:
    """What was sampled and measured. Lists have one entry per prompt; `m` counts the tokens of its K completions."""

    examples: list[Example]
    samples: list[Sample]
    """One per completion, prompt by prompt."""
    logprobs: list[Tensor]
    """`[m]` of the policy that sampled, from the same forward pass that trains it."""
    entropy: list[Tensor]
    """`[m]` of that policy, nats."""
    reference_logprobs: list[Tensor]
    """`[m]`."""
    values: list[Tensor]
    """`[m]`, V before each token; zeros without a critic."""
    scores: Tensor
    """`[N]` as the reward source gave them."""
    seconds: dict[str, float] = field(default_factory=dict)
    """`generate`, `score` and `logprobs`: where the time went."""

    @property
    def sampled_logprobs(self) -> Tensor:
        """`[M]` as the decode loop saw them: they differ from `logprobs` by rounding, or something is wrong."""
        return torch.tensor([logprob for sample in self.samples for logprob in sample.logprobs])

    @property
    def completion_lengths(self) -> list[int]:
        return [len(sample.ids) for sample in self.samples]

    @property
    def completion_index(self) -> Tensor:
        """`[M]`: the completion each token belongs to, over the whole rollout."""
        lengths = torch.tensor(self.completion_lengths)
        return torch.arange(len(lengths)).repeat_interleave(lengths)


def collect_rollout(
    base: OneBase,
    chat: ChatFormat,
    prompts: Sequence[Example],
    reward_source: RewardSource,
    *,
    sampling: Sampling,
    seeds: Sequence[int],
    samples_per_prompt: int,
    token_budget: int,
    critic: str | None,
) -> Rollout:
    """Samples with role `policy`, then scores the trees with `reference`, the reward source and the critic.

    Args:
        prompts: examples without completions.
        seeds: one per completion.
        critic: the role that gives values; None: zeros.
    """
    started = time.monotonic()
    samples = generate(
        base,
        [prompt.prompt_ids for prompt in prompts],
        role="policy",
        sampling=sampling,
        seeds=seeds,
        samples_per_prompt=samples_per_prompt,
    )
    generated = time.monotonic()
    examples = with_lower_states(base, trees(prompts, samples), role="policy", token_budget=token_budget)
    lowered = time.monotonic()
    scores = reward_source.score(score_request(chat, examples))
    scored = time.monotonic()
    temperature = sampling.temperature or 1.0  # as `draw` has it: 0 takes the most probable token
    shared_trunk = critic is not None and base.roles[critic].adapter == base.roles["policy"].adapter

    def policy_pass(batch: TreeBatch) -> Tensor:
        """Log-prob, entropy and, of a critic that is a head on the policy's trunk, value of each token: `[M * 3]`."""
        states = source_states(base, batch, role="policy")
        both = head_logprobs(base, states, batch, temperature=temperature, with_entropy=True)
        values = base.roles[critic].head(states) if shared_trunk else torch.zeros_like(both[0])  # type: ignore[index, misc]
        return torch.stack([*both, values], dim=-1).flatten()

    policy = per_example(base, examples, policy_pass, token_budget=token_budget, numbers_per_token=3)
    logprobs, entropy, values = ([part.view(-1, 3)[:, i] for part in policy] for i in range(3))
    reference_logprobs = per_example(
        base,
        examples,
        lambda batch: token_logprobs(base, batch, role="reference", temperature=temperature),
        token_budget=token_budget,
    )
    if critic is not None and not shared_trunk:
        values = per_example(
            base, examples, lambda batch: token_values(base, batch, role=critic), token_budget=token_budget
        )
    seconds = {
        "generate": generated - started,
        "score": scored - lowered,
        "logprobs": time.monotonic() - scored + lowered - generated,
    }
    return Rollout(examples, samples, logprobs, entropy, reference_logprobs, values, scores, seconds)


def trees(prompts: Sequence[Example], samples: Sequence[Sample]) -> list[Example]:
    """Each prompt with the completions drawn for it."""
    completions: list[list[list[int]]] = [[] for _ in prompts]
    for sample in samples:
        completions[sample.prompt].append(sample.ids)
    return [with_completions(prompt, drawn) for prompt, drawn in zip(prompts, completions, strict=True)]


def score_request(chat: ChatFormat, examples: Sequence[Example]) -> ScoreRequest:
    """The same trees in words, for sources that read text; a column is there if every row has it."""
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
