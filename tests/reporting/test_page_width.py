"""The report in a real browser: on a phone nothing overflows the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path
from typing import Any

import pytest

from onebase.reporting.page import write_report
from tests.reporting.test_page import DEFAULTS, PPO_ROWS, SUMMARY, make_run, sample

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE = 390
"""Pixels."""
LONG = "a_word_without_a_space_" * 20
MEASURE = """<!doctype html><body><iframe id=page width={width} height=800 style="border:0" srcdoc="{page}"></iframe>
<script>onload = () => {{ const page = document.getElementById("page").contentDocument;
document.body.textContent = "width " + page.documentElement.scrollWidth; }}</script>"""


def measured_width(page: str, folder: Path, width: int) -> int:
    """Returns how wide a page becomes in a window of this width, in pixels."""
    path = folder / "measure.html"
    path.write_text(MEASURE.format(width=width, page=escape(page)), encoding="utf-8")
    words = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--virtual-time-budget=5000",
        "--dump-dom",
        path.as_uri(),
    ]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    match = re.search(r"width (\d+)", found)
    assert match is not None, found
    return int(match[1])


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian and Ubuntu: apt install chromium)")
def test_nothing_reaches_over_the_edge_of_a_phone(tmp_path: Path) -> None:
    wide = "<!doctype html><body style='margin:0'><div style='width:777px'>x</div>"
    assert measured_width(wide, tmp_path, PHONE) == 777
    rows: list[dict[str, Any]] = [{**row, f"train/{LONG}": 1e-12} for row in PPO_ROWS]
    folder = make_run(tmp_path / "run", rows, {**SUMMARY, LONG: LONG}, [sample(LONG, LONG, "x" * 900)])
    finding = {"step": 3, "name": "kl_negative", "message": LONG, "severity": "warn"}
    (folder / "findings.jsonl").write_text(json.dumps(finding) + "\n")
    page = write_report(folder, DEFAULTS).read_text(encoding="utf-8")
    assert measured_width(page, tmp_path, PHONE) <= PHONE
