"""Reads and checks a role's `role.json` without torch, so that a wrong folder is answered at once."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from onebase.errors import ModelError, RoleMismatchError
from onebase.shown import shown

CARD_FILE = "role.json"
ADAPTER_FILE = "adapter_model.safetensors"
TEMPLATE_FILE = "chat_template.jinja"
Kind = Literal["policy", "reward", "critic"]
SCALAR_KINDS = ("reward", "critic")
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Endings of files with weights that can run code as they are read."""


class RoleCard(BaseModel):
    """The entries of `role.json`. A wrong type or an unknown entry is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: Kind
    base: str
    """Folder or hub name of the base."""
    base_fingerprint: str
    tokenizer_fingerprint: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """The base's dtype when the role was trained; in another one its scores differ in the third digit."""
    quantization: Literal["none", "nf4"] = "none"
    chat_template: str | None = None
    """The template as configured, its text beside this file in `chat_template.jinja`; None: the tokenizer's own."""
    chat_template_fingerprint: str = ""
    pooling: Literal["last", "mean"] = "last"
    score_mean: float | None = None
    score_std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the held-out scores; null if none were measured."""


def read_card(folder: str | Path) -> RoleCard:
    """Reads a role's `role.json`.

    Raises:
        ModelError: the folder does not exist or holds no role, or an entry is invalid.
    """
    folder = Path(folder)
    path = folder / CARD_FILE
    if not folder.is_dir():
        raise ModelError(f"{shown(folder)}: no such folder; a role is the folder `policy` or `reward` inside a run")
    if not path.is_file() and is_model(folder):
        raise ModelError(f"{shown(folder)}: this folder is a full model, not a role", remedy="model-not-role")
    if not path.is_file():
        raise ModelError(f"{shown(folder)}: no role.json; {_nearest_role(folder)}")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
        if not isinstance(entries, dict):
            raise ValueError("expected a JSON object that describes a role")
        return RoleCard(**entries)
    except ValidationError as error:
        reason = _first_problem(error)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = shown(error, 200)
    raise ModelError(
        f"{shown(path)}: cannot be read: {reason}; it is not as it was saved: restore it, or train the role again"
    )


def check_role_folder(folder: str | Path, kinds: Sequence[str]) -> RoleCard:
    """Reads a role's card and checks that its folder is complete and its kind one of these. Needs no torch.

    Raises:
        ModelError: as `read_card`, or the adapter is missing or pickled.
        RoleMismatchError: the role is of another kind.
    """
    card = read_card(folder)
    if card.kind not in kinds:
        raise RoleMismatchError(
            f"{shown(folder)}: this is a {card.kind} role, and a {' or '.join(kinds)} role is needed here"
        )
    _refuse_pickles(Path(folder), "adapter_model")
    for name in ("adapter_config.json", ADAPTER_FILE):
        if not (Path(folder) / name).is_file():
            raise ModelError(f"{shown(Path(folder) / name)}: missing; the folder is not complete")
    return card


def is_model(folder: str | Path) -> bool:
    """Whether a folder holds a full model: a base, or the result of full-parameter training."""
    return (Path(folder) / "config.json").is_file()


def check_model_name(name: str, *, key: str = "model.model_name_or_path") -> None:
    """Checks that this is a folder with a model, or a hub name that can be fetched. Needs no torch.

    Raises:
        ModelError: the folder does not exist, has no config.json or only pickled weights; or the hub name is not in
            the cache and the hub cannot be reached, which huggingface_hub itself would retry for minutes.
    """
    folder = Path(name)
    if folder.is_dir():
        if not is_model(folder):
            role = folder / CARD_FILE
            hint = "this is a role, and a model is needed here" if role.is_file() else "is this a model's folder?"
            raise ModelError(f"{shown(name)}: no model could be loaded: it has no config.json; {hint}")
        _refuse_pickles(folder, "*model")
    elif name.startswith((".", "/", "~")) or name.count("/") != 1 or Path(name.split("/")[0]).is_dir():
        raise ModelError(f"{shown(name)}: no such folder; {key} takes a folder or a hub name")
    else:
        _check_hub(name, key)


def _check_hub(name: str, key: str) -> None:
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        if not constants.HF_HUB_OFFLINE and "https" not in getproxies():
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except HFValidationError as error:
        raise ModelError(f"{shown(name)}: neither a folder nor a hub name; {key} takes one of them") from error
    except OSError as error:
        raise ModelError(
            f"{shown(name)}: no such folder here, and no model of that name in the cache; {constants.ENDPOINT} cannot "
            "be reached to fetch it"
        ) from error


def _refuse_pickles(folder: Path, stem: str) -> None:
    """Raises ModelError for a folder whose weights are only in files that can run code as they are read."""
    pickled = sorted(path.name for end in PICKLED for path in folder.glob(f"{stem}*{end}"))
    if pickled and not any(folder.glob(f"{stem}*.safetensors")):
        raise ModelError(
            f"{shown(folder)}: its weights are pickled ({shown(pickled[0], 60)}), and reading such a file can run any "
            "code; use a copy with safetensors"
        )


def _nearest_role(folder: Path) -> str:
    inside = sorted(child.name for child in folder.iterdir() if (child / CARD_FILE).is_file())
    return f"did you mean {shown(folder / inside[0])}?" if inside else "it is not a role saved by onebase"


def _first_problem(error: ValidationError) -> str:
    first: Any = error.errors()[0]
    key = shown(".".join(map(str, first["loc"])), 60)
    given = "" if first["type"] == "missing" else f" = {shown(json.dumps(first['input']), 60)}"
    return f"'{key}'{given}: {first['msg']}"


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{twice}' appears twice")
    return entries
