"""Near-duplicates: MinHash signatures, candidates by locality-sensitive hashing, and the exact Jaccard similarity.

A text is the set of its runs of 5 characters, of 3 where they start in a Chinese, Japanese or Korean one. MinHash
(Broder 1997) keeps 128 numbers of it, of which two texts share as large a share as their sets overlap. Banding
(Indyk and Motwani 1998) finds pairs that share all numbers of a band; every pair found is then compared exactly, so
nothing is a duplicate by chance, and a duplicate is missed with a probability below 1 % at the threshold itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy
from numpy.typing import NDArray

from onebase.quality.texts import Hashes, distinct, jaccard, mixed, normalised, runs_of

NUM_HASHES = 128
RUN, RUN_CJK = 5, 3
_AT_A_TIME = 1024
"""Runs hashed at once: the products then stay in the processor's cache."""
MOST_NEAR, MOST_COMPARED = 1000, 100
"""Earlier entries that one entry is held against, and those of them that are compared exactly."""
_SLACK = 0.15
"""Candidates whose signatures share this much less than the threshold are not compared: four standard errors."""

Signature = NDArray[numpy.uint32]


@dataclass(frozen=True, slots=True)
class Twin:
    """What a text is a near-duplicate of."""

    index: int
    similarity: float
    """Jaccard similarity, the least of all parts."""


def runs_in(text: str) -> Hashes:
    """The set of a text's runs, sorted, after normalising it."""
    return distinct(runs_of(normalised(text), RUN, RUN_CJK))


def signature_of(texts: Sequence[str]) -> Signature:
    """The signature of the runs of all these texts together: `[128]`."""
    return signature(numpy.concatenate([runs_of(normalised(text), RUN, RUN_CJK) for text in texts]))


def signature(runs: Hashes) -> Signature:
    """The least value of each of 128 hash functions over the runs, which may repeat: `[128]`; all ones for no runs.

    The functions are h(x) = floor((a x + b mod 2^64) / 2^32) with a odd (Dietzfelbinger 1996).
    """
    a, b = _functions()
    least = numpy.full(NUM_HASHES, 0xFFFFFFFF, numpy.uint64)
    for start in range(0, len(runs), _AT_A_TIME):
        values = a[:, None] * runs[start : start + _AT_A_TIME] + b[:, None]
        least = numpy.minimum(least, values.min(1, initial=numpy.uint64(0xFFFFFFFFFFFFFFFF)) >> numpy.uint64(32))
    return least.astype(numpy.uint32)


