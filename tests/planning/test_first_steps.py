"""A run's first steps beside its plan."""

from __future__ import annotations

from pathlib import Path

import pytest

from onebase.planning.calibration import Here, read_kept
from onebase.planning.first_steps import as_sampled, compare
from onebase.planning.machines import MACHINES
from onebase.planning.rates import Rate, Rates
from onebase.planning.run import PlannedRun
from onebase.planning.time import times_of
from onebase.planning.work import KINDS
from onebase.plans.first_steps import FirstSteps
from tests.planning.planned import rollouts, supervised

RATES = Rates("a machine", 1.0, dict.fromkeys(KINDS, Rate(0.0, 0.0, 1e-3, 0.0)), source="measured today")


def rows_of(run: PlannedRun, factor: float) -> list[dict[str, float]]:
    """Three rows of steps that take `factor` times as long as planned, the first of them ten times that."""
    step = times_of(run, RATES).of_step
    rows = []
    for slow in (10.0, 1.0, 1.0):
        score = step.get("score", 0.0) * factor * slow
        rows.append(
            {
                "perf/step_seconds": sum(step.values()) * factor * slow,
                "perf/generate_seconds": step.get("generate", 0.0) * factor * slow,
                "perf/score_seconds": score / 4,
                "perf/logprobs_seconds": 3 * score / 4,
                "perf/update_seconds": step.get("update", 0.0) * factor * slow,
            }
        )
    return rows


def test_each_phase_of_a_rollout_is_compared_and_one_slow_first_step_does_not_count() -> None:
    run = rollouts()
    found = compare(run, RATES, {"update": 1.5}, rows_of(run, 1.2))
    assert found is not None
    planned = times_of(run, RATES, {"update": 1.5})
    assert found.figures["perf/planned/step_seconds"] == pytest.approx(planned.step)
    assert found.figures["perf/planned/update_seconds"] == pytest.approx(planned.of_step["update"])
    assert found.figures["perf/planned/step_seconds_measured"] == pytest.approx(1.2 * times_of(run, RATES).step)
    # What is kept knows nothing of the correction.
    assert {each.phase for each in found.observations} == {"generate", "score", "update"}
    assert all(each.measured / each.planned == pytest.approx(1.2) for each in found.observations)


def test_a_step_without_phases_is_shared_among_those_planned() -> None:
    run = supervised("dpo", reference="live")
    rows = [{"perf/step_seconds": 2 * times_of(run, RATES).step}] * 3
    found = compare(run, RATES, {}, rows)
    assert found is not None and set(found.figures) == {
        "perf/planned/step_seconds",
        "perf/planned/step_seconds_measured",
    }
    assert [(each.phase, round(each.measured / each.planned, 6)) for each in found.observations] == [
        ("update", 2.0),
        ("score", 2.0),
    ]


def test_rows_without_seconds_are_not_compared() -> None:
    assert compare(supervised(), RATES, {}, [{"loss": 1.0}] * 3) is None


def test_short_answers_are_not_taken_for_a_fast_machine() -> None:
    run = rollouts()
    rows = [{**row, "completions/mean_length": 2.0, "completions/max_length": 3.0} for row in rows_of(run, 1.0)]
    sampled = as_sampled(run, rows)
    assert (sampled.lengths.completion.mean, sampled.lengths.completion.longest) == (2.0, 3)
    assert sampled.lengths.tree.mean == 6 + 2 * 2 and sampled.lengths.counted == 4
    drawn = {each.kind: each.tokens for each in sampled.passes if each.in_steps}
    assert drawn["decode"] == 12 * 2 * 2 and drawn["train"] == pytest.approx(2 * 12 * 10)
    found = compare(run, RATES, {}, rows)
    assert found is not None and all(each.measured > 1.2 * each.planned for each in found.observations)
    assert as_sampled(supervised(), rows) == supervised()


def watch(run: PlannedRun, folder: Path) -> FirstSteps:
    return FirstSteps({folder: run}, Here("a", MACHINES["t4"]), RATES, {}, {folder: 100.0})


def test_the_third_row_says_so_once_and_the_machine_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path))
    run, folder = rollouts(), tmp_path / "run"
    look = watch(run, folder)
    added = [look(folder, row) for row in [*rows_of(run, 1.25), *rows_of(run, 9.0)]]
    assert [bool(each) for each in added] == [False, False, True, False, False, False]
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "(+25%) and " in said and "the next plan on this machine counts with it" in said
    assert added[2]["perf/planned/memory_mb"] == 100 < added[2]["perf/planned/memory_mb_measured"]
    assert {each["phase"] for each in read_kept("a")["observed"]} == {"generate", "score", "update", "memory"}
    assert look(tmp_path / "another", {"perf/step_seconds": 1.0}) == {}


def test_a_comparison_that_fails_ends_no_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = rollouts()
    look = watch(run, tmp_path)
    broken = [{**row, "perf/update_seconds": "a word"} for row in rows_of(run, 1.0)]
    assert [look(tmp_path, row) for row in broken] == [{}, {}, {}]  # type: ignore[arg-type]
    said = capfd.readouterr().err
    assert said.count("the first steps are not compared with a plan: TypeError") == 1
