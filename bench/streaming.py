"""Streams a file of generated rows as training does, without a model: seconds to the first minibatch, rows a second and
resident memory beside that of the same number of examples held in memory.

usage: python -m bench.streaming FOLDER [--rows 1000000] [--examples 100000] [--texts] [--packed]

    --texts     plain texts, which need no chat template; else the demo's questions and answers
    --packed    from a .jsonl.gz, of which a copy is kept in the cache

Prints one JSON line. The rows are written to FOLDER once; the cache is FOLDER/cache, and tokens are not kept.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import threading
import time
from pathlib import Path

import psutil

from onebase.data.chat import chat_format
from onebase.data.encoded import Encoder
from onebase.data.fit import Limits
from onebase.data.mixing import Order, Source
from onebase.demo import grammar
from onebase.files import atomic_file
from onebase.models.scratch import train_tokenizer
from onebase.streaming.examples import Streamed
from onebase.streaming.minibatches import Minibatches
from onebase.streaming.rows import StreamedRows

MINIBATCH = 32
WRITTEN_AT_ONCE = 20_000
HELD = 20_000


class Memory:
    """The most resident memory while it is in force, in bytes above what there was before."""

    def __enter__(self) -> Memory:
        self._rss = psutil.Process().memory_info
        self.before = self.most = self._rss().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.05):
            self.most = max(self.most, self._rss().rss)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.streaming")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    os.environ["ONEBASE_CACHE"] = str(options.folder / "cache")
    path = options.folder / f"{'texts' if options.texts else 'rows'}-{options.rows}.jsonl"
    if not path.exists():
        write(path, options.rows, texts=options.texts)
    if options.packed:
        path = packed(path)
    print(json.dumps(measure(path, options.examples)))


def measure(path: Path, wanted: int) -> dict[str, object]:
    """Streams `wanted` examples of the file in shuffled order."""
    tokenizer = train_tokenizer(grammar.pretraining_texts(seed=0, count=2000), vocab_size=768)
    encode = Encoder(chat_format(tokenizer, "hh"))
    with Memory() as memory:
        began, cpu = time.monotonic(), time.process_time()
        source = Source((str(path),))
        train = Streamed(StreamedRows([source]), encode, Limits(512))
        found = time.monotonic() - began
        order = Order([source], train.counts, seed=0)
        with Minibatches(train, order, MINIBATCH, total=wanted // MINIBATCH) as minibatches:
            minibatches.examples(0)
            first = time.monotonic() - began
            for step in range(1, wanted // MINIBATCH):
                minibatches.examples(step)
        seconds, cpu = time.monotonic() - began - first, time.process_time() - cpu
    streaming = psutil.Process().memory_info().rss
    kept = [train[i] for i in range(min(HELD, len(train)))]
    return {
        "file": path.name,
        "rows": len(train),
        "file_mb": round(path.stat().st_size / 1e6),
        "seconds_to_find_rows": round(found, 2),
        "seconds_to_first_minibatch": round(first, 2),
        "examples_read": wanted,
        "rows_per_second": round(wanted / seconds),
        "rows_per_cpu_second": round(wanted / cpu),
        "most_memory_mb_above_start": round((memory.most - memory.before) / 1e6),
        f"memory_mb_of_{len(kept)}_examples_held": round((psutil.Process().memory_info().rss - streaming) / 1e6),
    }


def write(path: Path, count: int, *, texts: bool) -> None:
    """Writes so many rows; each question or text comes many times, and no two rows are the same."""
    with atomic_file(path) as handle:
        for start in range(0, count, WRITTEN_AT_ONCE):
            for index, row in enumerate(grammar.sft_rows(seed=start, count=min(WRITTEN_AT_ONCE, count - start))):
                asked = f"{row.messages[0].content} ({start + index})"
                values = {"prompt": asked, "completion": row.answers[0]}
                if texts:
                    values = {"text": f"{asked} {row.answers[0]}"}
                handle.write(json.dumps(values, ensure_ascii=False) + "\n")


def packed(path: Path) -> Path:
    """The file compressed by gzip, beside it."""
    there = path.with_name(f"{path.name}.gz")
    if not there.exists():
        with path.open("rb") as plain, gzip.open(there, "wb", compresslevel=6) as file:
            shutil.copyfileobj(plain, file)
    return there


if __name__ == "__main__":
    main()
