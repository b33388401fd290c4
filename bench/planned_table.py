"""Compares measured peaks with those that `onebase plan` predicts, and writes the table into docs/planning.md.

usage: python -m bench.planned_table [--results FILE] [--work FOLDER] [--page FILE] [--show]

The cells' configurations are written and planned anew, so the table is of today's formula. --show prints the comparison
by verb and by number format, and every cell that misses, and leaves the page.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.planned import RESULTS, ROOT, WORK, make_base, read_lines
from bench.planned_cells import FORMATS, LENGTHS, SIZES, VERBS, WAYS, Cell, every_cell, write_cell
from bench.report import between_marks
from onebase.config.files import load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.errors import OnebaseError
from onebase.files import write_atomically
from onebase.plans.plan_memory import plan_memory
from onebase.plans.planned_run import planned_run

PAGE = ROOT / "docs" / "planning.md"
COUNTS_FROM, MOST_OFF, MOST_CELLS_OFF = 1e9, 0.10, 0.05
REASONS = {
    ("iterate", "nf4"): "its base is quantised anew in every round of one process, and leaves gaps (see below)",
}
"""Why cells of a verb and a number format miss, where that is known."""


@dataclass(frozen=True, slots=True)
class Compared:
    """A cell with what was measured and planned; bytes."""

    cell: Cell
    measured: int
    planned: int

    @property
    def error(self) -> float:
        """By how much the plan is too high, as a share of what was measured."""
        return self.planned / self.measured - 1

    @property
    def counts(self) -> bool:
        return self.measured > COUNTS_FROM

    @property
    def misses(self) -> bool:
        return self.counts and abs(self.error) > MOST_OFF


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--results", type=Path, default=RESULTS)
    arguments.add_argument("--work", type=Path, default=WORK, help="folder for bases, roles and cells")
    arguments.add_argument("--page", type=Path, default=PAGE)
    arguments.add_argument("--show", action="store_true")
    options = arguments.parse_args()
    lines = read_lines(options.results)
    compared, refused, failed = compare(lines, options.work.resolve())
    for line in failed:
        print(line, file=sys.stderr)
    if options.show:
        print("\n".join(overview(compared)))
        return 0
    machine: dict[str, Any] = next((line["machine"] for line in reversed(lines) if "machine" in line), {})
    text = page_part(compared, refused, machine)
    write_atomically(options.page, between_marks(options.page.read_text(encoding="utf-8"), text, options.page.name))
    return 1 if failed else 0


def compare(lines: Iterable[dict[str, Any]], work: Path) -> tuple[list[Compared], dict[str, list[Cell]], list[str]]:
    """Returns the compared cells, the refused ones by the words of the refusal, and what went otherwise than it should.

    A cell that was measured several times counts by its median.
    """
    by_cell: dict[Cell, list[dict[str, Any]]] = {}
    for line in lines:
        by_cell.setdefault(Cell(**{key: line[key] for key in Cell.__dataclass_fields__}), []).append(line)
    compared: list[Compared] = []
    refused: dict[str, list[Cell]] = {}
    failed: list[str] = []
    for size in dict.fromkeys(cell.size for cell in by_cell):
        make_base(work, size)
    for cell, measured in by_cell.items():
        told, planned = plan_of(cell.verb, write_cell(cell, work))
        if measured[-1]["refused"]:
            refused.setdefault(reason_of(measured[-1]["said"]), []).append(cell)
            if reason_of(told) != reason_of(measured[-1]["said"]):
                failed.append(f"{cell.name}: the run is refused ({measured[-1]['said']}), the plan says: {told}")
        elif measured[-1]["exit_code"]:
            failed.append(f"{cell.name}: the run ended with {measured[-1]['exit_code']}: {measured[-1]['said']}")
        elif planned is None:
            failed.append(f"{cell.name}: no plan: {told}")
        else:
            compared.append(Compared(cell, round(median(line["peak_bytes"] for line in measured)), planned))
    return compared, refused, failed


def plan_of(verb: str, config: Path) -> tuple[str, int | None]:
    """Returns why `onebase plan` refuses a configuration, empty if it does not, and the peak it predicts, in bytes."""
    try:
        read = load_config(VERB_CONFIGS[verb], config, [])
        return "", round(plan_memory(read, planned_run(read)).peak.size)
    except OnebaseError as error:
        return str(error), None


def reason_of(said: str) -> str:
    """Returns the last line of a refusal, without its file's name."""
    return (said.splitlines() or [""])[-1].split(".yaml: ", 1)[-1].strip()


def within(compared: Sequence[Compared]) -> str:
    """Returns how many of the cells that count are within the bound, in words."""
    counting = [each for each in compared if each.counts]
    good = sum(not each.misses for each in counting)
    return f"{good} of {len(counting)}" + (f" ({good / len(counting):.0%})" if counting else "")


