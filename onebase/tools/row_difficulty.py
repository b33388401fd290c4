"""What a role, or samples, say of rows: how hard they are, from 0 to 1, and how clearly one answer wins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy

from onebase.data.prepare import best_answer
from onebase.errors import DataError
from onebase.quality.texts import normalised
from onebase.reading.containers import read_content
from onebase.records import Example, Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown

if TYPE_CHECKING:
    from onebase.data.chat import ChatFormat
    from onebase.engines.budget import TokenBudget
    from onebase.models.base import OneBase


Opening = Mapping[str, Any]
"""How a role's base is loaded: model, dtype, quantization, device."""
Measure = Callable[[Sequence[Row]], dict[str, float]]
"""What is measured of some rows, by their places; rows that cannot be measured are left out."""


def difficulties(rows: Sequence[Row], source: str, **opening: Any) -> dict[str, float]:
    """The difficulty of each row that could be measured, by its place.

    Args:
        source: a file of samples as `onebase eval --output` writes them: the share of a question's samples that are
            wrong. Or the folder of a policy role (or a base): the rank of the mean negative log-likelihood per token
            of the row's best answer. Or of a reward role: the rank of -log sigmoid(score of the best answer - score of
            the worst).
        opening: of a role, as `Opening`.

    Raises:
        DataError: no row could be measured.
    """
    return difficulties_of(measure_of(source, opening)(rows), source, len(rows))


def measure_of(source: str, opening: Opening) -> Measure:
    """What measures rows by this source of difficulty: the share of wrong samples, or a role's loss."""
    return WrongShares(Path(source)) if Path(source).is_file() else Losses(source, opening)


def difficulties_of(measured: dict[str, float], source: str, count: int) -> dict[str, float]:
    """The difficulties of `count` rows from what was measured of them.

    Raises:
        DataError: nothing was.
    """
    if not measured:
        raise DataError(f"{shown(source)}: no row's difficulty could be measured; are these samples of these rows?")
    say(f"data clean: measured the difficulty of {len(measured)} of {number_of(count, 'row')}")
    return measured if Path(source).is_file() else ranks(measured)


class WrongShares:
    """The share of wrong samples of each row's question; questions are matched by their text.

    Args:
        samples: a file as `onebase eval --output` writes it.
    """

    def __init__(self, samples: Path) -> None:
        self._verdicts: dict[str, list[bool]] = {}
        for number, line in read_content(samples).rows:
            prompt, right = line.get("prompt"), line.get("right")
            if not isinstance(prompt, str) or not isinstance(right, bool):
                raise DataError(
                    f"{shown(samples)}:{number}: a sample has 'prompt' (a text) and 'right' (true or false); give the "
                    "file that 'onebase eval --output' wrote"
                )
            self._verdicts.setdefault(normalised(prompt), []).append(right)

    def __call__(self, rows: Sequence[Row]) -> dict[str, float]:
        found = {}
        for row in rows:
            own = self._verdicts.get(normalised(row.messages[-1].content)) if row.messages else None
            if own:
                found[row.place] = 1 - sum(own) / len(own)
        return found


def ranks(losses: dict[str, float]) -> dict[str, float]:
    """Each value's rank from 0 to 1; equal values share the mean of their ranks."""
    if len(losses) < 2:
        return dict.fromkeys(losses, 0.5)
    _, place, sizes = numpy.unique(list(losses.values()), return_inverse=True, return_counts=True)
    middle = (numpy.cumsum(sizes) - 1 - (sizes - 1) / 2) / (len(losses) - 1)
    return dict(zip(losses, middle[place].tolist(), strict=True))


def margins(rows: Sequence[Row], role: str, **opening: Any) -> dict[str, float]:
    """The reward role's score of the best answer minus that of the worst, of each row that ranks answers, by its place.

    Raises:
        DataError: no row ranks answers.
    """
    return margins_of(Margins(role, opening)(rows), role, len(rows))


def margins_of(measured: dict[str, float], role: str, count: int) -> dict[str, float]:
    """The margins as they were measured of `count` rows.

    Raises:
        DataError: none was.
    """
    if not measured:
        raise DataError(f"{shown(role)} judges answers that are compared, and no row compares any; take --reward out")
    say(f"data clean: {shown(role)} judged {len(measured)} of {number_of(count, 'row')}")
    return measured


class Judging:
    """A role on its base, loaded when the first row needs it."""

    def __init__(self, role: str, kind: str, opening: Opening) -> None:
        self._role, self._kind, self._opening = role, kind, opening

    @cached_property
    def _opened(self) -> tuple[OneBase, ChatFormat]:
        from onebase.recipes.setup.saved import open_saved

        return open_saved({self._kind: (self._role, (self._kind,))}, **self._opening)

    def _examples(self, rows: Sequence[Row]) -> tuple[OneBase, list[Example], TokenBudget]:
        """The base, the rows as the role reads them, and the room for passes over them."""
        # torch takes seconds to import, which samples in a file need not wait for.
        from onebase.data.fit import Limits
        from onebase.data.prepare import encode_rows
        from onebase.engines.budget import TokenBudget, find_token_budget

        base, chat = self._opened
        examples = encode_rows(rows, chat, Limits(base.context_length, tell=lambda line: say(f"data clean: {line}")))
        longest = max(example.num_tokens for example in examples)
        return base, examples, TokenBudget(find_token_budget(base, self._kind, longest=longest))


class Margins(Judging):
    """A reward role's score of the best answer minus that of the worst, of each row that ranks answers."""

    def __init__(self, role: str, opening: Opening) -> None:
        super().__init__(role, "reward", opening)

    def __call__(self, rows: Sequence[Row]) -> dict[str, float]:
        compared = [row for row in rows if row.grades is not None and len(set(row.grades)) > 1]
        if not compared:
            return {}
        from onebase.engines.forward import completion_scores
        from onebase.engines.passes import per_completion

        base, examples, budget = self._examples([row.only([_index(row, max), _index(row, min)]) for row in compared])
        scores = per_completion(base, examples, lambda b: completion_scores(base, b, role="reward"), budget=budget)
        return {_place(e): float(better - worse) for e, (better, worse) in zip(examples, scores, strict=True)}


class Losses(Judging):
    """A role's loss on each row it can be measured on: a policy's per token of the best answer, or a reward role's."""

    def __init__(self, role: str, opening: Opening) -> None:
        super().__init__(role, "policy", opening)
        from onebase.models.role_card import read_card

        judges = (Path(role) / "role.json").is_file() and read_card(role).kind == "reward"
        self._margins = Margins(role, opening) if judges else None

    def __call__(self, rows: Sequence[Row]) -> dict[str, float]:
        if self._margins is not None:
            return {place: float(numpy.logaddexp(0, -margin)) for place, margin in self._margins(rows).items()}
        answered = [best_answer(row) for row in rows if row.answers and all(answer.strip() for answer in row.answers)]
        if not answered:
            return {}
        from onebase.engines.forward import token_logprobs
        from onebase.engines.passes import per_token

        base, examples, budget = self._examples(answered)
        found = per_token(base, examples, lambda b: {"logp": token_logprobs(base, b, role="policy")}, budget=budget)
        return {_place(e): -float(logps.mean()) for e, logps in zip(examples, found["logp"], strict=True)}


def _place(example: Example) -> str:
    return example.row.place if example.row else ""


def _index(row: Row, which: Any) -> int:
    assert row.grades is not None
    return row.grades.index(which(row.grades))
