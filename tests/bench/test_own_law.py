"""The page on planning shows what its benchmark measured."""

from __future__ import annotations

from bench import own_law
from bench.results import read_results


def test_the_page_shows_the_law_of_the_runs_that_were_measured() -> None:
    measured = read_results(own_law.RESULTS)["runs"]
    (fitted, wide), held_back = own_law.fits(measured), own_law.runs_of(own_law.HELD_BACK, measured)
    assert len(wide.runs) > len(fitted.runs) >= 12 and held_back
    page = own_law.PAGE.read_text(encoding="utf-8")
    assert own_law.text(measured, fitted, wide, held_back) in page
    for picture in (own_law.PICTURE, own_law.WIDE_PICTURE):
        assert (own_law.PAGE.parent / "planning" / picture.name).is_file()


def test_every_run_spends_about_its_compute() -> None:
    for run in [*own_law.FITTED, *own_law.SMALLER, *own_law.HELD_BACK]:
        spent = 6 * run.size.parameters * run.steps * own_law.BLOCK * own_law.MINIBATCH
        assert abs(spent / run.compute - 1) < 0.01
