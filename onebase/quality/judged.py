"""What the filters need of a row once it is read: computed from the row alone, so anywhere and in any order."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy

from onebase.quality import options
from onebase.quality.leaks import TestPrompts
from onebase.quality.near_duplicates import signature_of
from onebase.quality.noise import Claim, claim_of
from onebase.quality.options import Filter, in_order
from onebase.quality.row_filters import Finding, check_row
from onebase.quality.texts import digest, parts_of, verdict_of
from onebase.quality.votes import statements
from onebase.records import Row

VOTING = ("contradictions", "consistency")


@dataclass(frozen=True, slots=True)
class Judged:
    """A row's place, its texts, and what the filters of single rows found or those that compare rows need."""

    place: str
    parts: list[str]
    found: list[Finding]
    votes: dict[str, list[tuple[bytes, Any]]]
    """What it states, by the filter that counts votes."""
    key: bytes = b""
    """Equal for duplicates."""
    verdict: Any = None
    signature: bytes = b""
    """Of near-duplicates."""
    claim: Claim | None = None

    def line(self) -> str:
        """As JSON, which `read` gives back."""
        claim = None
        if self.claim is not None:
            claim = {**asdict(self.claim), "runs": _text(self.claim.runs.tobytes()), "group": _text(self.claim.group)}
        return json.dumps(
            {
                "place": self.place,
                "parts": self.parts,
                "found": [asdict(finding) for finding in self.found],
                "votes": {kind: [[_text(what), says] for what, says in said] for kind, said in self.votes.items()},
                "key": _text(self.key),
                "verdict": self.verdict,
                "signature": _text(self.signature),
                "claim": claim,
            }
        )

    @classmethod
    def read(cls, line: str) -> Judged:
        """A row from its line."""
        told = json.loads(line)
        claim = told["claim"]
        if claim is not None:
            runs = numpy.frombuffer(b64decode(claim["runs"]), numpy.uint16)
            claim = Claim(runs, claim["better"], tuple(claim["extra"]), b64decode(claim["group"]))
        return cls(
            told["place"],
            told["parts"],
            [Finding(**finding) for finding in told["found"]],
            {kind: [(b64decode(what), says) for what, says in said] for kind, said in told["votes"].items()},
            b64decode(told["key"]),
            told["verdict"],
            b64decode(told["signature"]),
            claim,
        )


class Judge:
    """Judges rows one at a time.

    Args:
        filters: in any order.
        test_rows: what the filter `leaks` looks for.
        claims: whether the filter `noise` needs what a row claims.
    """

    def __init__(self, filters: Sequence[Filter], *, test_rows: Sequence[Row] = (), claims: bool = True) -> None:
        self._filters = in_order(filters)
        self._has = {given.name: given for given in self._filters}
        self._claims = claims and "noise" in self._has
        leaks = self._has.get("leaks")
        self._tests = TestPrompts(test_rows, leaks) if isinstance(leaks, options.Leaks) and test_rows else None

    def __call__(self, row: Row) -> Judged:
        parts = parts_of(row)
        found = [finding for given in self._filters if (finding := check_row(given, row))]
        if self._tests is not None and (leaked := self._tests.leaked(row)):
            found.append(Finding("leaks", *leaked))
        if found:
            return Judged(row.place, parts, found, {})
        key, near, verdict = b"", "near_duplicates" in self._has, verdict_of(row)
        if "duplicates" in self._has:
            key = digest(*parts, repr((verdict, [m.role for m in row.messages])))
        return Judged(
            row.place,
            parts,
            found,
            {kind: list(statements(row, kind)) for kind in VOTING if kind in self._has},
            key,
            verdict,
            signature_of(parts).tobytes() if near else b"",
            claim_of(row) if self._claims else None,
        )


def _text(data: bytes) -> str:
    return b64encode(data).decode()
