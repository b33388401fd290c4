"""Reads Parquet and Arrow files a batch of rows at a time, as plain objects; needs pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from onebase.errors import DataError, MissingExtraError

_ROWS = 1000
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def rows(path: Path, kind: str, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a `parquet` or `arrow` file, numbered from 1. Columns of bytes are left out, which `notes` then says.

    Raises:
        DataError: the file is damaged; the message names the row that could not be read.
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(f'{kind} files need pyarrow: pip install "onebase[data]"') from error
    number = 0
    try:
        for batch in _parquet(path) if kind == "parquet" else _arrow(path):
            for values in batch.to_pylist():
                number += 1
                yield number, {key: _plain(value, key, notes) for key, value in values.items()}
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}:{number + 1}: not a complete {kind.capitalize()} file ({reason}); download or save it again"
        ) from None
    if not number:
        raise DataError(f"{path} is empty; at least one row is needed")


def _parquet(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=_ROWS)


def _arrow(path: Path) -> Iterator[Any]:
    """Record batches of a file in Arrow's file or stream format (`datasets` writes streams), some rows at a time."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            reader = pyarrow.ipc.open_file(source)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches))
        else:
            # A stream that was cut between two batches reads like a shorter one.
            source.seek(source.size() - len(_END_OF_STREAM))
            if source.read() != _END_OF_STREAM:
                raise OSError("the end of the stream is missing")
            source.seek(0)
            batches = iter(pyarrow.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, _ROWS):
                yield batch.slice(start, _ROWS)


def _plain(value: Any, key: str, notes: list[str]) -> Any:
    """A value as JSON would hold it: dates as texts, missing numbers (NaN) as null."""
    if isinstance(value, dict):
        return {name: _plain(inner, f"{key}.{name}", notes) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{key}[]", notes) for inner in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, bytes):
        note = f"the bytes in '{key}' are left out"
        if note not in notes:
            notes.append(note)
        return None
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date | datetime | time | timedelta):
        return str(value)
    return value
