"""Finds data files and opens them: from what a user names to files, and from a file to its unpacked lines.

A name is a file, a folder (every data file in it and below it, in the order of their paths), a pattern such as
`data/*.jsonl`, a folder written by `datasets.save_to_disk`, a dataset on the Hub (`hub.py`), or a database of rankings
(`databases.py`). What lies in a file is read by `containers`.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import hashlib
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

from onebase.errors import DataError, MissingExtraError
from onebase.labels.urls import SUFFIXES as SUFFIXES_OF_DATABASES
from onebase.reading import databases, hub
from onebase.reading.json_text import row_reached
from onebase.shown import shown

SUFFIXES = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "txt",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
}
"""What a suffix says is in the file."""
PACKED = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
LONGEST_FIELD = 3_000_000
"""Characters one text may have: more is hardly one text, and no model reads it."""
_LONGEST_LINE = 64 << 20

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_TABLES = {databases.MAGIC: "database", b"PAR1": "parquet", b"ARROW1": "arrow", b"\xff\xff\xff\xff": "arrow"}
_NOT_DATA = {"readme", "license", "licence", "notice", "changelog", "dataset_info", "dataset_infos", "state"}
"""Files beside the data, which a folder's name does not stand for."""
_DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)


def check_file(name: str | Path) -> None:
    """Raises DataError unless the name stands for files of known types; looks inside only where a suffix tells nothing.

    Pipes and devices are refused, because reading one may block forever.
    """
    for path in expand(name):
        if not databases.is_server(path):
            _check_regular(path)
        if _data_suffix(path) is None and kind_of(path) == "database":
            databases.check(path)


def expand(name: str | Path) -> list[Path]:
    """The files that a name stands for, in a fixed order; at least one.

    Raises:
        DataError: there are none, or the name could stand for several datasets.
    """
    # os.path, because the methods of Path raise for a name that is too long or has a zero byte.
    path = databases.as_path(name)
    if databases.is_server(path):
        return [path]
    try:
        if os.path.isdir(path):
            return _in_folder(path)
        if os.path.lexists(path):
            return [path]
        if glob.has_magic(str(name)):
            found = [Path(found) for found in sorted(glob.glob(str(name), recursive=True)) if not os.path.isdir(found)]
            if not found:
                raise DataError(f"{shown(name)} matches no file; check the pattern")
            return found
    except OSError as error:
        raise _unreadable(path, error) from None
    if hub.is_name(str(name)) and _data_suffix(path) is None:
        return hub.files(str(name))
    raise DataError(f"{shown(name)} does not exist{_nearest(path)}")


def file_id(path: str | Path) -> tuple[int, int]:
    """Identifies a file, whatever name it is given by, or a database on a server."""
    if databases.is_server(Path(path)):
        return databases.server_id(Path(path))
    found = os.stat(path)
    return found.st_dev, found.st_ino


