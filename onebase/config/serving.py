"""The config of `onebase serve`: which roles answer under which names, where, and within which limits."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from onebase.config.values import (
    Count,
    Device,
    Float,
    Group,
    Int,
    NonNegative,
    PathText,
    Positive,
    Said,
    Whole,
    fail_on,
)
from onebase.shown import shown

BASE = "base"
"""The name under which the base without adapters answers."""
NAMES = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""How a role may be called: the name stands in addresses, metrics and logs."""


class ServedRole(Group):
    """A role that is served, with what a request that does not say otherwise gets."""

    role: PathText
    """Folder of a policy or reward role, or of a full model."""
    temperature: NonNegative = 1.0
    """Divides the logits; 0 = always take the likeliest token."""
    top_p: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Sample among the likeliest tokens that together have this probability; 1 = off."""
    top_k: Whole = 0
    """Sample among the k likeliest tokens; 0 = off."""
    max_tokens: Count | None = None
    """Longest answer, in tokens; null = 1024, or what the context still holds."""
    system: Said | None = None
    """A system turn for conversations without one; null = none."""

    @property
    def samples_as_usual(self) -> bool:
        """Whether nothing is set beside the folder; a reward role has no other key."""
        return self.model_fields_set <= {"role"}


def _read(value: Any) -> Any:
    """Roles by name, each a folder or a folder with defaults."""
    if not isinstance(value, Mapping):
        raise ValueError("it should be names and folders, such as {helpful: runs/dpo/policy}")
    problems: list[str] = []
    found = {}
    for name, item in value.items():
        found[str(name)] = _read_one(str(name), item, problems)
    if problems:
        raise ValueError("; ".join(problems))
    return found


def _read_one(name: str, item: Any, problems: list[str]) -> ServedRole | None:
    named = shown(repr(name), 80)
    if not re.fullmatch(NAMES, name):
        problems.append(
            f"{named} cannot be a role's name: it should have up to 64 letters, digits, dots, dashes and underscores, "
            "and start with a letter or a digit"
        )
    elif name == BASE:
        problems.append(f"{named} is the name of the base without adapters; give the role another")
    if isinstance(item, ServedRole):
        return item
    try:
        return ServedRole.model_validate({"role": item} if isinstance(item, str) else item)
    except ValidationError as error:
        keys = list(ServedRole.model_fields)
        for problem in error.errors(include_url=False, include_context=False):
            key = shown(".".join(map(str, problem["loc"])), 60)
            if problem["type"] == "extra_forbidden":
                near = difflib.get_close_matches(key, keys, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(keys)}"
                problems.append(f"{named} has an unknown key {key!r}; {hint}")
            elif problem["type"] == "missing":
                problems.append(f"{named} has no folder; add role: FOLDER")
            elif not key:
                problems.append(f"{named} should be a folder, or {{role: FOLDER, temperature: 0.7}}")
            else:
                said = re.sub(r"^(Input|Value) should", "it should", problem["msg"].removeprefix("Value error, "))
                problems.append(f"{named}: {key} = {shown(problem['input'], 40)}: {said}")
        return None


Roles = Annotated[dict[str, ServedRole], BeforeValidator(_read)]


class LimitsGroup(Group):
    """What a client may ask of the server."""

    request_bytes: Count = 1_000_000
    """Largest body of a request; a larger one is refused with 413."""
    queue: Count = 256
    """Answers that may wait for a place; further requests are refused with 429."""
    tokens: Annotated[Int, Field(ge=2)] | None = None
    """Longest prompt and answer together, in tokens; null = what the context holds, at most 4096."""
    rows: Count | None = None
    """Answers of one role decoded at once; null = as many as fit a share of the free memory, at most 64."""
    seconds: Positive = 600.0
    """An answer ends after this time, finished or not; so does waiting for the last answers on SIGTERM."""


class ServeConfig(Group):
    """Serve roles on one base over HTTP."""

    roles: Roles = {}
    """Folders of policy and reward roles by name: {helpful: runs/dpo/policy}; or {role: .., temperature: .., ..}."""
    model: PathText | None = None
    """Folder or hub name of the base; null = where the roles say."""
    dtype: Literal["auto", "float32", "bfloat16"] | None = None
    """Number format of the base; null = the one the roles were trained with."""
    quantization: Literal["none", "nf4"] | None = None
    """none, or nf4 for a base in 4 bits; null = what the roles were trained with."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1; auto = the first GPU, else cpu."""
    threads: Count | None = None
    """CPU threads; null = one per core."""
    host: Said = "127.0.0.1"
    """Address to listen on; one that other machines reach, such as 0.0.0.0, needs --api-key."""
    port: Annotated[Int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 = any free one."""
    limits: LimitsGroup = LimitsGroup()
    allow_role_changes: bool = False
    """true = whoever may send requests may also load roles from this machine's folders, and unload them."""
    price_per_hour: Positive | None = None
    """Price of the machine; then /metrics and the log say what a thousand tokens cost."""

    @model_validator(mode="after")
    def _something_is_served(self) -> ServeConfig:
        if not self.roles and self.model is None:
            fail_on(["nothing to serve: name a role's folder, or a base with 'model'"])
        return self


def names_of(folders: Sequence[str]) -> dict[str, str]:
    """A name for each folder: the run's rather than `policy` or `reward`, with a number where several agree."""
    named: dict[str, str] = {}
    for folder in folders:
        path = Path(folder).absolute()
        named_by = path.parent if path.name in ("policy", "reward") else path  # runs/reward/reward is `reward`
        text = re.sub(r"[^A-Za-z0-9._-]", "-", named_by.name)[:56].strip("-._") or "role"
        name, number = text, 2
        while name in named or name == BASE:
            name, number = f"{text}-{number}", number + 1
        named[name] = folder
    return named
