"""The table and the samples that a run prints at its end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onebase import processes
from onebase.evaluation.held_out import HeldOut, improvement
from onebase.evaluation.pass_rates import Rates
from onebase.files import write_atomically
from onebase.reporting.intervals import Interval
from onebase.reporting.panels import TITLES
from onebase.shown import number_of, shown

NUM_SAMPLES = 5
WIDTH = 120
"""Characters, where there is no terminal that says how many."""


def print_comparison(roles: Sequence[HeldOut], *, names: Sequence[str]) -> None:
    """Prints a row per role with 95 % intervals, the paired difference of last and first, and samples."""
    console = result_console()
    console.print(figures_table(roles, names=names), markup=False)  # [nan, nan] is not a style
    console.print(rise_line("score", improvement(roles[0], roles[-1]), names[0], names[-1]), markup=False)
    print_samples(console, roles, names)


def result_console(width: int = WIDTH) -> Console:
    """A console on stdout, wide enough for the tables if that is no terminal; on stderr if stdout is closed."""
    closed = sys.stdout.closed
    return Console(
        file=sys.stderr if closed else sys.stdout,
        quiet=not processes.is_main(),
        highlight=False,
        emoji=False,
        width=None if not closed and sys.stdout.isatty() else width,
    )


def figures_table(roles: Sequence[HeldOut], *, names: Sequence[str]) -> Table:
    """A row per role: means over the held-out prompts, with their intervals."""
    table = Table(
        title=f"{number_of(len(roles[0].scores), 'held-out prompt')}, means with 95 % intervals", title_justify="left"
    )
    figures = [role.row() for role in roles]
    table.add_column("")
    for key in figures[0]:
        table.add_column(TITLES.get(key, key), justify="right")
    table.add_column("ended", justify="right")
    for name, role, row in zip(names, roles, figures, strict=True):
        cells = [value.text(2, between="\n") for value in row.values()]
        table.add_row(name, *cells, f"{role.ended:.0%}")
    return table


def print_rates(groups: Mapping[str, Rates], *, samples_per_prompt: int) -> None:
    """Prints a row per group of prompts: pass@k and maj@k in percent, with their intervals."""
    title = f"{number_of(samples_per_prompt, 'sample')} per prompt; percent right, with 95 % intervals"
    table = Table(title=title, title_justify="left")
    names = list(dict.fromkeys(name for rates in groups.values() for name in rates.figures()))
    for heading in ("", "prompts", *names, "ended", "not checked"):
        table.add_column(heading, justify="right" if heading else "left")
    for group, rates in groups.items():
        figures = rates.figures()
        cells = [figures[name].times(100).text(1, between="\n") for name in names]
        row = [shown(group, 40), str(rates.num_prompts), *cells, f"{rates.ended:.0%}", str(rates.failed)]
        table.add_row(*map(Text, row))  # [0.0, 1.2] is not a style
    result_console(width=max(WIDTH, 80 + 16 * len(names))).print(table)


def rise_line(what: str, rise: Interval, before: str, after: str) -> str:
    """The paired difference in words."""
    verdict = "above 0" if rise.low > 0 else "below 0" if rise.high < 0 else "includes 0"
    return f"{what}, {after} minus {before} on the same prompts: {rise} (95 %, paired bootstrap: {verdict})"


def print_samples(console: Console, roles: Sequence[HeldOut], names: Sequence[str]) -> None:
    """Prints the first prompts with each role's answer, and its score below."""
    table = Table(title="samples: the first held-out prompts", title_justify="left", show_lines=True)
    table.add_column("prompt", overflow="fold", ratio=2)
    for name in names:
        table.add_column(name, overflow="fold", ratio=3)
    for i in range(min(NUM_SAMPLES, len(roles[0].prompts))):
        texts = [shown(role.completions[i].strip(), lines=True) for role in roles]
        answers = [f"{text}\n({role.first_scores[i]:.3f})" for text, role in zip(texts, roles, strict=True)]
        table.add_row(_shortened(roles[0].prompts[i]), *answers)
    console.print(table, markup=False)


def write_samples(path: Path, roles: Sequence[HeldOut], *, names: Sequence[str]) -> None:
    """Writes a JSON line per held-out prompt: the prompt, and each role's first completion with its score."""
    lines = []
    for i, prompt in enumerate(roles[0].prompts):
        named = zip(names, roles, strict=True)
        answers = {name: {"completion": r.completions[i], "score": r.first_scores[i]} for name, r in named}
        lines.append(json.dumps({"prompt": prompt, **answers}, ensure_ascii=False))
    write_atomically(path, "\n".join(lines) + "\n")


def _shortened(text: str, most: int = 160) -> str:
    text = text.strip()
    return shown(text if len(text) <= most else "… " + text[-most:], lines=True)
