"""The learning curve on rankings whose truth is known."""

from __future__ import annotations

from functools import cache

import numpy
import pytest

from onebase.active_learning.ceiling import Ceiling
from onebase.active_learning.curve import FOLDS, Curve, Folds, Point, Ranked, accuracy_by_round, learning_curve
from onebase.active_learning.learning_curve import Learned
from onebase.reporting.intervals import Interval

F = 6


def people(count: int, *, noise: float, seed: int = 0, prompts: int = 10_000, active: int = 0) -> list[Ranked]:
    """Pairs ranked by a linear taste with Gumbel noise; the last `active` ones are easy, and were chosen by a role."""
    generator = numpy.random.default_rng(seed)
    taste = numpy.arange(1.0, F + 1) / F
    found = []
    for n in range(count):
        features = generator.normal(size=(2, F))
        scores = features @ taste + noise * generator.gumbel(size=2)
        grades = (2.0, 1.0) if scores[0] > scores[1] else (1.0, 2.0)
        by_role = n >= count - active
        found.append(Ranked(features, grades, f"{n % prompts}", int(n >= count / 2), not by_role))
    return found


@cache
def curve_of(count: int, noise: float) -> Curve:
    return learning_curve(Folds(people(count, noise=noise), seed=0), another=200)


def test_the_curve_rises_towards_what_the_true_taste_reaches() -> None:
    curve = curve_of(400, 1.0)
    generator = numpy.random.default_rng(9)
    taste = numpy.arange(1.0, F + 1) / F
    difference = generator.normal(size=(20_000, F)) * 2**0.5 @ taste
    best = float((1 / (1 + numpy.exp(-numpy.abs(difference)))).mean())
    means = [point.accuracy.mean for point in curve.points]
    assert means[0] < means[-1] and [point.rankings for point in curve.points] == [20, 40, 80, 160, 240, 320]
    assert curve.points[-1].accuracy.low < best < curve.points[-1].accuracy.high + 0.02
    assert curve.limit.low < best < curve.limit.high
    assert 0 <= curve.gain.low <= curve.gain.mean <= curve.gain.high < 0.05


def test_people_who_answer_at_random_teach_nothing() -> None:
    curve = curve_of(100, 1e6)
    assert all(point.accuracy.low < 0.5 < point.accuracy.high for point in curve.points)


def test_rankings_of_one_prompt_are_held_out_together() -> None:
    ranked = people(60, noise=1.0, prompts=12)
    folds = Folds(ranked, seed=0)
    for fold in range(FOLDS):
        train = {ranked[n].prompt for n in folds.train_on(fold)}
        assert train.isdisjoint(folds.accuracy(fold, folds.train_on(fold)))
    assert learning_curve(folds, another=200).prompts == 12


def test_accuracy_is_measured_on_random_tasks_alone_and_active_ones_are_trained_on() -> None:
    ranked = people(100, noise=1.0, active=40)
    folds = Folds(ranked, seed=0)
    assert len(folds.prompts) == 60
    tested = [prompt for fold in range(FOLDS) for prompt in folds.accuracy(fold, folds.train_on(fold))]
    assert sorted(tested, key=int) == [one.prompt for one in ranked if one.random]
    assert all(set(range(60, 100)) <= set(folds.train_on(fold)) for fold in range(FOLDS))


def test_after_each_round_the_heads_know_that_round_and_those_before() -> None:
    rounds = accuracy_by_round(Folds(people(200, noise=1.0), seed=0))
    assert {number: point.rankings for number, point in rounds.items()} == {0: 80, 1: 160}


def learned(gain: tuple[float, float, float], now: tuple[float, float, float], ceiling: float | None) -> Learned:
    point = Point(400, Interval(*now))
    curve = Curve(500, 90, (point,), Interval(*now), 1.0, 0.5, 200, Interval(*gain))
    people = None if ceiling is None else Ceiling(50, Interval(ceiling, ceiling - 0.05, ceiling + 0.05))
    return Learned({0: point}, people, curve)


def test_the_forecast_is_a_sentence_in_points() -> None:
    assert learned((0.012, 0.004, 0.02), (0.7, 0.66, 0.74), 0.8).forecast == (
        "another 200 rankings buy about +1.2 points [0.4, 2.0]"
    )


@pytest.mark.parametrize(
    ("gain", "now", "ceiling", "stop", "reason"),
    [
        ((0.004, 0.001, 0.009), (0.7, 0.66, 0.74), 0.8, True, "more rankings like these buy less than 1 point"),
        ((0.03, 0.02, 0.04), (0.85, 0.81, 0.88), 0.8, True, "heads predict a person better than another person does"),
        ((0.03, 0.02, 0.04), (0.82, 0.78, 0.86), 0.8, False, "more rankings are expected to pay"),
        ((0.03, 0.02, 0.04), (0.95, 0.93, 0.97), None, False, "more rankings are expected to pay"),
        ((0.006, 0.0, 0.03), (0.7, 0.6, 0.8), None, False, "the gain is uncertain"),
    ],
)
def test_when_to_stop(
    gain: tuple[float, float, float], now: tuple[float, float, float], ceiling: float | None, stop: bool, reason: str
) -> None:
    found = learned(gain, now, ceiling).verdict
    assert found[0] == stop and found[1].startswith(reason)
