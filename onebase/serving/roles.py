"""The roles that are served: each under a name, with a version that names its weights."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from pathlib import Path

from onebase.config.serving import BASE, ServeConfig, ServedRole
from onebase.data.chat import ChatFormat, chat_format
from onebase.errors import ConfigError, ModelError
from onebase.models.base import OneBase
from onebase.models.role_card import ADAPTER_FILE, TEMPLATE_FILE, RoleCard, read_card
from onebase.models.role_files import load_role
from onebase.recipes.setup.saved import open_base
from onebase.runs.progress import say
from onebase.sampling.local import stop_ids
from onebase.serving.errors import Refusal, unknown_model
from onebase.shown import shown
from onebase.training.threads import use_threads

KINDS = ("policy", "reward")


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One name that answers."""

    name: str
    version: str
    """The first digits of a hash of the weights: the same weights have the same version, wherever they are served."""
    kind: str
    """`policy` or `reward`; the base is a policy without an adapter."""
    role: str
    """Its name on the base, which no other role has had."""
    chat: ChatFormat
    stop_ids: tuple[int, ...]
    defaults: ServedRole

    @property
    def fingerprint(self) -> str:
        return f"{self.name}@{self.version}"


class Roles:
    """The base, and who is served on it. Only the worker's thread changes it; any thread may look."""

    def __init__(self, base: OneBase) -> None:
        self.base = base
        self._served: dict[str, Served] = {}
        self._numbers = itertools.count()

    def all(self, kind: str | None = None) -> list[Served]:
        """Everyone of this kind, the base first."""
        return [served for served in self._served.values() if kind in (None, served.kind)]

    def find(self, name: str, kind: str, *, param: str = "model") -> Served:
        """The role of this name.

        Raises:
            Refusal: there is none, or it is of the other kind.
        """
        served = self._served.get(name)
        if served is None:
            raise unknown_model(name, [known.name for known in self.all(kind)], param=param)
        if served.kind != kind:
            doing = "scores answers and writes none" if kind == "policy" else "writes answers and scores none"
            raise Refusal(400, f"{name!r} is a {served.kind} role: it {doing}", param=param)
        return served

    def load(self, name: str, settings: ServedRole) -> Served:
        """Puts a role from its folder on the base and serves it under this name.

        Raises:
            Refusal: the name is taken.
            ModelError: the folder is no role, or does not fit the base.
        """
        if name in self._served:
            raise Refusal(409, f"{name!r} is served already; choose another name, or unload it first", param="name")
        card = read_card(settings.role)
        role = self.new_name()
        load_role(self.base, role, settings.role, kinds=KINDS)
        return self.serve(name, role, settings, card)

    def serve(self, name: str, role: str, settings: ServedRole, card: RoleCard | None) -> Served:
        """Serves a role that is on the base already; `card` is None for the base itself.

        Raises:
            ConfigError: a reward role has settings for drawing answers.
        """
        if card is not None and card.kind == "reward" and not settings.samples_as_usual:
            raise ConfigError(f"{name!r} is a reward role: temperature, max_tokens and the like would change nothing")
        chat = self._chat(settings.role, card)
        served = Served(
            name,
            self.base.fingerprint[:8] if card is None else version_of(settings.role),
            "policy" if card is None else card.kind,
            role,
            chat,
            stop_ids(self.base, [chat.end_token_id]),
            settings,
        )
        first = {name: served} if name == BASE else {}
        self._served = first | self._served | {name: served}
        return served

    def withdraw(self, name: str) -> Served:
        """Takes a name away; whoever is being answered goes on.

        Raises:
            Refusal: there is no such role, or it is the base.
        """
        if name == BASE:
            raise Refusal(400, "the base cannot be unloaded: every role stands on it", param="name")
        if name not in self._served:
            raise unknown_model(name, [served.name for served in self.all() if served.name != BASE], param="name")
        served = self._served[name]
        self._served = {known: other for known, other in self._served.items() if known != name}
        return served

    def new_name(self) -> str:
        """A name on the base; PEFT allows no dots in it, and a role may still be answering when its name is reused."""
        return f"served-{next(self._numbers)}"

    def _chat(self, folder: str, card: RoleCard | None) -> ChatFormat:
        """The conversations a role was trained on; for the base its own, or else those of the first role."""
        if card is not None and card.chat_template:
            return chat_format(self.base.tokenizer, str(Path(folder) / TEMPLATE_FILE))
        if card is None and self.base.tokenizer.chat_template is None:
            first = next((served.chat for served in self._served.values() if served.chat.template), None)
            return first or chat_format(self.base.tokenizer, "plain")
        return chat_format(self.base.tokenizer)


def version_of(folder: str) -> str:
    """The first eight digits of the SHA-256 of a role's adapter."""
    with (Path(folder) / ADAPTER_FILE).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:8]


def open_roles(config: ServeConfig) -> Roles:
    """Loads the base with every role that the config names.

    Raises:
        ModelError: as `open_base`; or two kinds of models are named.
    """
    use_threads(config.threads)
    named = {f"configured-{i}": settings for i, settings in enumerate(config.roles.values())}
    base, cards = open_base(
        {role: (settings.role, KINDS) for role, settings in named.items()},
        model=config.model,
        dtype=config.dtype,
        quantization=config.quantization,
        device=config.device,
    )
    if base.context_length < 2:
        raise ModelError(f"{shown(base.name_or_path)}: a context of one token leaves no room for an answer")
    roles = Roles(base)
    found = [
        roles.serve(name, role, settings, cards.get(role))
        for name, (role, settings) in zip(config.roles, named.items(), strict=True)
    ]
    base.add_role(BASE)
    roles.serve(BASE, BASE, ServedRole(role=base.name_or_path or BASE), None)
    say(f"serve: {', '.join(f'{served.fingerprint} ({served.kind})' for served in found) or 'the base alone'}")
    return roles
