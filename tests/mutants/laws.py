"""Faults in scaling laws, in the law of over-optimisation, and in the learning curve of a reward role."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

LAWS = "onebase/planning/laws.py"
FIT = "onebase/planning/fit.py"
OVER = "onebase/planning/overoptimization.py"
KL = "onebase/plans/plan_kl.py"
CURVE = "onebase/active_learning/curve.py"

TEST_LAWS = "tests/planning/test_laws.py"
TEST_FIT = "tests/planning/test_fit.py"
TEST_OVER = "tests/planning/test_overoptimization.py"
TEST_KL = "tests/plans/test_plan_kl.py"
TEST_ROLE = "tests/active_learning/test_role_curve.py::test_a_planted_curve_comes_back"

MUTANTS = [
    Mutant(LAWS, "tokens=205.1e9, power=1.00765", "tokens=205.1e9, power=1.0085",
           "the first approach bends", TEST_LAWS),
    Mutant(LAWS, "tokens=219.5e9, power=1.0413", "tokens=219.5e9, power=1.0405",
           "the second approach bends", TEST_LAWS),
    Mutant(LAWS, "a=482.01, b=2085.43", "a=482.01, b=2058.43", "two digits of the replication are swapped",
           "tests/plans/test_plan_scaling.py::test_the_page_on_planning_shows_what_is_printed"),
    Mutant(FIT, "<= 1.1 * _compute(groups[-1][0])", "<= 1.1 * _compute(groups[-1][-1])",
           "a chain of computes becomes one profile",
           f"{TEST_FIT}::test_runs_share_their_compute_to_a_tenth_wherever_it_lies"),
    Mutant(FIT, "if x.min() <= vertex <= x.max() else None", "if True else None",
           "a best size is named that lies outside the runs",
           f"{TEST_FIT}::test_the_vertex_of_equal_compute_is_near_the_best_split"),
    Mutant(OVER, "return math.log(n) - (n - 1) / n", "return math.log(n)", "the best of n is too far from its policy",
           f"{TEST_OVER}::test_the_best_of_n_is_log_n_less_a_little_from_its_policy"),
    Mutant(OVER, "math.comb(i, n - 1)", "math.comb(k - 1 - i, n - 1)", "the worst of n is taken for the best",
           f"{TEST_OVER}::test_the_best_of_n_is_the_mean_over_all_subsets"),
    Mutant(OVER, "math.exp(min(alpha / beta - 1, 300.0))", "math.exp(min(alpha / beta, 300.0))",
           "the peak of RL is where the gain is 0", f"{TEST_OVER}::test_the_peak_of_the_true_score_comes_back"),
    Mutant(OVER, "math.sqrt(max(kl, 0.0)), score", "math.sqrt(abs(kl)), score", "a KL below 0 counts as above",
           f"{TEST_OVER}::test_a_kl_estimated_below_0_counts_as_0"),
    Mutant(KL, "beyond = fitted.kl > fitted.seen", "beyond = fitted.low > 100 * fitted.seen",
           "a peak beyond what was measured is believed", f"{TEST_KL}::test_a_peak_that_was_not_reached_is_a_warning"),
    Mutant(KL, "if value != values[0]:", "if False:", "runs from different starts share a law",
           f"{TEST_KL}::test_a_mistake_gets_a_line"),
    Mutant(CURVE, "Point(more * count, _interval(", "Point(count, _interval(", "a forecast names the rankings so far",
           "tests/active_learning/test_role_curve.py"),
    Mutant(CURVE, "return laws.at(count + another) - laws.at(count)",
           "return laws.at(count + another) - laws.at(another)",
           "a gain starts from nowhere", TEST_ROLE),
]  # fmt: skip
