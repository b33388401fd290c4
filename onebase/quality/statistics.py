"""What a file holds: rows, lengths, turns, scripts, duplicates, grades, length bias, agreement of annotators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy

from onebase.quality.annotators import agreement, ratings_in
from onebase.quality.diversity import Diversity, Sample, Space
from onebase.quality.near_duplicates import NUM_HASHES, near_duplicates, runs_in, signature_of
from onebase.quality.scripts import main_script
from onebase.quality.texts import digest, jaccard, normalised, parts_of, prompt_of, verdict_of
from onebase.records import Row
from onebase.reporting.intervals import Interval, bootstrap_mean

QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
"""In percent."""
BUDGETS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Tokens."""
_NEAR = 0.8


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row in tokens, as training sees it."""

    prompt: int
    answers: tuple[int, ...]

    @property
    def longest(self) -> int:
        return self.prompt + max(self.answers, default=0)


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How much longer the better of two answers is; a row counts once, by its best answer and its worst."""

    rows: int
    longer: Interval
    """The share of rows whose better answer is the longer one; equal lengths count half."""
    characters: Interval
    """The mean difference, better less worse."""


@dataclass
class Statistics:
    """The figures of one file."""

    name: str
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    turns: Counter[int] = field(default_factory=Counter)
    """Messages of a prompt, without a system turn."""
    answers: Counter[int] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    characters: dict[str, list[int]] = field(default_factory=lambda: {"prompt": [], "answer": []})
    tokens: dict[str, list[int]] = field(default_factory=dict)
    """Of prompts, answers, and each row's longest prompt and answer together."""
    labels: Counter[float] = field(default_factory=Counter)
    differences: list[float] = field(default_factory=list)
    """Characters of a row's best answer less those of its worst."""
    ties: int = 0
    compared: int = 0
    """Pairs of graded answers, ties among them."""
    same_prompt: dict[str, float] = field(default_factory=dict)
    duplicates: int = 0
    near_duplicates: int = 0
    bias: LengthBias | None = None
    diversity: Diversity | None = None
    agreement: dict[str, Interval] = field(default_factory=dict)
    prompts: set[bytes] = field(default_factory=set)
    """Digests of the normalised prompts, to compare files by."""

    @property
    def quantiles(self) -> dict[str, dict[int, int]]:
        """The quantiles of each length that was measured."""
        measured = {f"{what} characters": values for what, values in self.characters.items()}
        measured |= {f"{what} tokens": values for what, values in self.tokens.items()}
        return {what: quantiles(values) for what, values in measured.items() if values}

    @property
    def fits(self) -> dict[int, float]:
        """The share of rows of which prompt and longest answer fit into this many tokens."""
        rows = numpy.array(self.tokens.get("row", []))
        return {budget: float((rows <= budget).mean()) for budget in BUDGETS} if len(rows) else {}


def quantiles(values: Sequence[int]) -> dict[int, int]:
    """The values at 0, 5, 25, .. 100 percent of the rows, each one that occurs."""
    found = numpy.percentile(values, QUANTILES, method="inverted_cdf")
    return {percent: int(value) for percent, value in zip(QUANTILES, found, strict=True)}


