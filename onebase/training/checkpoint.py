"""Checkpoints: what a run needs to go on exactly where it stopped, and proof that it is whole.

checkpoint-<step>/   state.pt         weights that train, optimizer, schedule, random states, controllers, counts
                     <role>/          the roles as they were, for use by other verbs
                     checksums.json   SHA-256 of every file; without it, or with another sum, nothing is believed
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor, nn

from onebase.errors import CheckpointError
from onebase.files import atomic_folder
from onebase.models.one_base import OneBase
from onebase.records import Example
from onebase.runs.record import checkpoints

STATE_FILE, SUMS_FILE = "state.pt", "checksums.json"
FORMAT = 1
"""Of `state.pt`; raised where an older one cannot be read any more."""


class Stateful(Protocol):
    """A part of a run with a state of its own: plain numbers, texts, lists and tensors."""

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class TrainedWeights:
    """The parameters of these roles, in whatever dtype they train in; no rounding on the way to the disk and back."""

    def __init__(self, base: OneBase, *roles: str) -> None:
        self._parameters: list[nn.Parameter] = [p for role in roles for p in base.parameters(role)]
        self.in_full = any(base.roles[role].adapter is None for role in roles)
        """Whether the base itself trains, and not only adapters and heads."""

    def state_dict(self) -> dict[str, Any]:
        return {"weights": [p.detach().to("cpu", copy=True) for p in self._parameters]}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        weights: list[Tensor] = state["weights"]
        if [w.shape for w in weights] != [p.shape for p in self._parameters]:
            raise CheckpointError("its weights have other shapes than the roles of this run")
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)


class RandomStates:
    """Of Python, NumPy and torch; a GPU's generator too."""

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
    """The state of a checkpoint, after every file was compared with its checksum.

    Raises:
        CheckpointError: a file is missing, cut off or changed, or not what this version writes.
    """
    try:
        _require_file(folder / SUMS_FILE)
        sums = json.loads((folder / SUMS_FILE).read_text(encoding="utf-8"))
        for name, expected in {STATE_FILE: "", **sums}.items():  # a list that does not name it proves nothing
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"{folder / name} is damaged: it is not what was written")
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} is not complete: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from None
    path = folder / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's text says how to run the code in it
        raise CheckpointError(
            f"{path} holds more than numbers, texts and tensors, which onebase never writes; nothing of it was run"
        ) from None
    except Exception as error:  # whatever a foreign file makes of torch's reader
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__})") from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} is not of this version of onebase: its format is {found!r}, not {FORMAT}")
    return state


def remove_old(folder: Path, *, newest: Path, keep: int) -> None:
    """Removes all checkpoints but `keep`, from `newest` on back; still newer ones are damaged, or it would not be."""
    there = checkpoints(folder)
    first = there.index(newest)
    for path in [*there[:first], *there[first + keep :]]:
        shutil.rmtree(path, ignore_errors=True)


def fingerprint_examples(*sides: list[Example]) -> str:
    """Of all that is learnt from in the examples, in their order: other data is another run."""
    digest = hashlib.sha256()
    for examples in sides:
        for e in examples:
            row = None if e.row is None else (e.row.answers, e.row.grades, dict(e.row.columns))
            digest.update(
                repr(
                    (list(e.prompt_ids), [list(ids) for ids in e.completions], e.counted, e.grades, e.margin, row)
                ).encode()
            )
        digest.update(b"|")
    return digest.hexdigest()


def inputs_of(base: OneBase, *sides: list[Example]) -> dict[str, str]:
    """Fingerprints of what a run reads and does not change: the base, the roles that do not train, the data."""
    digest = hashlib.sha256()
    for name, role in sorted(base.roles.items()):
        if not role.trains:
            weights = base.adapter_weights(name)
            if role.head is not None:
                weights["head"] = role.head.weight.detach().cpu()
            for key, weight in sorted(weights.items()):
                digest.update(key.encode() + weight.contiguous().view(torch.uint8).numpy().tobytes())
            digest.update(repr((role.pooling, role.score_mean, role.score_std)).encode())
    return {"base": base.fingerprint, "roles": digest.hexdigest(), "data": fingerprint_examples(*sides)}


def _require_file(path: Path) -> None:
    """Raises CheckpointError where something else has the name: to read a pipe may be to wait for ever."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path} is not a file")


def _sha256(path: Path) -> str:
    _require_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
