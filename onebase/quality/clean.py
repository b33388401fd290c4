"""Runs filters over rows: which rows each one drops, and what decided.

Filters that look at one row come first, as the rows are read; filters that compare rows see only what these left. The
order is that of `options.FILTERS` whatever the order the filters are given in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from onebase.quality import options
from onebase.quality.diversity import Diversity, Sample, Space
from onebase.quality.judged import VOTING, Judge, Judged
from onebase.quality.near_duplicates import NUM_HASHES, near_duplicates
from onebase.quality.noise import Claim, believed, losses, probabilities
from onebase.quality.options import Filter, in_order
from onebase.quality.row_filters import Finding
from onebase.quality.votes import Votes
from onebase.records import Row


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What cleaning found."""

    rows: int
    findings: dict[int, list[Finding]]
    """Why each dropped row is dropped, by its number from 0; the first finding counts, filters of single rows may add
    more."""
    dropped: dict[str, int]
    """Rows that each filter dropped; a row counts for the first."""
    alone: dict[str, int]
    """Rows that each filter has something against, also where an earlier one dropped them already."""
    before: Diversity
    after: Diversity
    not_measured: int
    """Rows that the difficulty filter could not judge, and kept."""
    not_judged: int = 0
    """Rows that a reward role could not judge for the filter noise, and that were kept."""


