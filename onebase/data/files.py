"""From a path to its text and its JSON objects, each with its place.

Read are `.json`, `.jsonl` and `.txt`, each also gzipped as `.gz`, in UTF-8 with or without a byte order mark.
Nothing here knows what the keys of an object mean: that is `formats`.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onebase.errors import DataError

SUFFIXES = (".json", ".jsonl", ".txt")

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")
"""A line that is empty or holds blanks only."""


def suffix_of(path: Path) -> str:
    """`.json`, `.jsonl` or `.txt`, whether or not `.gz` follows; DataError for another one."""
    name = path.name.lower().removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise DataError(f"{path}: this kind of file is not read; give one ending in .json, .jsonl or .txt, each may be .gz")


def read_text(path: Path) -> str:
    """The whole file, unpacked and decoded, line ends as `\\n`. Raises DataError where that cannot be done."""
    # os.path and not the methods of Path, which raise for a name too long to be one.
    if os.path.isdir(path):
        found = sorted(p.name for p in path.iterdir() if p.name.lower().removesuffix(".gz").endswith(SUFFIXES))
        raise DataError(f"{path} is a folder; name a file in it, such as {found[0] if found else 'data.jsonl'}")
    suffix_of(path)
    if not os.path.exists(path):
        raise DataError(f"{path} does not exist{_nearest(path)}")
    try:
        packed = path.read_bytes()
        plain = gzip.decompress(packed) if path.name.lower().endswith(".gz") else packed
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}); fetch or pack it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the disk and the permissions") from None
    try:
        text = plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{plain[error.start]:02x}"
        raise DataError(f"{path} is not UTF-8: {byte}; save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path} is empty; give a file that holds at least one row")
    return text.replace("\r\n", "\n")


def json_lines(path: Path, text: str, limit: int | None) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a `.jsonl` file with their line numbers, which count empty lines too."""
    objects: list[tuple[int, dict[str, Any]]] = []
    # Not splitlines: JSON strings may hold U+2028 and other characters it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and len(objects) == limit:
            break
        if line.strip():
            objects.append((number, _object(_parse(line, f"{path}:{number}"), f"{path}:{number}")))
    return objects


def json_list(path: Path, text: str) -> list[tuple[int, dict[str, Any]]] | dict[str, Any]:
    """The objects of a `.json` file, numbered from 1: its list, or the one list in its object.

    An object of the SQuAD layout, whose rows lie three levels deep, is returned as it is.
    """
    whole = _parse(text, str(path))
    if isinstance(whole, dict):
        if _is_squad(whole):
            return whole
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{path} holds one object with the keys {', '.join(whole)}, and {len(lists)} of them are lists; "
                "give a list of objects, or an object with one list"
            )
        whole = whole[lists[0]]
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {shown(whole)}; a list of objects is needed")
    if not whole:
        raise DataError(f"{path} holds an empty list; give a file that holds at least one row")
    return [(number, _object(value, f"{path}:{number}")) for number, value in enumerate(whole, start=1)]


def paragraphs(text: str) -> list[str]:
    """The texts of a `.txt` file, which empty lines separate; blanks around each are dropped."""
    return [part.strip() for part in _PARAGRAPH_END.split(text) if part.strip()]


def shown(value: object) -> str:
    """A value in a message: its JSON type, and the value where it is short."""
    if value is None:
        return "null"
    if isinstance(value, list | dict):
        kind = "list" if isinstance(value, list) else "object"
        return f"{'a' if kind == 'list' else 'an'} {kind}" if value else f"an empty {kind}"
    name = {bool: "boolean", int: "number", float: "number", str: "string"}.get(type(value), type(value).__name__)
    text = json.dumps(value, ensure_ascii=True)
    return f"the {name} {text if len(text) <= 40 else text[:37] + '...'}"


def _is_squad(whole: dict[str, Any]) -> bool:
    data = whole.get("data")
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # Within one line of a .jsonl file the line number is part of the place already.
        where = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        lines = error.msg == "Extra data"
        hint = "one object per line belongs in a file named .jsonl" if lines else "correct the file there"
        raise DataError(f"{place}: invalid JSON at {where}: {error.msg}; {hint}") from None
    except RecursionError:
        raise DataError(f"{place}: JSON nested too deeply; flatten it") from None


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        hint = "; one JSON list for the whole file belongs in a file named .json" if isinstance(value, list) else ""
        raise DataError(f"{place}: the row is {shown(value)}, an object with keys is needed{hint}")
    return value


def _nearest(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f", nor does its folder {folder}; check the path"
    near = get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    return f"; did you mean {near[0]}?" if near else f"; check the path (nothing in {folder} has a name like it)"
