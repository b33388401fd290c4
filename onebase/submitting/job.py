"""A job: a verb with its config, and what a place that runs it has to give it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from onebase.errors import ConfigError
from onebase.shown import shown

To = Literal["local", "slurm", "skypilot", "sagemaker", "kubernetes", "ray"]
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
"""What every place takes as a name: Kubernetes is the strictest, and appends a number."""
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,200}")
SECRET_SIGNS = re.compile(r"(?i)(token|secret|password|passwd|api_?key|access_?key|credential)")
"""Names of variables whose value should be in no file."""
FOLDER = re.compile(r"/[\w./-]{1,200}", re.ASCII)
SAGEMAKER_FOLDER = "/opt/ml/checkpoints"
"""The folder that SageMaker keeps equal to a place in S3, before and while a job runs."""


@dataclass(frozen=True, slots=True)
class Takes:
    """What a place can be told."""

    nodes: bool = True
    machine: str = ""
    """What `--machine` names there; empty where it names nothing."""
    machine_needed: bool = False
    image: bool = False
    image_needed: bool = False
    mounts: str = ""
    """What the source of a mount is there; empty where nothing is mounted."""
    mount_needed: str = ""
    """Why there must be a mount; empty where there need be none."""
    name: bool = True


TAKES: dict[To, Takes] = {
    "local": Takes(nodes=False, name=False),
    "slurm": Takes(machine="a partition", image=True, mounts="a folder"),
    "skypilot": Takes(machine="a GPU, as in H100", image=True, mounts="a bucket, as in s3://runs"),
    "sagemaker": Takes(
        nodes=False,
        machine="an instance type, as in ml.g5.12xlarge",
        machine_needed=True,
        image=True,
        image_needed=True,
        mounts="a place in S3, as in s3://bucket/runs",
        mount_needed=f"data is read and runs are kept there; mount it at {SAGEMAKER_FOLDER}",
    ),
    "kubernetes": Takes(
        machine="an instance type, a label of nodes",
        image=True,
        image_needed=True,
        mounts="a persistent volume claim",
        mount_needed="data is read and runs are kept there, and all pods see it",
    ),
    "ray": Takes(name=False),
}


@dataclass(frozen=True, slots=True)
class Mount:
    """A place that the job sees as a folder."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Job:
    """A checked job, ready to be rendered."""

    verb: str
    config: str
    """The resolved config, as YAML."""
    name: str
    nodes: int = 1
    processes: int = 1
    """On every node."""
    gpus: bool = False
    """Whether each process has a GPU of its own."""
    machine: str | None = None
    image: str | None = None
    mounts: tuple[Mount, ...] = ()
    secrets: tuple[str, ...] = ()
    """Names of variables; their values are never in a file."""
    environment: tuple[tuple[str, str], ...] = ()
    allow_code_execution: bool = False
    price_per_hour: float | None = None
    """Of one machine."""
    hours: float | None = None

    @property
    def _keys(self) -> Any:
        import yaml  # only once there is a job: --help need not wait for it

        return yaml.safe_load(self.config)

    @property
    def pauses(self) -> bool:
        """Whether the run may stop to wait for a person."""
        return bool(self._keys.get("on_finding") == "pause")

    @property
    def output_dir(self) -> str:
        return str(self._keys["output_dir"])

    @property
    def quantized(self) -> bool:
        """Whether the base is in 4 bits, for which there is an extra."""
        return (self._keys.get("model") or {}).get("quantization") == "nf4"

    @property
    def all_processes(self) -> int:
        return self.nodes * self.processes

    @property
    def words(self) -> tuple[str, ...]:
        """The verb as it is run there, beside `config.yaml`."""
        return (self.verb, "config.yaml", *(["--allow-code-execution"] if self.allow_code_execution else []))

    def keeps_runs(self, *, starts_in_mount: bool) -> bool:
        """Whether the folder of the run is below a mount; with `starts_in_mount` relative paths begin at the first."""
        folder = PurePosixPath(self.output_dir)
        if not folder.is_absolute():
            return starts_in_mount and bool(self.mounts) and ".." not in folder.parts
        return any(folder.is_relative_to(mount.target) for mount in self.mounts)