def kind_of(path: Path) -> str:
    """What is in a file: `json`, `jsonl`, `csv`, `tsv`, `txt`, `parquet` or `arrow`; from its suffix, else its content.

    It is `database` for one of rankings, in a file or on a server.

    Raises:
        DataError: neither tells.
    """
    if databases.is_server(path):
        return "database"
    _check_regular(path)
    if path.name.lower().endswith(SUFFIXES_OF_DATABASES):
        return "database"
    with opened(path) as stream:
        head = stream.read(1 << 12)
    for magic, kind in _TABLES.items():
        if head.startswith(magic):
            return kind
    suffix = _data_suffix(path)
    if suffix is not None:
        return SUFFIXES[suffix]
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"{":
        return "jsonl"
    if start == b"[":
        return "json"
    raise DataError(
        f"{shown(path)}: unsupported file type; use {', '.join(SUFFIXES)}, plain or compressed ({', '.join(PACKED)})"
    )


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading, unpacked if it is compressed, whatever its suffix says.

    Raises:
        DataError: inside, when the file cannot be read to its end.
        MissingExtraError: zstd without its package.
    """
    try:
        with open(path, "rb") as raw:
            packing = _packing(raw, path)
            with _unpacked(raw, packing) as stream:
                yield stream
    except _DAMAGED as error:
        raise _damaged(path, packing, error) from None
    except OSError as error:
        if error.errno is None:  # bz2 and Arrow report damage without a system's error number
            raise _damaged(path, packing, error) from None
        raise _unreadable(path, error) from None


def is_packed(path: Path) -> bool:
    """Whether a file is compressed. Raises DataError if it cannot be read."""
    try:
        with open(path, "rb") as raw:
            return _packing(raw, path) is not None
    except OSError as error:
        raise _unreadable(path, error) from None


def content_hash(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a database's rows, in hexadecimal. Raises DataError if it cannot be read."""
    if _data_suffix(path) is None and kind_of(path) == "database":
        return databases.content_hash(path)
    try:
        with open(path, "rb") as raw:
            return hashlib.file_digest(raw, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from None


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a file in UTF-8 with their numbers, without line ends and byte order mark; holds one at a time.

    Raises:
        DataError: the file cannot be read or decoded; the message names the line.
    """
    number = 0
    with naming_the_row(path, lambda: number + (number > 0)), opened(path) as stream:
        # Not splitlines: it also splits at U+2028 and other characters that JSON strings may contain.
        while line := stream.readline(_LONGEST_LINE):
            if len(line) == _LONGEST_LINE:
                raise DataError(f"{path}:{number + 1}: the line is longer than {_LONGEST_LINE >> 20} MB; split it")
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, _decoded(line, f"{path}:{number}").rstrip("\r\n")
    if not number:
        raise DataError(f"{path} is empty; at least one row is needed")


def whole_text(path: Path) -> str:
    """The whole file, unpacked and decoded, with `\\n` line ends.

    Raises:
        DataError: it cannot be read; for a file that is one JSON list, the message names the row.
    """
    parts: list[bytes] = []
    try:
        with opened(path) as stream:
            while part := stream.read1(1 << 20):  # type: ignore[attr-defined]
                parts.append(part)
    except DataError as error:
        row = row_reached(b"".join(parts).decode("utf-8-sig", errors="ignore"))
        raise _with_row(path, row, error) from None
    plain = b"".join(parts).removeprefix(b"\xef\xbb\xbf")
    try:
        text = plain.decode("utf-8")
    except UnicodeDecodeError as error:
        row = row_reached(plain[: error.start].decode("utf-8"))
        raise not_utf8(f"{path}:{row}" if row else str(path), plain, error) from None
    if not text.strip():
        raise DataError(f"{path} is empty; at least one row is needed")
    return text.replace("\r\n", "\n")


def not_utf8(place: str, data: bytes, error: UnicodeDecodeError) -> DataError:
    """The error for bytes that are not UTF-8, with a guess at what they are."""
    guess = ""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        guess = ", as in UTF-16"
    else:
        try:
            data.decode("gb18030")
            guess = "; it may be GBK"
        except UnicodeDecodeError:
            pass
    byte = f"byte {error.start} is 0x{data[error.start]:02x}"
    return DataError(f"{place} is not UTF-8: {byte}{guess}; save it as UTF-8")


def _packing(raw: IO[bytes], path: Path) -> str | None:
    """How an open file is compressed: its first bytes tell, else its suffix."""
    head = raw.read(6)
    raw.seek(0)
    found = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    return found or PACKED.get(path.suffix.lower())


@contextmanager
def _unpacked(raw: IO[bytes], packing: str | None) -> Iterator[IO[bytes]]:
    if packing == "gzip":
        with gzip.open(raw) as stream:
            yield stream  # type: ignore[misc]
    elif packing == "bzip2":
        with bz2.open(raw) as stream:
            yield stream
    elif packing == "xz":
        with lzma.open(raw) as stream:
            yield stream
    elif packing == "zstd":
        zstd = _zstd()
        try:
            with zstd.open(raw) as stream:
                yield stream
        except zstd.ZstdError as error:
            raise EOFError(error) from None
    else:
        yield raw


def _zstd() -> Any:
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError as error:
            raise MissingExtraError('zstd files need backports.zstd: pip install "onebase[data]"') from error
    return zstd


@contextmanager
def naming_the_row(path: Path, row: Callable[[], int]) -> Iterator[None]:
    """Adds the row that was reached to the message of an error in the file itself."""
    try:
        yield
    except DataError as error:
        raise _with_row(path, row(), error) from None


def _with_row(path: Path, row: int, error: DataError) -> DataError:
    text = str(error)
    if row > 0 and text.startswith(f"{path} "):
        return DataError(f"{path}:{row}: the file{text.removeprefix(str(path))}")
    return error


def _decoded(line: bytes, place: str) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(place, line, error) from None


def _data_suffix(path: Path) -> str | None:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def _check_regular(path: Path) -> None:
    try:
        if not os.path.exists(path):
            raise DataError(f"{shown(path)} does not exist{_nearest(path)}")
        if not os.path.isfile(path):
            raise DataError(f"{shown(path)} is a pipe, socket or device; save its content to a file and use that")
    except OSError as error:
        raise _unreadable(path, error) from None


def _in_folder(folder: Path) -> list[Path]:
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = _names(splits, "splits")
        if len(names) == 1:
            return expand(folder / names[0])
        raise DataError(
            f"{shown(folder)} holds the splits {shown(', '.join(names), 200)}; name one of them, such as "
            f"{shown(folder / names[0])}"
        )
    if (folder / "state.json").is_file():
        return [folder / name for name in _names(folder / "state.json", "_data_files", "filename")]
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if _data_suffix(path)
        and path.name.partition(".")[0].lower() not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and not path.is_dir()
    ]
    if not found:
        raise DataError(f"{shown(folder)} is a folder without data files ({', '.join(SUFFIXES)})")
    return found


def _names(path: Path, key: str, inner: str | None = None) -> Sequence[str]:
    """The list of names under a key of a file that `datasets` wrote."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[key]
        names = [str(entry if inner is None else entry[inner]) for entry in found]
    except (OSError, ValueError, KeyError, TypeError):
        names = []
    if not names:
        raise DataError(f"{shown(path)} names no '{key}'; save the dataset again")
    return names


def _damaged(path: Path, packing: str | None, error: Exception) -> DataError:
    kind = packing or "compressed"
    return DataError(f"{path} is not a complete {kind} file ({error}); download or compress it again")


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{shown(path)} cannot be read: {error.strerror}; check the disk and the permissions")


def _nearest(path: Path) -> str:
    folder = path.parent
    if not os.path.isdir(folder):
        return f", nor does its folder {shown(folder)}; check the path"
    near = get_close_matches(path.name, [p.name for p in folder.iterdir()], n=1)
    if near:
        return f"; did you mean {shown(near[0], 80)}?"
    return f"; check the path (nothing in {shown(folder)} has a similar name)"
