"""A server on loopback in a process of its own, with two policies and a reward role on one tiny base."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from onebase.data.chat import chat_format
from onebase.engines.opening import load_base
from onebase.models.role_files import save_role
from onebase.models.roles import Moments
from tests.tiny_models import add_adapter_role, save_tiny

KEY = "a secret of the tests"


class Served:
    """A running `onebase serve`, whose lines are kept."""

    def __init__(self, *words: str, env: dict[str, str] | None = None) -> None:
        command = [sys.executable, "-m", "onebase", "serve", *words, "--port", "0"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.url = ""
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._ready.wait(120)
        if not self.url:
            self.process.kill()
            raise AssertionError("\n".join(self.lines))

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line.rstrip("\n"))
            if found := re.search(r"serve: (http://\S+:\d+)", line):
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the server; returns its exit code, with all its lines read."""
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join(10)
        return code


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A base that knows bytes and the roles trained on it: two policies, and a reward role with held-out moments."""
    folder = tmp_path_factory.mktemp("served")
    base = load_base(str(save_tiny(folder / "base", "llama", max_position_embeddings=512)), dtype="float32")
    chat = chat_format(base.tokenizer, "hh")
    for seed, name in enumerate(("helpful", "brief")):
        add_adapter_role(base, name, seed=seed)
        save_role(base, name, folder / name / "policy", kind="policy", chat=chat)
    add_adapter_role(base, "judge", seed=5, head=True)
    base.scalar_role("judge").moments = Moments(0.5, 2.0, measured=True)
    save_role(base, "judge", folder / "judge" / "reward", kind="reward", chat=chat)
    kinds = {"helpful": "policy", "brief": "policy", "judge": "reward"}
    return {"base": str(folder / "base")} | {name: str(folder / name / kind) for name, kind in kinds.items()}


def write_config(folder: Path, folders: dict[str, str], **keys: Any) -> str:
    """A serve.yaml with all roles."""
    roles = {name: path for name, path in folders.items() if name != "base"}
    (folder / "serve.yaml").write_text(yaml.safe_dump({"roles": roles, "dtype": "float32", **keys}))
    return str(folder / "serve.yaml")


@pytest.fixture
def start() -> Iterator[Callable[..., Served]]:
    """Starts servers for a test, and ends those that it leaves running."""
    started: list[Served] = []

    def one(*words: str, **options: Any) -> Served:
        started.append(Served(*words, **options))
        return started[-1]

    yield one
    for served in started:
        served.process.kill()
        served.process.wait()


@pytest.fixture(scope="session")
def server(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    config = write_config(tmp_path_factory.mktemp("config"), folders, price_per_hour=3.6, allow_role_changes=True)
    served = Served("--config", config, env={"ONEBASE_API_KEY": KEY})
    yield served
    served.process.kill()
