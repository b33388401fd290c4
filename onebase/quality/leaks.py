"""Leaks: rows that hold a prompt of a test file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from onebase.quality.near_duplicates import Index
from onebase.quality.options import Leaks
from onebase.quality.texts import digest, distinct, normalised, parts_of, prompt_of, runs_of
from onebase.records import Row

_CJK_SHARE = 0.4
"""A run of Chinese, Japanese or Korean is this much shorter: 20 characters for 50."""
_COMMON = 3
"""Runs in more test prompts than this are instructions that many prompts share."""


class TestPrompts:
    """The prompts of test files, to look rows up in."""

    __test__ = False  # pytest would take it for a class of tests

    def __init__(self, rows: Sequence[Row], options: Leaks) -> None:
        self.options = options
        self.places = [row.place for row in rows]
        prompts = [prompt_of(row) for row in rows]
        self.same: dict[bytes, int] = {}
        for i, prompt in enumerate(prompts):
            self.same.setdefault(digest(normalised(prompt)), i)
        self.index = Index(prompts, options.similarity)
        runs = [self._runs(prompt) for prompt in prompts]
        run = numpy.concatenate([*runs, numpy.zeros(0, numpy.uint64)])
        owner = numpy.repeat(numpy.arange(len(runs)), [len(found) for found in runs])
        order = numpy.argsort(run, kind="stable")
        run, owner = run[order], owner[order]
        rare = numpy.searchsorted(run, run, "right") - numpy.searchsorted(run, run, "left") <= _COMMON
        self.run, self.owner = run[rare], owner[rare]
        self.sizes = numpy.bincount(self.owner, minlength=len(prompts))
        """Runs of each test prompt that count."""

    def leaked(self, row: Row) -> tuple[str, object] | None:
        """Why the row holds a test prompt, with the place of that prompt; None if it holds none."""
        prompt = prompt_of(row)
        if (same := self.same.get(digest(normalised(prompt)))) is not None:
            return "the prompt of a test row", {"of": self.places[same]}
        if (twin := self.index.nearest(prompt)) is not None:
            value = {"of": self.places[twin.index], "similarity": round(twin.similarity, 4)}
            return "nearly the prompt of a test row", value
        found, share = self._overlap(row)
        if share >= self.options.share:
            return f"long runs of a test row's prompt ({self.options.run} characters)", {
                "of": self.places[found],
                "share": round(share, 4),
            }
        return None

    def _overlap(self, row: Row) -> tuple[int, float]:
        """The test prompt most of whose runs stand in the row, and their share."""
        if not len(self.run):
            return 0, 0.0
        own = self._runs("\n".join(parts_of(row)))
        low, high = numpy.searchsorted(self.run, own, "left"), numpy.searchsorted(self.run, own, "right")
        hits = [self.owner[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True) if a < b]
        if not hits:
            return 0, 0.0
        shares = numpy.bincount(numpy.concatenate(hits), minlength=len(self.sizes)) / numpy.maximum(self.sizes, 1)
        best = int(shares.argmax())
        return best, float(shares[best])

    def _runs(self, text: str) -> numpy.ndarray:
        text = normalised(text)
        run = self.options.run
        short = max(2, round(_CJK_SHARE * run))
        return distinct(runs_of(text, run, short)) if len(text) >= short else numpy.zeros(0, numpy.uint64)
