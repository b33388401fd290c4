"""How reliable each annotator is where nobody knows the truth: Dawid-Skene, and Bradley-Terry with reliabilities.

Both models treat the truth of a unit as unknown, integrate it out, and estimate the annotators by maximum likelihood
with a weak prior, so that a few judgements suffice to converge. Units of one group (the pairs of answers of one task)
depend on each other, so the intervals come from the sandwich H^-1 J H^-1, with J the outer products of the groups'
scores (White 1982; Liang and Zeger 1986), on the logit scale. They hold for many groups: docs/labeling.md says how
often they held the truth in simulations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy
from numpy.polynomial.hermite_e import hermegauss
from numpy.typing import NDArray

from onebase.quality.agreement import group_sums
from onebase.reporting.intervals import Interval

Array = NDArray[numpy.float64]
Whole = NDArray[numpy.int64]

Z = 1.959963984540054
"""The normal quantile of a 95 % interval."""

GAMMA_MEAN, GAMMA_SD = 2.0, 6.0
"""Prior of a discrimination: weak. Such an annotator orders 78 % of pairs right; a guesser is well within it."""
PSEUDO_COUNT = 0.1
"""Prior of a confusion matrix, in answers per cell: weak, and no probability is 0."""
_MOST_STEPS = 500
_NODES, _WEIGHTS = hermegauss(41)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_POSITIVE = numpy.linspace(0.005, 5.995, 600)
_HALF_NORMAL = numpy.exp(-(_POSITIVE**2) / 2) / numpy.exp(-(_POSITIVE**2) / 2).sum()


@dataclass(frozen=True, slots=True)
class DawidSkene:
    """What the annotators say of units of an unknown class."""

    shares: Array
    """How common each class is: `[C]`."""
    confusion: Array
    """The chance that an annotator answers l where the truth is c: `[R, C, C]`, rows sum to 1."""
    truth: Array
    """The chance of each class, for each unit: `[U, C]`."""
    accuracy: list[Interval]
    """For each annotator the chance of answering with the truth, over all units: sum_c shares[c] confusion[r, c, c]."""


@dataclass(frozen=True, slots=True)
class BradleyTerry:
    """How sharply each annotator sees the difference between two answers."""

    gamma: list[Interval]
    """Discrimination, in units of 1 / (the standard deviation of differences); 0 guesses, below 0 contradicts."""
    accuracy: list[Interval]
    """The chance of ordering a pair right, over all pairs: E sigmoid(gamma |d|)."""


def dawid_skene(counts: Array, *, groups: Whole | None = None, prior: float = PSEUDO_COUNT) -> DawidSkene:
    """Dawid and Skene's observer error rates by EM (1979, "Maximum Likelihood Estimation of Observer Error-Rates").

        T[u, c] ∝ p[c] prod_{r, l} pi[r, c, l]^n[u, r, l]                                             (2.5)
        pi[r, c, l] = (prior + sum_u T[u, c] n[u, r, l]) / sum over l,   p[c] = mean_u T[u, c]       (2.3, 2.4)

    starting from the shares of the answers given to a unit (3.1). Without a prior this is the paper's estimate. The
    model takes all units of a class for equally difficult: where everybody errs on the same units, it takes their
    common error for the truth, and finds everybody too reliable.

    Args:
        counts: how often annotator r gave the answer l to unit u: `[U, R, C]`; zeros where somebody did not answer.
        groups: the group of each unit, from 0; by default each unit is its own.
        prior: pseudo-counts per cell. With 0 there are no intervals: they are NaN.

    Raises:
        ValueError: a unit has no answer.
    """
    if not counts.sum((1, 2)).all():
        raise ValueError("every unit needs at least one answer")
    size, raters, classes = counts.shape
    groups = numpy.arange(size) if groups is None else groups
    kinds, kind, times = _alike(counts.reshape(size, -1))
    answers = kinds.reshape(-1, raters, classes)
    truth = answers.sum(1) / answers.sum((1, 2))[:, None]
    shares, confusion = numpy.zeros(classes), numpy.zeros((raters, classes, classes))
    for _ in range(_MOST_STEPS):
        before = confusion
        weighted = truth * times[:, None]
        shares = weighted.sum(0) / size
        seen = prior + (weighted.T @ kinds).reshape(classes, raters, classes).transpose(1, 0, 2)
        confusion = seen / numpy.maximum(seen.sum(2, keepdims=True), 1e-300)
        # An answer never seen has probability 0, and the product then rules the class out.
        logs = numpy.log(numpy.maximum(confusion, 1e-300)).transpose(0, 2, 1).reshape(-1, classes)
        truth = _softmax(kinds @ logs + numpy.log(numpy.maximum(shares, 1e-300)))
        if numpy.abs(confusion - before).max() < 1e-7:
            break
    right = numpy.einsum("c,rcc->r", shares, confusion)
    if prior == 0:
        accuracy = [Interval(float(value), float("nan"), float("nan")) for value in right]
    else:
        accuracy = _accuracy_intervals(answers, times, truth, shares, confusion, prior, kind, groups)
    return DawidSkene(shares, confusion, truth[kind], accuracy)


def _accuracy_intervals(
    answers: Array,
    times: Whole,
    truth: Array,
    shares: Array,
    confusion: Array,
    prior: float,
    kind: Whole,
    groups: Whole,
) -> list[Interval]:
    """Intervals of sum_c p[c] pi[r, c, c] from the sandwich over the logits of p and pi, by the delta method.

    The Hessian is Louis's (1982): E[complete-data Hessian] + Var[complete-data score], both given the answers.
    """
    number, raters, classes = answers.shape
    each = answers.sum(2)
    # Score of unit u for the logits of pi[r, c, :] if the truth is c: n[u, r, :] - n[u, r] pi[r, c, :].
    scores = [
        (answers - each[:, :, None] * confusion[None, :, c]).reshape(number, -1) for c in range(classes)
    ]  # C x [U, R C]
    classes_of = numpy.eye(classes)
    complete = [
        numpy.concatenate([numpy.tile(classes_of[c] - shares, (number, 1)), scores[c]], 1) for c in range(classes)
    ]
    width = classes + raters * classes * classes
    hessian = numpy.zeros((width, width))
    at = [
        numpy.concatenate([numpy.arange(classes), classes + (c * raters * classes) + numpy.arange(raters * classes)])
        for c in range(classes)
    ]
    observed = numpy.zeros((number, width))
    for c in range(classes):
        hessian[numpy.ix_(at[c], at[c])] += complete[c].T @ (complete[c] * (times * truth[:, c])[:, None])
        observed[:, at[c]] += complete[c] * truth[:, [c]]
    hessian -= observed.T @ (observed * times[:, None])
    hessian[:classes, :classes] -= times.sum() * (numpy.diag(shares) - numpy.outer(shares, shares))
    mass = numpy.einsum("u,uc,ur->cr", times, truth, each) + classes * prior
    for c in range(classes):
        for r in range(raters):
            start = classes + (c * raters + r) * classes
            row = confusion[r, c]
            hessian[start : start + classes, start : start + classes] -= mass[c, r] * (
                numpy.diag(row) - numpy.outer(row, row)
            )
    covariance = _sandwich(hessian, group_sums(observed[kind], groups))
    intervals = []
    for r in range(raters):
        right = float(shares @ confusion[r].diagonal())
        slope = numpy.zeros(width)
        slope[:classes] = shares * (confusion[r].diagonal() - right)
        for c in range(classes):
            start = classes + (c * raters + r) * classes
            slope[start : start + classes] = shares[c] * confusion[r, c, c] * (classes_of[c] - confusion[r, c])
        intervals.append(_logit_interval(right, float(slope @ covariance @ slope) ** 0.5))
    return intervals


def bradley_terry(outcomes: Array, *, groups: Whole | None = None) -> BradleyTerry:
    """Bradley and Terry's model (1952) with a discrimination per annotator, the differences integrated out.

        P(first over second | r) = sigmoid(gamma_r d),   d ~ N(0, 1),   gamma_r ~ N(GAMMA_MEAN, GAMMA_SD^2)

    This is the reliability of Chen et al. (2013, "Pairwise Ranking Aggregation in a Crowdsourced Setting") as a scale
    instead of a flip: a careful annotator errs between similar answers only. As every pair has a difference of its own,
    estimating them all would bias gamma upwards (Neyman and Scott 1948), so each is integrated out, as abilities are
    in item response theory (Bock and Aitkin 1981). A tie counts as half a win. What one person says of the pairs of
    one task need not be independent: only a pair's own likelihood is used, and intervals count by groups.

    Gammas are known up to a common sign: it is the one in which most annotators agree with the majority. At least three
    annotators have to share pairs, or the prior alone says which of two is better.

    Args:
        outcomes: 1 if the first was better, 0.5 for a tie, 0 if the second was, NaN if not judged: `[U, R]`.
        groups: the group of each pair, from 0; by default each pair is its own.
    """
    given = ~numpy.isnan(outcomes)
    leans = numpy.where(given, outcomes - 0.5, 0.0)
    raters = outcomes.shape[1]
    groups = numpy.arange(len(outcomes)) if groups is None else groups
    kinds, kind, times = _alike(numpy.concatenate([leans, given], 1))
    leans, judged = kinds[:, :raters], kinds[:, raters:]
    gamma = numpy.full(raters, GAMMA_MEAN)
    value, scores, hessian, information = _marginal(gamma, leans, judged, times)
    for _ in range(_MOST_STEPS):
        slope = times @ scores + (GAMMA_MEAN - gamma) / GAMMA_SD**2
        try:
            numpy.linalg.cholesky(-hessian)
            step = numpy.linalg.solve(-hessian, slope)
        except numpy.linalg.LinAlgError:
            step = slope / information  # the step of EM to first order, which always climbs (Lange 1995)
        step *= min(1.0, 2.0 / max(float(numpy.abs(step).max()), 1e-12))
        while True:
            found = _marginal(gamma + step, leans, judged, times)
            if found[0] >= value - 1e-9 or numpy.abs(step).max() < 1e-7:
                break
            step = step / 2
        gamma = gamma + step
        value, scores, hessian, information = found
        if numpy.abs(step).max() < 1e-6:
            break
    covariance = _sandwich(hessian, group_sums(scores[kind], groups))
    accuracy, gammas = [], []
    for r in range(raters):
        right, rise = _orders_right(float(gamma[r]))
        interval = _logit_interval(right, rise * float(covariance[r, r]) ** 0.5)
        accuracy.append(interval)
        gammas.append(Interval(float(gamma[r]), _gamma_of(interval.low), _gamma_of(interval.high)))
    return BradleyTerry(gammas, accuracy)


def _marginal(gamma: Array, leans: Array, judged: Array, times: Whole) -> tuple[float, Array, Array, Array]:
    """Log posterior of gamma, each kind of pair's score `[P, R]`, the Hessian, and the complete-data information.

    log p(y | d) = sum_r gamma_r d (y_r - 1/2) - log(2 cosh(gamma_r d / 2)), since y is symmetric about 1/2.
    """
    half = gamma[:, None] * _NODES[None, :] / 2  # [R, G]
    pull = _NODES / 2 * numpy.tanh(half)
    log = (leans @ gamma)[:, None] * _NODES - judged @ numpy.logaddexp(half, -half) + numpy.log(_WEIGHTS)
    most = log.max(1, keepdims=True)
    posterior = numpy.exp(log - most)
    total = posterior.sum(1, keepdims=True)
    posterior /= total
    value = float(times @ (most + numpy.log(total))[:, 0]) - float(((gamma - GAMMA_MEAN) ** 2).sum()) / GAMMA_SD**2 / 2
    mean = posterior @ _NODES
    scores = leans * mean[:, None] - judged * (posterior @ pull.T)
    mass = posterior * times[:, None]  # [P, G]
    bend = (_NODES / 2) ** 2 / numpy.cosh(numpy.minimum(numpy.abs(half), 300)) ** 2
    information = numpy.einsum("rg,rg->r", judged.T @ mass, bend) + 1 / GAMMA_SD**2
    # Louis 1982: minus the complete information, plus the variance of u_r = d (y_r - 1/2) - judged_r pull_r(d).
    spread = (leans * (mass @ _NODES**2)[:, None]).T @ leans
    crossed = leans.T @ (judged * ((mass * _NODES) @ pull.T))
    pulls = numpy.stack([judged[:, r] @ (judged * (mass @ (pull * pull[r]).T)) for r in range(len(gamma))])
    hessian = spread - crossed - crossed.T + pulls - scores.T @ (scores * times[:, None]) - numpy.diag(information)
    return value, scores, hessian, information


def scores(first: Whole, second: Whole, outcomes: Array, gamma: Array, *, sd: float = 1.0) -> Array:
    """The most likely scores of the things compared, for known annotators; their mean is 0 (Bradley and Terry 1952).

        maximises  sum_n y_n log sigmoid(gamma_n d_n) + (1 - y_n) log sigmoid(-gamma_n d_n) - sum_i s_i^2 / (2 sd^2)

    with d_n = s[first[n]] - s[second[n]]. Everything is concave, so Newton's method finds it.

    Args:
        first, second: numbers of the things compared, from 0: `[N]`.
        outcomes: 1 if the first was better, 0.5 for a tie, 0 if the second was: `[N]`.
        gamma: the discrimination of who said so: `[N]`.
        sd: standard deviation of the prior; 1 for answers whose differences are as in `bradley_terry`.
    """
    size = int(max(first.max(), second.max())) + 1
    design = numpy.zeros((len(first), size))
    design[numpy.arange(len(first)), first] += gamma
    design[numpy.arange(len(first)), second] -= gamma
    found = numpy.zeros(size)
    for _ in range(_MOST_STEPS):
        chance = 1 / (1 + numpy.exp(-numpy.clip(design @ found, -500, 500)))
        slope = design.T @ (outcomes - chance) - found / sd**2
        bend = design.T @ (design * (chance * (1 - chance))[:, None]) + numpy.eye(size) / sd**2
        step = numpy.linalg.solve(bend, slope)
        step *= min(1.0, 2.0 / max(float(numpy.abs(step).max()), 1e-12))
        found = found + step
        if numpy.abs(step).max() < 1e-9:
            break
    return found - found.mean()


def _sandwich(hessian: Array, scores: Array) -> Array:
    """H^-1 J H^-1, with J = G / (G - 1) sum_g s_g s_g^T over the G groups' scores; pseudo-inverse, as logits float."""
    number = len(scores)
    inverse = numpy.linalg.pinv(hessian, rcond=1e-10, hermitian=True)
    return inverse @ (scores.T @ scores) @ inverse * (number / max(number - 1, 1))


