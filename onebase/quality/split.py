"""Splits rows into train and test by prompt: rows with one prompt, or nearly one, are on one side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy

from onebase.errors import DataError
from onebase.quality.near_duplicates import NUM_HASHES, signature_of, similar_pairs
from onebase.quality.texts import digest, normalised, prompt_of
from onebase.records import Row
from onebase.shown import number_of


@dataclass(frozen=True, slots=True)
class Split:
    """Which rows are tested on."""

    test: list[bool]
    """One flag per row, in order."""
    prompts: tuple[int, int]
    """Different prompts in train and in test."""
    groups: int
    """Groups of prompts that stay together."""
    largest: int
    """Rows of the largest group."""


class Splitter:
    """Takes rows in any order, then splits them: the same rows always go to the same side."""

    def __init__(self, similarity: float = 0.8) -> None:
        self.similarity = similarity
        self.prompt: list[int] = []
        """The number of each row's prompt."""
        self.numbers: dict[bytes, int] = {}
        """Prompts by digest, in order of first appearance."""
        self.texts: list[str] = []
        self.signatures = bytearray()
        self.histories: list[tuple[int, bytes]] = []

    def add(self, row: Row) -> None:
        """Takes the next row."""
        text = normalised(prompt_of(row))
        key = digest(text)
        if key not in self.numbers:
            self.numbers[key] = len(self.texts)
            self.texts.append(text)
            self.signatures += signature_of([text]).tobytes()
            self.histories += [(self.numbers[key], digest(earlier)) for earlier in _earlier_prompts(row)]
        self.prompt.append(self.numbers[key])

    def split(self, fraction: float, *, seed: int = 0) -> Split:
        """About `fraction` of the rows for test, in whole groups of prompts.

        A group is prompts with a Jaccard similarity of at least 0.8, and conversations of which one continues another.
        Groups are taken in the order of a hash of their least text and the seed, so only the content counts.

        Raises:
            DataError: there is one group, so nothing can be split.
        """
        group = self._groups()
        rows_of: dict[int, int] = {}
        for prompt in self.prompt:
            rows_of[group[prompt]] = rows_of.get(group[prompt], 0) + 1
        if len(rows_of) < 2:
            raise DataError(
                f"the {len(self.prompt)} rows have {number_of(len(self.texts), 'different prompt')}, which are "
                "all alike: there is "
                "nothing to split by; add rows with other prompts"
            )
        least: dict[int, bytes] = {}
        for number, text in enumerate(self.texts):
            key = digest(str(seed), text)
            least[group[number]] = min(key, least.get(group[number], key))
        chosen: set[int] = set()
        count, wanted = 0, fraction * len(self.prompt)
        for own in sorted(rows_of, key=least.__getitem__):
            # A group that would overshoot by more than it helps is left to train, and smaller ones are tried.
            if len(chosen) + 1 < len(rows_of) and (not chosen or count + rows_of[own] / 2 <= wanted):
                chosen.add(own)
                count += rows_of[own]
            if count >= wanted:
                break
        test = [group[prompt] in chosen for prompt in self.prompt]
        tested = sum(group[number] in chosen for number in range(len(self.texts)))
        return Split(test, (len(self.texts) - tested, tested), len(rows_of), max(rows_of.values()))

    def _groups(self) -> list[int]:
        """The group of each prompt, as the number of one of its prompts."""
        parent = list(range(len(self.texts)))

        def root(number: int) -> int:
            while parent[number] != number:
                parent[number] = parent[parent[number]]
                number = parent[number]
            return number

        def join(a: int, b: int) -> None:
            low, high = sorted((root(a), root(b)))
            parent[high] = low

        for number, earlier in self.histories:
            if earlier in self.numbers:
                join(number, self.numbers[earlier])
        # In order of content, so that which pairs of a large bucket are compared does not depend on the rows' order.
        order = sorted(range(len(self.texts)), key=self.texts.__getitem__)
        signatures = numpy.frombuffer(bytes(self.signatures), numpy.uint32).reshape(-1, NUM_HASHES)[order]
        for a, b in similar_pairs([self.texts[n] for n in order], signatures, self.similarity):
            join(order[a], order[b])
        return [root(number) for number in range(len(self.texts))]


def _earlier_prompts(row: Row) -> Iterable[str]:
    """The prompts of the same conversation at its earlier user turns."""
    for end, message in enumerate(row.messages[:-1], start=1):
        if message.role == "user":
            yield normalised("\n".join(m.content for m in row.messages[:end]))
