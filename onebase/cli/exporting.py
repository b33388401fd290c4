"""`onebase merge`, `export` and `push`: roles that leave."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from onebase.cli import modules, preflight, streams
from onebase.errors import ConfigError
from onebase.reading.files import check_file
from onebase.shown import shown

KINDS = ("policy", "reward")


def merge(
    role: str,
    output: Path,
    /,
    *,
    model: str | None = None,
    verify: Annotated[bool, Parameter(negative="--no-verify")] = True,
    max_shard_size: str = "5GB",
    device: str = "auto",
) -> None:
    """Write a role as a plain model for transformers, with a model card, and check that it is the same.

    A policy becomes a causal language model, a reward role a sequence classifier with one label. Exits with 5, leaving
    nothing, if log-probs, greedy answers or scores are not those of the role on its base.

    Args:
        role: Folder of a policy or reward role, or of a model trained in full.
        output: A new folder.
        model: Folder of the base model, if it is not where the role says.
        verify: Compare the written model with the role on its base.
        max_shard_size: Largest weight file: 5GB, 500MB.
        device: auto, cpu, cuda, cuda:1.
    """
    if not re.fullmatch(r"[1-9]\d{0,9}[KMG]B", max_shard_size):
        raise ConfigError(f"--max-shard-size is {shown(max_shard_size, 60)}; write it like 5GB or 500MB")
    preflight.check_device(device)
    preflight.check_new_folder(output, "OUTPUT")
    preflight.check_roles({role: KINDS}, model=model)
    streams.say_first(f"merge: loading {role}")
    modules.load("onebase.exporting.merge").run(
        role=role, output=output, model=model, max_shard_size=max_shard_size, verify=verify, device=device
    )


def export(
    role: str,
    output: Path,
    /,
    *,
    to: Literal["vllm", "gguf", "ollama", "tgi", "openrlhf", "verl"],
    data: Path | None = None,
    reward: str | None = None,
    model: str | None = None,
    device: str = "auto",
) -> None:
    """Write a policy role for another engine or trainer, with a model card; prints the command that runs it.

    vllm and tgi put the adapter on the base themselves and get its folder. gguf and ollama get the merged model,
    checked against the role on its base. What an engine does not take is refused. openrlhf and verl, which train all
    weights of large models, get the merged model, the data in their layout and a script to start from.

    Args:
        role: Folder of a policy role.
        output: A new folder.
        to: vllm, gguf (llama.cpp), ollama, tgi (Text Generation Inference), openrlhf or verl.
        data: For openrlhf and verl: a file with prompts, or for openrlhf with pairs.
        reward: For openrlhf and verl with prompts: folder of the reward role that scores the answers.
        model: Folder of the base model, if it is not where the role says.
        device: auto, cpu, cuda, cuda:1.
    """
    trains = to in ("openrlhf", "verl")
    for option, given in (("--data", data), ("--reward", reward)):
        if given is not None and not trains:
            raise ConfigError(f"{option}: {to} does not train; leave it out")
    if trains and data is None:
        raise ConfigError(f"--data is missing; name what {to} should train on")
    if data is not None:
        check_file(data)
    preflight.check_device(device)
    preflight.check_new_folder(output, "OUTPUT")
    preflight.check_roles({role: KINDS}, model=model)
    if reward is not None:
        preflight.check_roles({reward: ("reward",)}, model=model)
    streams.say_first(f"export: reading {role}")
    modules.load("onebase.exporting.export").run(
        role=role, output=output, to=to, model=model, device=device, data=data, reward=reward
    )


def push(
    folder: Path,
    name: str,
    /,
    *,
    yes: bool = False,
    public: bool = False,
) -> None:
    """Upload a role's or an exported folder to the Hugging Face Hub, after listing its files and asking.

    Args:
        folder: Folder of a role, or one written by merge or export.
        name: The repository, as owner/name; it is created if it does not exist.
        yes: Do not ask.
        public: Let everyone read a repository that is created; by default only its owner can.
    """
    if not re.fullmatch(r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}", name, re.ASCII):
        raise ConfigError(f"{shown(name, 60)} is no repository; write it as owner/name")
    if not folder.is_dir():
        raise ConfigError(f"{shown(folder, 200)}: no such folder; name a role, or what merge or export wrote")
    modules.load("onebase.exporting.push").run(folder=folder, name=name, yes=yes, public=public)
