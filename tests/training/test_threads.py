"""Threads that wait for each other spin only while no other program wants the cores, and results keep their bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from onebase.training.threads import use_threads

pytestmark = pytest.mark.skipif(
    not os.path.exists("/proc/self/schedstat"), reason="the system does not say how long threads wait for a core"
)

BUSY = """
import os, time
os.sched_setaffinity(0, {CORE})
end = time.monotonic() + 60
while time.monotonic() < end:
    pass
"""
# Two threads on one core beside a program that never sleeps: they wait for the core about half of their time.
PROGRAM = """
import os, sys, time
import torch
os.sched_setaffinity(0, {CORE})
from onebase.training import threads
threads.SECONDS_BETWEEN_LOOKS = 0.05
torch.manual_seed(0)
x = torch.randn(200, 200)
threads.use_threads(2)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    y = x @ x
    y = (y / y.norm()).exp()
print(torch.get_num_threads(), y.double().sum().item().hex())
"""


def run(seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    core = str(min(os.sched_getaffinity(0)))
    program = PROGRAM.replace("CORE", core)
    command = [sys.executable, "-c", program, str(seconds)]
    return subprocess.run(command, capture_output=True, text=True, env={**unset(), **environment}, check=True)


def unset() -> dict[str, str]:
    """The environment without what it says of OpenMP."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}


@pytest.fixture
def busy_core() -> Iterator[None]:
    other = subprocess.Popen([sys.executable, "-c", BUSY.replace("CORE", str(min(os.sched_getaffinity(0))))])
    yield
    other.kill()
    other.wait()


@pytest.mark.slow
def test_a_run_beside_another_program_says_so_once_and_computes_the_same(busy_core: None) -> None:
    beside = run(3.0)
    assert beside.stderr.count("other programs are using this machine's cores") == 1, beside.stderr
    left_to_the_environment = run(0.3, OMP_WAIT_POLICY="passive")
    assert left_to_the_environment.stderr == ""
    assert beside.stdout == left_to_the_environment.stdout


SPINS = """
import os, time
import torch
torch.set_num_threads(2)
from onebase.training.threads import Spinning
x = torch.randn(1 << 17)

def seconds_of_the_other_thread():
    before = time.process_time(), time.thread_time()
    for _ in range(150):
        x.exp()
        time.sleep(0.002)
    return (time.process_time() - before[0]) - (time.thread_time() - before[1])

spinning = Spinning()
found = []
for change in (lambda: None, spinning.stop, spinning.stop, spinning.allow, spinning.allow):
    change()
    time.sleep(0.1)
    found.append(seconds_of_the_other_thread())
print(*found)
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="libgomp never spins on one core")
def test_spinning_stops_and_starts_again_within_a_process() -> None:
    done = subprocess.run([sys.executable, "-c", SPINS], capture_output=True, text=True, env=unset(), check=False)
    if "libgomp is not loaded" in done.stderr:
        pytest.skip("torch runs on another OpenMP here")
    at_first, stopped, stopped_twice, allowed, allowed_twice = map(float, done.stdout.split())
    assert max(stopped, stopped_twice) < 0.5 * min(at_first, allowed, allowed_twice), done.stdout


def test_the_number_of_threads_is_what_was_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        use_threads(1)
        assert torch.get_num_threads() == 1
        use_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
