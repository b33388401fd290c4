"""`onebase deploy render`: the files of a target, and the commands that create, try and delete it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import onebase
from onebase.config.serving import ServeConfig
from onebase.deploying.rendered import File, quoted, show_file, templates_of, write_files
from onebase.deploying.service import Service, check_links, read_service, way
from onebase.deploying.versions import PACKAGE, PYTHON, WHEEL, constraints, source
from onebase.shown import number_of, shown

Target = Literal["docker", "systemd", "skypilot", "sagemaker"]
COMMANDS = "COMMANDS.txt"


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
        write_files(files, states, into, force=force)
    folder = shown(into, 200)
    told = f"in {folder}" if write else f"for {folder}; --write writes them"
    print(f"{number_of(len(files), 'file')} {told}")
    for file in files:
        show_file(file, states[file.name])
    print(f"\nCommands, to be run in {folder}:\n")
    print(shown(files[-1].text, lines=True), end="")


def render(service: Service, target: Target, into: Path) -> list[File]:
    """The files of a target, its commands last. Paths in them are relative to `into`."""
    place = PLACES[target]
    jinja = templates_of("onebase.deploying")
    jinja.filters["compose"] = lambda text: quoted(text.replace("$", "$$"))
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
