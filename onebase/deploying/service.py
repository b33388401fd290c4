"""What of a serve.yaml a deployment needs: the folders to take along, and the same config for the place they go to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from onebase.config.serving import BASE, ServeConfig
from onebase.errors import ConfigError
from onebase.recipes.setup.named_folders import check_opened
from onebase.shown import shown

PORT = 8000
"""Where a server listens whose config says 'any free port', which nobody could be told beforehand."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that goes along."""

    source: str
    """Where it is, seen from the rendered files: `../runs/dpo/policy`."""
    name: str
    """Where it goes, below the folder of models: `base`, `roles/helpful`."""


@dataclass(frozen=True, slots=True)
class Service:
    """A checked serve.yaml, ready to be rendered for any target."""

    config: ServeConfig
    base: str
    """Folder or hub name."""
    folders: tuple[Folder, ...]
    """The base, unless it is a hub name, and every role that is an adapter on it."""
    policy: str
    """The name of a policy, to try."""
    extras: str
    """Of the wheel: `serve`, or `serve,quant`."""

    @property
    def from_hub(self) -> bool:
        """Whether the base is fetched by the server when it starts."""
        return all(folder.name != "base" for folder in self.folders)

    @property
    def gpu(self) -> bool:
        """Whether the config asks for a GPU; `auto` does not, since most machines have none."""
        return self.config.device.startswith("cuda")

    @property
    def port(self) -> int:
        return self.config.port or PORT

    @property
    def address(self) -> str:
        """The address at which a container's port is published: the config's own, for inside it is another."""
        return "127.0.0.1" if self.config.host == "localhost" else self.config.host

    def serve_yaml(self, models: PurePosixPath, *, host: str, port: int) -> str:
        """The config as it is read there: what was set, with the folders where they are put.

        Args:
            models: the folder of models there.
            host, port: what the server listens on there.
        """
        keys: dict[str, Any] = self.config.model_dump(mode="json", exclude_unset=True)
        names = {folder.name for folder in self.folders}
        roles = {}
        for name, role in self.config.roles.items():
            place = f"roles/{name}" if f"roles/{name}" in names else "base"
            roles[name] = role.model_dump(mode="json", exclude_unset=True) | {"role": str(models / place)}
        keys |= {"model": self.base if self.from_hub else str(models / "base"), "host": host, "port": port}
        keys["roles"] = {name: role if len(role) > 1 else role["role"] for name, role in roles.items()}
        return yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=120)


def read_service(config: ServeConfig, into: Path) -> Service:
    """Checks the roles and the base of a config, and finds the way to them from the folder to be written.

    Raises:
        ConfigError: the config lets clients load roles, whose folders would not be there.
        ModelError: a role or the base does not exist, or is something else.
    """
    if config.allow_role_changes:
        raise ConfigError(
            "allow_role_changes is true, but only the roles that the config names go along; take it out, and render "
            "again when roles change"
        )
    named = {name: (role.role, ("policy", "reward")) for name, role in config.roles.items()}
    base, cards = check_opened(named, model=config.model)
    folders = [Folder(way(Path(base), into), "base")] if Path(base).is_dir() else []
    for name, (folder, _) in named.items():
        if name in cards:
            folders.append(Folder(way(Path(folder), into), f"roles/{name}"))
        elif Path(folder).resolve() != Path(base).resolve():
            raise ConfigError(
                f"roles.{name}: {shown(folder, 200)} and {shown(base, 200)} are two models; name roles on one base"
            )
    policy = next((name for name in named if name not in cards or cards[name].kind == "policy"), BASE)
    quantization = config.quantization or next((card.quantization for card in cards.values()), "none")
    return Service(config, base, tuple(folders), policy, "serve,quant" if quantization == "nf4" else "serve")


def check_links(service: Service, into: Path) -> None:
    """Checks that no file is a link out of its folder, as in the hub's cache: mounted elsewhere, it would lead nowhere.

    Raises:
        ConfigError: one is.
    """
    for folder in service.folders:
        root = (into / folder.source).resolve()
        for path in sorted(root.rglob("*")):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise ConfigError(
                    f"{shown(path, 200)} is a link out of its folder, which would lead nowhere there; copy the folder "
                    "with 'cp -RL' and name the copy, or name the model by its hub name"
                )


def way(folder: Path, start: Path) -> str:
    """The relative path from one folder to another, with `./` or `../` in front: nothing takes it for an option."""
    found = Path(os.path.relpath(folder.resolve(), start.resolve())).as_posix()
    return found if found.startswith("../") or found == ".." else f"./{found}"
