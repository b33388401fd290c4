"""A Ray cluster on this machine that all tests of a session share: starting one takes longer than most of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[1]
CPUS = 4


class RayCluster:
    """A cluster with `CPUS` CPUs, in processes of its own session."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port)]
        line += ["--num-cpus", str(CPUS), "--include-dashboard", "false", "--disable-usage-stats"]
        self._log = folder / "ray.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                line, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        end = time.monotonic() + 120
        while "Ray runtime started" not in self._log.read_text():
            assert self._process.poll() is None and time.monotonic() < end, self._log.read_text()
            time.sleep(0.1)

    def find(self, wanted: Callable[[psutil.Process], bool]) -> psutil.Process | None:
        """The first of its processes, and theirs, that is wanted."""
        for child in psutil.Process(self._process.pid).children(recursive=True):
            try:
                if wanted(child):
                    return child
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return None

    def close(self) -> None:
        children = psutil.Process(self._process.pid).children(recursive=True)
        self._process.send_signal(signal.SIGTERM)
        for process in [*children, psutil.Process(self._process.pid)]:
            try:
                process.wait(10)
            except psutil.TimeoutExpired:
                process.kill()
            except psutil.NoSuchProcess:
                continue


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    pytest.importorskip("ray", reason="ray is not installed")
    os.environ["RAY_AUTH_MODE"] = "disabled"  # the cluster's and its clients': each would choose by itself
    cluster = RayCluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.close()
