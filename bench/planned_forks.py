"""Starts runs from one process that has imported the libraries already, for `bench.planned --forked`.

Importing them takes most of a short run's time. A child begins with the memory that a fresh process has after its
imports: what it shares with its parent counts as its own, and pages of libraries, which a fork leaves out until they
are read again, are read at once.

It reads a line of JSON per run, the words of the command line and the file for its output, and answers with two: the
child's number, then its exit code and peak.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import sys
from pathlib import Path

from onebase.start import start_again_where_needed

POPULATE_READ = 22
"""Linux's MADV_POPULATE_READ."""
PRESENT = 1 << 63


def main() -> None:
    from transformers.models.llama import modeling_llama  # noqa: F401

    from onebase.cli.main import main as command
    from onebase.recipes import sft  # noqa: F401  brings what all verbs use

    for line in sys.stdin:
        asked = json.loads(line)
        read = pages_of_files()
        child = os.fork()
        if child == 0:
            begin(asked["log"], asked["folder"], read)
            sys.argv = ["onebase", *asked["words"]]
            code = 1
            try:
                code = command()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        print(json.dumps({"process": child}), flush=True)
        _, status, usage = os.wait4(child, 0)
        answer = {
            "exit_code": os.waitstatus_to_exitcode(status),
            "peak_bytes": usage.ru_maxrss * 1024,
            "cpu": usage.ru_utime + usage.ru_stime,
        }
        print(json.dumps(answer), flush=True)


def begin(log: str, folder: str, read: list[tuple[int, int]]) -> None:
    """Sends the child's output to its file and reads the pages again that the fork left out."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    advise = ctypes.CDLL(None, use_errno=True).madvise
    for start, length in read:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(length), POPULATE_READ)


def pages_of_files() -> list[tuple[int, int]]:
    """Returns the ranges of this process's memory that are mapped from files and present: start and length in bytes."""
    size = mmap.PAGESIZE
    found: list[tuple[int, int]] = []
    with open("/proc/self/pagemap", "rb") as pages:
        for line in Path("/proc/self/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if fields[4] == "0" or "r" not in fields[1]:
                continue
            start, end = (int(address, 16) for address in fields[0].split("-"))
            pages.seek(start // size * 8)
            entries = struct.iter_unpack("Q", pages.read((end - start) // size * 8))
            for number, (entry,) in enumerate(entries):
                if entry & PRESENT:
                    found.append((start + number * size, size))
    return merged(found)


def merged(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Returns adjoining ranges as one."""
    found: list[tuple[int, int]] = []
    for start, length in ranges:
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + length)
        else:
            found.append((start, length))
    return found


if __name__ == "__main__":
    start_again_where_needed()  # as the `onebase` command does
    main()
