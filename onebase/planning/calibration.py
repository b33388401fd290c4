"""What is known of this machine: the rates it was measured at, and how far runs were from their plans.

A JSON file per machine, in the folder where caches are kept, named by processor, cores and threads, or by the GPU.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from onebase.data.token_cache import cache_root
from onebase.errors import ConfigError
from onebase.files import write_atomically
from onebase.planning.machines import MACHINES, Machine, this_cpu
from onebase.planning.rates import Rate, Rates, Spread, known_kinds, stated_rates

MOST_OBSERVED = 64
"""Observations kept; the oldest go first."""
NEAR = 8.0
"""A correction counts for plans whose steps take at most this many times more or less."""
LATEST = 5
"""Observations that a correction is the median of."""
FURTHEST = 10.0
"""A factor beyond this is no correction of a rate; something else was wrong."""


MEMORY = "memory"
"""What an observation of memory has for its phase and its source; its figures are in MiB, not seconds."""


@dataclass(frozen=True, slots=True)
class Here:
    """The machine that this process runs on."""

    key: str
    """Names its file."""
    machine: Machine | None
    """Its peaks; None for a GPU that is not in the table."""


@dataclass(frozen=True, slots=True)
class Observation:
    """A phase of a run's first steps beside its plan."""

    verb: str
    phase: str
    dtype: str
    planned: float
    """Seconds of a step by the rates alone, without any correction, for the tokens that the steps really had."""
    measured: float
    source: str = ""
    """Of the rates; those of other rates say nothing about these."""


def here(device: str = "cpu", threads: int | None = None) -> Here:
    """This machine, with its peaks as far as they are known without measuring.

    Args:
        device: `cpu` or `cuda`.
        threads: that a run computes with; None: as many as torch takes by itself.
    """
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name()
        words = re.split(r"[^a-z0-9]+", name.lower())
        forty = "a100" in words and "40gb" in words
        known = next((m for key, m in MACHINES.items() if key in words), None)
        return Here(_key(name), MACHINES["a100-40gb"] if forty else known)
    name, gigahertz, flags = _processor()
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    count = threads or int(os.environ.get("OMP_NUM_THREADS") or 0) or cores
    memory = psutil.virtual_memory().total / 1e9
    machine = this_cpu(
        cores=min(count, cores), gigahertz=gigahertz, instructions=flags, memory_gb=round(memory, 1), name=name
    )
    return Here(_key(f"{name} {cores} cores {count} threads"), machine)


def _processor() -> tuple[str, float, frozenset[str]]:
    """Name, clock in GHz (2.5 where the system does not say) and instructions of the processor."""
    file = Path("/proc/cpuinfo")
    said: dict[str, str] = {}
    for line in file.read_text().splitlines() if file.is_file() else []:
        key, _, value = line.partition(":")
        said.setdefault(key.strip(), value.strip())
    name = said.get("model name") or platform.processor() or platform.machine()
    clock = float(said.get("cpu MHz") or 2500.0) / 1000
    flags = said.get("flags") or said.get("Features") or ("asimd" if platform.machine() == "arm64" else "")
    return name, clock, frozenset(flags.split())


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def kept_in(key: str) -> Path | None:
    """The file of a machine; None where the environment says that nothing is kept."""
    root = cache_root()
    return None if root is None else root / "machines" / f"{key}.json"


def read_kept(key: str) -> dict[str, Any]:
    """What is kept of a machine; {} if there is nothing, or it is damaged."""
    path = kept_in(key)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _keep(key: str, changes: Mapping[str, Any]) -> Path | None:
    path = kept_in(key)
    if path is not None:
        write_atomically(path, json.dumps({**read_kept(key), **changes}, indent=1) + "\n")
    return path


def keep_rates(key: str, rates: Rates) -> Path | None:
    """Keeps measured rates, and forgets what was observed with others; returns the file, None where none is kept."""
    return _keep(key, {"rates": asdict(rates), "observed": []})


def rates_here(where: Here, dtype: str) -> Rates:
    """This machine's rates: measured if it was calibrated, else from its data sheet.

    Raises:
        ConfigError: it has neither.
    """
    found = read_kept(where.key).get("rates")
    try:
        rates = _rates(found) if isinstance(found, dict) else None
    except (KeyError, TypeError, ValueError):
        rates = None
    if rates is not None and known_kinds(rates.rates):
        return rates
    if where.machine is None:
        raise ConfigError(
            f"the GPU {where.key} is not in the table of hardware and was not measured", remedy="unmeasured-machine"
        )
    return stated_rates(where.machine, dtype)


def _rates(found: Mapping[str, Any]) -> Rates:
    rates = {kind: Rate(**{k: float(v) for k, v in parts.items()}) for kind, parts in found["rates"].items()}
    spread = {kind: Spread(**parts) for kind, parts in found["spread"].items()}
    return Rates(**{**found, "rates": rates, "spread": spread})


def observe(key: str, observations: Sequence[Observation]) -> Path | None:
    """Adds what a run's first steps showed; returns the file, None where none is kept."""
    kept = _observed(key)
    both = [asdict(each) for each in [*kept, *observations] if each.planned > 0 and each.measured > 0]
    return _keep(key, {"observed": both[-MOST_OBSERVED:]}) if observations else None


def _observed(key: str) -> list[Observation]:
    found = []
    for each in read_kept(key).get("observed") or []:
        try:
            found.append(Observation(**each))
        except TypeError:  # written by another version
            continue
    return found


def corrections(key: str, rates: Rates, dtype: str, planned: Mapping[str, float]) -> dict[str, float]:
    """The factor for each phase that earlier runs on this machine ask for: the median of the latest like this one.

    Like this one: same number format, same rates, and a step of the phase that was planned to take between an eighth
    and eight times as long. Without such a run a phase is not corrected.

    Args:
        planned: seconds of a step by phase, and MiB of `memory`, uncorrected.
    """
    factors: dict[str, float] = {}
    for phase, seconds in planned.items():
        like = [
            each.measured / each.planned
            for each in _observed(key)
            if (each.phase, each.dtype) == (phase, dtype)
            and each.source == (MEMORY if phase == MEMORY else rates.source)
            and seconds > 0
            and abs(math.log(each.planned / seconds)) <= math.log(NEAR)
        ]
        latest = sorted(ratio for ratio in like[-LATEST:] if 1 / FURTHEST <= ratio <= FURTHEST)
        if latest:
            factors[phase] = (latest[len(latest) // 2] + latest[(len(latest) - 1) // 2]) / 2
    return factors
