"""stdin, stdout and stderr of the command: open, able to show any text, and with a word at once."""

from __future__ import annotations

import io
import os
import sys

from onebase.shown import shown


def say_first(text: str) -> None:
    """A line at once: importing torch and loading a model may take a while."""
    if os.environ.get("RANK", "0") == "0":
        print(shown(text), file=sys.stderr, flush=True)


def open_streams() -> None:
    """Has stdin, stdout and stderr open, and able to show any text.

    Where one is closed (`>&-`), the next file opened would take its number, and be written to by whatever prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, which is this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows ASCII alone shows Chinese as escapes
            stream.reconfigure(errors="backslashreplace")
