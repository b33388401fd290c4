"""Runs the bad inputs and prints counts: `python -m tests.bad_inputs [WORD ...] [--jobs N] [--part 1/4] [--to FILE]`.

A WORD chooses the cases whose name contains it, `^WORD` those that begin with it, `@FILE` the names in a file. What did
not end as it has to is printed with the last lines of stderr; every result goes to FILE as a JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.bad_inputs.case import Case
from tests.bad_inputs.cases import ALL
from tests.bad_inputs.ending import RAW, clear, ending_of, warm_up
from tests.bad_inputs.prepared import prepare


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bad_inputs", description=__doc__)
    parser.add_argument("words", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--part", default="1/1", help="of so many, so that each takes minutes")
    parser.add_argument("--to", type=Path)
    parser.add_argument("--list", action="store_true", help="names alone")
    parser.add_argument("--keep", action="store_true", help="the folders of failed cases stay")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    cases = [case for case in ALL if _wanted(case, options.words)][part - 1 :: parts]
    if options.list:
        print(*(case.name for case in cases), sep="\n")
        return 0
    where = Path(tempfile.mkdtemp(prefix="bad-inputs-"))
    warm_up()
    prepare(where / "fix")
    results = _run(cases, where, options.jobs, options.keep)
    if options.to:
        options.to.write_text("".join(json.dumps(result) + "\n" for result in results))
    counts = Counter(result["kind"] for result in results)
    print(f"{len(results)} cases: {counts.pop('ok', 0)} ok" + "".join(f", {n} {kind}" for kind, n in counts.items()))
    if not options.keep:
        clear(where)
    return 1 if counts else 0


def _wanted(case: Case, words: list[str]) -> bool:
    for word in words:
        if word.startswith("@"):
            if case.name in Path(word[1:]).read_text().split("\n"):
                return True
        elif case.name.startswith(word[1:]) if word.startswith("^") else word in case.name:
            return True
    return not words


def _run(cases: list[Case], where: Path, jobs: int, keep: bool) -> list[dict[str, object]]:
    workers = []
    for number in range(jobs):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                with (where / f"{number}.jsonl").open("w", encoding="utf-8") as results:
                    for case in cases[number::jobs]:
                        print(json.dumps(_result(case, where / "cases" / case.name[:100], where / "fix", keep)),
                              file=results, flush=True)  # fmt: skip
                code = 0
            finally:
                os._exit(code)
        workers.append(process)
    for process in workers:
        os.waitpid(process, 0)
    lines = [line for number in range(jobs) for line in (where / f"{number}.jsonl").read_text().splitlines()]
    return [json.loads(line) for line in lines]


def _result(case: Case, folder: Path, prepared: Path, keep: bool) -> dict[str, object]:
    ending = ending_of(case, folder, prepared)
    if ending.kind == "ok" or not keep:
        clear(folder)
    command = case.shell.replace("{}", "") + " onebase " + shlex.join(word[:200] for word in case.words)
    last = [line[:300] for line in ending.ended.err.splitlines() if line.strip()][-3:]
    if ending.kind != "ok":
        told = [f"- {case.name}: {ending.kind}: {ending.why}", f"   {command.strip()}", *(f"     {x}" for x in last)]
        print(*(RAW.sub("?", line[:400]) for line in told), sep="\n", flush=True)
    return {"name": case.name, "area": case.area, "kind": ending.kind, "why": ending.why[:500],
            "command": command.strip(), "code": ending.ended.code, "last": last}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