def _alike(rows: Array) -> tuple[Array, Whole, Whole]:
    """The different rows, which of them each row is, and how many rows each of them stands for."""
    packed = numpy.ascontiguousarray(rows).view(f"V{8 * rows.shape[1]}").reshape(-1)
    number: dict[bytes, int] = {}
    which = numpy.array([number.setdefault(row, len(number)) for row in packed.tolist()])
    first = numpy.zeros(len(number), dtype=numpy.int64)
    first[which[::-1]] = numpy.arange(len(rows))[::-1]
    return rows[first], which, numpy.bincount(which)


def _softmax(logs: Array) -> Array:
    chances = numpy.exp(logs - logs.max(1, keepdims=True))
    return chances / chances.sum(1, keepdims=True)


def _logit_interval(share: float, error: float) -> Interval:
    """The 95 % interval of a share with this standard error, by the delta method on its logit."""
    share = min(max(share, 1e-9), 1 - 1e-9)
    middle, width = numpy.log(share / (1 - share)), Z * error / (share * (1 - share))
    low, high = (float(1 / (1 + numpy.exp(-bound))) for bound in (middle - width, middle + width))
    return Interval(share, low, high)


def _orders_right(gamma: float) -> tuple[float, float]:
    """A(gamma) = E sigmoid(gamma |d|) for d ~ N(0, 1), and its derivative."""
    chance = 1 / (1 + numpy.exp(-numpy.clip(gamma * _POSITIVE, -500, 500)))
    return float(_HALF_NORMAL @ chance), float(_HALF_NORMAL @ (_POSITIVE * chance * (1 - chance)))


def _gamma_of(accuracy: float) -> float:
    """The gamma whose accuracy this is, by bisection."""
    low, high = -1e4, 1e4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _orders_right(middle)[0] < accuracy else (low, middle)
    return (low + high) / 2