def overview(compared: Sequence[Compared]) -> list[str]:
    """Returns the share within the bound by verb, by format and by way, and the cells that miss."""
    lines = [f"all: {within(compared)} cells above {COUNTS_FROM / 1e9:g} GB within {MOST_OFF:.0%}"]
    for part, values in (("verb", VERBS), ("number_format", FORMATS), ("way", WAYS), ("size", SIZES)):
        for value in values:
            some = [each for each in compared if getattr(each.cell, part) == value]
            if some:
                errors = sorted(each.error for each in some)
                spread = f"{errors[0]:+.0%} .. {median(errors):+.0%} .. {errors[-1]:+.0%}"
                lines.append(f"  {value}: {within(some)}, errors {spread}")
    lines += [
        f"  {'off ' if each.misses else '    '}{each.cell.name}: {each.planned / 1e6:,.0f} planned, "
        f"{each.measured / 1e6:,.0f} MB measured, {each.error:+.1%}"
        for each in sorted(compared, key=lambda each: -abs(each.error))
    ]
    return lines


def page_part(compared: Sequence[Compared], refused: dict[str, list[Cell]], machine: dict[str, Any]) -> str:
    """Returns the part of the page: how it was measured, the shares, the table, what misses and what is refused."""
    errors = [abs(each.error) for each in compared if each.counts]
    not_possible_count = sum(map(len, refused.values()))
    lines = [
        f"Measured on {machine.get('processor', 'this machine')}, {machine.get('memory_gib', '?')} GiB, torch "
        f"{machine.get('torch', '?')}, {machine.get('date', '')} by `python -m bench.planned`: {len(compared)} of the "
        f"{len(every_cell()) - not_possible_count} combinations that are possible, {len(errors)} of them above "
        f"{COUNTS_FROM / 1e9:g} GB. "
        f"**{within(compared)} of these are within {MOST_OFF:.0%}**"
        + (f"; half of them within {median(errors):.1%}." if errors else "."),
        "",
        *shares(compared),
        "",
        *table(compared),
        "",
        *missing(compared),
        *not_possible(refused),
    ]
    return "\n".join(lines)


def shares(compared: Sequence[Compared]) -> list[str]:
    """Returns a small table: the share within the bound by verb and number format."""
    lines = [f"| within {MOST_OFF:.0%} | {' | '.join(FORMATS)} |", "| --- |" + " --- |" * len(FORMATS)]
    for verb in VERBS:
        cells = [
            within([each for each in compared if (each.cell.verb, each.cell.number_format) == (verb, number_format)])
            for number_format in FORMATS
        ]
        lines.append(f"| {verb} | " + " | ".join("" if cell == "0 of 0" else cell for cell in cells) + " |")
    return lines


def table(compared: Sequence[Compared]) -> list[str]:
    """Returns the table of all cells: a row per verb, format and way, a column per size and length."""
    found = {each.cell: each for each in compared}
    columns = [(size, length) for size in SIZES for length in LENGTHS]
    lines = [
        "MB predicted / measured (error); those below 1 GB in italics, misses in bold.",
        "",
        "| run | " + " | ".join(f"{size}, {length}" for size, length in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    for verb in VERBS:
        for number_format in FORMATS:
            for way in WAYS:
                row = [found.get(Cell(verb, number_format, way, size, length)) for size, length in columns]
                if any(row):
                    shown = " | ".join(map(entry, row))
                    lines.append(f"| {verb}, {number_format}, {way} | {shown} |")
    return lines


def entry(compared: Compared | None) -> str:
    """Returns one cell of the table; empty if it was not measured."""
    if compared is None:
        return ""
    text = f"{compared.planned / 1e6:,.0f} / {compared.measured / 1e6:,.0f} ({compared.error:+.0%})"
    return f"**{text}**" if compared.misses else text if compared.counts else f"*{text}*"


def missing(compared: Sequence[Compared]) -> list[str]:
    """Returns the cells that miss, each with its reason."""
    lines = [
        f"- {each.cell.verb}, {each.cell.number_format}, {each.cell.way}, {each.cell.size}, {each.cell.length} "
        f"({each.error:+.0%}): {REASONS.get((each.cell.verb, each.cell.number_format), 'not explained yet')}"
        for each in compared
        if each.misses
    ]
    return ["Misses:", "", *lines, ""] if lines else []


def not_possible(refused: dict[str, list[Cell]]) -> list[str]:
    """Returns the combinations that a run refuses, with its words; `onebase plan` refuses them in the same words."""
    lines = []
    for words, cells in refused.items():
        kinds = dict.fromkeys(f"{cell.verb} {cell.number_format} {cell.way}" for cell in cells)
        lines.append(f"- {', '.join(kinds)}: {words}")
    return ["Not possible, and refused by the run and by the plan in the same words:", "", *lines] if lines else []


if __name__ == "__main__":
    sys.exit(main())
