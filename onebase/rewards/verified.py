"""Scores from verifiers, alone or beside other sources: `total = sum of weight x score`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from onebase.errors import DataError, OnebaseError, RewardError, VerifierError
from onebase.processes import ALONE, Group
from onebase.records import RewardSource, Row, ScoreRequest, Scores
from onebase.shown import shown
from onebase.verifiers.verifier import Task, Verdict, Verifier

NAMED_ROWS = 3


@dataclass(frozen=True, slots=True)
class Weighted:
    """A verifier, or another source, and what its score counts."""

    source: Verifier | RewardSource
    weight: float = 1.0


class Checked(NamedTuple):
    """A verdict, or why there is none; the score is then 0."""

    verdict: Verdict
    failure: str | None = None


class VerifiedReward:
    """Verifiers, functions and a learned reward as one reward source.

    Args:
        parts: at least one; a verifier, or any source such as a `FunctionReward`.
        learned: a reward model or role whose score counts too, `learned_weight` times.
        gold: the column of the gold answers. None: `gold`, else `answer`, else a row's only answer.
        group: the processes of the run; the first alone verifies.
    """

    def __init__(
        self,
        parts: Sequence[Weighted],
        *,
        learned: RewardSource | None = None,
        learned_weight: float = 1.0,
        gold: str | None = None,
        group: Group = ALONE,
    ) -> None:
        assert parts, "a reward needs at least one part"
        self._parts = [*parts, *([Weighted(learned, learned_weight)] if learned is not None else [])]
        self._names = _told_apart([part.source.name for part in self._parts])
        self._gold, self._group = gold, group
        self.name = " + ".join(self._names)

    def score(self, request: ScoreRequest) -> Scores:
        """The weighted sum of the parts' scores.

        A completion that a verifier could not check scores 0 there, and its failure is told.

        Raises:
            RewardError: a verifier or function failed, or gave something that is not a score.
            DataError: a row has no gold answer, or none of the kind that a verifier reads.
        """
        checked = self._group.from_main(lambda: self._checked(request))
        count = len(request.completions)
        parts: dict[str, Tensor] = {}
        failures: dict[int, list[str]] = {}
        notes: dict[int, list[str]] = {}
        right: Tensor | None = None
        answers: list[str | None] | None = None
        for name, part, found in zip(self._names, self._parts, checked, strict=True):
            if found is None:
                assert not _is_verifier(part.source)
                scores = part.source.score(request)  # type: ignore[union-attr]
                parts[name] = scores.total.float()
                reasons = dict(scores.failures)
            else:
                parts[name] = torch.tensor([one.verdict.score for one in found], dtype=torch.float32)
                reasons = {i: one.failure for i, one in enumerate(found) if one.failure is not None}
                for i, one in enumerate(found):
                    if one.verdict.note is not None:
                        notes.setdefault(i, []).append(f"{name}: {one.verdict.note}")
                if part.source.decides:  # type: ignore[union-attr]
                    is_right = torch.tensor([one.verdict.score >= 1 for one in found], dtype=torch.bool)
                    right = is_right if right is None else right & is_right
                    answers = answers or [one.verdict.answer for one in found]
            for i, reason in reasons.items():
                failures.setdefault(i, []).append(f"{name}: {reason}")
        total = torch.zeros(count)
        for name, part in zip(self._names, self._parts, strict=True):
            total += part.weight * parts[name]
        return Scores(total, parts, _in_order(failures), right, answers, _in_order(notes))

    def _checked(self, request: ScoreRequest) -> list[list[Checked] | None]:
        """For each part that is a verifier, its verdict on every completion."""
        rows = [example.row for example in request.examples for _ in example.completions]
        tasks = [
            task_of(row or Row(()), prompt, gold=self._gold) for row, prompt in zip(rows, request.prompts, strict=True)
        ]
        pairs = list(zip(request.completions, tasks, strict=True))
        return [check(part.source, pairs) if _is_verifier(part.source) else None for part in self._parts]  # type: ignore[arg-type]


def task_of(row: Row, prompt: str, *, gold: str | None = None) -> Task:
    """What a completion of this row answers; see `VerifiedReward` for `gold`.

    Raises:
        DataError: the row has no column of that name.
    """
    if gold is not None and gold not in row.columns:
        there = ", ".join(shown(name, 40) for name in row.columns) or "none"
        raise DataError(
            f"{shown(row.place, 200)}: there is no column {shown(gold, 60)!r} with a gold answer; the row has {there}"
        )
    only = row.answer(0).text if len(row.answers) == 1 else None
    column = gold or next((name for name in ("gold", "answer") if row.columns.get(name) is not None), None)
    best = max(range(len(row.answers)), key=row.grades.__getitem__) if row.answers and row.grades else None
    return Task(
        prompt=prompt,
        gold=only if column is None else row.columns[column],
        solution=only if best is None else row.answer(best).text,
        columns=row.columns,
        place=row.place,
    )


def check(verifier: Verifier, pairs: Sequence[tuple[str, Task]]) -> list[Checked]:
    """A verifier's verdicts on completions, in their order; a slow verifier's in several threads.

    Raises:
        RewardError: it failed otherwise than by a VerifierError, or its score is not in [0, 1].
    """

    def one(pair: tuple[str, Task]) -> Checked:
        try:
            verdict = verifier.verify(*pair)
        except VerifierError as error:
            return Checked(Verdict(0.0), str(error))
        except OnebaseError:
            raise
        except Exception as error:
            reason = shown(error, 200, lines=False)
            raise RewardError(f"{_at(verifier, pair)} failed: {type(error).__name__}: {reason}") from error
        if not 0 <= verdict.score <= 1:
            raise RewardError(f"{_at(verifier, pair)} gave {verdict.score:g}; a verifier's score is between 0 and 1")
        return Checked(verdict)

    if not getattr(verifier, "slow", False):
        return [one(pair) for pair in pairs]
    with ThreadPoolExecutor(max_workers=_cores()) as pool:
        return list(pool.map(one, pairs))


def _cores() -> int:
    """How many cores this process may use, which in a container or under a scheduler is fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_gold(verifiers: Sequence[Verifier], rows: Sequence[Row], *, gold: str | None = None) -> None:
    """Raises DataError unless every verifier accepts every row's own answer, and rejects it with a wrong final answer.

    A verifier that accepts everything or nothing would train a policy without any error, so this runs before the first
    step. The prompt is the row's turns, without a chat template.
    """
    tasks = [task_of(row, "\n".join(turn.content for turn in row.messages), gold=gold) for row in rows]
    for verifier in verifiers:
        faults: dict[int, str] = {}
        for make, what in ((verifier.accepted, "right"), (verifier.rejected, "wrong")):
            texts = [_made(make, task, i, faults) for i, task in enumerate(tasks)]
            made = [(i, text) for i, text in enumerate(texts) if text is not None and i not in faults]
            for (i, text), found in zip(made, check(verifier, [(text, tasks[i]) for i, text in made]), strict=True):
                if found.failure is not None:
                    faults[i] = f"could not check {_ending(text)}: {found.failure}"
                elif (found.verdict.score >= 1) != (what == "right"):
                    faults[i] = f"scored the {what} answer {_ending(text)} {found.verdict.score:g}"
                    faults[i] += f" ({found.verdict.note})" if found.verdict.note else ""
        if faults:
            named = "; ".join(
                f"{shown(rows[i].place or f'row {i + 1}', 200)}: {faults[i]}" for i in sorted(faults)[:NAMED_ROWS]
            )
            raise DataError(
                f"{verifier.name}: {len(faults)} of {len(rows)} rows do not pass their own check: {named}",
                remedy="no-gold",
            )


def _made(make: Callable[[Task], str | None], task: Task, i: int, faults: dict[int, str]) -> str | None:
    """The text a verifier makes of a row; a row that gives none is a fault."""
    if i in faults:
        return None
    try:
        return make(task)
    except DataError as error:
        faults[i] = str(error).removeprefix(f"{shown(task.place, 200)}: ")
        return None


def _ending(text: str) -> str:
    """The end of a text, where its final answer is, fit for one line."""
    return shown(repr(text if len(text) <= 60 else f"...{text[-57:]}"), 90)


def _at(verifier: Verifier, pair: tuple[str, Task]) -> str:
    completion, task = pair
    return f"{shown(task.place, 200)}: verifier {verifier.name}, on the completion {shown(repr(completion[:60]), 90)},"


def _is_verifier(source: Any) -> bool:
    return hasattr(source, "verify")


def _in_order(texts: dict[int, list[str]]) -> dict[int, str]:
    return {i: "; ".join(texts[i]) for i in sorted(texts)}


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names; the second of one name gets `-2`."""
    seen = Counter[str]()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return found
