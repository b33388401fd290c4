"""Puts every mutant into a copy of the package and runs the tests that should notice.

    python -m tests.mutants [--only WORD] [--jobs 2]

Each job works in a copy of its own. The nearest tests of all mutants have to pass without a fault first. A mutant that
they miss meets all tests of its part of the package and of the recipes. Exit codes: 0, or 5 when a text is stale, the
tests fail without a fault, or fewer than 95 % of the mutants die.
"""

from __future__ import annotations

import argparse
import compileall
import importlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from tests.mutants import MUTANTS
from tests.mutants.mutant import ROOT, Mutant

COPIED = ("onebase", "tests", "bench", "configs", "docs", "pyproject.toml")
LOADED = ("pytest", "torch", "transformers", "transformers.models.llama.modeling_llama", "peft", "accelerate")
"""What takes seconds to import. It is imported once, and every run of tests is a fork behind that."""
SHARE_THAT_DIES = 0.95
SECONDS_NEAR, SECONDS_WIDE = 180.0, 1500.0
"""A run of tests that takes longer hangs, and a hang is noticed."""
FAILED = 5
FOLDER: Path
"""The copy of this process, one of the pool's."""


@dataclass(frozen=True, slots=True)
class Result:
    mutant: Mutant
    killed: bool
    seconds: float
    by: str
    """The test that failed; or the wider tests, where the nearest missed it."""

    def line(self) -> str:
        word, file = "killed" if self.killed else "SURVIVED", self.mutant.file.removeprefix("onebase/")
        return f"{word:9}{self.seconds:6.1f} s  {file:30} {self.mutant.fault} ({self.by})"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="mutants with this in their file or their fault")
    parser.add_argument("--jobs", type=int, default=2, help="mutants tried at once, one core each")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in f"{mutant.file} {mutant.fault}"]
    if not chosen:
        parser.error(f"no mutant has {options.only!r} in its file or its fault")
    stale = []
    for mutant in chosen:
        try:
            mutant.broken()
        except ValueError as error:
            stale.append(str(error))
    if stale:
        print("\n".join([*stale, f"{len(stale)} mutants are stale; follow the source in tests/mutants/"]))
        return FAILED
    started = time.monotonic()
    load_once()
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        folders = [copy_to(Path(name) / f"job-{number}" / "onebase") for number in range(options.jobs)]
        free = multiprocessing.get_context("fork").SimpleQueue()
        for folder in folders:
            free.put(folder)
        with multiprocessing.get_context("fork").Pool(options.jobs, take_folder, (free,)) as pool:
            failed = [output for passed, output in pool.imap(pass_without_fault, by_file(chosen)) if not passed]
            if failed:
                print("\n".join([*failed, "these tests fail without any mutant; mend them first"]))
                return FAILED
            print(f"the nearest tests pass without a fault ({time.monotonic() - started:.0f} s)", flush=True)
            results = []
            for result in pool.imap(try_one, chosen):
                print(result.line(), flush=True)
                results.append(result)
    return report(results, time.monotonic() - started)


def load_once() -> None:
    """Imports what all runs of tests need, with one thread: a fork takes over no others."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    for name in LOADED:
        importlib.import_module(name)


def copy_to(folder: Path) -> Path:
    """A copy of all that the tests read, so that the working tree stays as it is."""
    folder.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy(ROOT / name, folder / name)
    # By their text: a mutant of the same length, written within the same second, would run as the one before.
    compileall.compile_dir(folder / "onebase", quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


def take_folder(free: multiprocessing.queues.SimpleQueue[Path]) -> None:
    """Gives this process a copy of its own, for good; its tests end with it."""
    global FOLDER
    FOLDER = free.get()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def by_file(mutants: Sequence[Mutant]) -> list[list[str]]:
    """The nearest tests of all mutants, those of one file together."""
    files: dict[str, set[str]] = {}
    for mutant in mutants:
        for test in mutant.tests.split():
            files.setdefault(test.partition("::")[0], set()).add(test)
    return [[file] if file in tests else sorted(tests) for file, tests in files.items()]


def pass_without_fault(tests: Sequence[str]) -> tuple[bool, str]:
    return run_tests(tests, SECONDS_WIDE)


def try_one(mutant: Mutant) -> Result:
    path, started, by = FOLDER / mutant.file, time.monotonic(), ""
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutant.broken(FOLDER), encoding="utf-8")
    try:
        passed, output = run_tests(mutant.tests.split(), SECONDS_NEAR)
        if passed and not mutant.harmless:
            wider = list(dict.fromkeys((f"tests/{mutant.file.split('/')[1]}", "tests/recipes")))
            by = f"missed by its nearest tests; {' and '.join(wider)}: "
            passed, output = run_tests(wider, SECONDS_WIDE)
        by += "all pass" if passed else failed_first(output)
    finally:
        path.write_text(whole, encoding="utf-8")
    return Result(mutant, not passed, time.monotonic() - started, by)


def run_tests(tests: Sequence[str], seconds: float) -> tuple[bool, str]:
    """Whether they all pass within the time, in a process of their own, and what they printed."""
    output = FOLDER.with_name("output")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = tests_here(tests, output)
        finally:
            os._exit(code)
    deadline, status = time.monotonic() + seconds, None
    try:
        while status is None and time.monotonic() < deadline:
            time.sleep(0.02)
            ended, found = os.waitpid(child, os.WNOHANG)
            status = found if ended else None
    finally:
        if status is None:  # it hangs, or Ctrl-C came
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return status == 0, output.read_text(encoding="utf-8", errors="replace")


def failed_first(output: str) -> str:
    """The name of the test that failed; how it ended where pytest named none."""
    named = re.search(r"^(?:FAILED|ERROR) \S*?([\w.]+(?:::\S+)?)( - |$)", output, re.MULTILINE)
    return named[1] if named else "it hung, or ended the process"


def tests_here(tests: Sequence[str], output: Path) -> int:
    """Runs them in this process, against the copy."""
    os.setsid()  # what the tests start ends with them
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(FOLDER)
    os.environ["PYTHONPATH"] = str(FOLDER)
    sys.path[:] = [str(FOLDER), *(path for path in sys.path if Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    import pytest

    code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
    sys.stdout.flush()
    return code


def report(results: Sequence[Result], seconds: float) -> int:
    killed = sum(result.killed for result in results)
    share = killed / len(results)
    print(f"\n{killed} of {len(results)} mutants die ({share:.1%}), {seconds / 60:.1f} minutes")
    for result in results:
        if not result.killed:
            why = result.mutant.harmless or "A TEST IS MISSING"
            print(f"survivor: {result.mutant.file}: {result.mutant.fault}: {why}")
        elif result.mutant.harmless:
            print(f"not harmless: {result.mutant.file}: {result.mutant.fault}: a test failed; correct its entry")
    return 0 if share >= SHARE_THAT_DIES else FAILED


if __name__ == "__main__":
    sys.exit(main())
