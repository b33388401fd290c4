"""Reads numbers as people write them, exactly: 1,234.5, 3/4, 1 1/2, 1.2e3, $5, 50%, 5 million, \\frac{3}{4}."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

from onebase.verifiers.extract import plain

MOST_DIGITS = 1000
"""A number with more digits, or a higher power, is not read as one: comparing it would take long."""
MAGNITUDES = {
    "hundred": 10**2,
    "thousand": 10**3,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
}
CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yuan"}
_SIZES: dict[str, dict[str, str | int]] = {
    "length": {
        "mm millimeter millimetre 毫米": "1/1000",
        "cm centimeter centimetre 厘米": "1/100",
        "m meter metre 米": 1,
        "km kilometer kilometre 公里 千米": 1000,
        "in inch inches": "0.0254",
        "ft foot feet": "0.3048",
        "yd yard": "0.9144",
        "mi mile": "1609.344",
    },
    "mass": {
        "mg milligram": "1/1000",
        "g gram 克": 1,
        "kg kilogram 公斤 千克": 1000,
        "t ton tonne 吨": 10**6,
        "oz ounce": "28.349523125",
        "lb pound": "453.59237",
    },
    "time": {
        "ms millisecond": "1/1000",
        "s sec second 秒": 1,
        "min minute 分钟": 60,
        "h hr hour 小时": 3600,
        "day 天": 86400,
        "week 周": 604800,
    },
    "volume": {"ml milliliter millilitre 毫升": "1/1000", "l liter litre 升": 1},
    "money": {"cent ¢": "1/100", "dollar $": 1},
    "share": {"% percent 百分": "1/100"},
    "angle": {"° degree 度": 1},
}
UNITS: dict[str, tuple[str, Fraction]] = {
    name: (dimension, Fraction(size))
    for dimension, sizes in _SIZES.items()
    for names, size in sizes.items()
    for name in names.split()
}
"""What a unit measures, and its size in that dimension's first unit."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FRACTION_ARGUMENT = r"\s{0,3}\{\s{0,3}([-+]?[\d.,]{1,99})\s{0,3}\}"
_REWRITTEN = [
    (re.compile(r"(\d)\s{0,3}\\[dt]?frac(?![a-z])"), r"\1 \\frac"),
    (re.compile(rf"\\[dt]?frac{_FRACTION_ARGUMENT}{_FRACTION_ARGUMENT}"), r"\1/\2"),
    (re.compile(r"\\[dt]?frac\s{0,3}(\d)\s{0,3}(\d)"), r"\1/\2"),
    (re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s?\{([^{}]{0,200})\}"), r" \1"),
    (re.compile(r"\\(?:left|right|displaystyle)(?![a-z])|\\[!;: ]"), ""),
    (re.compile(r"(?<=\d)(?:\{,\}|\\,)(?=\d{3})"), ","),
    (re.compile(r"\\,"), " "),
    (re.compile(r"\\(?:times|cdot)(?![a-z])"), "×"),
    (re.compile(r"\\([$%])"), r"\1"),
    (re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![a-z]))"), "°"),
]
_NUMBER = re.compile(
    r"""
    (?P<sign>(?<![A-Za-z0-9_)\]}%.])(?<![0-9)\]}%][ ])[-+](?=[$€£¥]?[ ]?[.\d]))?
    (?:(?P<currency>[$€£¥])[ ]?)?(?P<inner_sign>(?<=[$€£¥])[-+](?=[.\d]))?
    (?<![A-Za-z0-9_^])(?P<number>\d(?:[\d,'_.]*\d)?|\.\d+)
    (?:[eE](?P<exponent>[-+]?\d+)(?!\w))?
    (?:\s?[×x*·]\s?10\s?\^\s?\{?(?P<ten>[-+]?\d+)\}?)?
    (?:\^\{?(?P<power>[-+]?\d+)\}?)?
    (?:[ ](?P<numerator>\d+)\s?/\s?(?P<mixed>\d+)(?![\d.,/]))?
    (?:\s?/\s?(?P<denominator>\d(?:[\d,.]*\d)?))?
    """,
    re.VERBOSE,
)
_UNIT = re.compile(r"[ -]?(?P<unit>%|¢|°\s?[CF]?|[^\W\d_]+(?:(?:/|\^|·)\w+|\d)?)")
_POINT_GROUPS = re.compile(r"\d{1,3}(?:\.\d{3}){2,}")
_COMMA_GROUPS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d{0,2}(?:,\d{2})+,\d{3}")
_COMMAND = (
    r"\\(?!(?:q?quad|text[a-z]*|math[a-z]+|mbox|boxed|fbox|left|right|big[a-z]*|approx|therefore|implies|to|degree"
    r"|[a-zA-Z]*arrow|color|underline|end)(?![a-zA-Z]))[a-zA-Z]+"
)
_NUMBER_STARTS = r"[-+]?[$€£¥]?\s?\.?\d"
_LEADING_ON = re.compile(
    rf"""
    \.?{_COMMAND}
    | [\s)\]}}$]{{0,9}}(?:
        [+×÷·±√π<>≤≥] | {_COMMAND} | \^(?!\{{?(?:th|st|nd|rd))
        | (?:\*{{1,2}}|[-–/x:~;、]|(?:and|to|plus|minus|times|over|divided\ by)\s|或者?|和|至|到|,(?:\s?and\s)?|\\\\)\s?
          (?:[({{\[]{{0,3}}{_NUMBER_STARTS}|{_COMMAND}|(?:a\s)?half\b|(?:sqrt|pi|[nkxyz])(?![a-zA-Z'’]))
        | ,?\s?or\b | (?:sqrt|pi)\b
    )
    | [eiknxyz](?![\w'’]) | [)\]}}$]{{0,3}}\([\d\\nkxyz]
    | \s{{1,9}}{_NUMBER_STARTS}
    """,
    re.VERBOSE,
)
"""What stands behind a number that is a part of something else: an expression, a list, a range."""
_LEADING_TO = re.compile(
    rf"""
    (?:
        [√π±≤≥^] | (?<!\S)[<>] | [\w)\]}}][ ]?[+×÷·/] | (?:(?<![a-zA-Z])[a-zA-Z]|[)\]}}])[ ]?[-*]
        | {_COMMAND} | \\(?:[dt]?frac|begin)\S{{0,60}} | (?<![a-zA-Z])(?:sqrt|pi|or|log|ln|sin|cos|tan)
    )
    [\s(\[{{}}$]{{0,9}}\Z
    """,
    re.VERBOSE,
)
"""The same before a number."""
_SEVERAL = re.compile(r"=[^=\n]{1,60}?(?:[,;]|\b(?:or|and)\b|或)\s?(?:[a-zA-Z]\w?)?\s?=")
"""x = 1 or x = 2."""
_PREPOSITION = re.compile(
    r"[ -]?(?:for|in|on|at|of|from|after|before|by|with|because|since|when|if|as|per|every)\b", re.I
)
"""Read as a unit, but a number behind one is of something else: 12 for 3 days."""


