"""Writes bench/results.json as tables and pictures between marks in docs/performance.md, and leaves the rest.

usage: python -m bench.report [--results FILE] [--page FILE]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from bench import figures, tables
from bench.ratios import shown
from bench.results import RESULTS, read_results
from bench.side import ROOT
from onebase.files import write_atomically

PAGE = ROOT / "docs" / "performance.md"
MARKS = ("<!-- measured -->", "<!-- end of measured -->")
SERVING_MARKS = ("<!-- serving, measured -->", "<!-- end of serving, measured -->")
NOT_YET = "Not measured yet.\n"


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--results", type=Path, default=RESULTS)
    arguments.add_argument("--page", type=Path, default=PAGE)
    options = arguments.parse_args()
    try:
        write(options.results, options.page)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write(results: Path, page: Path) -> None:
    """Draws the pictures beside the page and puts the tables in it; what has no result of serving keeps its table.

    Raises:
        ValueError: the page does not have both marks, once each and in order.
    """
    measured = read_results(results)
    text = between_marks(page.read_text(encoding="utf-8"), measured_part(measured, page.stem), page.name)
    if served := tables.serving(measured):
        text = between_marks(text, served, page.name, marks=SERVING_MARKS)
    figures.draw_all(measured.get("growth", {}), page.with_suffix(""))
    write_atomically(page, text)


def between_marks(page: str, text: str, name: str, *, marks: tuple[str, str] = MARKS) -> str:
    """Returns the page with `text` in place of what was between two marks.

    Raises:
        ValueError: the page does not have both marks, once each and in order.
    """
    begin, end = marks
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(f"{name}: expected '{begin}' and '{end}' once each, in this order; put them back")
    return f"{page[: page.index(begin)]}{begin}\n\n{text.strip()}\n\n{page[page.index(end) :]}"


def measured_part(results: dict[str, Any], pictures: str) -> str:
    """Returns all tables with their headings; `pictures` is the folder of the curves, relative to the page."""
    sections = {
        "Beside the peers, bf16": tables.comparison(results, "bf16"),
        "Beside the peers, fp32": tables.comparison(results, "fp32"),
        "Memory of the four roles": tables.memory(results),
        "Utilisation": tables.utilisation(results),
        "Decoding and its limits": tables.decoding(results),
        "Decoding's share of a GRPO step": tables.decoding_within(results),
        "Where a PPO batch spends its time": tables.phases(results),
        "Adapters on upper layers only": tables.layers(results),
        "How cost grows": growth(results.get("growth", {}), pictures),
    }
    found = [f"## {title}\n\n{body or NOT_YET}" for title, body in sections.items()]
    return "\n".join([when(results), tables.targets(results), *found])


def when(results: dict[str, Any]) -> str:
    """The machines and dates of the measurements, a line for each that differs; all but the first say what of."""
    entries = {
        f"{entry} ({name})" if name != "rows" else entry: value
        for name in ("rows", "memory", "utilisation", "growth")
        for entry, value in results.get(name, {}).items()
    }
    entries |= {name: results[name] for name in ("phases", "layers") if name in results}
    names: dict[str, list[str]] = {}
    for name, entry in entries.items():
        names.setdefault(tables.machine_line(entry), []).append(name)
    first, *others = sorted(names, key=lambda line: (-len(names[line]), line)) or [""]
    said = [first, *(f"{line}: {', '.join(names[line])}" for line in others)]
    return "\n".join(f"{line}.\n" for line in said if line)


def growth(curves: dict[str, Any], pictures: str) -> str:
    """Each picture, under a line on its first and last point."""
    lines = []
    for name, curve in curves.items():
        lines += [f"{ends(curve, curve['series'], 'seconds')}\n", f"![{figures.TITLES[name]}]({pictures}/{name}.png)\n"]
        if "memory" in curve:
            lines += [
                f"{ends(curve, curve['memory'], 'peak memory')}\n",
                f"![{figures.MEMORY_TITLES[name]}]({pictures}/{name}_memory.png)\n",
            ]
    return "\n".join(lines)


def ends(curve: dict[str, Any], series: dict[str, list[float]], what: str) -> str:
    """The ratio of the last point to the first, in words."""
    x = curve["x"]
    times = "; ".join(f"{f'{label} ' if label else ''}{shown(y[-1] / y[0])}x" for label, y in series.items())
    return f"From {x[0]:,g} to {x[-1]:,g} {curve['xlabel']} ({shown(x[-1] / x[0])}x): {what} {times}."


if __name__ == "__main__":
    sys.exit(main())
