"""How diverse texts are: distinct n-grams, and how many clusters of similar texts they cover."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from onebase.quality.texts import Hashes, digest, distinct, mixed, normalised, runs_of
from onebase.verifiers.shape import words_of

SAMPLE = 10_000
"""Rows that diversity is measured on; more are sampled by their content."""
_SIZE = 256
_ROUNDS = 15
_BATCH = 4096


@dataclass(frozen=True, slots=True)
class Diversity:
    """Figures of some texts, those kept among them apart."""

    texts: int
    """Texts measured: all, or a sample of 10,000."""
    distinct: dict[str, float]
    """Distinct n-grams of words per n-gram, n from 1 to 3 (Li et al. 2016)."""
    clusters: int
    """Clusters that the texts were sorted into."""
    covered: float
    """The share of the clusters with a text that was kept."""
    effective: float
    """exp(entropy of the kept texts over the clusters): the number of clusters, if all had equally many."""


class Sample:
    """Keeps the texts whose digests are least: the same texts whatever their order."""

    def __init__(self, size: int = SAMPLE) -> None:
        self.size = size
        self.heap: list[tuple[int, int, str]] = []

    def add(self, index: int, text: str) -> None:
        key = -int.from_bytes(digest(text)[:8], "little")
        entry = (key, -index, text)
        if len(self.heap) < self.size:
            heapq.heappush(self.heap, entry)
        elif entry > self.heap[0]:
            heapq.heapreplace(self.heap, entry)

    def texts(self) -> dict[int, str]:
        """The texts by their index, in order."""
        return {-index: text for _, index, text in sorted(self.heap, key=lambda entry: -entry[1])}


class Space:
    """Texts sorted into clusters, about sqrt(N / 2) of them, in which any part of them can be described."""

    def __init__(self, texts: Sequence[str], *, seed: int = 0) -> None:
        self.count = max(1, min(100, round(math.sqrt(len(texts) / 2))))
        self.labels = clusters(sketches(texts), self.count, seed=seed)
        codes: dict[str, int] = {}
        self.words = [
            numpy.array([codes.setdefault(word, len(codes)) for word in words_of(text)], dtype=numpy.uint64)
            for text in texts
        ]

    def diversity(self, kept: Sequence[bool] | None = None) -> Diversity:
        """The figures of the texts that are kept, by default of all."""
        chosen = numpy.ones(len(self.labels), bool) if kept is None else numpy.asarray(kept, dtype=bool)
        words = [own for own, is_kept in zip(self.words, chosen, strict=True) if is_kept]
        sizes = numpy.bincount(self.labels[chosen], minlength=self.count)
        present = int((numpy.bincount(self.labels, minlength=self.count) > 0).sum())
        shares = sizes[sizes > 0] / max(1, sizes.sum())
        return Diversity(
            texts=len(self.labels),
            distinct={f"distinct_{n}": distinct_ngrams(words, n) for n in (1, 2, 3)},
            clusters=present,
            covered=float((sizes > 0).sum() / present) if present else 0.0,
            effective=float(numpy.exp(-(shares * numpy.log(shares)).sum())) if len(shares) else 0.0,
        )


def distinct_ngrams(texts: Sequence[Hashes], n: int) -> float:
    """Distinct n-grams per n-gram over all texts together, each a list of words by number; 0 if there are none.

    More text has fewer: compare texts of about the same size.
    """
    hashes = []
    for words in texts:
        if len(words) >= n:
            gram = numpy.zeros(len(words) - n + 1, numpy.uint64)
            for k in range(n):
                gram = mixed(gram + words[k : len(words) - n + 1 + k] + numpy.uint64(1))
            hashes.append(gram)
    every = numpy.concatenate(hashes) if hashes else numpy.zeros(0, numpy.uint64)
    return len(distinct(every)) / len(every) if len(every) else 0.0


def sketches(texts: Sequence[str]) -> NDArray[numpy.float32]:
    """Each text's runs of characters, hashed to 256 numbers with random signs (Weinberger et al. 2009), less their mean
    and of length 1: `[N, 256]`."""
    found = numpy.zeros((len(texts), _SIZE), numpy.float32)
    for i, text in enumerate(texts):
        runs = distinct(runs_of(normalised(text), 5, 2))
        sign = 1 - 2 * ((runs >> numpy.uint64(40)) & numpy.uint64(1)).astype(numpy.float32)
        found[i] = numpy.bincount((runs % numpy.uint64(_SIZE)).astype(numpy.int64), weights=sign, minlength=_SIZE)
    found /= numpy.maximum(numpy.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    if len(found):
        found -= found.mean(0)
    return found / numpy.maximum(numpy.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def clusters(points: NDArray[numpy.float32], count: int, *, seed: int = 0) -> NDArray[numpy.int64]:
    """Spherical k-means (Dhillon and Modha 2001): the cluster of each unit vector, `[N]`."""
    generator = numpy.random.default_rng(seed)
    labels = numpy.zeros(len(points), numpy.int64)
    if not len(points):
        return labels
    centres = points[generator.choice(len(points), size=min(count, len(points)), replace=False)]
    for _ in range(_ROUNDS):
        before = labels
        parts = [points[i : i + _BATCH] @ centres.T for i in range(0, len(points), _BATCH)]
        labels = numpy.concatenate([part.argmax(1) for part in parts])
        sums = numpy.zeros_like(centres)
        numpy.add.at(sums, labels, points)
        norms = numpy.linalg.norm(sums, axis=1, keepdims=True)
        centres = numpy.where(norms > 1e-9, sums / numpy.maximum(norms, 1e-9), centres)
        if (labels == before).all():
            break
    return labels
