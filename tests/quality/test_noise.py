"""Noise: held-out heads disbelieve flipped verdicts, know nothing where there is nothing to know, and see no prompt
they judge."""

from __future__ import annotations

import random
from typing import Any

import numpy
import pytest

from onebase.quality.noise import believed, claim_of, held_out_sums, losses, probabilities
from onebase.records import Message, Row

GOOD, BAD = "kind helpful clear careful precise".split(), "rude vague wrong lazy broken".split()
PLAIN = "the answer says that this thing may be what you ask for in many words".split()


def rows(count: int, seed: int, *, flipped: float, telling: bool = True) -> tuple[list[Row], set[int]]:
    generator = random.Random(seed)
    made, wrong = [], set()
    for n in range(count):
        answers = [
            " ".join(generator.choices(PLAIN, k=15) + generator.choices(words if telling else PLAIN, k=4))
            for words in (GOOD, BAD)
        ]
        if generator.random() < flipped:
            wrong.add(n)
            answers.reverse()
        made.append(Row((Message("user", f"Question {n}?"),), tuple(answers), grades=(1.0, 0.0)))
    return made, wrong


def judged(made: list[Row], **more: Any) -> numpy.ndarray:
    claims = [claim for row in made if (claim := claim_of(row))]
    assert len(claims) == len(made)
    return probabilities(claims, **{"folds": 5, "seed": 0, **more})


@pytest.mark.parametrize("seed", range(3))
def test_flipped_verdicts_are_disbelieved(seed: int) -> None:
    made, wrong = rows(400, seed, flipped=0.1)
    dropped = set(numpy.flatnonzero(judged(made) < 0.2).tolist())
    assert len(dropped & wrong) / len(dropped) > 0.9 and len(dropped & wrong) / len(wrong) > 0.6


def test_where_wording_says_nothing_every_verdict_stands() -> None:
    made, _ = rows(400, 0, flipped=0.5, telling=False)
    found = judged(made)
    assert (found > 0.2).all() and abs(float(found.mean()) - 0.5) < 0.1


def test_a_row_is_judged_by_heads_that_have_not_seen_its_prompt() -> None:
    # Each prompt has words of its own for the better answer, so only a head that saw the prompt knows which it is.
    generator = random.Random(0)
    made = []
    for n in range(80):
        own = [["".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=9)) for _ in range(5)] for _ in range(2)]
        texts = tuple(" ".join(words) for words in own)
        made += [Row((Message("user", f"Question {n}?"),), texts, grades=(1.0, 0.0))] * 4
    seen = [Row((Message("user", f"Question {n}"),), row.answers, grades=row.grades) for n, row in enumerate(made)]
    claims, others = ([claim for row in rows if (claim := claim_of(row))] for rows in (made, seen))
    assert float((held_out_sums(others, folds=5, seed=0) > 0).mean()) > 0.95
    assert 0.25 < float((held_out_sums(claims, folds=5, seed=0) > 0).mean()) < 0.75


def test_labels_are_judged_too_by_text_and_by_how_frequent_they_are() -> None:
    generator = random.Random(0)
    made, wrong = [], set()
    for n in range(600):
        label = float(generator.random() < 0.5)
        text = " ".join(generator.choices(PLAIN, k=10) + generator.choices(GOOD if label else BAD, k=4))
        if generator.random() < 0.1:
            wrong.add(n)
            label = 1 - label
        made.append(Row((), (f"{text} {n}",), grades=(label,)))
    dropped = set(numpy.flatnonzero(judged(made) < 0.2).tolist())
    assert len(dropped & wrong) / len(dropped) > 0.9 and len(dropped & wrong) / len(wrong) > 0.6


def test_ranked_lists_are_judged_by_their_ends_and_other_rows_not_at_all() -> None:
    ranked = claim_of(Row((Message("user", "?"),), ("middle", "worst", "best"), grades=(1.0, 0.0, 2.0)))
    pair = claim_of(Row((Message("user", "?"),), ("best", "worst"), grades=(1.0, 0.0)))
    assert ranked is not None and pair is not None
    assert (ranked.runs == pair.runs).all() and ranked.better == pair.better and ranked.extra == pair.extra
    assert claim_of(Row((Message("user", "?"),), ("a", "b"), grades=(1.0, 1.0))) is None
    assert claim_of(Row((Message("user", "?"),), ("a",))) is None
    assert claim_of(Row((Message("user", "?"),), ("a",), columns={"label": 0.3})) is None


def test_the_order_of_the_rows_hardly_matters_and_the_seed_is_the_only_chance() -> None:
    made, _ = rows(200, 1, flipped=0.1)
    assert (judged(made) == judged(made)).all()
    assert numpy.corrcoef(judged(made), judged(made[::-1])[::-1])[0, 1] > 0.95


def test_a_loss_is_minus_the_logarithm() -> None:
    assert losses(numpy.array([1.0, 0.5, 0.0])) == pytest.approx([0, 0.693147, 27.631021])


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_are_those_of_the_most_likely_scale(seed: int) -> None:
    sums = numpy.random.default_rng(seed).normal(0.3, 1, 200)

    def likelihood(factor: float) -> float:
        return float(-numpy.log1p(numpy.exp(-factor * sums)).sum())

    best = max(numpy.linspace(0, 5, 20001), key=likelihood)
    assert believed(sums) == pytest.approx(1 / (1 + numpy.exp(-best * sums)), abs=1e-3)
    assert believed(-numpy.abs(sums)) == pytest.approx(0.5)
