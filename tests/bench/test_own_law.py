"""The page on planning shows what its benchmark measured."""

from __future__ import annotations

from bench import own_law
from bench.results import read_results
from onebase.planning.fit import fit


def test_the_page_shows_the_law_of_the_runs_that_were_measured() -> None:
    measured = read_results(own_law.RESULTS)["runs"]
    runs, held_back = own_law.runs_of(own_law.FITTED, measured), own_law.runs_of(own_law.HELD_BACK, measured)
    assert len(runs) >= 12 and held_back
    page = own_law.PAGE.read_text(encoding="utf-8")
    assert own_law.text(measured, fit(runs), held_back) in page
    assert (own_law.PAGE.parent / "planning" / own_law.PICTURE.name).is_file()


def test_every_run_spends_about_its_compute() -> None:
    for run in [*own_law.FITTED, *own_law.HELD_BACK]:
        spent = 6 * run.size.parameters * run.steps * own_law.BLOCK * own_law.MINIBATCH
        assert abs(spent / run.compute - 1) < 0.01
