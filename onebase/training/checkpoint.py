"""Checkpoints: what a run needs to resume exactly where it stopped, with checksums that show it is intact.

checkpoint-<step>/   state.pt         weights that train, optimizer, schedule, random states, controllers, counts
                     <role>/          the roles as they were, for use by other verbs
                     checksums.json   SHA-256 of every file; if it is missing or a sum differs, nothing is used
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
import yaml
from torch import Tensor, nn

from onebase.errors import CheckpointError
from onebase.files import atomic_folder
from onebase.models.base import OneBase
from onebase.models.roles import ScalarRole
from onebase.records import Example, Prompt
from onebase.runs.record import checkpoints
from onebase.streaming.examples import OnDemand

STATE_FILE, SUMS_FILE = "state.pt", "checksums.json"
FORMAT = 2
"""Version of `state.pt`; raised when older ones can no longer be read."""


STATE: dict[str, Any] = {
    "step": int,
    "seconds": int | float,
    "config": str,
    "inputs": dict,
    "best": int | float,
    "weights": dict | None,
    "update": dict | None,
    "parts": dict,
}
"""The entries of a checkpoint's state and their types."""


class Stateful(Protocol):
    """A part of a run with its own state: plain numbers, texts, lists and tensors."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TrainedWeights:
    """The parameters of these roles in the dtype they train in, saved and restored without rounding."""

    def __init__(self, base: OneBase, *roles: str) -> None:
        self._parameters: list[nn.Parameter] = [p for role in roles for p in base.parameters(role)]
        self.in_full = any(base.roles[role].adapter is None for role in roles)
        """Whether the base itself trains, not only adapters and heads."""

    def state_dict(self) -> dict[str, Any]:
        # On a CPU the weights themselves, to be written at once: in full a copy would be as large as the base.
        return {"weights": [p.detach().cpu() for p in self._parameters]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights: list[Tensor] = state["weights"]
        if [w.shape for w in weights] != [p.shape for p in self._parameters]:
            raise CheckpointError("its weights have other shapes than the roles of this run")
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)


class RandomStates:
    """The random states of Python, NumPy and torch, GPU generators included."""

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = numpy.random.get_state(legacy=True)
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(numpy.asarray(keys).astype("int64")), position, has_gauss, gauss],
            "torch": torch.get_rng_state(),
            "cuda": cuda,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        numpy.random.set_state((kind, keys.numpy().astype("uint32"), *rest))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
            torch.cuda.set_rng_state_all(state["cuda"])


def write_checkpoint(folder: Path, state: Mapping[str, Any], save_roles: Callable[[Path], None]) -> None:
    """Writes a checkpoint, whole or not at all."""
    with atomic_folder(folder) as temporary:
        save_roles(temporary)
        torch.save({"format": FORMAT, **state}, temporary / STATE_FILE)
        sums = {str(p.relative_to(temporary)): _sha256(p) for p in sorted(temporary.rglob("*")) if p.is_file()}
        (temporary / SUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's state after checking every file against its checksum.

    Raises:
        CheckpointError: a file is missing, truncated, changed, or not what this version writes.
    """
    try:
        _require_file(folder / SUMS_FILE)
        sums = json.loads((folder / SUMS_FILE).read_text(encoding="utf-8"))
        for name, expected in {STATE_FILE: "", **sums}.items():  # the list must name the state file itself
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is damaged: it is not what was written")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not complete: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from None
    path = folder / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own message says how to run the code in the file
        raise CheckpointError(
            f"{path} holds more than numbers, texts and tensors, which onebase never writes; nothing of it was run"
        ) from None
    except Exception as error:  # whatever a foreign file makes of torch's reader
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is not of this version of onebase: its format is {found!r}, not {FORMAT}")
    return state


def require_state(state: Mapping[str, Any], path: Path) -> None:
    """Checks that a state has what a loop writes.

    Raises:
        CheckpointError: an entry is missing or wrong.
    """
    wrong = [name for name, kind in STATE.items() if name not in state or not isinstance(state[name], kind)]
    wrong += [] if wrong or state["step"] == int(path.name.rpartition("-")[2]) else ["step"]
    wrong += [] if wrong or _is_mapping(state["config"]) else ["config"]
    if wrong or (state["update"] is not None and not isinstance(state["update"].get("token_budget"), int)):
        raise CheckpointError(f"{path} is not what a run writes: {', '.join(wrong) or 'update'} is missing or wrong")


def _is_mapping(text: str) -> bool:
    try:
        return isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        return False


def remove_old(folder: Path, *, newest: Path, keep: int) -> None:
    """Removes all checkpoints except the last `keep` up to `newest`; any newer ones were found damaged."""
    there = checkpoints(folder)
    first = there.index(newest)
    for path in [*there[:first], *there[first + keep :]]:
        shutil.rmtree(path, ignore_errors=True)


def fingerprint_data(*sides: Sequence[Example | Prompt]) -> str:
    """Fingerprint of everything the run learns from, in order: other data makes another run."""
    digest = hashlib.sha256()
    for side in sides:
        if isinstance(side, OnDemand):
            digest.update(side.fingerprint.encode() + b"|")
            continue
        for item in side:
            row: tuple[Any, ...] | None = None
            if item.row is not None:
                calls = () if item.row.calls is None else (item.row.calls,)
                row = (item.row.answers, item.row.grades, dict(item.row.columns), *calls)
            if isinstance(item, Prompt):
                digest.update(repr((list(item.ids), row)).encode())
            else:
                completions = [list(ids) for ids in item.completions]
                learnt = (list(item.prompt_ids), completions, item.counted, item.grades, item.margin, row)
                digest.update(repr(learnt).encode())
        digest.update(b"|")
    return digest.hexdigest()


def inputs_of(base: OneBase, *sides: Sequence[Example | Prompt]) -> dict[str, str]:
    """Fingerprints of what a run reads but does not change: the base, the roles that do not train, the data."""
    digest = hashlib.sha256()
    for name, role in sorted(base.roles.items()):
        if not role.trains:
            weights = base.adapter_weights(name)
            if isinstance(role, ScalarRole):
                weights["head"] = role.head.weight.detach().cpu()
            for key, weight in sorted(weights.items()):
                digest.update(key.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
            if isinstance(role, ScalarRole):
                digest.update(repr((role.pooling, role.moments)).encode())
    return {"base": base.fingerprint, "roles": digest.hexdigest(), "data": fingerprint_data(*sides)}


def _require_file(path: Path) -> None:
    """Raises CheckpointError if the path is not a regular file: reading a pipe could wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is not a file")


def _sha256(path: Path) -> str:
    _require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
