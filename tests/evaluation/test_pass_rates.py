"""pass@k and maj@k against every choice of k samples, written out."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, product
from statistics import mean

import pytest

from onebase.evaluation.pass_rates import MOST_DRAWS, Judged, by_value, majority_at_k, pass_at_k, rates
from onebase.evaluation.tables import print_rates
from onebase.reporting.intervals import bootstrap_mean


def test_pass_at_k_is_the_share_of_choices_with_a_right_sample() -> None:
    for n in range(1, 8):
        for c, k in product(range(n + 1), range(1, n + 1)):
            samples = [True] * c + [False] * (n - c)
            assert pass_at_k(n, c, k) == pytest.approx(mean(map(any, combinations(samples, k))), abs=1e-12)


def test_pass_at_k_of_many_samples_keeps_its_digits() -> None:
    # One right sample is among k of n with chance k / n, whatever n is.
    for n, k in ((10**4, 1), (10**4, 137), (3_000, 2_999)):
        assert pass_at_k(n, 1, k) == pytest.approx(k / n, rel=1e-12)
    # The product of Chen et al.: 1 - (1 - k/(n-c+1)) .. (1 - k/n).
    left = 1.0
    for i in range(1_000 - 30 + 1, 1_001):
        left *= 1 - 50 / i
    assert pass_at_k(1_000, 30, 50) == pytest.approx(1 - left, rel=1e-9)
    assert pass_at_k(100, 60, 50) == 1.0


def voted(answers: tuple[str | None, ...], right: set[str]) -> float:
    """One draw's majority, counted another way."""
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    tied = [answer for answer, count in votes.items() if count == max(votes.values())]
    return len([answer for answer in tied if answer in right]) / len(tied)


@pytest.mark.parametrize("right", [{"a"}, {"b"}, {"a", "c"}, set()])
def test_majority_at_k_is_the_mean_over_all_choices(right: set[str]) -> None:
    for answers in (("a", "b", "a", None, "c"), ("a", "a", "b", "b", "b", "c"), (None, None, "b"), ("a",), (None,)):
        for k in range(1, len(answers) + 1):
            expected = mean(voted(draw, right) for draw in combinations(answers, k))
            found = majority_at_k(answers, [answer in right for answer in answers], k)
            assert found == pytest.approx(expected, abs=1e-12)


def test_all_samples_vote_when_k_is_their_number() -> None:
    assert majority_at_k(["7", "7", "8", None], [True, True, False, False], 4) == 1.0
    assert majority_at_k(["7", "8"], [True, False], 2) == 0.5
    assert majority_at_k([None, None, "8"], [False, False, False], 3) == 0.0
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    # A verifier of form may refuse one of two samples with the same answer.
    assert majority_at_k(["7", "7", "8"], [True, False, False], 3) == 0.5


def test_more_choices_than_can_be_counted_are_drawn_by_the_seed() -> None:
    answers = ["a"] * 12 + ["b"] * 9 + [None] * 4
    right = [answer == "a" for answer in answers]
    first = majority_at_k(answers, right, 6, seed=0)
    assert first == majority_at_k(answers, right, 6, seed=0) != majority_at_k(answers, right, 6, seed=1)
    exact = mean(voted(draw, {"a"}) for draw in combinations(answers, 6))
    assert first == pytest.approx(exact, abs=4 * 0.5 / MOST_DRAWS**0.5)


def prompts() -> list[Judged]:
    return [
        Judged([True, True, False, False], ["1", "1", "2", None], [True, True, True, False], 0, {"grade": 10}),
        Judged([False] * 4, ["5", "5", "6", "7"], [True] * 4, 2, {"grade": 9}),
        Judged([True] * 4, ["3"] * 4, [True] * 4, 0, {"grade": "x"}),
        Judged([False, False, False, True], [None, None, None, "4"], [False] * 4, 1, {"grade": 9}),
    ]


def test_rates_are_means_over_prompts_with_their_bootstrap() -> None:
    found = rates(prompts(), [1, 2, 4])
    assert found.num_prompts == 4 and found.ended == 11 / 16 and found.failed == 3
    assert found.passed[1] == bootstrap_mean([0.5, 0.0, 1.0, 0.25])
    assert found.passed[4] == bootstrap_mean([1.0, 0.0, 1.0, 1.0])
    assert found.majority == {4: bootstrap_mean([1.0, 0.0, 1.0, 1.0])}
    assert list(found.figures()) == ["pass@1", "pass@2", "pass@4", "maj@4"]
    programs = [Judged([True, False, True], [None] * 3, [True] * 3)]
    assert list(rates(programs, [1, 3], votes=False).figures()) == ["pass@1", "pass@3"]
    assert rates(programs, [1, 3]).majority == {3: bootstrap_mean([0.0])}


def test_prompts_are_split_by_the_values_of_a_column_in_order() -> None:
    groups = by_value(prompts(), "grade")
    assert {value: len(own) for value, own in groups.items()} == {"9": 2, "10": 1, "x": 1}
    assert list(groups) == ["9", "10", "x"]


def test_the_table_has_a_row_per_group(capsys: pytest.CaptureFixture[str]) -> None:
    groups = {"all": rates(prompts(), [1, 4]), "grade [bold]\x1b": rates(prompts()[2:3], [1, 4])}
    print_rates(groups, samples_per_prompt=4)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].rstrip() == "4 samples per prompt; percent right, with 95 % intervals"
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells[0][:2] == ["all", "4"] and cells[0][2] == "43.8" and cells[0][-2:] == ["69%", "3"]
    assert cells[2] == ["grade [bold]\\x1b", "1", "100.0", "100.0", "100.0", "100%", "0"]
    assert cells[3][2:5] == ["[100.0, 100.0]"] * 3


def test_a_file_gets_the_table_as_wide_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    many = [Judged([True, False] * 32, ["1", None] * 32, [True] * 64)] * 3
    print_rates({"all": rates(many, [2**power for power in range(7)])}, samples_per_prompt=64)
    assert capsys.readouterr().out.count("[50.0, 50.0]") == 1  # pass@1, uncut
