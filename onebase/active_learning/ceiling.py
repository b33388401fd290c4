"""The human ceiling: how often people agree with each other about which of two answers is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy

from onebase.reporting.intervals import Interval, bootstrap_mean


@dataclass(frozen=True, slots=True)
class Ceiling:
    """How often people agree with each other, and what that leaves for a head to reach."""

    tasks: int
    """Tasks that several people ranked."""
    agreement: Interval
    """How often a person prefers the same answer as another one did."""

    @property
    def most(self) -> Interval:
        """The most that any head can agree with one person.

        If a share p of people prefers the better answer of a pair, two of them agree with probability p^2 + (1 - p)^2,
        and a perfect head agrees with one of them with probability p: (1 + sqrt(2 A - 1)) / 2 with A the agreement if
        all pairs are equally hard, and less if not (Jensen's inequality).
        """
        return Interval(*(_most(value) for value in (self.agreement.mean, self.agreement.low, self.agreement.high)))


def _most(agreement: float) -> float:
    return (1 + math.sqrt(max(0.0, 2 * agreement - 1))) / 2


def agreement_on(gradings: Sequence[Sequence[float]]) -> float:
    """How often two people agree on one task: over all ordered pairs of people and all pairs of answers of which the
    first person prefers one, the share in which the second prefers the same; a tie of the second counts half. NaN if
    there is nothing to compare.

    Args:
        gradings: each person's grades of the task's answers.
    """
    agreed: list[float] = []
    apart = [numpy.sign(numpy.subtract.outer(numpy.asarray(given, float), given)) for given in gradings]
    for n, first in enumerate(apart):
        for m, second in enumerate(apart):
            if n != m:
                agreed += ((1 + second[first > 0]) / 2).tolist()
    return float(numpy.mean(agreed)) if agreed else float("nan")


def human_ceiling(tasks: Iterable[tuple[str, Sequence[Sequence[float]]]], *, seed: int = 0) -> Ceiling | None:
    """How often people agree, with a bootstrap interval over prompts; None if no task was ranked by two people.

    Args:
        tasks: each task's prompt, by any name, and the grades of each person who ranked it.
    """
    by_prompt: dict[str, list[float]] = {}
    for prompt, gradings in tasks:
        if not math.isnan(found := agreement_on(gradings)):
            by_prompt.setdefault(prompt, []).append(found)
    if not by_prompt:
        return None
    means = [float(numpy.mean(values)) for values in by_prompt.values()]
    return Ceiling(sum(map(len, by_prompt.values())), bootstrap_mean(means, seed=seed))
