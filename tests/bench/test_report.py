"""The measured part of the page, and the comparison of the quick benchmark; nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import quick, report, tables
from bench.options import MISSING, Measurement, measured_by
from bench.results import keep, read_results
from bench.side import SideFailed, measure_each, run_side, tail
from bench.workload import Workload

MACHINE = {
    "date": "2026-01-01",
    "processor": "P",
    "cores": 2,
    "instructions": [],
    "memory_gib": 8,
    "system": "Linux",
    "python": "3.11",
    "torch": "2.13.0",
    "threads": 2,
}


def a_row(samples: float, megabytes: float) -> dict[str, Any]:
    return {
        "stage": "dpo",
        "peer_name": "Peer",
        "precision": "bf16",
        "model": "s",
        "counts_first": False,
        "target": {"faster": 6.0, "memory": 0.5},
        **MACHINE,
        "ours": [{"samples_per_second": samples, "peak_rss_mb": megabytes}],
        "peer": [{"samples_per_second": 1.0, "peak_rss_mb": 1000}],
    }


def test_the_prose_around_the_marks_stays() -> None:
    page = f"# Title\n\nBefore.\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n"
    found = report.between_marks(page, "new", "page.md")
    assert found == f"# Title\n\nBefore.\n\n{report.BEGIN}\n\nnew\n\n{report.END}\n\nAfter.\n"
    assert report.between_marks(found, "new", "page.md") == found


@pytest.mark.parametrize("page", ["", report.BEGIN, f"{report.END} {report.BEGIN}", f"{report.BEGIN}{report.END}" * 2])
def test_a_page_without_its_marks_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="page.md: expected .* once each"):
        report.between_marks(page, "new", "page.md")


def test_a_missed_target_is_said() -> None:
    results = {"rows": {"dpo bf16": a_row(5.0, 600)}}
    assert ">= 6 **missed**" in tables.comparison(results, "bf16")
    assert tables.missed(results) == [
        "dpo beside Peer: 5.00 times its samples/s, target 6",
        "dpo beside Peer: 0.60 times its memory, target 0.5",
    ]
    assert "All measured targets are met." in tables.targets({"rows": {"dpo bf16": a_row(7.0, 400)}})


def test_the_page_is_written_from_any_part_of_the_results(tmp_path: Path) -> None:
    page, results = tmp_path / "performance.md", tmp_path / "results.json"
    page.write_text(f"# Performance\n{report.BEGIN}{report.END}\n")
    report.write(results, page)
    assert report.NOT_YET in page.read_text()
    keep("dpo bf16", a_row(7.0, 400), results, within="rows")
    curve = {"x": [1, 2], "xlabel": "rows", "ylabel": "seconds", "series": {"": [1.0, 2.0]}, "precision": "fp32"}
    keep("rows", curve | MACHINE, results, within="growth")
    report.write(results, page)
    assert "| dpo | Peer | 7.00 | 1.00 | 7.00 [7.00, 7.00] | >= 6 |" in page.read_text()
    assert "From 1 to 2 rows (2.00x): seconds 2.00x." in page.read_text()
    assert (tmp_path / "performance" / "rows.png").is_file()


def test_the_projects_own_page_has_its_marks() -> None:
    page = report.between_marks(report.PAGE.read_text(encoding="utf-8"), "a new part", report.PAGE.name)
    assert f"{report.BEGIN}\n\na new part\n\n{report.END}" in page and "## How it is measured" in page


def test_what_was_measured_before_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    keep("a", 1, path, within="rows")
    keep("b", 2, path, within="rows")
    keep("quick", {"c": 3}, path)
    assert read_results(path) == {"rows": {"a": 1, "b": 2}, "quick": {"c": 3}}


def test_a_side_that_fails_is_one_line() -> None:
    with pytest.raises(SideFailed, match="^peer: exit code 3: first . second$"):
        run_side("peer", ["bash", "-c", "echo first >&2; echo second >&2; exit 3"])
    with pytest.raises(SideFailed, match="^peer: no JSON in its last line: words$"):
        run_side("peer", ["echo", "words"])
    assert run_side("peer", ["echo", json.dumps({"seconds": 1})]) == {"seconds": 1}
    assert tail("") == "it said nothing"


def test_the_others_are_measured_when_one_fails() -> None:
    done = []

    def measure(name: str) -> None:
        if name == "b":
            raise SideFailed("no")
        done.append(name)

    assert measure_each("abc", measure) == ["b: no"]
    assert done == ["a", "c"]


def test_missing_peers_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workload = Workload(peers=tmp_path, data=tmp_path)
    assert measured_by([Measurement("rows", lambda *_: [])], workload, tmp_path / "results.json") == MISSING
    said = capsys.readouterr().err
    assert said == f"error: {tmp_path / 'prepare.py'}: no such file; set its folder: make bench PEERS=FOLDER\n"


def test_over_15_percent_more_than_last_is_slower() -> None:
    now = {
        "precision": "fp32",
        "threads": 2,
        "stages": {"sft": {"cost": 116.0, "seconds": 2.0}, "dpo": {"cost": 114.0, "seconds": 1.0}},
    }
    last = {**now, "stages": {stage: {"cost": 100.0, "seconds": 1.0} for stage in ("sft", "dpo")}}
    lines, slower = quick.compared(now, last)
    assert slower == ["sft (1.16x)"]
    assert [line.endswith("SLOWER") for line in lines[1:]] == [True, False]
    lines, slower = quick.compared(now, {**last, "threads": 4})
    assert not slower
    assert "at this precision and number of threads" in lines[-1]
