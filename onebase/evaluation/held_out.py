"""Evaluates a role on held-out prompts: what it says, how it scores, how far it moved from the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onebase.data.chat import ChatFormat
from onebase.engines.budget import TokenBudget
from onebase.models.base import OneBase
from onebase.records import Prompt, RewardSource
from onebase.reporting.intervals import Interval, bootstrap_mean, paired_bootstrap
from onebase.rollouts.collect import Roles, collect
from onebase.runs.progress import say
from onebase.sampling.local import LocalSampler
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.shown import number_of, shown


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A role's results, one number per prompt, averaged over its samples so that the numbers are independent."""

    role: str
    prompts: list[str]
    completions: list[str]
    """Each prompt's first sample."""
    scores: list[float]
    first_scores: list[float]
    """The score of each prompt's first sample."""
    kl: list[float]
    """KL to the reference (k1), nats per completion; empty if there is no reference."""
    entropy: list[float]
    """Nats per token."""
    length: list[float]
    """Tokens."""
    judged: dict[str, list[float]]
    """Each other judge's mean score per prompt; `right` is the share of right answers, if a verifier decides."""
    ended: float
    """Share of completions that ended by themselves."""
    failed: int = 0
    """Completions that could not be checked."""
    samples_per_prompt: int = 1

    def row(self) -> dict[str, Interval]:
        """The role's row of a table: each mean with its interval."""
        columns = {**self.judged, "score": self.scores, "kl": self.kl, "entropy": self.entropy, "length": self.length}
        return {name: bootstrap_mean(values) for name, values in columns.items() if values}

    def metrics(self) -> dict[str, float]:
        """The means as they are logged; `_error` is half the width of a mean's 95 % interval, `failed` a share."""
        row = self.row()
        means = {f"eval/{name}": row[name].mean for name in ("score", *self.judged, "kl") if name in row}
        errors = {f"eval/{name}_error": (row[name].high - row[name].low) / 2 for name in ("score", *self.judged)}
        checked = "right" in self.judged or self.failed
        failed = {"eval/failed": self.failed / (len(self.prompts) * self.samples_per_prompt)} if checked else {}
        return means | errors | failed


def evaluate_role(
    base: OneBase,
    chat: ChatFormat,
    prompts: Sequence[Prompt],
    reward: RewardSource,
    *,
    role: str,
    reference: str | None,
    sampling: Sampling,
    samples_per_prompt: int,
    seed: int,
    budget: TokenBudget,
    judges: Mapping[str, RewardSource] | None = None,
) -> HeldOut:
    """Samples as `role` with fixed seeds, so that two roles, or one at two times, are compared on equal random numbers.

    Args:
        reference: the role that KL is measured from; None: it is not measured.
        judges: other sources that score the same completions, to show what the reward source may miss.
    """
    rollout = collect(
        base,
        chat,
        prompts,
        sampler=LocalSampler(base, role),
        sampling=sampling,
        seeds=sample_seeds(seed, num_prompts=len(prompts), samples_per_prompt=samples_per_prompt, stream="held-out"),
        samples_per_prompt=samples_per_prompt,
        budget=budget,
        reward=reward,
        roles=Roles(policy=role, reference=reference),
    )
    scores, measured, request = rollout.scores, rollout.measured, rollout.request
    assert scores is not None and measured is not None
    per_prompt = scores.total.view(len(prompts), samples_per_prompt)
    judged = {name: judge.score(request).total.view(len(prompts), -1) for name, judge in (judges or {}).items()}
    if scores.right is not None:
        judged = {"right": scores.right.float().view(len(prompts), -1), **judged}
    if scores.failures:
        first = shown(next(iter(scores.failures.values())), 200)
        counted = (
            f"{len(scores.failures)} of {number_of(len(request.completions), 'held-out completion')} could not be "
            "checked"
        )
        say(f"warning: {counted}; the first: {first}")
    both = zip(measured.logprobs, measured.reference_logprobs or [], strict=reference is not None)
    return HeldOut(
        role=role,
        prompts=[prompt_text(prompt, chat) for prompt in prompts],
        completions=list(request.completions[::samples_per_prompt]),
        scores=per_prompt.mean(1).tolist(),
        first_scores=per_prompt[:, 0].tolist(),
        kl=[float((own - ref).sum()) / samples_per_prompt for own, ref in both],
        entropy=[float(own.mean()) for own in measured.entropy],
        length=[sum(map(len, e.completions)) / samples_per_prompt for e in rollout.examples],
        judged={name: found.mean(1).tolist() for name, found in judged.items()},
        ended=sum(sample.ended for sample in rollout.samples) / len(rollout.samples),
        failed=len(scores.failures),
        samples_per_prompt=samples_per_prompt,
    )


def prompt_text(prompt: Prompt, chat: ChatFormat) -> str:
    """The last message; for plain text, its opening."""
    row = prompt.row
    return row.messages[-1].content if row is not None and row.messages else chat.decode(prompt.ids)


def improvement(before: HeldOut, after: HeldOut) -> Interval:
    """The rise of the score, with its interval paired by prompt."""
    return paired_bootstrap(before.scores, after.scores)


def judged(before: HeldOut, after: HeldOut) -> dict[str, float]:
    """What a run's summary keeps of a judge that training never sees: its mean score before and after; {} without."""
    if "judge" not in after.judged:
        return {}
    return {
        f"judge_{when}": bootstrap_mean(found.judged["judge"]).mean
        for when, found in (("before", before), ("after", after))
    }
