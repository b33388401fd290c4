"""`onebase data split`: train and test apart by prompt, never by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from onebase.files import atomic_folder
from onebase.quality.split import Splitter
from onebase.reading.databases import name_of
from onebase.reading.formats import iter_originals
from onebase.runs.progress import say
from onebase.shown import number_of, shown

SIDES = ("train", "test")


def run(*, file: Path, output: Path, test: float, columns: Mapping[str, str] | None = None, seed: int = 0) -> None:
    """Writes `train.jsonl` and `test.jsonl` with the file's objects, unchanged and in order, and `split.json`.

    Raises:
        DataError: a row cannot be read, or all prompts are alike.
    """
    splitter = Splitter()
    for original in iter_originals(file, columns=columns):
        splitter.add(original.row)
    split = splitter.split(test, seed=seed)
    counts = (split.test.count(False), split.test.count(True))
    report = {
        "file": name_of(file),
        "rows": dict(zip(SIDES, counts, strict=True)),
        "prompts": dict(zip(SIDES, split.prompts, strict=True)),
        "prompts_in_both": 0,
        "groups_of_similar_prompts": split.groups,
        "seed": seed,
    }
    with atomic_folder(output) as folder:
        sides = [open(folder / f"{side}.jsonl", "w", encoding="utf-8") for side in SIDES]
        try:
            for original, tested in zip(iter_originals(file, columns=columns), split.test, strict=True):
                sides[tested].write(json.dumps(original.values, ensure_ascii=False) + "\n")
        finally:
            for file_of_side in sides:
                file_of_side.close()
        (folder / "split.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for side, count, prompts in zip(SIDES, counts, split.prompts, strict=True):
        print(
            f"{side:<5}  {number_of(count, 'row', form=',')}, {number_of(prompts, 'prompt', form=',')}, in "
            f"{shown(output / f'{side}.jsonl')}"
        )
    print(
        f"No prompt is in both, nor two that are nearly the same ({number_of(split.groups, 'group', form=',')} of "
        "similar prompts)."
    )
    share = counts[1] / len(split.test)
    if abs(share - test) > max(0.02, 0.2 * test):
        say(
            f"warning: data split: {share:.1%} of the rows are for test, not {test:.1%}: rows with one prompt stay "
            f"together, and the largest group has {number_of(split.largest, 'row')}"
        )
