"""The choice of tasks against brute force, and what it must and must not prefer."""

from __future__ import annotations

from itertools import permutations

import numpy
import pytest

from onebase.active_learning.choose import disagreement, expected_curvature, most_informative, spread_sample
from onebase.active_learning.heads import Floats, information, rankings_of

ALL = numpy.ones((1, 4), bool)


def exact_curvature(scores: Floats) -> Floats:
    """The mean over all K! rankings, each with its probability, of the curvature of the ranking's likelihood."""
    size = len(scores)
    found = numpy.zeros((size, size))
    for order in permutations(range(size)):
        chance, left = 1.0, list(order)
        while left:
            chance *= numpy.exp(scores[left[0]]) / numpy.exp(scores[left]).sum()
            left = left[1:]
        grades = numpy.empty(size)
        grades[list(order)] = range(size, 0, -1)
        # With unit vectors as features the weights are the scores.
        found += chance * information(rankings_of([(numpy.eye(size), grades.tolist())]), scores)
    return found


def test_the_expected_curvature_is_exact_for_two_answers_and_for_equally_good_ones() -> None:
    for scores in (numpy.array([0.3, -0.9]), numpy.zeros(3), numpy.zeros(5)):
        there = numpy.ones((1, len(scores)), bool)
        assert expected_curvature([scores[None]], there)[0] == pytest.approx(exact_curvature(scores), abs=1e-9)


def test_in_between_the_expected_curvature_is_near_the_mean_over_all_rankings() -> None:
    generator = numpy.random.default_rng(0)
    for _ in range(10):
        scores = generator.normal(scale=0.7, size=4)
        ours, exact = expected_curvature([scores[None]], ALL)[0], exact_curvature(scores)
        assert numpy.abs(ours - exact).max() < 0.1 * numpy.abs(exact).max() + 0.02
        assert ours.sum(1) == pytest.approx(numpy.zeros(4), abs=1e-12)


def test_what_is_missing_bends_nothing() -> None:
    there = numpy.array([[True, True, False]])
    found = expected_curvature([numpy.array([[0.2, 0.1, 0.0]])], there)[0]
    assert found[:2, :2] == pytest.approx(expected_curvature([numpy.array([[0.2, 0.1]])], there[:, :2])[0])
    assert not found[2].any() and not found[:, 2].any()


def test_each_task_is_the_one_that_adds_most_to_the_determinant() -> None:
    generator = numpy.random.default_rng(1)
    features, there = generator.normal(size=(12, 3, 4)), numpy.ones((12, 3), bool)
    curvature = expected_curvature([features @ generator.normal(size=4) for _ in range(3)], there)
    prior = numpy.diag([1.0, 2.0, 3.0, 4.0])
    known, expected = prior.copy(), []
    for _ in range(5):
        gains = [
            -numpy.inf if n in expected else numpy.linalg.slogdet(known + features[n].T @ curvature[n] @ features[n])[1]
            for n in range(12)
        ]
        best = int(numpy.argmax(gains))
        expected.append(best)
        known += features[best].T @ curvature[best] @ features[best]
    assert most_informative(features, curvature, numpy.linalg.inv(prior), 5) == expected
    assert sorted(most_informative(features, curvature, numpy.linalg.inv(prior), 99)) == list(range(12))


def test_the_second_task_is_unlike_the_first_even_if_a_twin_alone_would_tell_more() -> None:
    features = numpy.array([[[3.0, 0.0], [0.0, 0.0]], [[2.9, 0.0], [0.0, 0.0]], [[0.0, 1.8], [0.0, 0.0]]])
    curvature = expected_curvature([numpy.zeros((3, 2))], numpy.ones((3, 2), bool))
    assert most_informative(features, curvature, numpy.eye(2), 2) == [0, 2]


def test_of_two_tasks_the_one_with_the_smaller_margin_comes_first() -> None:
    features = numpy.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    sure, unsure = 4.0, 0.1
    curvature = expected_curvature([numpy.array([[sure, 0.0], [unsure, 0.0]])], numpy.ones((2, 2), bool))
    assert most_informative(features, curvature, numpy.eye(2), 1) == [1]


def test_disagreement_is_one_where_half_of_the_heads_say_each_and_nothing_where_all_agree() -> None:
    there = numpy.array([[True, True, False], [True, True, True]])
    heads = [numpy.array([[1.0, 0, 9], [2, 1, 0]]), numpy.array([[0.0, 1, 0], [2, 1, 0]])]
    assert disagreement(heads, there) == pytest.approx([1.0, 0.0])


def test_a_spread_sample_draws_every_text_as_often_and_each_topic_by_its_share() -> None:
    topics = ["the cat sleeps on the warm sofa", "关于天气的问题和回答", "def f(x): return x + 1"]
    texts = [f"{topic} {n}" for n, topic in enumerate(topics * 8)]
    drawn = numpy.zeros(len(texts))
    for seed in range(200):
        chosen = spread_sample(texts, 6, seed=seed)
        assert len(set(chosen)) == 6
        drawn[chosen] += 1
        counts = numpy.bincount(numpy.array(chosen) % 3, minlength=3)
        assert counts.max() <= 4
    # 200 draws of a quarter each: 50 on average, with a deviation of 6.
    assert drawn.min() > 28 and drawn.max() < 75
    assert spread_sample(texts, 99, seed=0) == list(range(24)) and spread_sample(texts, 0, seed=0) == []
