"""Text that was decoded wrongly: replacement characters, control characters, and mojibake."""

from __future__ import annotations

import re

_CONTROLS = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
"""Controls other than tab, line feed, form feed and carriage return, and two code points that are no characters."""

_UNDEFINED = (0x81, 0x8D, 0x8F, 0x90, 0x9D)
"""Bytes without a character in Windows' western code page; they come out as controls, and are found as such."""
_WESTERN = {bytes([byte]).decode("cp1252"): byte for byte in range(0x80, 0x100) if byte not in _UNDEFINED}
_WESTERN_RUN = re.compile("[" + "".join(map(re.escape, _WESTERN)) + "]{2,}")
_UTF8 = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe1-\xef][\x80-\xbf]{2}|\xe0[\xa4-\xbf][\x80-\xbf]|\xf0[\x90-\xbf][\x80-\xbf]{2}"
)
_PUNCTUATION = frozenset("\xa0«»‹›‘’‚“”„…–—•".encode("cp1252"))
"""What may follow an accented letter in good text (`café »`), and would pass for the rest of a character."""

_OUTSIDE_ASCII = re.compile(r"[^\x00-\x7f]{4,}")
_CHINESE_UTF8 = re.compile(rb"[\xe3-\xe9\xef][\x80-\xbf]{2}")
_LOST = re.compile("锟斤拷|烫烫烫|屯屯屯")
"""U+FFFD in UTF-8, read as GBK; and memory that was never written, as Windows' debuggers fill it."""


def what_is_broken(text: str) -> tuple[str, str] | None:
    """What is wrong with a text's encoding, and the characters around the place; None if nothing is.

    Two kinds of mojibake are found: UTF-8 read as Latin-1 or Windows-1252 (`é` as `Ã©`), and UTF-8 Chinese read as GBK.
    What could be a single character of two bytes is not enough, as it may be two letters; two of them are.
    """
    if (at := text.find("\ufffd")) >= 0:
        return "a replacement character (U+FFFD)", _around(text, at)
    if found := _CONTROLS.search(text):
        return f"a control character (U+{ord(found[0]):04X})", _around(text, found.start())
    if text.isascii():
        return None
    if found := _LOST.search(text):
        return "bytes that were lost", _around(text, found.start())
    if (at := _utf8_as_western(text)) >= 0:
        return "UTF-8 read as Latin-1 or Windows-1252", _around(text, at)
    if (at := _utf8_as_gbk(text)) >= 0:
        return "UTF-8 read as GBK", _around(text, at)
    return None


def _utf8_as_western(text: str) -> int:
    first = -1
    for run in _WESTERN_RUN.finditer(text):
        for found in _UTF8.findall(bytes(_WESTERN[character] for character in run[0])):
            if _PUNCTUATION.issuperset(found[1:]):
                continue
            if len(found) > 2 or first >= 0:
                return max(first, 0) if len(found) == 2 else run.start()
            first = run.start()
    return -1


def _utf8_as_gbk(text: str) -> int:
    for run in _OUTSIDE_ASCII.finditer(text):
        raw = run[0].encode("gb18030", "ignore")
        found = _CHINESE_UTF8.findall(raw)
        # Three characters of two bytes each fit the pattern of UTF-8 by chance less than once in a million.
        if len(found) >= 3 and 3 * len(found) >= len(raw) - 2:
            return run.start()
    return -1


def _around(text: str, at: int) -> str:
    return text[max(0, at - 10) : at + 20]
