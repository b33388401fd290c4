"""Runs the bad inputs and prints counts: `python -m tests.bad_inputs [WORD ...] [--minutes 9] [--to FILE] [--again]`.

A WORD chooses the cases whose name contains it, `^WORD` those that begin with it, `@FILE` the names in a file. What did
not end as it has to is printed with the last lines of stderr. Every result goes to FILE as a JSON line, and a case that
has its line there is not run again: the same command resumes where `--minutes` ended it. `--again` runs what failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import Case
from tests.bad_inputs.cases import ALL
from tests.bad_inputs.ending import RAW, clear, ending_of, warm_up
from tests.bad_inputs.prepared import prepare


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bad_inputs", description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no case begins after so many")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--again", action="store_true", help="run those once more that failed in FILE")
    parser.add_argument("--prepared", type=Path, help="folder of bases, models and runs, kept for the next time")
    parser.add_argument("--list", action="store_true", help="names alone")
    options = parser.parse_args()
    before = _read(options.to)
    done = {name for name, result in before.items() if not options.again or result["kind"] == "ok"}
    cases = [case for case in ALL if _wanted(case, options.words) and case.name not in done]
    if options.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    until = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory(prefix="bad-inputs-") as place:
        prepared = options.prepared or Path(place) / "fix"
        warm_up()
        if not (prepared / "done").exists():
            prepare(prepared)
        kept = options.to or Path(place) / "results.jsonl"
        _run(cases, Path(place), prepared, options.jobs, until, kept)
        results = _read(kept)
    counts = Counter(result["kind"] for result in results.values())
    told = [f"{counts.pop('ok', 0)} ok", *(f"{count} {kind}" for kind, count in counts.most_common())]
    print(f"{len(results)} cases: {', '.join(told)}; {len([c for c in cases if c.name not in results])} not run yet")
    return 1 if counts else 0


def _read(path: Path | None) -> dict[str, dict[str, Any]]:
    """The last result of each case, by its name."""
    if path is None or not path.exists():
        return {}
    return {result["name"]: result for result in map(json.loads, path.read_text().splitlines())}


def _wanted(case: Case, words: list[str]) -> bool:
    for word in words:
        if word.startswith("@"):
            if case.name in Path(word[1:]).read_text().split("\n"):
                return True
        elif case.name.startswith(word[1:]) if word.startswith("^") else word in case.name:
            return True
    return not words


def _run(cases: list[Case], where: Path, prepared: Path, jobs: int, until: float, kept: Path) -> None:
    """Runs the cases in so many processes side by side, each of which adds its lines to the file of results."""
    workers = []
    for number in range(jobs):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                for case in cases[number::jobs]:
                    if time.monotonic() < until:
                        line = json.dumps(_result(case, where / "cases" / str(number), prepared)) + "\n"
                        with kept.open("a", encoding="utf-8") as results:
                            results.write(line)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(process)
    for process in workers:
        os.waitpid(process, 0)


def _result(case: Case, folder: Path, prepared: Path) -> dict[str, Any]:
    started = time.monotonic()
    try:
        ending = ending_of(case, folder, prepared)
    finally:
        clear(folder)
    command = case.shell.replace("{}", "") + " onebase " + shlex.join(word[:200] for word in case.words)
    last = [line[:300] for line in ending.ended.err.splitlines() if line.strip()][-3:]
    if ending.kind != "ok":
        told = [f"- {case.name}: {ending.kind}: {ending.why}", f"   {command.strip()}", *(f"     {x}" for x in last)]
        print(*(RAW.sub("?", line[:400]) for line in told), sep="\n", flush=True)
    seconds = round(time.monotonic() - started, 2)
    return {"name": case.name, "area": case.area, "kind": ending.kind, "why": ending.why[:500], "last": last,
            "command": command.strip(), "code": ending.ended.code, "seconds": seconds}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
