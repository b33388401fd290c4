"""Prints tables to stdout: fitted to a terminal, unwrapped for a program that reads them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from onebase.shown import shown


def print_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    """Prints lines of texts under a bold head."""
    table = Table(*map(shown, head), box=None, pad_edge=False, header_style="bold")
    for line in lines:
        table.add_row(*map(shown, line))
    width = None if sys.stdout.isatty() else 1000  # a program that reads this wants unwrapped lines
    Console(file=sys.stdout, highlight=False, emoji=False, markup=False, width=width).print(table)
