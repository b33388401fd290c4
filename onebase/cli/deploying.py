"""`onebase deploy`: files that put a server somewhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from onebase.cli import modules, preflight
from onebase.errors import ConfigError
from onebase.shown import shown

deploy = App(name="deploy", help="Write the files that put a server somewhere else.", sort_key=53)


@deploy.command
def render(
    config: Path,
    /,
    *,
    target: Literal["docker", "systemd", "skypilot", "sagemaker"],
    into: Path,
    write: Annotated[bool, Parameter(negative="--dry-run")] = False,
    force: bool = False,
) -> None:
    """Show or write what a target needs to run `onebase serve`, and the commands to create, try and delete it.

    Nothing is sent anywhere; the commands are yours to run.

    Args:
        config: The serve.yaml to deploy; its roles and its base are checked.
        target: docker (compose, on any machine), systemd (a Linux machine without containers), skypilot or sagemaker.
        into: Folder for the files; paths in them are relative to it.
        write: Write the files; by default they are only listed, each with its first lines.
        force: Replace files that are there with other contents.
    """
    if os.path.lexists(into) and not into.is_dir():
        raise ConfigError(f"{shown(into, 200)} is a file; name a folder with --into")
    if config.exists() and (into / "serve.yaml").exists() and config.samefile(into / "serve.yaml"):
        raise ConfigError(
            f"{shown(config, 200)} would be replaced by the one for {target}; name another folder with --into"
        )
    preflight.check_writable(into, "--into")
    checked = preflight.read_serving((), config, {})
    modules.load("onebase.deploying.render").run(config=checked, target=target, into=into, write=write, force=force)
