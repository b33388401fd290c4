"""How often samples are right: pass@k and maj@k of prompts, with intervals, overall and by a column's values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import comb
from random import Random
from typing import Any

from onebase.reporting.intervals import Interval, bootstrap_mean
from onebase.shown import number_of

MOST_DRAWS = 1000
"""If k of n samples can be chosen in more ways, maj@k is a mean over this many random choices."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One prompt's samples, as verifiers judged them; a list has an entry per sample."""

    right: Sequence[bool]
    answers: Sequence[str | None]
    """What each sample answers; equal answers are equal texts, and None is no answer."""
    ended: Sequence[bool]
    """Whether each sample ended by itself."""
    failed: int = 0
    """Samples that a verifier could not check; they are not right."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's columns, to split by."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Figures over prompts."""

    num_prompts: int
    passed: dict[int, Interval]
    """pass@k by k."""
    majority: dict[int, Interval]
    """maj@k by k, for k of at least 3: two samples that differ are a tie. Empty if nothing votes."""
    ended: float
    """Share of samples that ended by themselves."""
    failed: int
    """Samples that a verifier could not check."""

    def figures(self) -> dict[str, Interval]:
        """All rates by their usual names."""
        found = {f"pass@{k}": rate for k, rate in self.passed.items()}
        return found | {f"maj@{k}": rate for k, rate in self.majority.items()}


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    r"""The chance that at least one of k samples is right, estimated without bias from n samples of which c are right.

        1 - C(n - c, k) / C(n, k)    (Chen et al. 2021, eq. 1)

    Whole numbers up to the one division, so nothing is rounded before it.
    """
    assert 0 <= num_right <= num_samples and 1 <= k <= num_samples, f"n {num_samples}, c {num_right}, k {k}"
    all_draws = comb(num_samples, k)
    return (all_draws - comb(num_samples - num_right, k)) / all_draws


def majority_at_k(answers: Sequence[str | None], right: Sequence[bool], k: int, *, seed: int = 0) -> float:
    """The chance that the most frequent answer of k samples is right (self-consistency, Wang et al. 2023).

    The mean over all choices of k among the samples, or over `MOST_DRAWS` random ones if there are more. Samples
    without an answer do not vote; answers that tie count by the share of them that is right; without a vote it is 0.

    Args:
        answers: equal answers are equal texts.
        right: one per sample; samples of one answer that differ count by their share.
    """
    samples = list(zip(answers, right, strict=True))
    assert 1 <= k <= len(samples), f"k is {k}, of {number_of(len(samples), 'sample')}"
    if comb(len(samples), k) <= MOST_DRAWS:
        draws = [list(draw) for draw in combinations(samples, k)]
    else:
        rng = Random(seed)
        draws = [rng.sample(samples, k) for _ in range(MOST_DRAWS)]
    return sum(map(_majority, draws)) / len(draws)


def _majority(samples: Sequence[tuple[str | None, bool]]) -> float:
    votes: dict[str, list[bool]] = {}
    for answer, right in samples:
        if answer is not None:
            votes.setdefault(answer, []).append(right)
    most = max(map(len, votes.values()), default=0)
    tied = [sum(rights) / most for rights in votes.values() if len(rights) == most]
    return sum(tied) / len(tied) if tied else 0.0


def rates(prompts: Sequence[Judged], ks: Sequence[int], *, votes: bool = True, seed: int = 0) -> Rates:
    """The prompts' mean rates with 95 % intervals, by bootstrap over prompts.

    Args:
        votes: whether samples have answers that can be compared; programs do not.
    """
    endings = [ended for prompt in prompts for ended in prompt.ended]
    voting = [k for k in ks if k > 2 and votes]

    def mean(values: Sequence[float]) -> Interval:
        return bootstrap_mean(values, seed=seed)

    return Rates(
        num_prompts=len(prompts),
        passed={k: mean([pass_at_k(len(p.right), sum(p.right), k) for p in prompts]) for k in ks},
        majority={k: mean([majority_at_k(p.answers, p.right, k, seed=seed) for p in prompts]) for k in voting},
        ended=sum(endings) / len(endings),
        failed=sum(prompt.failed for prompt in prompts),
    )


def by_value(prompts: Sequence[Judged], column: str) -> dict[str, list[Judged]]:
    """The prompts of each value of a column, in the values' order: numbers by size, then texts."""
    groups: dict[str, list[Judged]] = {}
    for prompt in sorted(prompts, key=partial(_order, column)):
        groups.setdefault(str(prompt.columns[column]), []).append(prompt)
    return groups


def _order(column: str, prompt: Judged) -> tuple[bool, float, str]:
    value = prompt.columns[column]
    number = type(value) in (int, float)
    return not number, value if number else 0.0, str(value)
