"""The files of a run's record, read without torch."""

from __future__ import annotations

import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run, newest first."""
    found = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and path.is_dir()
    }
    return [found[step] for step in sorted(found, reverse=True)]


def is_locked(folder: Path) -> bool:
    """Whether a process is writing a run there (`Run` holds a lock on its folder)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # not ours to look into
        return False
    try:
        # Shared: two that look at the same time do not take each other for the run.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return False
    finally:
        os.close(descriptor)
    return False
