"""Starts this command line again in several processes on this machine (`--processes N`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from onebase import processes
from onebase.cli import modules, streams
from onebase.errors import ConfigError
from onebase.shown import number_of


def check(count: int, *, at_least: int = 1) -> None:
    """Checks that this process may start `count` processes.

    Raises:
        ConfigError: the number is too small, or a launcher started this process as one of several.
    """
    if count < at_least:
        raise ConfigError(f"--processes is {count}; it should be at least {at_least}, or left out")
    if processes.is_launched():
        raise ConfigError(
            "--processes starts the processes itself, but a launcher has started this one as one of several; leave one "
            "out"
        )


def start(words: Sequence[str], count: int, *, device: str = "auto") -> int:
    """Runs `onebase WORDS` in `count` processes and returns their exit code.

    Raises:
        ConfigError: there are GPUs to run on, but fewer than processes.
    """
    streams.say_first(f"{words[0]}: starting {number_of(count, 'process', 'processes')}")
    import torch

    environment = {}
    if device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""  # else the processes would join through the GPUs
    elif 0 < torch.cuda.device_count() < count:
        raise ConfigError(
            f"--processes is {count}, but this machine has {torch.cuda.device_count()} GPUs, and each process needs "
            "its own; start fewer, or set model.device: cpu"
        )
    command = [sys.executable, "-m", "onebase", *words]
    return int(modules.load("onebase.distributed.launch").run(command, count, environment=environment))
