"""A run as its folder tells of it, finished or not, read without torch; and its figures in words."""

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
    """A run as its folder tells of it."""

    folder: Path
    verb: str
    config: dict[str, Any]
    rows: list[dict[str, Any]]
    """`metrics.jsonl`; a value that was not finite is None."""
    summary: dict[str, Any]
    """Empty until the run is finished."""
    running: bool
    """Whether a process holds the folder."""
    problems: tuple[str, ...] = ()
    """What of its files is damaged, a line each."""

    @property
    def steps(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    @property
    def step_name(self) -> str:
        return VERBS[self.verb].step if self.verb in VERBS else "step"

    @property
    def seconds(self) -> float:
        """Of the whole run up to its last step or its end, without the time it stood still."""
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
        return f"{last[0]}, can go on" if last else "stopped without a checkpoint"

    def changed(self, defaults: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What is not at its default, with the default; None for a key without one.

        Args:
            defaults: by dotted names; keys that the run does not know came later, and were at theirs.
        """
        known = flattened(self.config)
        return {
            key: (value, defaults.get(key))
            for key, value in known.items()
            if key not in defaults or value != defaults[key]
        }

    @property
    def result(self) -> str:
        """What came out, in a line; of a run that is not finished, where it stands."""
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
    """Reads what is there of a run.

    Args:
        verb: where the summary does not tell it.

    Raises:
        ConfigError: there is no run, or its configuration cannot be read.
    """
    config, path = {}, folder / "config.yaml"
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise ConfigError(f"{text_shown(path, 300)}: not the configuration of a run: it is no regular file")
        text = path.read_text(encoding="utf-8")
        config = plain_values(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except OSError as error:
        raise ConfigError(
            f"{text_shown(folder, 300)}: there is no run (no config.yaml that can be read: {error.strerror}); a run "
            "has one from its first step on"
        ) from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = text_shown(" ".join(str(error).split()), 300)
        raise ConfigError(f"{text_shown(path, 300)}: not valid YAML: {said}") from None
    if not isinstance(config, dict) or "output_dir" not in config:
        raise ConfigError(f"{text_shown(path, 300)}: not the configuration of a run: it has no output_dir")
    summary, cut = read_object(folder / "summary.json")
    rows, damaged = read_rows(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else ([], "")
    problems = tuple(filter(None, (cut, damaged)))
    return RunRecord(folder, str(summary.get("verb", verb)), config, rows, summary, is_locked(folder), problems)


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def shown(value: Any) -> str:
    """A value as a person reads it: four digits, lists with commas, a dash for nothing, no control characters."""
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
    """A mean and its interval."""
    mean, *ends = ("–" if value is None else f"{value:.3f}" for value in values)
    signed = f"{sign}{mean}" if mean[0].isdigit() else mean
    return f"{signed} [{', '.join(ends)}]" if ends else signed


def duration(seconds: float) -> str:
    """In the unit that suits."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
