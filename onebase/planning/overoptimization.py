"""How far a policy may move from where it started before a learned reward misleads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]
Method = Literal["rl", "best-of"]
RESAMPLES = 1000
FEWEST = 3
"""Measurements with a KL above 0; the law has two parameters beside the score at the start."""


@dataclass(frozen=True, slots=True)
class Peak:
    """The law of the true score, and where it is highest."""

    method: Method
    start: float
    """The score of the starting policy."""
    alpha: float
    beta: float
    kl: float
    """Nats from the starting policy; infinite if the measurements show no turn."""
    low: float
    high: float
    """95 % interval of that KL, over resampled measurements."""
    seen: float
    """The largest KL of any measurement."""

    @property
    def reward(self) -> float:
        """The gain in score at the peak; infinite if there is none."""
        return gain(self.kl, self.alpha, self.beta, self.method) if math.isfinite(self.kl) else math.inf

    def score(self, kl: float) -> float:
        """The score that the law gives at this KL."""
        return self.start + gain(kl, self.alpha, self.beta, self.method)


def gain(kl: float, alpha: float, beta: float, method: Method) -> float:
    """The rise of the true score: d (alpha - beta log d) for RL, d (alpha - beta d) for best-of-n, d = sqrt(KL).

    Gao et al. 2022, section 1; KL in nats from the starting policy. RL's form rises infinitely steeply at 0, where the
    paper does not expect it to hold.
    """
    d = math.sqrt(kl)
    if d == 0:
        return 0.0
    return d * (alpha - beta * (math.log(d) if method == "rl" else d))


def best_of_kl(n: int) -> float:
    """The KL of the best of n samples from the policy that drew them, in nats: log n - (n - 1) / n.

    Stiennon et al. 2020, appendix G.3; an upper bound where answers repeat (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_scores(scores: Floats, others: Floats) -> Floats:
    """What the best of n is expected to score, for n = 1 .. K, if chosen by `scores` and scored by `others`: `[P, K]`.

    Over all subsets of n of a prompt's K samples: the i-th lowest is the best of C(i - 1, n - 1) of C(K, n) subsets
    (Nakano et al. 2021, appendix I).

    Args:
        scores, others: `[P, K]`.
    """
    k = scores.shape[1]
    chances = numpy.array([[math.comb(i, n - 1) / math.comb(k, n) for n in range(1, k + 1)] for i in range(k)])
    return numpy.asarray(numpy.take_along_axis(others, scores.argsort(1, kind="stable"), 1) @ chances)


def peak(
    measured: Sequence[tuple[float, float]], method: Method, *, redrawn: Floats | None = None, seed: int = 0
) -> Peak:
    """Fits score = start + gain(KL) to pairs of KL and true score, and finds its highest point.

    Linear least squares in start, alpha and beta. RL: d* = exp(alpha / beta - 1); best-of-n: d* = alpha / (2 beta). A
    measured KL below 0, which an estimate may be near the start, counts as 0.

    Args:
        redrawn: scores of these measurements from resampled prompts, `[B, M]`, for the interval; by default whole
            measurements are resampled.

    Raises:
        ValueError: there are fewer than 3 different KLs above 0, or nothing beside them.
    """
    table = numpy.array([(math.sqrt(max(kl, 0.0)), score) for kl, score in measured]).reshape(-1, 2)
    moved = len(numpy.unique(table[table[:, 0] > 0, 0]))
    if moved < FEWEST or len(table) < FEWEST + 1:
        raise ValueError(
            f"{len(table)} measurements, {moved} of them with a KL of their own above 0, are too few to fit; at least "
            f"{FEWEST + 1} are needed, and {FEWEST} such"
        )
    start, alpha, beta = _fit(table, method)
    tables = _resampled(table, seed) if redrawn is None else [numpy.stack((table[:, 0], own), 1) for own in redrawn]
    peaks = [_at(*_fit(drawn, method)[1:], method) for drawn in tables]
    low, high = numpy.percentile(peaks, [2.5, 97.5], method="nearest")
    return Peak(
        method, start, alpha, beta, _at(alpha, beta, method), float(low), float(high), float(table[:, 0].max() ** 2)
    )


def _resampled(table: Floats, seed: int) -> list[Floats]:
    generator = numpy.random.default_rng(seed)
    found: list[Floats] = []
    while len(found) < RESAMPLES:
        drawn = table[generator.integers(0, len(table), len(table))]
        if len(numpy.unique(drawn[:, 0])) >= FEWEST:  # with fewer the fit is not unique
            found.append(drawn)
    return found


def _fit(table: Floats, method: Method) -> tuple[float, float, float]:
    d = table[:, 0]
    falling = d * numpy.log(numpy.where(d > 0, d, 1.0)) if method == "rl" else d * d
    columns = numpy.stack([numpy.ones_like(d), d, -falling], 1)
    (start, alpha, beta), *_ = numpy.linalg.lstsq(columns, table[:, 1], rcond=None)
    return float(start), float(alpha), float(beta)


def _at(alpha: float, beta: float, method: Method) -> float:
    if beta <= 0:
        # Concave nowhere: RL's form then falls first and rises, best-of-n's rises as far as was measured.
        return math.inf if method == "rl" or alpha > 0 else 0.0
    d = math.exp(min(alpha / beta - 1, 300.0)) if method == "rl" else max(alpha, 0.0) / (2 * beta)
    return d * d
