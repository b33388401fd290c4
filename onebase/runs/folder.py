"""What may lie in a run's folder before the run starts, told without torch: nothing of others is replaced."""

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
    "model.gradient_checkpointing",
    "batch.microbatch_tokens",
    "checkpoint.",
    "report_to",
    "threads",
    "on_finding",
    "lang",
)
"""What may differ from the configuration of the checkpoint: it does not change what is computed."""
LENGTH_KEYS = ("max_steps", "optimizer.num_epochs", "rounds")
"""What may be raised to make a run longer, also one that is finished."""
INPUT_KEYS = (
    "model.model_name_or_path",
    "model.chat_template",
    "tiny.tokenizer",
    "start_from",
    "policy",
    "reference_role",
    "reward.role",
    "reward.model",
    "data.train",
    "data.eval",
    "ppo.ptx_data",
)
"""Paths that a run reads."""
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
    """Looks whether a run of this configuration may write to `folder`, and changes nothing.

    Raises:
        ConfigError: the folder cannot be one, holds a finished run or files that are not of this run, or the run would
            write over what it reads.
        CheckpointError: an unfinished run of another configuration has left roles there.
    """
    config = yaml.safe_load(config_text)
    _require_a_folder(folder, config)
    _require_inputs_elsewhere(folder, config)
    there = sorted(path.name for path in folder.iterdir() if _is_ours(path.name)) if folder.is_dir() else []
    if (folder / "summary.json").exists():
        if not asks_for_more(folder, config_text):
            raise ConfigError(
                f"{folder} holds a finished run; choose another --output_dir, or remove that folder first. To train "
                f"it further, raise {' or '.join(k for k in LENGTH_KEYS if _value(config, k)) or 'max_steps'} and "
                "leave everything else as it was"
            )
    elif there and not checkpoints(folder):  # these have their configuration inside
        _require_own_leftovers(folder, there, config)


def asks_for_more(folder: Path, config_text: str) -> bool:
    """Whether this configuration is that of the run in `folder`, but for a greater length."""
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
    """
    Args:
        where: what was written with `known`; `kept`: the file that has it.

    Raises:
        CheckpointError: they differ in what changes the result.
    """
    changed = [key for key in differing_keys(known, config) if key not in LENGTH_KEYS]
    if changed:
        raise CheckpointError(
            f"{where} was written with another configuration: {', '.join(changed)} differ; resume with {kept}, "
            "choose another --output_dir, or remove that folder first"
        )


def differing_keys(known: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """Dotted names of the keys that differ and change the result."""
    return [key for key in changed_keys(known, config) if not key.startswith(FREE_KEYS)]


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys that differ between two configurations."""
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changed_keys(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}"


def _require_a_folder(folder: Path, config: Mapping[str, Any]) -> None:
    if not str(config.get("output_dir", folder)).strip():
        raise ConfigError("'output_dir' is empty; name the folder that the run writes to")
    if "\0" in str(folder):
        raise ConfigError(f"'output_dir' = {str(folder)!r} has a zero character, which no path may have; take it out")
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            raise ConfigError(f"{folder}: cannot be written (it is a file); choose another --output_dir")
    except FileNotFoundError:
        pass  # it is made
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); choose another --output_dir") from None


def _require_inputs_elsewhere(folder: Path, config: Mapping[str, Any]) -> None:
    home = Path(os.path.realpath(folder))
    for key in INPUT_KEYS:
        value = _value(config, key)
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or "\0" in text:
                continue
            place = Path(os.path.realpath(text))  # Path.resolve raises where a link leads to itself
            if place == home or (home in place.parents and _is_ours(place.relative_to(home).parts[0])):
                raise ConfigError(
                    f"'{key}' = {text} is in 'output_dir' = {folder}, where this run would write over it; choose "
                    "another --output_dir"
                )


def _require_own_leftovers(folder: Path, there: list[str], config: Mapping[str, Any]) -> None:
    # An unfinished run without a checkpoint begins anew. Its record may be replaced, whatever was set then: it is
    # often a first try that failed. Roles are not lost or mixed with those of another run.
    listed = ", ".join(there[:4]) + (", ..." if len(there) > 4 else "")
    known = _known(folder)
    if known is None or set(known) != set(config):
        raise ConfigError(
            f"{folder} holds {listed}, and not from this verb's run; choose another --output_dir, or remove that "
            "folder first"
        )
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
    for part in dotted.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
