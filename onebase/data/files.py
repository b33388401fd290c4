"""Reads files: from a path to its text and its JSON objects, each with its place.

Supported: `.json`, `.jsonl` and `.txt`, optionally gzipped (`.gz`), in UTF-8 with or without a byte order mark.
What the keys of an object mean is left to `formats`.
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
"""An empty or blank line."""


def suffix_of(path: Path) -> str:
    """`.json`, `.jsonl` or `.txt`, ignoring `.gz`. Raises DataError for anything else."""
    name = path.name.lower().removesuffix(".gz")
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise DataError(f"{shown(path)}: unsupported file type; use .json, .jsonl or .txt, optionally gzipped (.gz)")


def check_file(path: str | Path) -> None:
    """Raises DataError unless the path is a regular file of a supported type: reading a pipe or a device may block
    forever."""
    # os.path, because the methods of Path raise for a name that is too long or has a zero byte.
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
            raise DataError(f"{name} is a pipe, socket or device; save its content to a file and use that")
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}; check the disk and the permissions") from None


def file_id(path: str | Path) -> tuple[int, int]:
    """Identifies a file, whatever name it is given by."""
    found = os.stat(path)
    return found.st_dev, found.st_ino


def read_text(path: Path) -> str:
    """The whole file, decompressed and decoded, with `\\n` line ends. Raises DataError if it cannot be read."""
    check_file(path)
    try:
        packed = path.read_bytes()
        plain = gzip.decompress(packed) if path.name.lower().endswith(".gz") else packed
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a complete gzip file ({error}); download or compress it again") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; check the disk and the permissions") from None
    try:
        text = plain.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{plain[error.start]:02x}"
        raise DataError(f"{path} is not UTF-8: {byte}; save it as UTF-8") from None
    if not text.strip():
        raise DataError(f"{path} is empty; at least one row is needed")
    return text.replace("\r\n", "\n")


def json_lines(path: Path, text: str, limit: int | None) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a `.jsonl` file with their line numbers; empty lines count."""
    objects: list[tuple[int, dict[str, Any]]] = []
    # Not splitlines: it also splits at U+2028 and other characters that JSON strings may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if limit is not None and len(objects) == limit:
            break
        if line.strip():
            objects.append((number, _object(parse(line, f"{path}:{number}"), f"{path}:{number}")))
    return objects


def json_list(path: Path, text: str) -> list[tuple[int, dict[str, Any]]] | dict[str, Any]:
    """The objects of a `.json` file, numbered from 1: its list, or the only list in its object.

    A SQuAD file is returned as it is: its rows lie three levels deep.
    """
    whole = parse(text, str(path))
    if isinstance(whole, dict):
        if _is_squad(whole):
            return whole
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{path} holds one object with the keys {listed(whole)}, and {len(lists)} of them hold lists; "
                "expected a list of objects, or an object with exactly one list"
            )
        whole = whole[lists[0]]
    if not isinstance(whole, list):
        raise DataError(f"{path} holds {described(whole)}; expected a list of objects")
    if not whole:
        raise DataError(f"{path} holds an empty list; at least one row is needed")
    return [(number, _object(value, f"{path}:{number}")) for number, value in enumerate(whole, start=1)]


def paragraphs(text: str) -> list[str]:
    """The texts of a `.txt` file, separated by empty lines and stripped."""
    return [part.strip() for part in _PARAGRAPH_END.split(text) if part.strip()]


def _is_squad(whole: dict[str, Any]) -> bool:
    data = whole.get("data")
    return isinstance(data, list) and bool(data) and isinstance(data[0], dict) and "paragraphs" in data[0]


def _object(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        hint = "; a file that is one JSON list has to be named .json" if isinstance(value, list) else ""
        raise DataError(f"{place}: the row is {described(value)}; expected an object{hint}")
    return value


def _nearest(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f", nor does its folder {folder}; check the path"
    near = get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    if near:
        return f"; did you mean {shown(near[0], 80)}?"
    return f"; check the path (nothing in {folder} has a similar name)"
