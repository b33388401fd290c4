"""A role on held-out prompts: what it says, how it scores, how far it went from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from onebase.data.chat import ChatFormat
from onebase.models.forward import logprobs_and_entropy, token_logprobs
from onebase.models.one_base import OneBase
from onebase.models.passes import per_example
from onebase.records import Example, RewardSource
from onebase.reporting.intervals import Interval, bootstrap_mean, paired_bootstrap
from onebase.rollouts.collect import score_request, trees
from onebase.sampling.local import Sampling, generate, sample_seeds


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One number per prompt, averaged over its samples, so that prompts are independent of each other."""

    role: str
    prompts: list[str]
    completions: list[str]
    """The first sample of each prompt."""
    scores: list[float]
    first_scores: list[float]
    """The score of each prompt's first sample."""
    kl: list[float]
    """Nats per completion, k1 against the reference."""
    entropy: list[float]
    """Nats per token."""
    length: list[float]
    """Tokens."""
    judged: dict[str, list[float]]
    """The mean score per prompt by each other judge."""
    ended: float
    """Share of completions that ended by themselves."""

    def row(self) -> dict[str, Interval]:
        """The figures of a table's row, each with its interval."""
        columns = {**self.judged, "score": self.scores, "kl": self.kl, "entropy": self.entropy, "length": self.length}
        return {name: bootstrap_mean(values) for name, values in columns.items()}

    def metrics(self) -> dict[str, float]:
        """As they are logged; `_error` is half the width of a mean's 95 % interval."""
        row = self.row()
        means = {f"eval/{name}": row[name].mean for name in ("score", *self.judged, "kl")}
        errors = {f"eval/{name}_error": (row[name].high - row[name].low) / 2 for name in ("score", *self.judged)}
        return means | errors


def evaluate_role(
    base: OneBase,
    chat: ChatFormat,
    prompts: Sequence[Example],
    reward_source: RewardSource,
    *,
    role: str,
    reference: str,
    sampling: Sampling,
    samples_per_prompt: int,
    seed: int,
    token_budget: int,
    judges: Mapping[str, RewardSource] | None = None,
) -> HeldOut:
    """Samples as `role` with fixed seeds: two roles, or two moments of one, are compared on the same random numbers.

    Args:
        judges: other sources that score the same completions, for what the reward source may be missing.
    """
    seeds = sample_seeds(seed, num_prompts=len(prompts), samples_per_prompt=samples_per_prompt, stream="held-out")
    samples = generate(
        base,
        [prompt.prompt_ids for prompt in prompts],
        role=role,
        sampling=sampling,
        seeds=seeds,
        samples_per_prompt=samples_per_prompt,
    )
    examples = trees(prompts, samples)
    request = score_request(chat, examples)
    scores = reward_source.score(request).view(len(prompts), samples_per_prompt)
    judged = {name: judge.score(request).view(len(prompts), -1).mean(1) for name, judge in (judges or {}).items()}
    temperature = sampling.temperature or 1.0  # as `draw` has it: 0 takes the most probable token
    entropies: list[Tensor] = per_example(
        base,
        examples,
        lambda batch: torch.stack(logprobs_and_entropy(base, batch, role=role, temperature=temperature), -1).flatten(),
        token_budget=token_budget,
        numbers_per_token=2,
    )
    references = per_example(
        base,
        examples,
        lambda batch: token_logprobs(base, batch, role=reference, temperature=temperature),
        token_budget=token_budget,
    )
    pairs = [part.view(-1, 2) for part in entropies]
    return HeldOut(
        role=role,
        prompts=[prompt_text(prompt, chat) for prompt in prompts],
        completions=list(request.completions[::samples_per_prompt]),
        scores=scores.mean(1).tolist(),
        first_scores=scores[:, 0].tolist(),
        kl=[float((own[:, 0] - ref).sum()) / samples_per_prompt for own, ref in zip(pairs, references, strict=True)],
        entropy=[float(own[:, 1].mean()) for own in pairs],
        length=[sum(map(len, e.completions)) / samples_per_prompt for e in examples],
        judged={name: per_prompt.tolist() for name, per_prompt in judged.items()},
        ended=sum(sample.ended for sample in samples) / len(samples),
    )


def prompt_text(prompt: Example, chat: ChatFormat) -> str:
    """What was asked last; of plain text, its opening."""
    row = prompt.row
    return row.messages[-1].content if row is not None and row.messages else chat.decode(prompt.prompt_ids)


def improvement(before: HeldOut, after: HeldOut) -> Interval:
    """The paired interval of the score's rise, prompt by prompt."""
    return paired_bootstrap(before.scores, after.scores)
