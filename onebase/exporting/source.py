"""What is exported: a role's folder or a full model, the base it stands on, and the run that made it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from onebase.errors import ConfigError, ModelError, RoleMismatchError
from onebase.models.base_config import read_config
from onebase.models.role_card import RoleCard, check_model_name, is_model
from onebase.recipes.setup.named_folders import check_opened
from onebase.runs.finished import RunRecord, flattened, read_run
from onebase.shown import shown

FORMATS = ("float32", "bfloat16", "float16")
_CLASSIFIER = re.compile(r"ForSequenceClassification$")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True)
class Source:
    """A role on a base, or a model trained in full."""

    folder: str
    base: str
    """Folder or hub name of the base; for a full model, its own folder."""
    model: str | None
    """The base as the user named it; None: it is where the role says."""
    card: RoleCard | None
    """None for a full model."""

    @property
    def kind(self) -> str:
        """`policy` or `reward`."""
        return self.card.kind if self.card else "reward" if self.is_classifier else "policy"

    @cached_property
    def is_classifier(self) -> bool:
        """Whether this is a reward model trained in full."""
        names = [] if self.card else read_config(self.folder).architectures or []
        return any(_CLASSIFIER.search(name) for name in names)

    @cached_property
    def stored_dtype(self) -> str:
        """The number format the base's weights are stored in; if its configuration says none, the one of training."""
        config = read_config(self.base)
        found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
        stored = str(found).removeprefix("torch.")
        return stored if stored in FORMATS else self.card.dtype if self.card else "float32"

    @property
    def trained_otherwise(self) -> bool:
        """Whether the role was trained on the base in another number format than the base is stored in."""
        return self.card is not None and (self.card.quantization != "none" or self.card.dtype != self.stored_dtype)

    @property
    def trained_on(self) -> str:
        """The number format of the base in training, in words."""
        if self.card is None:
            return f"in {self.stored_dtype}"
        return f"in 4 bits (NF4, computing in {self.card.dtype})" if self.quantized else f"in {self.card.dtype}"

    @property
    def quantized(self) -> bool:
        """Whether the role was trained on a base in 4 bits."""
        return self.card is not None and self.card.quantization == "nf4"

    @property
    def trained_from(self) -> str | None:
        """The base that the run's configuration names; None if it names none, or there is no run."""
        found = flattened(self.run.config).get("model.model_name_or_path") if self.run else None
        return found if isinstance(found, str) else None

    @property
    def hub_base(self) -> str | None:
        """The base's name on the Hub; None if it is a local folder."""
        name = self.base if self.card else str(self.trained_from or "")
        return name if _HUB_NAME.fullmatch(name) and not Path(name).exists() else None

    @cached_property
    def adapter(self) -> dict[str, Any]:
        """The adapter's configuration as stored; empty for a full model."""
        if self.card is None:
            return {}
        path = Path(self.folder) / "adapter_config.json"
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{shown(path)}: cannot be read: {shown(error, 200)}; restore it") from None
        if not isinstance(found, dict):
            raise ModelError(f"{shown(path)}: not an adapter's configuration: expected a JSON object; restore it")
        return found

    @cached_property
    def run(self) -> RunRecord | None:
        """The run that made the role: its folder is the role's parent, or a checkpoint's; None if there is none."""
        above = Path(self.folder).resolve().parents
        for folder in above[:2]:
            if (folder / "config.yaml").is_file():
                try:
                    return read_run(folder)
                except ConfigError:
                    return None
        return None

    @property
    def name(self) -> str:
        """A short name of letters, digits, dots and dashes: `dpo-policy` for `runs/dpo/policy`."""
        own = Path(self.folder).resolve()
        parts = [own.parent.name, own.name] if self.run else [own.name]
        return re.sub(r"[^\w.-]+", "-", "-".join(parts), flags=re.ASCII).strip("-.") or "role"


def find_source(role: str, *, model: str | None, kinds: tuple[str, ...] = ("policy", "reward")) -> Source:
    """Finds a role's folder or a full model, and the base it stands on. Loads no weights.

    Raises:
        ModelError: the folder does not exist or holds something else, its weights are pickled, or the base is not
            where the role says.
        RoleMismatchError: the role is of another kind.
    """
    if is_model(role):
        check_model_name(role, key="ROLE")
        if model is not None:
            raise ModelError(f"{shown(role)} is a full model and has no base; leave --model out")
        source = Source(role, role, None, None)
        if source.kind not in kinds:
            raise RoleMismatchError(f"{shown(role)}: this is a {source.kind} model, and a {kinds[0]} is needed here")
        return source
    base, cards = check_opened({role: (role, kinds)}, model=model)
    return Source(role, base, model, cards[role])
