"""Streams a file of generated rows as training does, without a model: seconds to the first minibatch, rows a second and
resident memory beside that of the same number of examples held in memory.

usage: python -m bench.streaming FOLDER [ROWS [EXAMPLES]]      1,000,000 rows, of which 100,000 examples are read

Prints one JSON line. The rows are the demo's questions and answers, written to FOLDER/rows.jsonl once.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import psutil

from onebase.data.chat import chat_format
from onebase.data.encoded import Encoder
from onebase.data.fit import Limits
from onebase.data.mixing import Order, Source
from onebase.data.streaming import Minibatches, Streamed
from onebase.demo import grammar
from onebase.files import atomic_file
from onebase.models.scratch import train_tokenizer

MINIBATCH = 32
WRITTEN_AT_ONCE = 20_000


def main() -> None:
    folder = Path(sys.argv[1])
    count, wanted = (int(word) for word in [*sys.argv[2:], *["1000000", "100000"][len(sys.argv) - 2 :]])
    path = folder / "rows.jsonl"
    if not path.exists():
        write(path, count)
    tokenizer = train_tokenizer(grammar.pretraining_texts(seed=0, count=2000), vocab_size=768)
    chat, memory = chat_format(tokenizer, "hh"), psutil.Process().memory_info
    before, began = memory().rss, time.monotonic()
    source = Source((str(path),))
    train = Streamed([source], Encoder(chat), Limits(512))
    found = time.monotonic() - began
    order = Order([source], train.counts, seed=0)
    highest = 0
    with Minibatches(train, order, MINIBATCH, total=wanted // MINIBATCH) as minibatches:
        minibatches.examples(0)
        first = time.monotonic() - began
        for step in range(1, wanted // MINIBATCH):
            minibatches.examples(step)
            if step % 100 == 0:
                highest = max(highest, memory().rss)
    seconds = time.monotonic() - began - first
    kept = [train[i] for i in range(min(20_000, len(train)))]
    print(
        json.dumps(
            {
                "rows": len(train),
                "file_mb": round(path.stat().st_size / 1e6),
                "seconds_to_find_rows": round(found, 2),
                "seconds_to_first_minibatch": round(first, 2),
                "examples_read": wanted,
                "rows_per_second": round(wanted / seconds),
                "most_memory_mb_above_start": round((highest - before) / 1e6),
                "memory_mb_of_20000_examples_held": round((memory().rss - highest) / 1e6) if kept else 0,
            }
        )
    )


def write(path: Path, count: int) -> None:
    """Writes so many rows; each question is asked many times, and no two rows are the same."""
    with atomic_file(path) as handle:
        for start in range(0, count, WRITTEN_AT_ONCE):
            for index, row in enumerate(grammar.sft_rows(seed=start, count=min(WRITTEN_AT_ONCE, count - start))):
                asked = f"{row.messages[0].content} ({start + index})"
                handle.write(json.dumps({"prompt": asked, "completion": row.answers[0]}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
