"""`onebase deploy render`: the files of a target, and the commands that create, try and delete it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

import onebase
from onebase.config.serving import ServeConfig
from onebase.deploying.service import Service, check_links, read_service, way
from onebase.deploying.versions import PACKAGE, PYTHON, WHEEL, constraints, source
from onebase.errors import ConfigError
from onebase.files import write_atomically
from onebase.shown import shown

Target = Literal["docker", "systemd", "skypilot", "sagemaker"]
COMMANDS = "COMMANDS.txt"
FIRST_LINES = 3


@dataclass(frozen=True, slots=True)
class Place:
    """How a target is laid out."""

    models: str
    """The folder of models there, as its serve.yaml names it."""
    templates: tuple[str, ...]
    copies: bool
    """Whether folders are copied with what their links lead to; else they are mounted or sent as they are."""
    prices: str = ""
    """Where the price of an hour is published; empty for a machine of one's own."""


PLACES: dict[Target, Place] = {
    "docker": Place("/srv/onebase", ("Dockerfile", ".dockerignore", "compose.yaml"), copies=False),
    "systemd": Place("/opt/onebase/models", ("onebase.service", "install.sh", "remove.sh"), copies=True),
    "skypilot": Place(".", ("sky.yaml",), copies=False, prices="'sky gpus list' and 'sky launch --dryrun sky.yaml'"),
    "sagemaker": Place(
        ".",
        ("Dockerfile", ".dockerignore", "adapter.py", "package.py", "endpoint.py"),
        copies=True,
        prices="https://aws.amazon.com/sagemaker/ai/pricing/",
    ),
}


@dataclass(frozen=True, slots=True)
class File:
    """A rendered file."""

    name: str
    text: str

    def state(self, folder: Path) -> str:
        """`new`, `unchanged`, or `differs` from what is there."""
        path = folder / self.name
        if not os.path.lexists(path):
            return "new"
        return "unchanged" if path.is_file() and path.read_bytes() == self.text.encode() else "differs"


def run(*, config: ServeConfig, target: Target, into: Path, write: bool, force: bool) -> None:
    """Prints what would be written and the commands; with `write` the files are written too.

    Raises:
        ConfigError: a file is there and differs, without `force`.
        ModelError: a role or the base does not exist, or is something else.
    """
    service = read_service(config, into)
    if not PLACES[target].copies:
        check_links(service, into)
    files = render(service, target, into)
    states = {file.name: file.state(into) for file in files}
    if write:
        _write(files, states, into, force=force)
    folder = shown(into, 200)
    print(f"{len(files)} files {'in' if write else 'for'} {folder}{'' if write else '; --write writes them'}")
    for file in files:
        _show(file, states[file.name])
    print(f"\nCommands, to be run in {folder}:\n")
    print(shown(files[-1].text, lines=True), end="")


def render(service: Service, target: Target, into: Path) -> list[File]:
    """The files of a target, its commands last. Paths in them are relative to `into`."""
    place = PLACES[target]
    jinja = Environment(
        loader=PackageLoader("onebase.deploying"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    jinja.filters |= {"shell": shlex.quote, "yaml": quoted, "compose": lambda text: quoted(text.replace("$", "$$"))}
    jinja.filters["python"] = repr
    checkout, pinned = source(), constraints(service.extras)
    values = {
        "service": service,
        "models": place.models,
        "wheel": WHEEL,
        "wheel_source": way(checkout, into) if checkout else f"{PACKAGE}=={onebase.__version__}",
        "python": PYTHON,
        "torch": next(line for line in pinned.splitlines() if line.startswith("torch==")),
        "version": onebase.__version__,
        "cost": cost(service, place),
    }

    def filled(name: str) -> File:
        template = jinja.get_template(f"{target}/{name.removeprefix('.')}.jinja")
        return File(name, template.render(values))

    host, port = _listens(service, target)
    return [
        *map(filled, place.templates),
        File("serve.yaml", service.serve_yaml(PurePosixPath(place.models), host=host, port=port)),
        File("constraints.txt", pinned),
        filled(COMMANDS),
    ]


def quoted(text: str) -> str:
    """A text as a YAML string in double quotes, on one line."""
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=float("inf")).strip()


def cost(service: Service, place: Place) -> str:
    """What it costs while it exists, from the price in serve.yaml; else where the price is published."""
    price = service.config.price_per_hour
    if price is not None:
        return f"{price:g} an hour (price_per_hour in serve.yaml) is {24 * price:.2f} a day"
    if not place.prices:
        return ""
    return (
        f"the price of an hour: {place.prices}; set as price_per_hour in serve.yaml it gives the cost per 1,000 tokens"
    )


def _listens(service: Service, target: Target) -> tuple[str, int]:
    if target == "systemd":
        return service.config.host, service.port
    if target == "sagemaker":
        return "0.0.0.0", 8080
    return "0.0.0.0", service.port  # of the container or the rented machine; an API key is asked for


def _write(files: Sequence[File], states: dict[str, str], into: Path, *, force: bool) -> None:
    other = [name for name, state in states.items() if state == "differs"]
    if other and not force:
        raise ConfigError(
            f"{shown(into, 200)}: {', '.join(other)} {'is' if len(other) == 1 else 'are'} there with other contents; "
            "add --force to replace, or name another folder with --into"
        )
    blocked = [name for name in other if (into / name).is_dir()]
    if blocked:
        raise ConfigError(f"{shown(into / blocked[0], 200)} is a folder; remove it, or name another with --into")
    for file in files:
        if states[file.name] != "unchanged":
            write_atomically(into / file.name, file.text)


def _show(file: File, state: str) -> None:
    print(f"\n{file.name}  {len(file.text.encode()):,} bytes, {state}")
    lines = file.text.splitlines()
    for line in lines[:FIRST_LINES]:
        print(f"    {shown(line, 110)}")
    if len(lines) > FIRST_LINES:
        print(f"    ... {len(lines) - FIRST_LINES} more lines")
