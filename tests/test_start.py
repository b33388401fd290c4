"""A process starts with the memory settings that can only be set at start."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from onebase.start import MALLOC, start_again_where_needed

GLIBC = sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
needs_glibc = pytest.mark.skipif(not GLIBC, reason="the C library is not glibc: there is nothing to set")

PROGRAM = (
    "import os, sys; from onebase.start import start_again_where_needed\n"
    "print(os.getpid(), flush=True)\n"  # twice: before and after
    "start_again_where_needed()\n"
    "print(os.environ.get('GLIBC_TUNABLES'), *sys.argv[1:], sep='|')"
)


def started(*words: str, tunables: str | None = None, **variables: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"} | variables
    if tunables is not None:
        environment["GLIBC_TUNABLES"] = tunables
    command = [sys.executable, "-c", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return done.stdout.splitlines()


@needs_glibc
def test_a_process_starts_again_once_with_the_same_words_and_number() -> None:
    first, second, said = started("sft", "a b.yaml", "--seed=1")
    assert first == second
    assert said == f"{MALLOC}|sft|a b.yaml|--seed=1"


@needs_glibc
def test_other_settings_of_the_c_library_are_kept() -> None:
    assert started(tunables="glibc.pthread.rseq=0")[-1] == f"glibc.pthread.rseq=0:{MALLOC}"


def test_what_is_answered_at_once_starts_once() -> None:
    for word in ("--help", "-h", "--version"):
        _, said = started("sft", word)
        assert said == f"None|sft|{word}"


def test_what_a_person_told_the_allocator_stays() -> None:
    (_, said) = started(tunables="glibc.malloc.mxfast=64")
    assert said == "glibc.malloc.mxfast=64"


@pytest.mark.parametrize("tunables", [None, "glibc.malloc.mxfast=64"])
def test_in_an_ascii_locale_files_keep_their_names(tmp_path: Path, tunables: str | None) -> None:
    name = tmp_path / "中文.txt"
    name.write_text("x", encoding="utf-8")
    *_, said = started(str(name), tunables=tunables, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert said.endswith(f"|{name}")


def test_a_process_that_cannot_start_again_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    start_again_where_needed()
    assert os.environ["GLIBC_TUNABLES"] == (MALLOC if GLIBC else "")


@needs_glibc
def test_the_c_library_takes_the_settings() -> None:
    """Reads glibc's own statistics: with both caches off, a small freed block is free at once."""
    program = (
        "import ctypes\n"
        "class Info(ctypes.Structure):\n"
        "    _fields_ = [(name, ctypes.c_size_t) for name in 'arena ordblks smblks hblks hblkhd usmblks fsmblks "
        "uordblks fordblks keepcost'.split()]\n"
        "libc = ctypes.CDLL('libc.so.6')\n"
        "libc.mallinfo2.restype, libc.malloc.restype, libc.free.argtypes = Info, ctypes.c_void_p, [ctypes.c_void_p]\n"
        "held = [libc.malloc(40) for _ in range(1000)]\n"
        "for piece in held: libc.free(piece)\n"
        "print(libc.mallinfo2().fsmblks)"
    )

    def kept_apart(tunables: str) -> int:
        environment = {**os.environ, "GLIBC_TUNABLES": tunables}
        command = [sys.executable, "-c", program]
        return int(subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout)

    if not hasattr(ctypes.CDLL("libc.so.6"), "mallinfo2"):
        pytest.skip("glibc before 2.33 has no mallinfo2")
    assert kept_apart("glibc.malloc.tcache_count=0") > 30_000
    assert kept_apart(MALLOC) == 0


def test_a_command_ends_without_going_through_all_objects_again() -> None:
    program = (
        "import gc, sys; from onebase.start import main\n"
        "sys.argv = ['onebase', '--version']\n"
        "assert main() == 0 and gc.get_freeze_count() > len(gc.get_objects())"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
