"""`python -m tests.distributed.ranks FILE`: runs command lines in several processes each, forked from this one.

FILE holds a list of `Task`s in JSON. Importing torch and transformers takes longer than a tiny run, and this way it
happens once. Whatever concerns the start and the end of processes is tested with the real launcher instead.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 180
"""Seconds after which a process that waits for another is ended."""


@dataclass
class Task:
    """A command line, or a function of `checks.py`, and the number of processes to run it in."""

    name: str
    count: int
    words: list[str]
    log: str = ""
    """Folder for each process's stdout and stderr, and for what a check leaves."""
    codes: list[int] = field(default_factory=list)
    """Exit codes, once it has run."""

    def said(self, rank: int, stream: str = "stderr") -> str:
        return (Path(self.log) / f"{stream}-{rank}").read_text()


def run_all(tasks: Sequence[Task], folder: Path, *, may_fail: bool = False) -> dict[str, Task]:
    """Runs the tasks one after another in a new process's forks; unless one may fail, each has to end with 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in tasks:
        task.log = str(folder / f"{task.name}-log")
    file = folder / "tasks.json"
    file.write_text(json.dumps([asdict(task) for task in tasks]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["TORCH_CPP_LOG_LEVEL"] = "FATAL"
    command = [sys.executable, "-m", "tests.distributed.ranks", str(file), *(["--may-fail"] if may_fail else [])]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    for task in tasks:  # up to the first that failed
        task.codes = json.loads((Path(task.log) / "codes.json").read_text())
        said = "\n".join(task.said(rank) for rank in range(task.count))
        assert may_fail or not any(task.codes), f"{task.name} ended with {task.codes}: {said}"
    return {task.name: task for task in tasks}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _one(task: Task, rank: int, port: int) -> int:
    """In a forked process: one of the task's."""
    import torch

    from onebase.cli.main import main
    from onebase.tools import runs

    signal.alarm(LIMIT)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(task.log) / f"{name}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if task.count > 1:
        os.environ |= {"WORLD_SIZE": str(task.count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    if task.words[0] == "check":
        check = getattr(import_module("tests.distributed.checks"), task.words[1])
        return int(check(Path(task.log), *task.words[2:]) or 0)
    runs.leave_pictures = lambda folder: None
    return main(task.words)


def _run(task: Task) -> bool:
    port = free_port()
    Path(task.log).mkdir(parents=True, exist_ok=True)
    children = []
    for rank in range(task.count):
        if (child := os.fork()) == 0:
            code = 99
            try:
                code = _one(task, rank, port)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (Path(task.log) / "codes.json").write_text(json.dumps(codes))
    return not any(codes)


if __name__ == "__main__":
    for module in ("dpo", "iterate", "ppo", "pretrain", "reward", "rft", "sft"):
        import_module(f"onebase.recipes.{module}")
    import_module("onebase.tools.runs")
    import_module("torch.distributed.fsdp")
    for each in json.loads(Path(sys.argv[1]).read_text()):
        if not _run(Task(**each)) and "--may-fail" not in sys.argv:
            break
