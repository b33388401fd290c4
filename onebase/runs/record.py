"""Reads the files a run records, without torch."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onebase.shown import number_of

MOST_VALUES, MOST_LEVELS = 50_000, 20
"""Limits on a configuration or summary that is read; a real one has a few hundred values, three levels deep."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a `metrics.jsonl` up to the first line that is not JSON: the last, if it was cut off."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def read_rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Returns the rows of a `metrics.jsonl`, and a line on any damage ("" if none).

    A row has an int `step`; its other values are numbers below 1e100, or None. A last line that is still being written
    or was cut off is skipped silently.
    """
    try:
        whole = _bytes_of(path)
    except OSError as error:
        return [], f"{path}: cannot be read: {error.strerror}"
    rows, bad = [], []
    *lines, last = whole.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = _step(line)
            rows += [row] if row is not None else []
            bad += [number] if row is None else []
    if (row := _step(last)) is not None:
        rows.append(row)
    elif last.strip() and not last.startswith(b"{"):
        bad.append(len(lines) + 1)
    if not bad:
        return rows, ""
    which = f"line {bad[0]} is" if len(bad) == 1 else f"{number_of(len(bad), 'line')} (the first is line {bad[0]}) are"
    return rows, f"{path}: {which} damaged and skipped"


def read_object(path: Path) -> tuple[dict[str, Any], str]:
    """Returns the JSON object in a file such as `summary.json` ({} if there is no file), and a line on any damage.

    A figure that is not of the kind `KINDS` asks for is dropped and reported. A number that is not finite is None.
    """
    if not path.exists():
        return {}, ""
    try:
        found = json.loads(_bytes_of(path))
    except OSError as error:
        return {}, f"{path}: cannot be read: {error.strerror}"
    except (ValueError, RecursionError) as error:
        return {}, f"{path}: not valid JSON: {str(error)[:100]}"
    if not isinstance(found, dict):
        return {}, f"{path}: damaged: expected one JSON object"
    try:
        known = plain_values(found)
    except ValueError as error:
        return {}, f"{path}: damaged: {error}"
    wrong = [key for key, fits in KINDS.items() if known.get(key) is not None and not fits(known[key])]
    for key in wrong:
        del known[key]
    return known, f"{path}: damaged: {', '.join(wrong)}" if wrong else ""


def plain_values(value: Any) -> Any:
    """Returns a value read from JSON or YAML with text keys and finite numbers only, so that it can be shown.

    Raises:
        ValueError: too many values or levels (YAML aliases can unfold a few lines into billions of values).
    """
    left = [MOST_VALUES]

    def rebuilt(node: Any, level: int) -> Any:
        left[0] -= 1
        if left[0] < 0 or level > MOST_LEVELS:
            raise ValueError(f"more than {MOST_VALUES:,} values, or more than {MOST_LEVELS} levels")
        if isinstance(node, dict):
            return {str(key): rebuilt(inner, level + 1) for key, inner in node.items()}
        if isinstance(node, list | tuple | set):
            return [rebuilt(inner, level + 1) for inner in node]
        if node is None or isinstance(node, bool | str):
            return node
        return _finite(node) if isinstance(node, int | float) else str(node)

    return rebuilt(value, 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_figure(value: Any) -> bool:
    return _is_number(value) and abs(value) < 1e15


def _are_figures(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(item is None or _is_number(item) for item in value)


def _are_named_figures(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_figure, value.values()))


KINDS: dict[str, Callable[[Any], bool]] = {
    "verb": lambda value: isinstance(value, str),
    **dict.fromkeys(("seconds", "peak_memory_mb"), _is_figure),
    **dict.fromkeys(("data", "phase_seconds"), _are_named_figures),
    **dict.fromkeys(("eval_accuracy_interval", "score_rise", "mean_scores"), _are_figures),
    **dict.fromkeys(
        ("eval_loss_before", "eval_loss_after", "eval_accuracy", "kl", "mean_score", "best_score", "ended"), _is_number
    ),
}
"""Checks on the summary's figures that are calculated with or specially formatted."""


def _bytes_of(path: Path) -> bytes:
    if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe would never end
        raise OSError(errno.EINVAL, "not a regular file")
    return path.read_bytes()


def _step(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_figure(row.get("step")) or not isinstance(row["step"], int):
        return None
    values = {name: _finite(value) for name, value in row.items() if value is None or _is_number(value)}
    return values if len(values) == len(row) and row["step"] >= 0 else None


def _finite(value: float | None) -> float | None:
    # Differences and sums of larger values can overflow, which no axis could show.
    return value if value is not None and abs(value) < 1e100 else None


def checkpoints(folder: Path) -> list[Path]:
    """Returns a run's checkpoints, newest first."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d{1,18})", path.name)) and path.is_dir()
    }
    return [found[step] for step in sorted(found, reverse=True)]


def is_locked(folder: Path) -> bool:
    """Whether a process is writing a run in `folder` (`Run` locks its folder)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # no permission, or not there
        return False
    try:
        # Shared, so that two readers at once do not take each other for the run.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    finally:
        os.close(descriptor)
    return False
