"""Measurements that other machines disturb are made again, whatever they gave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import stolen
from bench.stolen import TRIES, least_stolen, share_between, times


def counted(monkeypatch: pytest.MonkeyPatch, *shares: float) -> None:
    """Each measurement asks for 1,000 ticks, of which these shares are stolen."""

    def ticks() -> Iterator[tuple[int, int]]:
        for share in shares:
            yield 0, 0
            yield round(1000 * (1 - share)), round(1000 * share)

    found = ticks()
    monkeypatch.setattr(stolen, "times", lambda: next(found))


def test_an_undisturbed_measurement_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, 0.01)
    results = iter([7])
    assert least_stolen(lambda: next(results), "a") == (7, 0.01)


def test_a_disturbed_one_is_made_again_and_the_least_disturbed_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted(monkeypatch, *[0.3, 0.2, 0.4][:TRIES])
    results = iter([1, 9, 5])
    assert least_stolen(lambda: next(results), "ppo") == (9, 0.2)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "bench: ppo: other machines took 30% of the processor time"
    assert len(said) == TRIES


def test_it_stops_at_the_first_that_is_undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    counted(monkeypatch, 0.3, 0.05)
    results = iter([1, 2])
    assert least_stolen(lambda: next(results), "a") == (2, 0.05)


def test_the_share_is_of_the_time_asked_for() -> None:
    assert share_between((100, 10), (190, 20)) == 0.1
    assert share_between((5, 5), (5, 5)) == 0.0


def test_the_system_counts_both() -> None:
    before = times()
    sum(i * i for i in range(3_000_000))
    after = times()
    assert after[0] >= before[0]
    assert 0.0 <= share_between(before, after) <= 1.0
