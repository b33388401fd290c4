"""Measures the peak memory of every verb, number format, way of training, size and length, and compares `onebase plan`.

usage: python -m bench.planned [--out FILE] [--only VERB,...] [--jobs N] [--resume] [--forked]

Every cell is a run of two optimizer steps in a process of its own, started as a user starts it. Its peak is the most
resident memory of that process as the kernel counted it, and what children of it held then. A line is appended to FILE
as soon as a cell is done, so `--resume` measures what is left, on any machine that has the lines of another. `python -m
bench.planned_table` compares the lines with the plans and writes the table.

This program imports no torch: on Linux a child inherits the peak of the process that started it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from threading import Event, Lock, Thread, local
from typing import Any

from bench.planned_cells import VERBS, Cell, every_cell, write_cell

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "bench" / ".work" / "planned"
RESULTS = ROOT / "bench" / "planned.jsonl"
SECONDS_BETWEEN = 0.02
Start = Callable[[list[str], Path], tuple[int, int, float, "Watch"]]


def main() -> int:
    options = parsed()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    cells = [cell for cell in every_cell() if cell.verb in options.only and cell.name.startswith(options.named)]
    cells = [cell for cell in cells for _ in range(options.repeat)]
    done = {name_of(line) for line in read_lines(options.out)} if options.resume else set()
    left = [cell for cell in cells if cell.name not in done][: options.limit]
    for size in dict.fromkeys(cell.size for cell in left):
        make_base(work, size)
    lock = Lock()
    own = local()

    def one(cell: Cell) -> None:
        if not hasattr(own, "start"):
            own.start = Forks().start if options.forked else start_fresh
        line = measured(cell, work, own.start) | {"forked": options.forked, "machine": machine()}
        with lock, options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        peak = "refused" if line["refused"] else f"{line['peak_bytes'] / 1e6:,.0f} MB"
        print(
            f"{cell.name}: {peak}, exit {line['exit_code']}, {line['seconds']:.0f} s ({line['cpu_seconds']:.0f} CPU)",
            flush=True,
        )

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, left))
    return 0


def parsed() -> argparse.Namespace:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--out", type=Path, default=RESULTS, help="JSON lines, one appended per cell")
    arguments.add_argument("--work", type=Path, default=WORK, help="folder for bases, roles and cells")
    arguments.add_argument("--only", type=lambda text: text.split(","), default=list(VERBS), help="verbs")
    arguments.add_argument("--named", default="", help="only cells whose name begins so, such as sft-fp32-lora")
    arguments.add_argument("--limit", type=int, help="at most this many cells")
    arguments.add_argument("--repeat", type=int, default=1, help="measure each cell so often")
    arguments.add_argument("--jobs", type=int, default=1, help="cells at once")
    arguments.add_argument("--forked", action="store_true", help="import the libraries once for all cells: quicker")
    arguments.add_argument("--resume", action="store_true", help="leave out cells that FILE has")
    return arguments.parse_args()


def machine() -> dict[str, Any]:
    """Returns the machine, the library and the day, as they are kept with every cell."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "torch": version("torch").split("+")[0],
        "date": datetime.date.today().isoformat(),
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Returns the results so far."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def name_of(line: dict[str, Any]) -> str:
    """Returns the name of the cell that a line is about."""
    return Cell(**{key: line[key] for key in Cell.__dataclass_fields__}).name


def make_base(work: Path, size: str) -> None:
    """Makes the base of this size and its roles unless they are there."""
    if not (work / f"roles-{size}" / "reward-upper-half").is_dir():
        subprocess.run([sys.executable, "-m", "bench.planned_bases", str(work), size], cwd=ROOT, check=True)


def measured(cell: Cell, work: Path, start: Start) -> dict[str, Any]:
    """Runs the cell and returns its line; `start` runs a command line and writes its output into a file."""
    config = write_cell(cell, work)
    folder = config.parent
    shutil.rmtree(folder / "run", ignore_errors=True)
    log = folder / "log.txt"
    started = time.monotonic()
    code, own, cpu, watch = start([cell.verb, str(config)], log)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    line = {
        **cell.keys(),
        "exit_code": code,
        "refused": code == 2,
        "said": last[0] if last and code else "",
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_bytes": own + watch.children,
        "own_bytes": own,
        "children_bytes": watch.children,
        "anonymous_bytes": watch.anonymous,
        "mapped_bytes": watch.mapped,
    }
    leave_small(folder / "run")
    return line


def environment() -> dict[str, str]:
    """Returns the variables that a run is started with."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def start_fresh(words: list[str], log: Path) -> tuple[int, int, float, Watch]:
    """Runs `onebase` with these words in a fresh process; returns exit code, peak in bytes, CPU seconds, watch."""
    command = [sys.executable, "-m", "onebase", *words]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=log.parent, env=environment(), stdout=output, stderr=subprocess.STDOUT)
        watch = Watch(process.pid)
        watch.start()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        watch.stop()
    return process.returncode, usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime, watch


class Forks:
    """Runs `onebase` in children of a process that has imported the libraries (`bench.planned_forks`)."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "bench.planned_forks"]
        self._parent = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, words: list[str], log: Path) -> tuple[int, int, float, Watch]:
        """As `start_fresh`."""
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write(json.dumps({"words": words, "log": str(log), "folder": str(log.parent)}) + "\n")
        self._parent.stdin.flush()
        watch = Watch(json.loads(self._parent.stdout.readline())["process"])
        watch.start()
        ended = json.loads(self._parent.stdout.readline())
        watch.stop()
        return ended["exit_code"], ended["peak_bytes"], ended["cpu"], watch


def leave_small(run: Path) -> None:
    """Removes what a run saved, which takes gigabytes, and leaves what it wrote about itself."""
    for path in run.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix not in (".json", ".jsonl", ".yaml"):
            path.unlink()


class Watch:
    """Looks at a process again and again: what its memory is made of at the peak, and what its children hold."""

    def __init__(self, process: int) -> None:
        self._process, self._ended = process, Event()
        self._thread = Thread(target=self._look, daemon=True)
        self.anonymous = self.mapped = self.children = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(SECONDS_BETWEEN):
            status = read_status(self._process)
            anonymous, mapped = status.get("RssAnon", 0), status.get("RssFile", 0) + status.get("RssShmem", 0)
            if anonymous + mapped > self.anonymous + self.mapped:
                self.anonymous, self.mapped = anonymous, mapped
            self.children = max(self.children, sum(map(private_bytes, descendants(self._process))))


def read_status(process: int) -> dict[str, int]:
    """Returns the sizes in a process's status, in bytes; {} if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    sizes = (line.split() for line in lines if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in sizes}


def descendants(process: int) -> Iterator[int]:
    """Yields the processes that this one started, and those that they did."""
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
        started = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    except OSError:
        return
    for child in started:
        yield child
        yield from descendants(child)


def private_bytes(process: int) -> int:
    """Returns what a process holds beyond what it shares."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


if __name__ == "__main__":
    sys.exit(main())
