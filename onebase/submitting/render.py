"""`onebase submit`: the files of a job, the commands that create, watch and delete it, and the client that takes it."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import onebase
from onebase.deploying.render import COMMANDS
from onebase.deploying.rendered import File, show_file, templates_of, write_files
from onebase.deploying.service import way
from onebase.deploying.versions import PACKAGE, PYTHON, WHEEL, constraints, source
from onebase.errors import ConfigError, MissingExtraError
from onebase.runs.progress import say
from onebase.shown import number_of, shown
from onebase.submitting import here
from onebase.submitting.job import Job, To, cost


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job goes."""

    templates: tuple[str, ...]
    create: tuple[str, ...]
    """The command that hands the job over, run in the folder of the files."""
    needs: str
    """The program, or after `import` the module, that takes the job."""
    install: str
    """How it is installed."""
    installs: bool = False
    """Whether onebase itself is installed there, or in an image, from a wheel."""


PLACES: dict[To, Place] = {
    "slurm": Place(
        ("job.sbatch",), ("sbatch", "job.sbatch"), "sbatch", "run this on a machine of the cluster, which has it"
    ),
    "skypilot": Place(
        ("job.sky.yaml",), ("sky", "jobs", "launch", "--yes"), "sky", "pip install skypilot", installs=True
    ),
    "sagemaker": Place(
        ("job.py", "Dockerfile"),
        ("python", "job.py"),
        "import sagemaker",
        "pip install sagemaker-core",
        installs=True,
    ),
    "kubernetes": Place(
        ("job.yaml", "kustomization.yaml", "Dockerfile"),
        ("kubectl", "apply", "--kustomize", "."),
        "kubectl",
        "see https://kubernetes.io/docs/tasks/tools/",
        installs=True,
    ),
    "ray": Place(("job.py",), ("python", "job.py"), "import ray", 'pip install "onebase[ray]"'),
}

STARTS_IN_MOUNT: set[To] = {"kubernetes", "sagemaker"}
"""Where relative paths begin at the first mount."""
KEEPS_SECRETS: set[To] = {"kubernetes", "sagemaker"}
"""Where secrets are kept by the place itself, under the names that the job gives."""


def run(job: Job, to: To, *, words: Sequence[str], into: Path | None, write: bool, force: bool, go: bool) -> None:
    """Prints and writes the files and commands of a job; with `go` it is handed over.

    Args:
        words: of the verb, as the user gave them.
        into: None only for `local`, which needs no files.

    Raises:
        ConfigError: a file is there and differs, without `force`.
        MissingExtraError: what would take the job is not installed.
        JobEnded: the client, or the run itself where it is waited for, ended with an exit code.
    """
    if to == "local" or into is None:
        if go:
            check_secrets(job, to)
        here.run(job, words, go=go)
        return
    if go:
        check_client(PLACES[to], creating(job, to))
        check_secrets(job, to)
    files = render(job, to, into)
    states = {file.name: file.state(into) for file in files}
    if write:
        write_files(files, states, into, force=force)
    folder = shown(into, 200)
    print(
        f"{number_of(len(files), 'file')} in {folder}"
        if write
        else f"{number_of(len(files), 'file')} for {folder}; without --dry-run they are written"
    )
    for file in files:
        show_file(file, states[file.name])
    print(f"\nCommands, to be run in {folder}:\n")
    print(shown(files[-1].text, lines=True), end="", flush=True)
    for note in notes(job, to):
        say(f"note: {note}")
    if go:
        hand_over(job, to, into)


def render(job: Job, to: To, into: Path) -> list[File]:
    """The files of a job, its commands last. Paths in them are relative to `into`."""
    place = PLACES[to]
    jinja = templates_of("onebase.submitting")
    checkout = source()
    extras = "quant" if job.quantized else ""
    pinned = constraints(extras) if place.installs else ""
    values = {
        "job": job,
        "to": to,
        "environment": dict(job.environment),
        "home": way(Path.cwd(), into),
        "create": shlex.join(creating(job, to)),
        "cost": cost(job),
        "wheel": WHEEL,
        "wheel_source": way(checkout, into) if checkout else f"{PACKAGE}=={onebase.__version__}",
        "python": PYTHON,
        "extras": extras,
        "torch": next((line for line in pinned.splitlines() if line.startswith("torch==")), ""),
        "service": SimpleNamespace(gpu=job.gpus, extras=extras),
    }

    def filled(name: str) -> File:
        folder = "" if name == "Dockerfile" else f"{to}/"
        return File(name, jinja.get_template(f"{folder}{name}.jinja").render(values))

    return [
        *map(filled, place.templates),
        File("config.yaml", job.config),
        *([File("constraints.txt", pinned)] if pinned else []),
        filled(COMMANDS),
    ]


def creating(job: Job, to: To) -> list[str]:
    """The command that hands a job over."""
    words = list(PLACES[to].create)
    if to == "skypilot":
        words += ["--name", job.name, *(word for name in job.secrets for word in ("--secret", name)), "job.sky.yaml"]
    return words


def notes(job: Job, to: To) -> list[str]:
    """What the user should know before the job starts."""
    if to in ("skypilot", *STARTS_IN_MOUNT) and not job.keeps_runs(starts_in_mount=to in STARTS_IN_MOUNT):
        return [
            f"output_dir {shown(job.output_dir, 100)} is below no mount: what is there is gone with the machine, and a "
            "preempted run begins anew; set --output_dir below a --mount"
        ]
    return []


def check_client(place: Place, create: Sequence[str]) -> None:
    """Checks that what takes the job is installed.

    Raises:
        MissingExtraError: it is not.
    """
    kind, _, module = place.needs.partition(" ")
    there = find_spec(module) is not None if module else shutil.which(kind) is not None
    if not there:
        raise MissingExtraError(
            f"{module or kind} is not installed, which would take this job: {place.install}; or take the files to a "
            f"machine that has it, and run there: {shlex.join(create)}"
        )


def check_secrets(job: Job, to: To) -> None:
    """Checks that the secrets are in the environment, where the job takes them from there.

    Raises:
        ConfigError: one is not.
    """
    missing = [name for name in job.secrets if not os.environ.get(name)]
    if missing and not KEEPS_SECRETS & {to}:
        raise ConfigError(f"--secret {missing[0]}: it is not in the environment, where the job finds it; export it")


def hand_over(job: Job, to: To, into: Path) -> None:
    """Runs the command that creates the job, in the folder of its files.

    Raises:
        JobEnded: it did not end with 0.
    """
    create = creating(job, to)
    commands = [create]
    if to == "skypilot" and not job.image and not (into / WHEEL).exists():
        checkout = source()
        wanted = way(checkout, into) if checkout else f"{PACKAGE}=={onebase.__version__}"
        commands.insert(0, ["python", "-m", "pip", "wheel", "--no-deps", "--wheel-dir", ".", wanted])
    for command in commands:
        say(f"running {shlex.join(command)} in {shown(into, 200)}")
        words = [sys.executable, *command[1:]] if command[0] == "python" else command
        with here.hands_on() as process:
            code = process.run(words, folder=into.resolve())
        if code:
            raise here.JobEnded(f"{shlex.join(command)} ended with exit code {code}; its own lines are above", code)
