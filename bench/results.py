"""Reads and writes `bench/results.json`, which keeps each measurement under its own key as soon as it is done."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from bench.machine import describe
from onebase.files import write_atomically

RESULTS = Path(__file__).with_name("results.json")


def read_results(path: Path = RESULTS) -> dict[str, Any]:
    """Returns all results so far; {} if there are none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def keep(name: str, measured: Any, path: Path = RESULTS, *, within: str | None = None) -> None:
    """Adds a result to the file atomically; `within` is the key of a group of results."""
    results = read_results(path)
    (results.setdefault(within, {}) if within else results)[name] = measured
    write_atomically(path, json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def stamp() -> dict[str, Any]:
    """Returns the date and the machine, to store with a measurement."""
    return {"date": datetime.date.today().isoformat(), **describe()}
