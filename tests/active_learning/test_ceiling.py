"""The human ceiling against Kendall's tau and simulated people."""

from __future__ import annotations

import math

import numpy
import pytest

from onebase.active_learning.ceiling import agreement_on, human_ceiling


def test_without_ties_agreement_is_kendalls_tau_from_0_to_1() -> None:
    stats = pytest.importorskip("scipy.stats")
    generator = numpy.random.default_rng(0)
    for size in (2, 4, 9):
        a, b = generator.permutation(size), generator.permutation(size)
        assert agreement_on([a, b]) == pytest.approx((1 + stats.kendalltau(a, b).statistic) / 2)


def test_a_tie_of_the_other_counts_half_and_an_own_tie_is_not_asked_about() -> None:
    assert agreement_on([[2, 1], [2, 2]]) == 0.5
    assert agreement_on([[2, 1], [2, 1], [1, 2]]) == pytest.approx(2 / 6)
    # Asked of the first person: 0.5, 1, 1; of the second, who ties two answers: 1, 1.
    assert agreement_on([[3, 2, 1], [2, 2, 1]]) == pytest.approx(4.5 / 5)
    assert math.isnan(agreement_on([[2, 2], [1, 1]])) and math.isnan(agreement_on([[2, 1]]))


def test_the_most_a_head_can_reach_is_how_often_one_person_is_right() -> None:
    generator = numpy.random.default_rng(1)
    right = generator.random((4000, 2)) < 0.8
    tasks = [(str(n), [[2, 1] if one else [1, 2] for one in both]) for n, both in enumerate(right)]
    ceiling = human_ceiling(tasks)
    assert ceiling is not None and ceiling.tasks == 4000
    assert ceiling.agreement.low < 0.68 < ceiling.agreement.high
    assert ceiling.most.low < 0.8 < ceiling.most.high
    assert human_ceiling([("0", [[1, 2], [2, 1]])]).most.mean == 0.5  # type: ignore[union-attr]


def test_tasks_of_one_prompt_count_as_one_and_without_two_people_there_is_no_ceiling() -> None:
    same, other = [[2, 1], [2, 1]], [[2, 1], [1, 2]]
    ceiling = human_ceiling([("a", same), ("a", same), ("a", same), ("b", other)])
    assert ceiling is not None and ceiling.agreement.mean == 0.5 and ceiling.tasks == 4
    assert human_ceiling([("a", [[2, 1]])]) is None