class Quantity(NamedTuple):
    """A number in a text, and what stands behind it."""

    value: Fraction
    unit: str | None
    """In the singular and small letters, `dollar` for $; None if no word stands behind the number."""
    start: int
    end: int
    """Where the number stands, without its unit."""
    unit_end: int
    """Where the unit ends too."""


def plain_numbers(text: str) -> str:
    """The text with every writing of digits, signs and fractions as in ASCII, and LaTeX's commands around them gone."""
    if not text.isascii():
        text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)  # 1½ would become 11/2
        text = re.sub("[⁰¹²³⁴-⁹⁻]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text)
        text = re.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", ",", text)  # narrow spaces between groups
        text = plain(text).translate({0x2212: "-", 0x2044: "/", 0x066B: ".", 0x066C: ",", 0x2019: "'"})
        text = re.sub(r"(?![0-9])\d", lambda found: str(unicodedata.decimal(found[0])), text)
    for pattern, replacement in _REWRITTEN if "\\" in text or "{" in text else ():
        text = pattern.sub(replacement, text)
    return text


def numbers_in(text: str, start: int = 0, end: int | None = None) -> Iterator[re.Match[str]]:
    """Everything between `start` and `end` of a plain text that may be a number, for `read`."""
    return _NUMBER.finditer(text, start, len(text) if end is None else end)


def read(found: re.Match[str]) -> Quantity | None:
    """The number that was found; None if it is none (1/0, or too large to compare)."""
    value = _value(found)
    if value is None or max(value.numerator.bit_length(), value.denominator.bit_length()) > 4 * MOST_DIGITS:
        return None
    text, end = found.string, found.end()
    behind = _UNIT.match(text, end, found.endpos)
    if behind and behind["unit"].lower() in MAGNITUDES:
        value *= MAGNITUDES[behind["unit"].lower()]
        end = behind.end()
        behind = _UNIT.match(text, end, found.endpos)
    closed = text[end : end + 1] == "$"  # $5$ is LaTeX's way to write 5
    currency = found["currency"] if not closed else None
    unit = singular(behind["unit"]) if behind else CURRENCIES.get(currency or "")
    if currency and (unit is None or unit not in UNITS or UNITS[unit][0] != "money"):
        unit = CURRENCIES[currency]
    return Quantity(
        value, unit, found.start() + (1 if closed and found["currency"] else 0), end, behind.end() if behind else end
    )


def several(text: str, start: int, end: int) -> bool:
    """Whether a part of a plain text gives several values: `x = 1 or x = 2`."""
    return _SEVERAL.search(text, start, end) is not None


def stands_alone(text: str, found: Quantity, start: int, end: int) -> bool:
    """Whether a number in a part of a plain text is its value: so in `12 apples`, but not in `12 + 3`, `12 or 13`."""
    if _LEADING_TO.search(text[max(start, found.start - 80) : found.start]):
        return False
    behind = _LEADING_ON.match(text, found.end, end)
    if behind is None and found.unit_end > found.end and not _PREPOSITION.match(text, found.end, end):
        behind = _LEADING_ON.match(text, found.unit_end, end)
    return behind is None


def singular(unit: str) -> str:
    """A unit as the table of units has it: in small letters, without the s of the plural."""
    small = "".join(unit.lower().split())
    return small[:-1] if small not in UNITS and len(small) > 2 and small.endswith("s") else small


def written(value: Fraction) -> str:
    """The number as a decimal where that is exact and short, else as a fraction; equal numbers are equal texts."""
    if value.denominator == 1:
        return str(value.numerator)
    for places in range(1, 31):
        scaled = value * 10**places
        if scaled.denominator == 1:
            digits = str(abs(scaled.numerator)).rjust(places + 1, "0")
            return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"
    return f"{value.numerator}/{value.denominator}"


def _value(found: re.Match[str]) -> Fraction | None:
    value = _decimal(found["number"])
    for name in ("exponent", "ten"):
        if value is not None and found[name]:
            power = _power(found[name])
            value = None if power is None else value * Fraction(10) ** power
    if value is not None and found["power"]:
        power = _power(found["power"])
        small = power is not None and abs(power) * len(found["number"]) <= MOST_DIGITS
        value = value**power if power is not None and small and (value or power > 0) else None
    if value is not None and found["mixed"]:
        part = _ratio(found["numerator"], found["mixed"])
        value = None if part is None else value + part
    if value is not None and found["denominator"]:
        below = _decimal(found["denominator"])
        value = value / below if below else None
    return -value if value is not None and "-" in (found["sign"], found["inner_sign"]) else value


def _ratio(above: str, below: str) -> Fraction | None:
    top, bottom = _decimal(above), _decimal(below)
    return None if top is None or not bottom else top / bottom


def _power(text: str) -> int | None:
    return int(text) if len(text) <= 5 and abs(int(text)) <= MOST_DIGITS else None


def _decimal(text: str) -> Fraction | None:
    """Digits with separators: comma or point, whichever groups by three; the last other one is the decimal point."""
    if len(text) > MOST_DIGITS:
        return None
    digits = text.replace("'", "").replace("_", "")
    whole, point, places = digits.partition(".")
    if _POINT_GROUPS.fullmatch(digits):
        digits = digits.replace(".", "")
    elif _COMMA_GROUPS.fullmatch(whole) and "," not in places:
        digits = whole.replace(",", "") + point + places
    elif "," in digits and re.fullmatch(r"\d{1,3}(?:\.\d{3})*", digits.partition(",")[0]) and digits.count(",") == 1:
        digits = digits.replace(".", "").replace(",", ".")  # 3,5 and 1.234,5
    return Fraction(digits) if re.fullmatch(r"\d*\.?\d*", digits) and digits.strip(".") else None
