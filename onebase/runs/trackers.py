"""Sends metrics to TensorBoard, trackio or wandb through accelerate's trackers, beside `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from onebase.errors import MissingExtraError

MODULES = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",), "wandb": ("wandb",)}


def open_trackers(names: Sequence[str], folder: Path) -> list[GeneralTracker]:
    """Starts the named trackers; those that write files write them to `folder`.

    Raises:
        MissingExtraError: a tracker is not installed.
    """
    require_trackers(names)
    trackers = []
    for name in names:
        kind = LOGGER_TYPE_TO_CLASS[name]
        place = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
        tracker = kind(folder.name, **place)
        tracker.start()
        trackers.append(tracker)
    return trackers


def require_trackers(names: Sequence[str]) -> None:
    """Raises MissingExtraError unless all of these trackers are installed."""
    for name in names:
        if not any(find_spec(module) for module in MODULES[name]):
            raise MissingExtraError(f"the tracker {name} is not installed", remedy="no-tracker", name=name)


def numbers_of(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the numeric values, which are all a tracker can plot."""
    return {name: float(value) for name, value in values.items() if isinstance(value, int | float)}