def check_options(job: Job, to: To) -> None:
    """Checks that a place can give what the job asks for.

    Raises:
        ConfigError: it cannot, or a value is no number of anything, no name or no folder.
    """
    takes = TAKES[to]
    for option, number in (("--nodes", job.nodes), ("--processes-per-node", job.processes)):
        if number < 1:
            raise ConfigError(f"{option} is {number}; it should be at least 1")
    if job.nodes > 1 and not takes.nodes:
        raise ConfigError(f"--nodes is {job.nodes}, but {to} starts one machine; leave it out, or choose another place")
    if not NAME.fullmatch(job.name):
        raise ConfigError(
            f"--name is {shown(job.name, 60)}; write at most 40 small letters, digits and dashes, a letter first"
        )
    _check_one(to, "--machine", job.machine, what=takes.machine, needed=takes.machine_needed)
    _check_one(
        to,
        "--image",
        job.image,
        what="a container's image with onebase in it" if takes.image else "",
        needed=takes.image_needed,
    )
    if job.mounts and not takes.mounts:
        raise ConfigError(f"--mount: {to} mounts nothing; leave it out")
    if not job.mounts and takes.mount_needed:
        raise ConfigError(f"--mount is missing: {takes.mounts}, then a colon and a folder; {takes.mount_needed}")
    if to == "skypilot" and job.gpus and not job.machine:
        raise ConfigError("--gpus: skypilot rents GPUs by their name; add --machine, as in --machine H100")
    if to == "skypilot" and job.machine and not job.gpus:
        raise ConfigError("--machine is a GPU there; add --gpus")
    if to == "slurm" and job.mounts and not job.image:
        raise ConfigError("--mount: without --image a Slurm job sees the cluster's own folders; leave it out")
    if to == "sagemaker" and [mount.target for mount in job.mounts] != [SAGEMAKER_FOLDER]:
        raise ConfigError(f"--mount: sagemaker mounts one folder, {SAGEMAKER_FOLDER}; name it after the place in S3")
    for option, value in (("--price-per-hour", job.price_per_hour), ("--hours", job.hours)):
        if value is not None and not 0 < value < 1e9:
            raise ConfigError(f"{option} is {value:g}; it should be above 0, or left out")
    if job.pauses:
        raise ConfigError(
            "on_finding is pause, which waits for a person, but a job that stops is started again; set "
            "--on_finding warn"
        )


def _check_one(to: To, option: str, value: str | None, *, what: str, needed: bool) -> None:
    if value is None:
        if needed:
            raise ConfigError(f"{option} is missing; {to} needs {what}")
    elif not what:
        raise ConfigError(f"{option}: {to} takes none; leave it out")
    elif not re.fullmatch(r"[\w./:@+-]{1,300}", value, re.ASCII):
        raise ConfigError(f"{option} is {shown(value, 60)}; it should be {what}")


def read_mounts(texts: Sequence[str]) -> tuple[Mount, ...]:
    """The mounts that `SOURCE:FOLDER` names.

    Raises:
        ConfigError: a text is not of this form, or a folder is named twice.
    """
    found: dict[str, Mount] = {}
    for text in texts:
        source, colon, target = text.rpartition(":")
        if not colon or not source or not FOLDER.fullmatch(target) or ".." in PurePosixPath(target).parts:
            raise ConfigError(
                f"--mount is {shown(text, 100)}; write what is mounted, a colon and the folder that the job sees, as "
                "in s3://runs:/runs"
            )
        if not re.fullmatch(r"[\w./:@+-]+", source, re.ASCII):
            raise ConfigError(f"--mount: {shown(source, 100)} has characters that no place takes in a name")
        if target in found:
            raise ConfigError(f"--mount: {shown(target, 100)} is named twice; name it once")
        found[target] = Mount(source, target)
    return tuple(found.values())


def read_environment(texts: Sequence[str], secrets: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The variables that `NAME=VALUE` sets.

    Raises:
        ConfigError: a text is not of this form, a name says that its value is secret, or it is set twice.
    """
    for name in secrets:
        if not VARIABLE.fullmatch(name):
            raise ConfigError(
                f"--secret is {shown(name.partition('=')[0], 60)}{'=...' if '=' in name else ''}; name the variable "
                "alone: its value is in your environment or in the place's own store, and in no file"
            )
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not VARIABLE.fullmatch(name):
            raise ConfigError(f"--env is {shown(name, 60)}; write NAME=VALUE")
        if SECRET_SIGNS.search(name):
            raise ConfigError(
                f"--env {name}: its value would be in the files; name it with --secret {name}, without the value"
            )
        if name in found or name in secrets:
            raise ConfigError(f"--env {name} is given twice; give it once")
        if any(character < " " for character in value):
            raise ConfigError(f"--env {name}: the value has a line break or a control character; take it out")
        found[name] = value
    return tuple(found.items())


def cost(job: Job) -> str:
    """What the job costs by the price and the hours that the user gave; "" without both."""
    if job.price_per_hour is None:
        return ""
    per_hour = job.price_per_hour * job.nodes
    machines = f"{job.nodes} machine{'s'[: job.nodes > 1]} at {job.price_per_hour:g} an hour"
    if job.hours is None:
        return f"{machines}: {per_hour:.2f} an hour, until it ends or is deleted"
    return (
        f"{machines}, {job.hours:g} hours: {per_hour * job.hours:.2f}, if it takes the hours you gave; starting, "
        "waiting and what a preemption repeats come on top"
    )
