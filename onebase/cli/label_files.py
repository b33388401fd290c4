"""`onebase label import` and `export`: data files as tasks, and judgements as data files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from onebase.cli import preflight
from onebase.cli.label_project import load, named
from onebase.cli.numbers import Whole
from onebase.errors import ConfigError
from onebase.reading.databases import as_path
from onebase.reading.files import check_file
from onebase.shown import shown


def import_file(project: str, file: str, /, *, columns: str | None = None) -> None:
    """Add the rows of a data file as tasks, with the rankings of a Label Studio or Argilla export.

    Each task is added once, each person's ranking of it too. People are named as in the file.

    Args:
        project: A PROJECT.yaml, or the database: a URL or a path that ends in .db.
        file: A file whose rows have a prompt and 2 to 9 answers.
        columns: The keys to read, as data.columns: '{prompt: question, completion: answer}'.
    """
    check_file(file)
    mapping = preflight.read_columns(columns)
    given = named(project)
    store = load("onebase.labels.store").Store.open(given.url, create=True)
    try:
        load("onebase.labeling.inputs").bring_in(
            store, as_path(file), columns=mapping, share=given.overlap_share, people=given.people
        )
    finally:
        store.close()


def export_file(
    project: str,
    output: Path,
    /,
    *,
    to: Literal["ranked", "pairs", "kto", "dpo", "llamafactory"],
    max_pairs: Whole = 10,
    seed: Whole = 0,
) -> None:
    """Write what people ranked as a data file, with who ranked it and how far they agreed.

    Args:
        project: A PROJECT.yaml, or the database: a URL or a path that ends in .db.
        output: The .jsonl or .json file to write; it must not exist.
        to: ranked lists, pairs, answers labelled good and bad (kto), or the files of TRL (dpo) and LLaMA-Factory.
        max_pairs: At most so many pairs of one prompt.
        seed: Another seed draws other pairs.
    """
    if max_pairs < 1:
        raise ConfigError(f"--max-pairs is {max_pairs}; it should be at least 1")
    preflight.check_writable(output.absolute().parent, "output file")
    if os.path.lexists(output):
        raise ConfigError(f"{shown(output, 200)} exists; choose another name, or remove it first")
    store = load("onebase.labels.store").Store.open(named(project).url)
    try:
        found = store.snapshot()
    finally:
        store.close()
    load("onebase.labeling.outputs").write(found, output, to, max_pairs=max_pairs, seed=seed)
