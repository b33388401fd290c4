"""`onebase submit`: a run that is started elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from onebase.cli import modules, preflight
from onebase.cli.numbers import REAL, Whole
from onebase.cli.training import ALLOW_CODE
from onebase.errors import ConfigError
from onebase.shown import shown
from onebase.submitting.job import Job, To, check_options, read_environment, read_mounts
from onebase.verbs import VERBS

if TYPE_CHECKING:
    from pydantic import BaseModel

SEES_THIS_DISK: set[To] = {"local", "slurm", "skypilot", "ray"}
"""Where the working folder is seen or sent along, so that what the config names can be checked here."""


def submit(
    verb: str,
    /,
    *words: Annotated[str, Parameter(allow_leading_hyphen=True)],
    to: To,
    into: Path | None = None,
    name: str | None = None,
    nodes: Whole = 1,
    processes_per_node: Whole = 1,
    gpus: bool = False,
    machine: str | None = None,
    image: str | None = None,
    mount: list[str] | None = None,
    env: list[str] | None = None,
    secret: list[str] | None = None,
    price_per_hour: Annotated[float | None, REAL] = None,
    hours: Annotated[float | None, REAL] = None,
    allow_code_execution: bool = False,
    go: bool = False,
    dry_run: bool = False,
    force: bool = False,
) -> None:
    """Write what a verb needs to run elsewhere, with the commands to create, watch and delete it; --go creates it.

    A job that is preempted saves, ends with 75 and is started again, where it resumes.

    Args:
        verb: sft, reward, dpo, ppo, ...: a verb that leaves a run.
        words: The config file and overrides, as for the verb itself.
        to: local (this machine), slurm, skypilot, sagemaker, kubernetes or ray.
        into: Folder for the files; all but local need it.
        name: Of the job; by default onebase and the verb.
        nodes: Machines.
        processes_per_node: Processes on each, one for every GPU.
        gpus: Give every process a GPU.
        machine: What to run on: a Slurm partition, a GPU for SkyPilot (H100), an instance type.
        image: A container's image with onebase in it.
        mount: What is mounted and where, as in s3://runs:/runs; repeat it for several.
        env: A variable, as NAME=VALUE; repeat it for several.
        secret: Name of a variable whose value is written nowhere; repeat it for several.
        price_per_hour: Price of one machine, for the cost.
        hours: How long you expect it to take, for the cost.
        allow_code_execution: Let the verifier code run what the policy writes, in a sandbox.
        go: Create the job with the place's own client.
        dry_run: Only show the files and commands.
        force: Replace files that are there with other contents.
    """
    if verb not in VERBS:
        raise ConfigError(f"{shown(verb, 60)} is no verb that leaves a run; those are {', '.join(VERBS)}")
    if go and dry_run:
        raise ConfigError("--go creates the job and --dry-run writes nothing; give one of them")
    config = _read(verb, words, to, allow_code=allow_code_execution)
    from onebase.config.files import dump_config

    job = Job(
        verb,
        dump_config(config),
        name or f"onebase-{verb}",
        nodes,
        processes_per_node,
        gpus,
        machine,
        image,
        read_mounts(mount or []),
        tuple(dict.fromkeys(secret or [])),
        read_environment(env or [], secret or []),
        allow_code_execution,
        price_per_hour,
        hours,
    )
    check_options(job, to)
    if to == "local":
        into, words = None, (*words, *([ALLOW_CODE] if allow_code_execution else []))
    else:
        _check_into(into, words)
    modules.load("onebase.submitting.render").run(
        job, to, words=(verb, *words), into=into, write=not dry_run, force=force, go=go
    )


def _check_into(into: Path | None, words: Sequence[str]) -> None:
    if into is None:
        raise ConfigError("--into is missing; name a folder for the files")
    if os.path.lexists(into) and not into.is_dir():
        raise ConfigError(f"{shown(into, 200)} is a file; name a folder with --into")
    own = Path(words[0]) if words and not words[0].startswith("-") else None
    if own is not None and own.exists() and (into / "config.yaml").exists() and own.samefile(into / "config.yaml"):
        raise ConfigError(f"{shown(own, 200)} would be replaced by the resolved one; name another folder with --into")
    preflight.check_writable(into, "--into")


def _read(verb: str, words: Sequence[str], to: To, *, allow_code: bool) -> BaseModel:
    from onebase.config.files import load_config
    from onebase.config.verbs import VERB_CONFIGS

    file, rest = None, list(words)
    if rest and not rest[0].startswith("-") and ("=" not in rest[0] or rest[0].endswith((".yaml", ".yml"))):
        file = Path(rest.pop(0))
    if allow_code:
        rest.append("--reward.allow_code_execution=true")
    config = load_config(VERB_CONFIGS[verb], file, rest)
    if to in SEES_THIS_DISK:
        preflight.check(config)
        preflight.check_models(config)
    return config