class Cleaner:
    """Takes rows in order, then says which to drop.

    Keeps of each row what the filters compare: its texts and 512 bytes for near-duplicates, its place, its votes.

    Args:
        filters: in any order.
        test_rows: what the filter `leaks` looks for.
        difficulty: by place of a row, from 0 (easy) to 1 (hard), for the filter `difficulty`; read when all rows are
            there, as `margins`.
        margins: by place of a row, a reward role's score of the best answer minus that of the worst; the filter `noise`
            then goes by these, and trains no heads.
        seed: of the filter `noise`.
    """

    def __init__(
        self,
        filters: Sequence[Filter],
        *,
        test_rows: Sequence[Row] = (),
        difficulty: Mapping[str, float] | None = None,
        margins: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        self.filters, self.seed = in_order(filters), seed
        self.difficulty, self.margins = {} if difficulty is None else difficulty, margins
        self.judge = Judge(filters, test_rows=test_rows, claims=margins is None)
        self.has = {given.name: given for given in self.filters}
        self.findings: dict[int, list[Finding]] = {}
        self.places: list[str] = []
        self.left: list[int] = []
        """Rows that no filter of single rows dropped; the lists below hold an entry for each."""
        self.keys: list[bytes] = []
        self.parts: list[list[str]] = []
        self.verdicts: list[object] = []
        self.signatures = bytearray()
        self.claims: list[Claim | None] = []
        self.votes = {kind: Votes() for kind in VOTING if kind in self.has}
        self.sample = Sample()

    def add(self, row: Row) -> None:
        """Takes the next row."""
        self.take(self.judge(row))

    def take(self, row: Judged) -> None:
        """Takes the next row as a `Judge` with the same filters found it, here or elsewhere."""
        number = len(self.places)
        self.places.append(row.place)
        self.sample.add(number, "\n".join(row.parts))
        if row.found:
            self.findings[number] = row.found
            return
        self.left.append(number)
        for kind, votes in self.votes.items():
            votes.take(number, row.votes[kind])
        if "duplicates" in self.has:
            self.keys.append(row.key)
        if "near_duplicates" in self.has:
            self.parts.append(row.parts)
            self.verdicts.append(row.verdict)
            self.signatures += row.signature
        if "noise" in self.has and self.margins is None:
            self.claims.append(row.claim)

    def finish(self) -> Cleaned:
        """Compares the rows that are left, and returns everything found."""
        for kind, votes in self.votes.items():
            self._deny(kind, votes)
        if "duplicates" in self.has:
            self._drop_duplicates()
        if isinstance(near := self.has.get("near_duplicates"), options.NearDuplicates):
            self._drop_near_duplicates(near)
        not_measured = not_judged = 0
        if isinstance(given := self.has.get("difficulty"), options.Difficulty):
            not_measured = self._keep_the_middle(given)
        if isinstance(noise := self.has.get("noise"), options.Noise):
            not_judged = self._drop_noise(noise)
        names = [given.name for given in self.filters]
        texts = self.sample.texts()
        space = Space(list(texts.values()))
        return Cleaned(
            rows=len(self.places),
            findings=dict(sorted(self.findings.items())),
            dropped={n: sum(found[0].filter == n for found in self.findings.values()) for n in names},
            alone={n: sum(any(f.filter == n for f in found) for found in self.findings.values()) for n in names},
            before=space.diversity(),
            after=space.diversity([number not in self.findings for number in texts]),
            not_measured=not_measured,
            not_judged=not_judged,
        )

    def _standing(self) -> list[tuple[int, int]]:
        """Places in the lists, with row numbers, of the rows that nothing has dropped yet."""
        return [(at, number) for at, number in enumerate(self.left) if number not in self.findings]

    def _drop(self, number: int, name: str, reason: str, value: Any) -> None:
        self.findings[number] = [Finding(name, reason, value)]

    def _deny(self, kind: str, votes: Votes) -> None:
        reasons = {
            "contradictions": "other rows say the opposite of the same answers",
            "consistency": "other rows give the same prompt another gold answer",
        }
        for number, denied in votes.denied().items():
            if number not in self.findings:
                value = {"against": self.places[denied.by], "votes": list(denied.votes)}
                self._drop(number, kind, reasons[kind], value)

    def _drop_duplicates(self) -> None:
        first: dict[bytes, int] = {}
        for at, number in self._standing():
            same = first.setdefault(self.keys[at], number)
            if same != number:
                self._drop(number, "duplicates", "the same as an earlier row", {"of": self.places[same]})

    def _drop_near_duplicates(self, given: options.NearDuplicates) -> None:
        standing = self._standing()
        chosen = [at for at, _ in standing]
        signatures = numpy.frombuffer(bytes(self.signatures), numpy.uint32).reshape(-1, NUM_HASHES)[chosen]
        twins = near_duplicates(
            [self.parts[at] for at in chosen],
            signatures,
            given.similarity,
            verdicts=[self.verdicts[at] for at in chosen],
        )
        for at, twin in twins.items():
            value = {"of": self.places[standing[twin.index][1]], "similarity": round(twin.similarity, 4)}
            self._drop(standing[at][1], "near_duplicates", "nearly the same as an earlier row", value)

    def _keep_the_middle(self, given: options.Difficulty) -> int:
        standing = self._standing()
        for _, number in standing:
            value = self.difficulty.get(self.places[number])
            if value is not None and not given.low <= value <= given.high:
                reason = "too easy" if value < given.low else "too hard"
                self._drop(number, "difficulty", reason, round(value, 4))
        return sum(self.places[number] not in self.difficulty for _, number in standing)

    def _drop_noise(self, given: options.Noise) -> int:
        """Drops what is disbelieved; returns how many rows a role was to judge and could not."""
        if self.margins is not None:
            standing = [number for _, number in self._standing()]
            judged = [number for number in standing if self.places[number] in self.margins]
            right = believed(numpy.array([self.margins[self.places[number]] for number in judged]))
            why = "the reward role prefers another answer"
        else:
            claims = [(number, claim) for at, number in self._standing() if (claim := self.claims[at]) is not None]
            standing = judged = [number for number, _ in claims]
            right = probabilities([claim for _, claim in claims], folds=given.folds, seed=self.seed)
            why = "heads trained on other prompts disbelieve the verdict"
        if not judged:
            return len(standing)
        loss = losses(right)
        # Small-loss selection: those of the smallest loss stay, whatever their probability.
        most = numpy.argsort(-loss, kind="stable")[: int(given.share * len(judged))]
        for at in sorted(most.tolist()):
            if right[at] < given.probability:
                value = {"probability": round(float(right[at]), 4), "loss": round(float(loss[at]), 4)}
                if self.margins is not None:
                    value["margin"] = round(self.margins[self.places[judged[at]]], 4)
                self._drop(judged[at], "noise", why, value)
        return len(standing) - len(judged)
