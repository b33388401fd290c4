"""The command's stdin, stdout and stderr: open, able to show any text, and with a first line at once."""

from __future__ import annotations

import io
import os
import sys

from onebase.shown import shown


def say_first(text: str) -> None:
    """Prints a line right away: importing torch and loading a model may take a while."""
    if os.environ.get("RANK", "0") == "0":
        print(shown(text), file=sys.stderr, flush=True)


def open_streams() -> None:
    """Makes sure that stdin, stdout and stderr are open and can show any text.

    If one is closed (`>&-`), the next file opened would take its number, and whatever prints would write to it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII-only terminal shows Chinese as escapes
            stream.reconfigure(errors="backslashreplace")
