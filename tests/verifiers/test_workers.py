"""Workers: whatever a request does costs that request alone."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from onebase.errors import VerifierError
from onebase.verifiers.workers import Workers

MODULE = "tests.verifiers.unruly_worker"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers(MODULE, memory_mb=256)
    yield found
    found.close()


def test_a_worker_answers_many_requests_and_imports_no_torch(workers: Workers) -> None:
    first = workers.ask({"kind": "echo", "echo": "ä\n\u2028"}, 5.0)
    again = workers.ask({"kind": "echo", "echo": ["x" * 500_000]}, 5.0)
    assert first["echo"] == "ä\n\u2028" and again["echo"] == ["x" * 500_000]
    assert first["pid"] == again["pid"] and not first["torch"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("hang", "took longer than 0.5 s"),
        ("spin", "took longer than 0.5 s"),
        ("fork and hang", "took longer than 0.5 s"),
        ("print", "took longer than 0.5 s"),
        ("crash", "its process ended with SIGABRT"),
        ("exit", "its process ended with exit code 3"),
        ("memory", r"its process was killed \(out of memory\?\)"),
        ("raise", "ValueError: no such thing"),
        ("long", "its answer is over 1 MB"),
        ("junk", "its process gave no answer that can be read"),
        ("close", "its process closed the reply"),
    ],
)
def test_a_request_that_goes_wrong_costs_itself_alone(kind: str, message: str, workers: Workers) -> None:
    pid = workers.ask({"kind": "echo"}, 5.0)["pid"]
    start = time.monotonic()
    with pytest.raises(VerifierError, match=f"^{message}$"):
        workers.ask({"kind": kind}, 2.0 if kind in ("memory", "long") else 0.5)
    assert time.monotonic() - start < 4.0
    assert not psutil.pid_exists(pid)
    assert workers.ask({"kind": "echo", "echo": 1}, 5.0)["echo"] == 1


def test_a_child_of_a_request_dies_with_its_worker(workers: Workers) -> None:
    pid = workers.ask({"kind": "fork"}, 5.0)["pid"]
    child = psutil.Process(pid).children()[0]
    workers.close()
    deadline = time.monotonic() + 3.0
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_process_with_a_thousand_open_files_may_ask(workers: Workers) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip("this takes 1,200 open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    try:
        with ExitStack() as stack:
            for _ in range(1050):
                stack.enter_context(open(os.devnull))
            assert workers.ask({"kind": "echo", "echo": "x" * 200_000}, 5.0)["echo"] == "x" * 200_000
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_request_cannot_read_the_next_one(workers: Workers) -> None:
    assert workers.ask({"kind": "stdin"}, 5.0)["read"] == 0


def test_threads_get_workers_of_their_own(workers: Workers) -> None:
    def ask(number: int) -> object:
        if number % 4 == 0:
            with pytest.raises(VerifierError):
                workers.ask({"kind": "exit"}, 5.0)
            return number
        return workers.ask({"kind": "echo", "echo": number}, 20.0)["echo"]

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(24))) == list(range(24))


def test_an_idle_worker_that_died_is_replaced(workers: Workers) -> None:
    pid = workers.ask({"kind": "echo"}, 5.0)["pid"]
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.1)
    assert workers.ask({"kind": "echo"}, 5.0)["pid"] != pid


def test_no_descriptor_and_no_zombie_is_left(workers: Workers) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for kind in ("echo", "exit", "hang", "echo"):
        try:
            workers.ask({"kind": kind}, 0.5 if kind == "hang" else 5.0)
        except VerifierError:
            pass
    workers.close()
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_a_module_in_the_current_folder_hides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    workers = Workers(MODULE, memory_mb=256)
    assert workers.ask({"kind": "echo", "echo": 2}, 5.0)["echo"] == 2
    workers.close()


def test_workers_end_with_the_process_that_asks(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom onebase.verifiers.workers import Workers\n"
        f"print(Workers({MODULE!r}, 256).ask({{'kind': 'echo'}}, 5.0)['pid'], flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, cwd=ROOT)
    pid, deadline = int(found.stdout), time.monotonic() + 5.0
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_module_that_does_not_start_is_an_error() -> None:
    with pytest.raises(VerifierError, match="^its process ended with exit code 1$"):
        Workers("onebase.nothing", memory_mb=256).ask({}, 5.0)


def test_a_python_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(VerifierError, match="^its process does not start: .*/nonexistent/python"):
        Workers(MODULE, memory_mb=256).ask({}, 5.0)
    assert sorted(os.listdir("/proc/self/fd")) == before
