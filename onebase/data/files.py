"""From a path to its text and its JSON objects, each with its place.

Read are `.json`, `.jsonl` and `.txt`, each also gzipped as `.gz`, in UTF-8 with or without a byte order mark.
Nothing here knows what the keys of an object mean: that is `formats`.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onebase.data.json_text import described, listed, parse
from onebase.errors import DataError
from onebase.shown import shown

SUFFIXES = (".json", ".jsonl", ".txt")

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n")
"""A line that is empty or holds blanks only."""


def suffix_of(path: Path) -> str:
    """`.json`, `.jsonl` or `.txt`, whether or not `.gz` follows; DataError for another one."""
    name = path.name.lower().removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise DataError(
        f"{shown(path)}: this kind of file is not read; give one ending in .json, .jsonl or .txt, each may be .gz"
    )


def check_file(path: str | Path) -> None:
    """Raises DataError unless the path is a file of a kind that is read. A pipe or a device is none: reading it may
    wait for ever."""
    # os.path and not the methods of Path, which raise for a name too long to be one, or with a zero byte.
    path, name = Path(path), shown(path)
    try:
        if os.path.isdir(path):
            found = sorted(p.name for p in path.iterdir() if p.name.lower().removesuffix(".gz").endswith(SUFFIXES))
            first = shown(found[0], 80) if found else "data.jsonl"
            raise DataError(f"{name} is a folder; name a file in it, such as {first}")
        suffix_of(path)
        if not os.path.exists(path):
            raise DataError(f"{name} does not exist{_nearest(path)}")
        if not os.path.isfile(path):
            raise DataError(f"{name} is a pipe, socket or device; write its content to a file and give that")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}; check the disk and the permissions") from None


def file_id(path: str | Path) -> tuple[int, int]:
    """The same number for every name of a file."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def read_text(path: Path) -> str:
    """The whole file, unpacked and decoded, line ends as `\\n`. Raises DataError where that cannot be done."""
    check_file(path)
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
            objects.append((number, _object(parse(line, f"{path}:{number}"), f"{path}:{number}")))
    return objects


def json_list(path: Path, text: str) -> list[tuple[int, dict[str, Any]]] | dict[str, Any]:
    """The objects of a `.json` file, numbered from 1: its list, or the one list in its object.

    An object of the SQuAD layout, whose rows lie three levels deep, is returned as it is.
    """
    whole = parse(text, str(path))
    if isinstance(whole, dict):
        if _is_squad(whole):
            return whole
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{path} holds one object with the keys {listed(whole)}, and {len(lists)} of them are lists; "
                "give a list of objects, or an object with one list"
            )
        whole = whole[lists[0]]
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {described(whole)}; a list of objects is needed")
    if not whole:
        raise DataError(f"{path} holds an empty list; give a file that holds at least one row")
    return [(number, _object(value, f"{path}:{number}")) for number, value in enumerate(whole, start=1)]


def paragraphs(text: str) -> list[str]:
    """The texts of a `.txt` file, which empty lines separate; blanks around each are dropped."""
    return [part.strip() for part in _PARAGRAPH_END.split(text) if part.strip()]


def _is_squad(whole: dict[str, Any]) -> bool:
    data = whole.get("data")
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        hint = "; one JSON list for the whole file belongs in a file named .json" if isinstance(value, list) else ""
        raise DataError(f"{place}: the row is {described(value)}, an object with keys is needed{hint}")
    return value


def _nearest(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f", nor does its folder {folder}; check the path"
    near = get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    if near:
        return f"; did you mean {shown(near[0], 80)}?"
    return f"; check the path (nothing in {folder} has a name like it)"
