"""Scores many rows in one process and by Ray's actors, and compares the two files.

    python -m onebase demo                                     # once: its reward role scores
    python -m bench.ray_score runs/demo [--rows 100000] [--actors 3]

The rows are questions of the demo's grammar with two or four answers each, other ones than the demo's own. Both sides
use one thread a process and microbatches of one size, as the same bytes ask for.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from onebase.demo import grammar

SEED = 1_000_003
"""Of the rows: none of the demo's."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.ray_score", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", type=Path, help="folder of the demo")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--actors", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = write_rows(folder / "rows.jsonl", options.rows)
        role = (options.demo / "reward" / "reward").resolve()
        line = ["score", str(role), str(rows), "--microbatch-tokens", "8192"]
        alone = timed("one process", [*line, "--output", str(folder / "one")])
        many = ["--output", str(folder / "several"), "--ray", "local", "--actors", str(options.actors)]
        shared = timed(f"{options.actors} actors", [*line, *many])
    same = alone == shared
    print(f"{len(alone):,} bytes, sha256 {hashlib.sha256(alone).hexdigest()[:16]}: {'the same' if same else 'others'}")
    return 0 if same else 5


def write_rows(path: Path, count: int) -> Path:
    """Writes rows of a prompt and its answers, in the layout of the demo's preferences."""
    with path.open("w", encoding="utf-8") as file:
        for row in grammar.preference_rows(seed=SEED, count=count):
            found = {"instruction": row.messages[0].content, "input": "", "output": row.answers, "grades": row.grades}
            file.write(json.dumps(found) + "\n")
    return path


def timed(name: str, words: list[str]) -> bytes:
    """Runs `onebase`, prints what it took, and returns what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    environment.pop("RAY_ADDRESS", None)
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "onebase", *words], env=environment, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{name}: exit {done.returncode}: {done.stderr.decode()[-2000:]}")
    print(f"{name}: {time.monotonic() - began:.0f} s, {len(done.stdout.splitlines()):,} rows", flush=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
