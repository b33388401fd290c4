"""What the rendered files make, made: the wheel, and SageMaker's container without its walls."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import pytest

from onebase.config.serving import ServeConfig
from onebase.deploying.render import render
from onebase.deploying.service import read_service
from onebase.deploying.versions import WHEEL
from onebase.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_wheel_in_the_files_is_the_one_that_pip_builds(tmp_path: Path) -> None:
    pytest.importorskip(
        "setuptools", minversion="77"
    )  # without a network, pip cannot fetch the one it would build with
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "tests", "bench", "build", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, checkout, ignore=ignored)
    words = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*words, "--wheel-dir", str(tmp_path), str(checkout)], check=True, timeout=120)
    assert [path.name for path in tmp_path.glob("*.whl")] == [WHEEL]
    with zipfile.ZipFile(tmp_path / WHEEL) as wheel:
        inside = wheel.namelist()
    for folder in ("onebase/deploying/templates", "onebase/serving/page"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert str(path.relative_to(ROOT)) in inside


@pytest.mark.slow
def test_the_adapter_serves_what_package_py_packed_on_sagemakers_paths(folders: dict[str, str], tmp_path: Path) -> None:
    config = ServeConfig.model_validate(
        {"roles": {name: path for name, path in folders.items() if name != "base"}, "dtype": "float32"}
    )
    into = tmp_path / "out"
    for file in render(read_service(config, into), "sagemaker", into):
        write_atomically(into / file.name, file.text)
    subprocess.run([sys.executable, into / "package.py"], check=True, capture_output=True)
    with tarfile.open(into / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "model", filter="data")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "SM_MODEL_DIR": str(tmp_path / "model"),
        "SAGEMAKER_BIND_TO_PORT": str(port),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    with (tmp_path / "log.txt").open("w") as log:
        container = subprocess.Popen([sys.executable, into / "adapter.py", "serve"], stderr=log, env=environment)

    def ask(path: str, body: object = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", data, {"Content-Type": "application/json", **headers}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.read().decode()

    try:
        end = time.monotonic() + 60
        while True:
            try:
                assert json.loads(ask("/ping"))["policies"] == ["base", "helpful", "brief"]
                break
            except OSError:
                assert container.poll() is None and time.monotonic() < end, (tmp_path / "log.txt").read_text()
                time.sleep(0.1)
        chat = {"model": "helpful", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
        assert json.loads(ask("/invocations", chat))["usage"]["completion_tokens"] == 4
        streamed = ask("/invocations", chat | {"stream": True})
        assert streamed.startswith("data: ") and streamed.endswith("data: [DONE]\n\n")
        score = {"model": "judge", "prompt": "Hello", "completions": ["a", "b"]}
        named = {"X-Amzn-SageMaker-Custom-Attributes": "/v1/score"}
        assert json.loads(ask("/invocations", score, **named))["object"] == "score"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            ask("/invocations", score, **{"X-Amzn-SageMaker-Custom-Attributes": "/v2"})
    finally:
        container.terminate()
    assert container.wait(60) == 0
