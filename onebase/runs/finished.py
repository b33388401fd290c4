"""Reads a run back from its folder, finished or not and without torch, and formats its figures."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onebase.errors import ConfigError
from onebase.runs.record import checkpoints, is_locked, plain_values, read_object, read_rows
from onebase.shown import shown as text_shown
from onebase.verbs import VERBS


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run, as read from its folder."""

    folder: Path
    verb: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """The rows of `metrics.jsonl`; None for a value that was not finite."""
    summary: dict[str, Any]
    """Empty until the run is finished."""
    running: bool
    """Whether a process is writing to the folder."""
    problems: tuple[str, ...] = ()
    """Damage found in its files, a line each."""

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def step_name(self) -> str:
        return VERBS[self.verb].step if self.verb in VERBS else "step"

    @property
    def seconds(self) -> float:
        """Seconds the run took until its last step or its end, without the time between a stop and a restart."""
        measured = [self.summary.get("seconds"), *(row.get("perf/seconds") for row in self.rows[-1:])]
        return next((float(seconds) for seconds in measured if isinstance(seconds, int | float)), 0.0)

    @property
    def state(self) -> str:
        if self.running:
            return "running"
        if (self.folder / "summary.json").exists():
            return "finished"
        rounds = len([*self.folder.glob("round-*/learn/summary.json")])
        last = [path.name for path in checkpoints(self.folder)[:1]] or ([f"round-{rounds}"] if rounds else [])
        return f"{last[0]}, can resume" if last else "stopped without a checkpoint"

    def changed(self, defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Returns the keys that are not at their default: the value, and the default (None for a key without one).

        Args:
            defaults: by dotted name; a key the run does not know was added later, and counts as at its default.
        """
        known = flattened(self.config)
        return {
            key: (value, defaults.get(key))
            for key, value in known.items()
            if key not in defaults or value != defaults[key]
        }

    @property
    def result(self) -> str:
        """The result in one line; for an unfinished run, the figure of its last step."""
        s = self.summary
        if "eval_loss_after" in s:
            return f"held-out loss {shown(s.get('eval_loss_before'))} → {shown(s['eval_loss_after'])} nats per token"
        if "eval_accuracy" in s:
            return f"held-out accuracy {interval([s['eval_accuracy'], *(s.get('eval_accuracy_interval') or [])])}"
        if "score_rise" in s:
            return f"held-out score {interval(s['score_rise'], '+')}, KL {shown(s.get('kl'))} nats per completion"
        if s.get("mean_scores"):
            return f"mean score of the samples {' → '.join(map(shown, s['mean_scores']))}"
        if "best_score" in s:
            return f"mean score {shown(s.get('mean_score'))}, of the best {shown(s['best_score'])}"
        last = self.rows[-1] if self.rows else {}
        named = next((name for name in ("objective/scores", "loss", "best_score") if name in last), None)
        return f"{named} {shown(last[named])} in step {self.steps}" if named else ""


def read_run(folder: Path, verb: str = "") -> RunRecord:
    """Reads a run, as far as it has got.

    Args:
        verb: used if the summary does not name one.

    Raises:
        ConfigError: there is no run, or its configuration cannot be read.
    """
    config, path = {}, folder / "config.yaml"
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError(f"{text_shown(path, 300)}: not a run's configuration: not a regular file")
        text = path.read_text(encoding="utf-8")
        config = plain_values(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as error:
        raise ConfigError(
            f"{text_shown(folder, 300)}: no run here (config.yaml cannot be read: {error.strerror}); a run has "
            "one from its first step"
        ) from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = text_shown(" ".join(str(error).split()), 300)
        raise ConfigError(f"{text_shown(path, 300)}: not valid YAML: {said}") from None
    if not isinstance(config, dict) or "output_dir" not in config:
        raise ConfigError(f"{text_shown(path, 300)}: not a run's configuration: it names no folder to write to")
    summary, cut = read_object(folder / "summary.json")
    rows, damaged = read_rows(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else ([], "")
    problems = tuple(filter(None, (cut, damaged)))
    return RunRecord(folder, str(summary.get("verb", verb)), config, rows, summary, is_locked(folder), problems)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings into one, keyed by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def shown(value: Any) -> str:
    """Formats a value for a person: four digits, lists with commas, a dash for nothing, no control characters."""
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and abs(value) >= 1e15:
        return f"{float(value):.4g}"
    return ", ".join(map(shown, value)) if isinstance(value, list) else text_shown(value)


def interval(values: list[Any], sign: str = "") -> str:
    """Formats a mean with its interval in brackets."""
    mean, *ends = ("–" if value is None else f"{value:.3f}" for value in values)
    signed = f"{sign}{mean}" if mean[0].isdigit() else mean
    return f"{signed} [{', '.join(ends)}]" if ends else signed


def duration(seconds: float) -> str:
    """Formats a duration in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