def bands_for(threshold: float) -> tuple[int, int]:
    """How many bands of how many numbers find a pair at the threshold with 99 % probability, comparing the fewest.

    A pair of similarity s shares a band with probability 1 - (1 - s^r)^b (Leskovec et al., Mining of Massive Datasets,
    3.4.2).
    """
    fitting = [r for r in range(1, 17) if 1 - (1 - threshold**r) ** (NUM_HASHES // r) >= 0.99]
    rows = max(fitting, default=1)
    return NUM_HASHES // rows, rows


def near_duplicates(
    parts: Sequence[Sequence[str]],
    signatures: NDArray[numpy.uint32],
    threshold: float,
    *,
    verdicts: Sequence[object] | None = None,
) -> dict[int, Twin]:
    """The entries that are near-duplicates of an earlier one that is none itself, with that one.

    Time grows with the number of entries, even if all share an instruction and so most bands: at most 1,000 candidates
    are looked at, those of the rarest bands first, and the 100 whose signatures agree most are compared exactly.

    Args:
        parts: each entry's texts. All parts of two near-duplicates are similar, first with first, second with second,
            so that two answers to one long prompt stay apart.
        signatures: `[N, 128]`, of each entry's runs of all parts together.
        threshold: the least Jaccard similarity, above 0 and at most 1.
        verdicts: entries with different verdicts are never near-duplicates.
    """
    groups = _buckets(signatures, threshold)
    kept: dict[tuple[int, int], list[int]] = {}
    sets = _Sets(parts)
    found: dict[int, Twin] = {}
    for i in numpy.flatnonzero((groups >= 0).any(1)).tolist():
        own = [(band, int(group)) for band, group in enumerate(groups[i]) if group >= 0]
        near = _from_rarest([kept[bucket] for bucket in own if bucket in kept])
        if verdicts is not None:
            near = [j for j in near if verdicts[i] == verdicts[j]]
        for j in _likely(i, near, signatures, threshold)[:MOST_COMPARED]:
            similarity = sets.similarity(i, j, threshold)
            if similarity >= threshold:
                found[i] = Twin(j, similarity)
                break
        if i not in found:
            for bucket in own:
                kept.setdefault(bucket, []).append(i)
    return found


def similar_pairs(
    texts: Sequence[str], signatures: NDArray[numpy.uint32], threshold: float, *, most: int = 50
) -> Iterator[tuple[int, int]]:
    """Yields pairs of similar texts; chains of them join all texts that are similar.

    Args:
        most: texts of one bucket that each of its texts is compared with; very common beginnings would otherwise take
            quadratic time.
    """
    groups = _buckets(signatures, threshold)
    earlier: dict[tuple[int, int], list[int]] = {}
    sets = _Sets([[text] for text in texts])
    for i in numpy.flatnonzero((groups >= 0).any(1)).tolist():
        buckets = [earlier.setdefault((band, int(g)), []) for band, g in enumerate(groups[i]) if g >= 0]
        near = sorted({j for bucket in buckets for j in bucket[-most:]})
        for j in _likely(i, near, signatures, threshold):
            if sets.similarity(i, j, threshold) >= threshold:
                yield j, i
        for bucket in buckets:
            bucket.append(i)


def _from_rarest(buckets: Sequence[Sequence[int]]) -> list[int]:
    """The entries of these buckets in order: of the smallest first, and of a large one the last."""
    near: set[int] = set()
    for bucket in sorted(buckets, key=len):
        if len(near) >= MOST_NEAR:
            break
        near.update(bucket[-(MOST_NEAR - len(near)) :])
    return sorted(near)


def _likely(i: int, near: Sequence[int], signatures: NDArray[numpy.uint32], threshold: float) -> list[int]:
    """The candidates whose signatures agree nearly as much as the threshold asks, those that agree most first."""
    if not near:
        return []
    candidates = numpy.array(near)
    shared = (signatures[candidates] == signatures[i]).mean(1)
    likely = shared >= threshold - _SLACK
    order = numpy.argsort(-shared[likely], kind="stable")
    return [int(j) for j in candidates[likely][order]]


class Index:
    """Texts that other texts can be looked up in."""

    def __init__(self, texts: Sequence[str], threshold: float) -> None:
        self.threshold = threshold
        self.sets = [runs_in(text) for text in texts]
        self.buckets: dict[tuple[int, bytes], list[int]] = {}
        for i, runs in enumerate(self.sets):
            for bucket in self._keys(signature(runs)):
                self.buckets.setdefault(bucket, []).append(i)

    def nearest(self, text: str) -> Twin | None:
        """The most similar text at or above the threshold, the earliest of several; None if there is none."""
        runs = runs_in(text)
        near = sorted({i for bucket in self._keys(signature(runs)) for i in self.buckets.get(bucket, ())})
        twins = [Twin(i, jaccard(runs, self.sets[i])) for i in near]
        best = max(twins, key=lambda twin: twin.similarity, default=None)
        return best if best is not None and best.similarity >= self.threshold else None

    def _keys(self, numbers: Signature) -> list[tuple[int, bytes]]:
        bands, rows = bands_for(self.threshold)
        return [(band, numbers[band * rows : (band + 1) * rows].tobytes()) for band in range(bands)]


class _Sets:
    """The runs of each entry's parts; those last asked for are kept."""

    def __init__(self, parts: Sequence[Sequence[str]]) -> None:
        self.parts = parts
        self.found: dict[int, list[Hashes]] = {}

    def of(self, index: int) -> list[Hashes]:
        if index not in self.found:
            if len(self.found) >= 4096:
                self.found.clear()
            self.found[index] = [runs_in(part) for part in self.parts[index]]
        return self.found[index]

    def similarity(self, i: int, j: int, threshold: float) -> float:
        """The least similarity of two entries' parts, or that of the first part below the threshold."""
        if len(self.parts[i]) != len(self.parts[j]):
            return 0.0
        least = 1.0
        for a, b in zip(self.of(i), self.of(j), strict=True):
            least = min(least, jaccard(a, b))
            if least < threshold:
                break
        return least


def _buckets(signatures: NDArray[numpy.uint32], threshold: float) -> NDArray[numpy.int32]:
    """For each entry and band, a number that entries with equal bands share; -1 where no other has it: `[N, bands]`."""
    bands, rows = bands_for(threshold)
    found = numpy.full((len(signatures), bands), -1, numpy.int32)
    for band in range(bands):
        keys = numpy.zeros(len(signatures), numpy.uint64)
        for column in signatures[:, band * rows : (band + 1) * rows].T:
            keys = mixed(keys + column.astype(numpy.uint64) + numpy.uint64(1))
        _, group, sizes = numpy.unique(keys, return_inverse=True, return_counts=True)
        found[:, band] = numpy.where(sizes[group] > 1, group, -1)
    return found


@cache
def _functions() -> tuple[Hashes, Hashes]:
    seeds = mixed(numpy.arange(1, 2 * NUM_HASHES + 1, dtype=numpy.uint64) * numpy.uint64(0x9E3779B97F4A7C15))
    return seeds[:NUM_HASHES] | numpy.uint64(1), seeds[NUM_HASHES:]
