"""`bench/results.json`: every part of the benchmark under a key of its own, kept as soon as it is measured."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from bench.machine import describe
from onebase.files import write_atomically

RESULTS = Path(__file__).with_name("results.json")


def read_results(path: Path = RESULTS) -> dict[str, Any]:
    """All that was measured so far; empty where nothing was."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(part: str, measured: Any, path: Path = RESULTS, *, within: str | None = None) -> None:
    """Puts one part in the file, whole or not at all, beside what is there; `within` names a part that has parts."""
    results = read_results(path)
    (results.setdefault(within, {}) if within else results)[part] = measured
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def stamp() -> dict[str, Any]:
    """The date and the machine, for beside a measurement."""
    return {"date": datetime.date.today().isoformat(), **describe()}
