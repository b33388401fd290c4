"""Which scripts of Unicode a text is written in, by its letters."""

from __future__ import annotations

from functools import cache

import numpy
import regex
from numpy.typing import NDArray

from onebase.quality.options import SCRIPTS

_LAST = 0x323AF
"""The last Han character; nothing above it is counted as a letter."""


def letters_by_script(text: str) -> dict[str, int]:
    """How many letters a text has in each script, most first; scripts without any are left out."""
    codes = numpy.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    counts = numpy.bincount(_table()[numpy.minimum(codes, _LAST + 1)], minlength=len(SCRIPTS) + 2)[1:]
    found = {name: int(count) for name, count in zip((*SCRIPTS, "Other"), counts, strict=True) if count}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def main_script(text: str) -> str:
    """The script of most of a text's letters; `Japanese` and `Korean` where kana or Hangul stand beside Han; `none`
    for a text without letters."""
    found = letters_by_script(text)
    letters = sum(found.values())
    if not letters:
        return "none"
    kana = found.get("Hiragana", 0) + found.get("Katakana", 0)
    if kana + found.get("Han", 0) > letters / 2 and kana > letters / 20:
        return "Japanese"
    if found.get("Hangul", 0) + found.get("Han", 0) > letters / 2 and found.get("Hangul", 0) > letters / 20:
        return "Korean"
    return next(iter(found))


@cache
def _table() -> NDArray[numpy.uint8]:
    """For each code point the number of its script from 1 on, one more for other letters, 0 for what is no letter."""
    every = "".join(map(chr, [*range(0xD800), *range(0xE000, _LAST + 1)]))
    table = numpy.zeros(_LAST + 2, numpy.uint8)

    def mark(pattern: str, number: int) -> None:
        found = "".join(regex.findall(pattern, every))
        table[numpy.frombuffer(found.encode("utf-32-le"), dtype="<u4")] = number

    mark(r"\p{L}", len(SCRIPTS) + 1)
    for number, script in enumerate(SCRIPTS, start=1):
        mark(rf"(?=\p{{L}})\p{{Script={script}}}", number)
    return table
