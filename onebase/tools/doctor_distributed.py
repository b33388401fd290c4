"""`onebase doctor --distributed`: whether several processes, here or on several machines, can train together."""

from __future__ import annotations

import hashlib
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import onebase
from onebase.distributed.preflight import Meeting, examine
from onebase.errors import ConfigError, QualityError
from onebase.models.fingerprints import base_fingerprint
from onebase.runs.folder import INPUT_KEYS
from onebase.shown import shown
from onebase.tools.doctor import PACKAGES

END_BYTES = 1 << 20
"""What is read at each end of a file to compare it with another machine's, besides its size."""


def run(*, output_dir: Path, config: Path | None = None, as_json: bool = False) -> int:
    """Takes part in the checks; the first process prints what was found. Returns the exit code of the others.

    Raises:
        ConfigError: the config file cannot be read.
        QualityError: a check failed; one sentence per fault.
    """
    facts = facts_of(config)
    try:
        meeting = Meeting()
        found = examine(meeting, facts, output_dir)
    except TimeoutError as error:
        raise QualityError(str(error)) from None
    problems = found["problems"]
    if meeting.rank == 0:
        print(json.dumps(found, indent=2) if as_json else _as_text(found))
        if problems:
            raise QualityError("\n".join(problems))
    return QualityError.exit_code if problems else 0


def facts_of(config: Path | None) -> dict[str, str | None]:
    """What has to be the same on all machines: versions, our own code, and what a run's configuration names.

    Raises:
        ConfigError: the config file cannot be read.
    """
    facts: dict[str, str | None] = {"onebase": onebase.__version__, "Python": platform.python_version()}
    facts |= {package: _version(package) for package in PACKAGES}
    facts["onebase's own files"] = _of_folder(Path(onebase.__file__).parent, "*.py")
    if config is None:
        return facts
    try:
        text = config.read_bytes()
        keys = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{shown(config, 200)}: cannot be read ({shown(error, 100)}); name a config file") from None
    facts[str(config)] = hashlib.sha256(text).hexdigest()[:16]
    for key in INPUT_KEYS:
        value: Any = keys
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        for each in value if isinstance(value, list) else [value]:
            named = each.get("path") if isinstance(each, dict) else each
            if isinstance(named, str):
                facts[f"{key} = {named}"] = _fingerprint(Path(named))
    return facts


def _fingerprint(path: Path) -> str | None:
    """Identifies a file or folder; None where there is none."""
    if path.is_dir():
        weights = base_fingerprint(str(path)) if any(path.glob("model*.safetensors")) else ""
        return weights or _of_folder(path, "*")
    return _of_file(path) if path.is_file() else None


def _of_folder(folder: Path, pattern: str) -> str:
    files = sorted(path for path in folder.rglob(pattern) if path.is_file())
    said = "\n".join(f"{path.relative_to(folder)} {_of_file(path)}" for path in files)
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _of_file(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{size} ".encode() + file.read(END_BYTES))
        file.seek(max(0, size - END_BYTES))
        digest.update(file.read())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _as_text(found: dict[str, Any]) -> str:
    speed = found["all_reduce"]
    hosts = ", ".join(f"{host} ({found['hosts'].count(host)})" for host in dict.fromkeys(found["hosts"]))
    lines = [f"processes  {found['processes']} on {hosts}"]
    lines += [f"           {name}: {value}" for name, value in found["facts"].items() if value is not None]
    if speed:
        per_second, milliseconds = speed["gigabytes_per_second"], speed["milliseconds"]
        lines.append(f"all-reduce {per_second:.2f} GB/s, {milliseconds:.2f} ms for a single number")
    lines.append(f"folder     {found['folder']}")
    lines.append(f"{len(found['problems'])} problems, {found['seconds']:.1f} s")
    return "\n".join(lines)
