"""The texts of a row as the filters compare them: normalised, by part, and as hashed runs of characters."""

from __future__ import annotations

import hashlib
import unicodedata
from functools import cache, lru_cache
from typing import Any

import numpy
from numpy.typing import NDArray

from onebase.records import Row

Hashes = NDArray[numpy.uint64]

_BASE = numpy.uint64(0x9E3779B97F4A7C15)
"""Base of the rolling hash: odd, so that it has an inverse modulo 2^64."""
_INVERSE = numpy.uint64(pow(int(_BASE), -1, 1 << 64))


def squeezed(text: str) -> str:
    """The text in Unicode's form NFC, with every run of white space as one blank."""
    return " ".join(unicodedata.normalize("NFC", text).split())


@lru_cache(maxsize=16)  # a row's texts are asked for by several filters
def normalised(text: str) -> str:
    """The text without differences that rarely matter: case, white space, full-width and other compatibility forms."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_of(row: Row) -> str:
    """The prompt as one text, every turn on lines of its own; a plain text is its own prompt."""
    if not row.messages:
        return row.answers[0] if row.answers else ""
    return "\n".join([*(message.content for message in row.messages), *([row.prefix] if row.prefix else [])])


def parts_of(row: Row) -> list[str]:
    """The prompt and then the answers, best first: what two rows have to share, part by part, to be duplicates."""
    if not row.messages:
        return list(row.answers)
    order = range(len(row.answers))
    if row.grades is not None:
        grades = row.grades
        order = sorted(order, key=lambda k: -grades[k])  # type: ignore[assignment]
    return [prompt_of(row), *(row.answers[k] for k in order)]


def verdict_of(row: Row) -> tuple[Any, ...]:
    """What the row says is right: its grades, best first, its label and its gold answer.

    Rows with the same texts and other verdicts are not duplicates: they contradict each other.
    """
    grades = None if row.grades is None else tuple(sorted(row.grades, reverse=True))
    return grades, repr(row.columns.get("label")), repr(row.columns.get("gold"))


def digest(*texts: str) -> bytes:
    """16 bytes that stand for these texts, in this order."""
    found = hashlib.blake2b(digest_size=16)
    for text in texts:
        raw = text.encode("utf-8", "surrogatepass")
        found.update(len(raw).to_bytes(8, "little") + raw)
    return found.digest()


def runs_of(text: str, length: int, length_cjk: int) -> Hashes:
    """Hashes of the text's overlapping runs of characters, in any order; a shorter text is one run.

    A run that starts with a Chinese, Japanese or Korean character is `length_cjk` long, any other `length`: these
    scripts say in two characters what takes others a word.
    """
    ascii_only = text.isascii()
    if ascii_only:
        codes: NDArray[Any] = numpy.frombuffer(text.encode(), numpy.uint8)
        values = _ascii_values()[codes]
    else:
        codes = numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        values = mixed(codes.astype(numpy.uint64))
    n = len(codes)
    if n == 0:
        return numpy.zeros(0, numpy.uint64)
    powers, inverses = _powers(1 << (n - 1).bit_length())
    sums = numpy.zeros(n + 1, numpy.uint64)
    # sum of c_j B^j from i to i + length, divided by B^i: the same for equal runs wherever they stand (modulo 2^64).
    numpy.cumsum(values * powers[:n], out=sums[1:])

    def runs(size: int) -> Hashes:
        return (sums[size:] - sums[: max(0, n - size + 1)]) * inverses[: max(0, n - size + 1)]

    hashes = runs(length)
    if not ascii_only:
        dense = _is_cjk(codes)
        short = runs(length_cjk)
        hashes = numpy.concatenate([hashes[~dense[: len(hashes)]], short[dense[: len(short)]]])
    return mixed(hashes if len(hashes) else sums[n:])


def distinct(hashes: Hashes) -> Hashes:
    """The hashes without repetitions, sorted; for some hundreds three times as fast as `numpy.unique`."""
    hashes = numpy.sort(hashes)
    first = numpy.ones(len(hashes), bool)
    numpy.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return hashes[first]


def mixed(values: Hashes) -> Hashes:
    """A bijection of 64-bit numbers in which every bit depends on every other (SplitMix64, Steele et al. 2014)."""
    values = values ^ (values >> numpy.uint64(30))
    values = values * numpy.uint64(0xBF58476D1CE4E5B9)
    values = values ^ (values >> numpy.uint64(27))
    values = values * numpy.uint64(0x94D049BB133111EB)
    return values ^ (values >> numpy.uint64(31))


def jaccard(a: Hashes, b: Hashes) -> float:
    """|A and B| / |A or B| of two sorted arrays of distinct hashes; two empty ones are equal."""
    if not len(a) and not len(b):
        return 1.0
    shared = len(numpy.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def _is_cjk(codes: NDArray[numpy.uint32]) -> NDArray[numpy.bool_]:
    common = (codes >= 0x3040) & (codes <= 0x9FFF)  # kana, Han and what lies between
    return common | ((codes >= 0xAC00) & (codes <= 0xD7A3)) | ((codes >= 0x20000) & (codes <= 0x3FFFF))


@cache
def _ascii_values() -> Hashes:
    return mixed(numpy.arange(128, dtype=numpy.uint64))


@cache
def _powers(count: int) -> tuple[Hashes, Hashes]:
    """The powers of the base and of its inverse from 0 on."""

    def powers(base: numpy.uint64) -> Hashes:
        factors = numpy.full(count, base)
        factors[0] = 1
        return numpy.multiply.accumulate(factors)

    return powers(_BASE), powers(_INVERSE)