def statistics(name: str, rows: Iterable[tuple[Row, Mapping[str, Any], Tokens | None]], *, seed: int = 0) -> Statistics:
    """The figures of a file's rows, each with the object it was read from and its tokens, if they are counted."""
    found = Statistics(name)
    sample, signatures, parts, verdicts = Sample(), bytearray(), [], []
    seen: set[bytes] = set()
    by_prompt: dict[bytes, list[str]] = {}
    rated: list[Mapping[str, Any]] = []
    for number, (row, values, tokens) in enumerate(rows):
        _count(found, row, tokens)
        texts = parts_of(row)
        sample.add(number, "\n".join(texts))
        key = digest(*texts, repr(verdict_of(row)))
        found.duplicates += key in seen
        if key not in seen:
            parts.append(texts)
            verdicts.append(verdict_of(row))
            signatures += signature_of(texts).tobytes()
        seen.add(key)
        prompt = digest(normalised(prompt_of(row)))
        found.prompts.add(prompt)
        if row.messages and row.answers:
            by_prompt.setdefault(prompt, []).append(texts[1])
        if row.grades is not None and len(set(row.grades)) > 1:
            found.differences.append(_longer_by(row))
        rated.append(ratings_in(values))
    matrix = numpy.frombuffer(bytes(signatures), numpy.uint32).reshape(-1, NUM_HASHES)
    found.near_duplicates = len(near_duplicates(parts, matrix, _NEAR, verdicts=verdicts))
    found.same_prompt = _same_prompt(by_prompt)
    if apart := found.differences:
        longer = bootstrap_mean([0.5 if d == 0 else float(d > 0) for d in apart], seed=seed)
        found.bias = LengthBias(len(apart), longer, bootstrap_mean(apart, seed=seed))
    found.diversity = Space(list(sample.texts().values())).diversity()
    found.agreement = agreement(rated, seed=seed)
    return found


def overlaps(files: Sequence[Statistics]) -> dict[tuple[str, str], int]:
    """For each two files the number of prompts that stand in both, after normalising them."""
    return {(a.name, b.name): len(a.prompts & b.prompts) for n, a in enumerate(files) for b in files[n + 1 :]}


def _count(found: Statistics, row: Row, tokens: Tokens | None) -> None:
    found.rows += 1
    found.kinds[kind_of(row)] += 1
    if row.messages:
        found.turns[sum(message.role != "system" for message in row.messages)] += 1
        found.characters["prompt"].append(len(prompt_of(row)))
    found.answers[len(row.answers)] += 1
    found.characters["answer"] += [len(answer) for answer in row.answers]
    found.scripts[main_script("\n".join(parts_of(row)))] += 1
    if row.grades is not None and len(row.grades) > 1:
        pairs = [(a, b) for n, a in enumerate(row.grades) for b in row.grades[n + 1 :]]
        found.compared += len(pairs)
        found.ties += sum(a == b for a, b in pairs)
    label = row.grades[0] if row.grades and len(row.grades) == 1 else row.columns.get("label")
    if isinstance(label, bool | int | float) and len(row.answers) == 1:
        found.labels[float(label)] += 1
    if tokens is not None:
        found.tokens.setdefault("row", []).append(tokens.longest)
        found.tokens.setdefault("answer", []).extend(tokens.answers)
        if row.messages:
            found.tokens.setdefault("prompt", []).append(tokens.prompt)


def kind_of(row: Row) -> str:
    """What a row is, in words."""
    if not row.messages:
        return "labelled text" if row.grades else "plain text"
    if not row.answers:
        return "prompt"
    if len(row.answers) == 1:
        return "prompt, answer and label" if row.grades or "label" in row.columns else "prompt and answer"
    return "pair" if len(row.answers) == 2 else "ranked list"


def _longer_by(row: Row) -> float:
    """Characters of the best answer less those of the worst."""
    assert row.grades is not None
    best, worst = row.grades.index(max(row.grades)), row.grades.index(min(row.grades))
    return float(len(row.answers[best]) - len(row.answers[worst]))


def _same_prompt(by_prompt: Mapping[bytes, Sequence[str]]) -> dict[str, float]:
    """Prompts with several rows, and how alike the rows' best answers are: the mean over prompts of the mean Jaccard
    similarity of neighbours."""
    several = [answers for answers in by_prompt.values() if len(answers) > 1]
    if not several:
        return {"prompts": 0}
    alike = []
    for answers in several:
        sets = [runs_in(answer) for answer in answers]
        alike.append(float(numpy.mean([jaccard(a, b) for a, b in zip(sets, sets[1:], strict=False)])))
    return {"prompts": len(several), "rows": sum(map(len, several)), "similarity": float(numpy.mean(alike))}
