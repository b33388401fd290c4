"""Which tasks to rank next: those that tell most about the head, none twice, and a share at random.

What a ranking is expected to tell about the head w is, with S the covariance of w after the rankings so far,

    1/2 log det(I + C^(1/2) X S X' C^(1/2))        (the mutual information in Laplace's approximation: MacKay 1992,
                                                    "Information-based objective functions for active data selection";
                                                    Houlsby et al. 2011, BALD)

with the answers' features X `[K, F]`. X S X' is how far heads disagree about the margins, and C, the curvature of
the ranking's likelihood, is large where margins are small. Tasks are taken greedily, and S shrinks with each: what is
like a task already taken tells little more, so a batch is diverse by itself (D-optimal design, Fedorov 1972).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray

from onebase.active_learning.heads import Floats
from onebase.quality.diversity import clusters, sketches


def most_informative(features: Floats, curvature: Floats, covariance: Floats, num: int) -> list[int]:
    """Up to `num` tasks, each the one that tells most after those before it.

    Args:
        features: `[N, K, F]`, zeros where there is no answer.
        curvature: `[N, K, K]`, from `expected_curvature`.
        covariance: `[F, F]` of the head.
    """
    count, most, size = features.shape
    values, vectors = numpy.linalg.eigh(curvature)
    root = vectors * numpy.sqrt(numpy.maximum(values, 0.0))[:, None, :]
    rows = (numpy.swapaxes(root, 1, 2) @ features).reshape(-1, size)  # what C^(1/2)' X holds, task by task
    known = (rows @ covariance).reshape(count, most, size)
    inner = known @ numpy.swapaxes(rows.reshape(count, most, size), 1, 2)
    taken: list[int] = []
    free = numpy.ones(count, bool)
    identity = numpy.eye(most)
    while len(taken) < min(num, count):
        gain = numpy.linalg.slogdet(identity + inner)[1]
        best = int(numpy.where(free, gain, -numpy.inf).argmax())
        taken.append(best)
        free[best] = False
        # S - S U (I + U' S U)^-1 U' S, applied to every task's products with S.
        shared = (rows @ known[best].T).reshape(count, most, most)
        shrink = numpy.linalg.inv(identity + inner[best]) @ numpy.swapaxes(shared, 1, 2)
        inner = inner - shared @ shrink
        known = known - numpy.swapaxes(shrink, 1, 2) @ known[best]
    return taken


def expected_curvature(opinions: Sequence[Floats], there: NDArray[numpy.bool_]) -> Floats:
    """How much a ranking of each task is expected to bend the likelihood of its answers' scores: `[N, K, K]`.

    The mean over the opinions of sum_{i<j} p_ij (1 - p_ij) (e_i - e_j)(e_i - e_j)', times 4 / (K (K - 1))
    sum_{m=2..K} (m - 1) / m. For two answers that is the curvature of the Bradley-Terry likelihood, and for K equally
    good ones that of Plackett's, exactly; in between it stands for a mean over all K! rankings.

    Args:
        opinions: scores of all answers by each of several heads: `[N, K]` each.
        there: `[N, K]`, True where there is an answer.
    """
    count, most = there.shape
    apart = numpy.zeros((count, most, most))
    for scores in opinions:
        chance = 0.5 * (1 + numpy.tanh((scores[:, :, None] - scores[:, None, :]) / 2))
        apart += chance * (1 - chance) / len(opinions)
    apart *= there[:, :, None] & there[:, None, :] & ~numpy.eye(most, dtype=bool)
    sizes = there.sum(1)
    choices = numpy.array([sum((m - 1) / m for m in range(2, k + 1)) for k in range(most + 1)])
    factor = 4 * choices[sizes] / numpy.maximum(sizes * (sizes - 1), 1)
    return numpy.asarray(factor[:, None, None] * (numpy.eye(most) * apart.sum(2)[:, :, None] - apart))


def disagreement(opinions: Sequence[Floats], there: NDArray[numpy.bool_]) -> Floats:
    """The mean over each task's pairs of how evenly the heads split on which answer is better: `[N]`, from 0 (all heads
    agree) to 1 (half say one, half the other). Arguments as in `expected_curvature`."""
    first = sum((scores[:, :, None] > scores[:, None, :]).astype(float) for scores in opinions) / len(opinions)
    pairs = numpy.triu(there[:, :, None] & there[:, None, :], 1)
    split = 1 - numpy.abs(2 * first - 1)
    return numpy.asarray((split * pairs).sum((1, 2)) / numpy.maximum(pairs.sum((1, 2)), 1))


def spread_sample(texts: Sequence[str], num: int, *, seed: int) -> list[int]:
    """`num` texts at random, spread over what the texts are about: every text is drawn with the same probability.

    The texts are sorted by cluster, at random within each, and every (N / num)-th is taken from a random start (Madow
    and Madow 1944, systematic sampling): each cluster gets its share, and means over the sample are unbiased.
    """
    count = len(texts)
    if num >= count or num < 1:
        return list(range(count if num > 0 else 0))
    generator = numpy.random.default_rng(seed)
    labels = clusters(sketches(texts), max(1, min(100, num // 2)), seed=seed)
    shuffled = generator.permutation(count)
    # The clusters themselves come in random order too.
    order = shuffled[numpy.argsort(generator.permutation(labels.max() + 1)[labels[shuffled]], kind="stable")]
    places = (generator.random() + numpy.arange(num)) * (count / num)
    return sorted(int(i) for i in order[places.astype(int)])
