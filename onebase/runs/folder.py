"""Checks, without torch, that a run may write to its folder and will not overwrite files it does not own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from onebase.errors import CheckpointError, ConfigError
from onebase.runs.record import checkpoints

FREE_KEYS = (
    "output_dir",
    "model.device",
    "model.shard",
    "model.gradient_checkpointing",
    "batch.microbatch_tokens",
    "checkpoint.",
    "report_to",
    "threads",
    "on_finding",
    "lang",
    "reward.url",  # who answers there is compared by the weights' version
    "reward.timeout",
    "generation.url",
    "generation.start",
    "generation.timeout",
    "generation.check_every",
)
"""Keys that may differ from the checkpoint's configuration, since they do not change what is computed."""
LENGTH_KEYS = ("max_steps", "optimizer.num_epochs", "rounds")
"""Keys that may be raised to make a run longer, even a finished one."""
INPUT_KEYS = (
    "model.model_name_or_path",
    "model.chat_template",
    "tiny.tokenizer",
    "start_from",
    "reference_role",
    "reward.role",
    "reward.model",
    "data.train",
    "data.replay.path",
    "data.eval",
    "ppo.ptx_data",
)
"""Keys that name what a run reads."""
RECORD = (
    "config.yaml",
    "metrics.jsonl",
    "summary.json",
    "samples.jsonl",
    "findings.jsonl",
    "best.jsonl",
    "pairs.jsonl",
    "report.html",
    "plots",
)
ROLES = ("policy", "critic", "reward", "model", "best")
NUMBERED = ("checkpoint-", "failed-in-step-", "round-")


def check_folder(folder: Path, config_text: str) -> None:
    """Checks that a run with this configuration may write to `folder`; changes nothing.

    Raises:
        ConfigError: the path cannot be a folder, the folder holds a finished run or another verb's files, or the run
            would overwrite its own inputs.
        CheckpointError: an unfinished run with another configuration has left roles there.
    """
    config = yaml.safe_load(config_text)
    _require_a_folder(folder, config)
    _require_inputs_elsewhere(folder, config)
    there = sorted(path.name for path in folder.iterdir() if _is_ours(path.name)) if folder.is_dir() else []
    if (folder / "summary.json").exists():
        if not asks_for_more(folder, config_text):
            raise ConfigError(
                f"{folder} holds a finished run",
                remedy="finished-run",
                lengths=" or ".join(key for key in LENGTH_KEYS if _value(config, key)) or LENGTH_KEYS[0],
            )
    elif there and not checkpoints(folder):  # a checkpoint holds its own configuration, checked on resume
        _require_own_leftovers(folder, there, config)


def asks_for_more(folder: Path, config_text: str) -> bool:
    """Whether this configuration only makes the run in `folder` longer."""
    known, config = _known(folder), yaml.safe_load(config_text)
    if known is None:
        return False
    changed = differing_keys(known, config)
    lengths = [(_value(known, key), _value(config, key)) for key in changed]
    return (
        bool(changed)
        and set(changed) <= set(LENGTH_KEYS)
        and not any(isinstance(before, int) and isinstance(now, int) and now < before for before, now in lengths)
    )


def require_same_config(known: Mapping[str, Any], config: Mapping[str, Any], *, where: Path, kept: Path) -> None:
    """Refuses a configuration that would change the result of a run already begun.

    Args:
        where: what was written with `known`; `kept`: the file that holds `known`.

    Raises:
        CheckpointError: the two differ in a key that changes the result.
    """
    changed = [key for key in differing_keys(known, config) if key not in LENGTH_KEYS]
    if changed:
        raise CheckpointError(
            f"{where} was written with another configuration: {', '.join(changed)} differ",
            remedy="another-configuration",
            kept=kept,
        )


def differing_keys(known: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Returns the dotted names of the keys that differ and change the result."""
    return [key for key in changed_keys(known, config) if not key.startswith(FREE_KEYS)]


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yields the dotted names of the keys that differ between two configurations."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def _require_a_folder(folder: Path, config: Mapping[str, Any]) -> None:
    if not str(config.get("output_dir", folder)).strip():
        raise ConfigError("the folder that the run writes to has no name", remedy="no-folder")
    if "\0" in str(folder):
        raise ConfigError(
            f"the run's folder {str(folder)!r} has a zero character, which no path may have", remedy="zero-in-folder"
        )
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise ConfigError(f"{folder}: cannot be written (it is a file)", remedy="another-folder")
    except FileNotFoundError:
        pass  # the run creates it
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})", remedy="another-folder") from None


def _require_inputs_elsewhere(folder: Path, config: Mapping[str, Any]) -> None:
    home = Path(os.path.realpath(folder))
    for key in INPUT_KEYS:
        value = _value(config, key)
        for text in value if isinstance(value, list) else [value]:
            text = text.get("path") if isinstance(text, dict) else text  # a source with a weight
            if not isinstance(text, str) or "\0" in text:
                continue
            place = Path(os.path.realpath(text))  # Path.resolve raises if a link points to itself
            if place == home or (home in place.parents and _is_ours(place.relative_to(home).parts[0])):
                raise ConfigError(
                    f"'{key}' = {text} is in the run's own folder {folder}, where it would be written over",
                    remedy="another-folder",
                )


def _require_own_leftovers(folder: Path, there: list[str], config: Mapping[str, Any]) -> None:
    # A run that left no checkpoint starts over. Its record may be replaced whatever its configuration was, often a
    # failed first try; its roles must not be lost or mixed with another run's.
    listed = ", ".join(there[:4]) + (", ..." if len(there) > 4 else "")
    known = _known(folder)
    if known is None or set(known) != set(config):
        raise ConfigError(f"{folder} holds {listed}, and not from this verb's run", remedy="another-or-empty-folder")
    if any(name in ROLES or name.startswith(NUMBERED) for name in there):
        require_same_config(known, config, where=folder, kept=folder / "config.yaml")


def _is_ours(name: str) -> bool:
    return name in RECORD or name in ROLES or name.startswith(NUMBERED)


def _known(folder: Path) -> dict[str, Any] | None:
    try:
        known = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return known if isinstance(known, dict) else None


def _value(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
