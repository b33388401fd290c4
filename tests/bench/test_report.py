"""The measured part of the page, and the comparison of the quick benchmark; nothing here is timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import quick, report, serving, tables
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
    page = f"# Title\n\nBefore.\n\n{report.MARKS[0]}\nold\n{report.MARKS[1]}\n\nAfter.\n"
    found = report.between_marks(page, "new", "page.md")
    assert found == f"# Title\n\nBefore.\n\n{report.MARKS[0]}\n\nnew\n\n{report.MARKS[1]}\n\nAfter.\n"
    assert report.between_marks(found, "new", "page.md") == found


@pytest.mark.parametrize(
    "page", ["", report.MARKS[0], f"{report.MARKS[1]} {report.MARKS[0]}", f"{report.MARKS[0]}{report.MARKS[1]}" * 2]
)
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
    page.write_text(f"# Performance\n{report.MARKS[0]}{report.MARKS[1]}\n")
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
    assert f"{report.MARKS[0]}\n\na new part\n\n{report.MARKS[1]}" in page and "## How it is measured" in page
    page = report.between_marks(page, "served", report.PAGE.name, marks=report.SERVING_MARKS)
    assert f"{report.SERVING_MARKS[0]}\n\nserved\n\n{report.SERVING_MARKS[1]}" in page and "a new part" in page


def test_servers_are_one_table_and_other_measurements_leave_it(tmp_path: Path) -> None:
    def one(tokens: list[float], first: list[float]) -> dict[str, Any]:
        rounds = [
            {str(n): {"tokens_per_second": t, "first_token_seconds": f, "stolen": f / 2} for n in serving.CLIENTS}
            for t, f in zip(tokens, first, strict=True)
        ]
        return serving.middle(rounds)

    sides = {"onebase": one([300.0, 100.0], [0.1, 0.3]), "transformers": one([50.0, 30.0], [0.08, 0.06])}
    found = tables.serving({"serving": {**MACHINE, "new_tokens": 64, "sides": sides}})
    assert "| 16 | 200.0 (100.0, 300.0) | 40.0 (30.0, 50.0) | 5.0 |" in found
    assert "| 16 | 200 (100, 300) | 70 (60, 80) |" in found
    assert "took up to 15% of the processor time; more than 5% in 3 of 12 measurements." in found
    page, results = tmp_path / "performance.md", tmp_path / "results.json"
    page.write_text("".join((*report.MARKS, report.SERVING_MARKS[0], "as it was", report.SERVING_MARKS[1])))
    report.write(results, page)
    assert "as it was" in page.read_text()
    keep("serving", {**MACHINE, "new_tokens": 64, "sides": sides}, results)
    report.write(results, page)
    assert found.strip() in page.read_text() and "as it was" not in page.read_text()


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
