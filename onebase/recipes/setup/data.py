"""Turns the configuration's data into rows and examples, and says in which order a run reads them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from onebase.config.data_groups import DataGroup, FilesGroup, PromptDataGroup, SourceGroup, StreamedGroup
from onebase.data.fit import Cuts, Limits
from onebase.data.mixing import Order, Source
from onebase.data.prepare import dropped_line, read_split, with_system
from onebase.data.remarks import check_split, remarks
from onebase.data.selection import drop_unusable
from onebase.data.token_cache import TokenCache, cache_root
from onebase.errors import DataError
from onebase.reading.containers import is_plain_lines
from onebase.reading.files import expand, kind_of
from onebase.reading.formats import iter_rows, read_files
from onebase.records import Example, Prompt, Row
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.streaming.examples import Encode, OnDemand, Streamed
from onebase.streaming.rows import StreamedRows

STREAMED_FROM = 32 << 20
"""Bytes of files from which they are streamed by themselves."""
MOST_HELD_OUT = 1000
"""Rows held out of streamed ones."""


def sources_of(data: FilesGroup) -> list[Source]:
    """The configured sources: one for each entry with options of its own, and one for all plain files."""
    found: list[Source] = []
    plain: list[str] = []
    for entry in data.train:
        if isinstance(entry, SourceGroup):
            found.append(Source((entry.path,), entry.weight, entry.limit, columns=entry.columns or data.columns))
        else:
            plain.append(entry)
    if plain:
        found.insert(0, Source(tuple(plain), columns=data.columns))
    if data.replay.path:
        replay = data.replay
        columns = replay.columns or data.columns
        found.append(Source(tuple(replay.path), limit=replay.limit, replayed=True, share=replay.share, columns=columns))
    return found


def read_rows(data: FilesGroup, seed: int) -> tuple[list[Row], list[Row]]:
    """Reads training and held-out rows; prints what was left out, and remarks on the rest."""
    train, held_out, dropped = read_split(
        sources_of(data),
        data.eval,
        columns=data.columns,
        eval_fraction=data.eval_fraction,
        limit=data.limit,
        seed=seed,
        max_dropped_share=data.max_dropped_share,
    )
    for line in [*filter(None, [dropped_line(dropped)]), *remarks(train, held_out)]:
        say(line)
    system = system_prompt_of(data)
    return with_system(train, system), with_system(held_out, system)


def system_prompt_of(data: FilesGroup) -> str | None:
    """The system turn for conversations that have none."""
    return data.system_prompt if isinstance(data, DataGroup | PromptDataGroup) else None


def order_of(data: FilesGroup, examples: Sequence[Example | Prompt], seed: int) -> Order:
    """In which order a run reads these examples, which lie source by source."""
    sources = sources_of(data)
    if isinstance(examples, OnDemand):
        return Order(sources, examples.counts, seed=seed)
    counts = [0] * len(sources)
    for example in examples:
        counts[example.row.source if example.row else 0] += 1
    return Order(sources, counts, seed=seed)


def read_record(
    order: Order, train: Sequence[Example | Prompt], held_out: Sequence[Example | Prompt], steps: int, size: int
) -> dict[str, object]:
    """The summary's entry on the data: how much there was, and what `steps` minibatches of `size` were drawn from if it
    is a mixture. Prints how fast streamed rows were read."""
    found: dict[str, object] = {"train": len(train), "held_out": len(held_out)}
    if order.lines():
        found["sources"] = order.drawn(steps, size)
    if isinstance(train, Streamed):
        rate = train.read / max(1e-9, train.seconds)
        told = f"; {train.told()}" if train.told() else ""
        say(f"streamed {number_of(train.read, 'row')}, {rate:.0f} a second beside training{told}")
    return found


def is_streamed(data: StreamedGroup, *, kept: bool = False, ranks: bool = False) -> bool:
    """Whether rows are read as they are needed. By themselves they are where there is a place for what is `kept`:
    copies of files that are no plain JSON lines, or all tokens. Where the verb `ranks` answers, a file whose rows have
    one of several answers each is not streamed by itself; prints that."""
    if data.streaming != "auto":
        return data.streaming
    files = [path for name in data.files for path in expand(name)]
    if any(kind_of(path) == "database" for path in files):
        return False
    size = sum(path.stat().st_size for path in files)
    if size < STREAMED_FROM or not (cache_root() is not None or (not kept and all(map(is_plain_lines, files)))):
        return False
    if ranks and (row := next(filter(is_ranked_beside_others, first_rows(data)), None)):
        say(
            f"{row.place}: answers are ranked beside those of other rows, so the rows are not streamed: all "
            f"{size / (1 << 20):.0f} MiB are read into memory"
        )
        return False
    return True


def first_rows(data: FilesGroup) -> Iterator[Row]:
    """The first row of each training file; all others of the file have its layout."""
    for source in sources_of(data):
        for path in [path for name in source.paths for path in expand(name)]:
            yield from iter_rows(path, columns=source.columns, limit=1)


def is_ranked_beside_others(row: Row) -> bool:
    """Whether a row's answer is only compared with those of other rows."""
    return len(row.answers) == 1 and (row.grades is not None or not row.messages)


def streamed_rows(data: StreamedGroup) -> tuple[StreamedRows, list[Row]]:
    """Rows that are read as they are needed, and the held-out ones. Prints remarks on a sample of them.

    Without held-out files, rows spread evenly over the file are held out, at most a thousand.
    """
    began = time.monotonic()
    check_split(data.files, data.eval)
    rows = StreamedRows(sources_of(data), limit=data.limit, tell=say)
    held_out = (
        read_files(data.eval, columns=data.columns)
        if data.eval
        else rows.hold_out(data.eval_fraction, most=MOST_HELD_OUT)
    )
    held_out, dropped = drop_unusable(held_out, max_share=data.max_dropped_share if data.eval else 1.0)
    say(
        f"{number_of(len(rows), 'row is', 'rows are')} streamed, found in {time.monotonic() - began:.1f} s; they "
        "are not compared with one "
        f"another, and {len(held_out)} are held out"
    )
    sample = rows.sample()
    for line in remarks(sample, []):
        say(f"of {number_of(len(sample), 'row')} looked at: {line}")
    if dropped:
        say(f"of the held-out rows {dropped_line(dropped)}")
    return rows, held_out


def streamed(
    data: DataGroup, encode_row: Encode, limits: Limits, *, cache: TokenCache | None
) -> tuple[Streamed, list[Example]]:
    """Examples that are made of `streamed_rows` as they are needed, and the held-out ones."""
    system = system_prompt_of(data)

    def encode(row: Row, cuts: Cuts) -> Example | None:
        return encode_row(with_system([row], system)[0], cuts)

    rows, others = streamed_rows(data)
    cuts = Cuts(limits)
    held_out = [example for row in others if (example := encode(row, cuts)) is not None]
    if cache is not None:
        cache.flush()
    return Streamed(rows, encode, limits), held_out


def check_compares(row: Row) -> None:
    """Raises DataError for a streamed row whose answer is only compared with those of other rows."""
    if is_ranked_beside_others(row):
        raise DataError(
            f"{row.place}: this answer would be ranked beside those of other rows, and streamed rows are not compared "
            "with one another; set data.streaming: false"
        )
