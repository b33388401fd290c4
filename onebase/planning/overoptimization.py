"""How far a policy may move from where it started before a learned reward misleads it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

Method = Literal["rl", "best-of"]
RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Peak:
    """Where the true score is highest."""

    alpha: float
    beta: float
    kl: float
    """Nats from the starting policy; infinite if the runs show no turn."""
    low: float
    high: float
    """95 % interval of the KL, over resampled measurements."""
    reward: float
    """The gain there, in the score's own unit."""


def gain(kl: float, alpha: float, beta: float, method: Method) -> float:
    """The rise of the true score: d (alpha - beta log d) for RL, d (alpha - beta d) for best-of-n, d = sqrt(KL).

    Gao et al. 2022, eq. 1 and 2; KL in nats from the starting policy.
    """
    d = math.sqrt(kl)
    if d == 0:
        return 0.0
    return d * (alpha - beta * (math.log(d) if method == "rl" else d))


def peak(measured: Sequence[tuple[float, float]], method: Method, *, seed: int = 0) -> Peak:
    """Fits the law to pairs of KL and gain in true score, and finds its highest point.

    The fit is linear least squares in alpha and beta. RL: d* = exp(alpha / beta - 1); best-of-n: d* = alpha / (2 beta).

    Raises:
        ValueError: there are fewer than 3 measurements with a KL above 0.
    """
    table = numpy.array([(math.sqrt(kl), reward) for kl, reward in measured if kl > 0])
    if len(table) < 3:
        raise ValueError(f"{len(table)} measurements with a KL above 0 are too few to fit; at least 3 are needed")
    alpha, beta = _fit(table, method)
    generator = numpy.random.default_rng(seed)
    peaks = []
    for _ in range(RESAMPLES):
        drawn = table[generator.integers(0, len(table), len(table))]
        if len(numpy.unique(drawn[:, 0])) > 1:
            peaks.append(_at(*_fit(drawn, method), method))
    low, high = numpy.percentile(peaks, [2.5, 97.5], method="nearest")
    kl = _at(alpha, beta, method)
    reward = gain(kl, alpha, beta, method) if math.isfinite(kl) else math.inf
    return Peak(alpha, beta, kl, float(low), float(high), reward)


def _fit(table: numpy.ndarray, method: Method) -> tuple[float, float]:
    d = table[:, 0]
    falling = d * numpy.log(d) if method == "rl" else d * d
    (alpha, minus_beta), *_ = numpy.linalg.lstsq(numpy.stack([d, falling], 1), table[:, 1], rcond=None)
    return float(alpha), -float(minus_beta)


def _at(alpha: float, beta: float, method: Method) -> float:
    if beta <= 0:
        return math.inf  # rises as far as was measured
    exponent = alpha / beta - 1
    d = math.exp(min(exponent, 300.0)) if method == "rl" else max(alpha, 0.0) / (2 * beta)
    return d * d
