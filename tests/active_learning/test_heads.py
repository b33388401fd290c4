"""The heads against scikit-learn, statsmodels' Cox regression and brute force."""

from __future__ import annotations

import numpy
import pytest

from onebase.active_learning.heads import (
    Floats,
    Rankings,
    bootstrap_heads,
    evident_ridge,
    fit_head,
    information,
    pair_accuracy,
    rankings_of,
)

F = 5


def ranked_lists(sizes: list[int], *, seed: int, ties: bool = False) -> tuple[Rankings, list[tuple[Floats, list[int]]]]:
    generator = numpy.random.default_rng(seed)
    truth = generator.normal(size=F)
    ranked = []
    for size in sizes:
        features = generator.normal(size=(size, F))
        order = numpy.argsort(numpy.argsort(features @ truth + generator.gumbel(size=size)))
        grades = (order // 2 if ties else order).astype(int)
        ranked.append((features, grades.tolist()))
    return rankings_of(ranked), ranked


def test_a_head_on_pairs_is_logistic_regression_on_differences() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rankings, ranked = ranked_lists([2] * 200, seed=0)
    difference = numpy.array([x[0] - x[1] for x, _ in ranked])
    first_better = numpy.array([grades[0] > grades[1] for _, grades in ranked])
    reference = linear_model.LogisticRegression(C=1 / 3.0, fit_intercept=False, tol=1e-10, max_iter=1000)
    reference.fit(difference, first_better)
    assert fit_head(rankings, 3.0) == pytest.approx(reference.coef_[0], abs=1e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_a_head_on_lists_is_a_cox_regression_with_a_stratum_per_list(ties: bool) -> None:
    duration = pytest.importorskip("statsmodels.duration.hazard_regression")
    rankings, ranked = ranked_lists([4, 3, 5, 4, 6] * 30, seed=1, ties=ties)
    features = numpy.concatenate([x for x, _ in ranked])
    time = numpy.concatenate([10.0 - numpy.array(grades) for _, grades in ranked])  # the best answer "dies" first
    strata = numpy.repeat(numpy.arange(len(ranked)), [len(grades) for _, grades in ranked])
    reference = duration.PHReg(time, features, strata=strata, ties="breslow").fit()
    weights = fit_head(rankings, 1e-9)
    assert weights == pytest.approx(reference.params, abs=1e-5)
    errors = numpy.sqrt(numpy.diag(numpy.linalg.inv(information(rankings, weights))))
    assert errors == pytest.approx(reference.bse, abs=1e-4)


def test_a_ranking_that_counts_twice_is_a_ranking_given_twice() -> None:
    rankings, _ = ranked_lists([4, 2, 3, 4], seed=2)
    counts = numpy.array([2.0, 1.0, 0.0, 1.0])
    assert fit_head(rankings, 1.0, counts=counts) == pytest.approx(fit_head(rankings.only([0, 0, 1, 3]), 1.0), abs=1e-7)


def test_the_fit_is_finite_and_flat_at_its_end_where_answers_are_separable() -> None:
    features = numpy.array([[[3.0], [0.0]]] * 20)
    rankings = Rankings(features, numpy.array([[1.0, 0.0]] * 20))
    weight = float(fit_head(rankings, 0.01)[0])
    slope = -20 * 3 / (1 + numpy.exp(3 * weight)) + 0.01 * weight
    assert abs(slope) < 1e-4 and weight > 1


def test_a_tie_pulls_the_margin_to_zero() -> None:
    apart = (numpy.array([[1.0], [0.0]]), [1.0, 0.0])
    tie = (numpy.array([[1.0], [0.0]]), [1.0, 1.0])
    without = fit_head(rankings_of([apart] * 4), 0.1)
    assert 0 < fit_head(rankings_of([apart] * 4 + [tie] * 4), 0.1) < without
    assert fit_head(rankings_of([tie] * 4), 0.1) == pytest.approx([0.0], abs=1e-8)


def test_the_evident_ridge_is_where_the_laplace_evidence_is_highest() -> None:
    rankings, _ = ranked_lists([4] * 40, seed=3)
    rankings = Rankings(rankings.features * 0.3, rankings.grades)

    def evidence(ridge: float) -> float:
        weights = fit_head(rankings, ridge)
        hessian = information(rankings, weights) + ridge * numpy.eye(F)
        scores = rankings.features @ weights
        likelihood = 0.0
        for own, grades in zip(scores, rankings.grades, strict=True):
            for k in numpy.argsort(-grades):
                likelihood += own[k] - numpy.log(numpy.exp(own[grades <= grades[k]]).sum())
        log_determinant = numpy.linalg.slogdet(hessian)[1]
        return float(likelihood - ridge / 2 * weights @ weights + F / 2 * numpy.log(ridge) - log_determinant / 2)

    grid = numpy.exp(numpy.linspace(numpy.log(0.01), numpy.log(100), 200))
    best = grid[numpy.argmax([evidence(ridge) for ridge in grid])]
    ridge, weights = evident_ridge(rankings)
    # The update ignores how the Hessian itself moves with the ridge, as MacKay's does.
    assert ridge == pytest.approx(best, rel=0.3)
    assert weights == pytest.approx(fit_head(rankings, ridge), abs=1e-4)


def test_bootstrap_heads_scatter_as_the_information_says() -> None:
    rankings, _ = ranked_lists([4] * 300, seed=4)
    weights = fit_head(rankings, 0.1)
    heads = bootstrap_heads(rankings, 0.1, num_heads=200, seed=0, start=weights)
    expected = numpy.sqrt(numpy.diag(numpy.linalg.inv(information(rankings, weights))))
    assert heads.std(0) == pytest.approx(expected, rel=0.35)
    again = bootstrap_heads(rankings, 0.1, num_heads=3, seed=0, start=numpy.zeros(F))
    assert again == pytest.approx(bootstrap_heads(rankings, 0.1, num_heads=3, seed=0, start=weights), abs=1e-4)


def test_pair_accuracy_leaves_ties_of_people_out_and_counts_equal_scores_half() -> None:
    scores = [numpy.array([2.0, 1.0, 0.0]), numpy.array([1.0, 1.0]), numpy.array([0.0, 1.0])]
    found = pair_accuracy(scores, [[1, 2, 0], [2, 1], [1, 1]])
    assert found[:2] == pytest.approx([2 / 3, 0.5]) and numpy.isnan(found[2])
