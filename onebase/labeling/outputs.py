"""What people ranked as a data file, in the layouts that reward models, DPO and KTO are trained on.

    ranked        prompt, responses, scores: a list for each annotator
    pairs         prompt, chosen, rejected; ties with `tie` and a `margin` of 0
    kto           prompt, completion, label
    dpo           prompt, chosen, rejected as lists of messages, as TRL takes them; no ties
    llamafactory  conversations, chosen, rejected; no ties

Each row has the columns `task`, `annotators`, `agreement` and `chosen_by`. Gold questions are in none of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, Literal

from onebase.convert.rows import converted, registered
from onebase.errors import ConfigError, DataError
from onebase.files import atomic_file
from onebase.labels.judged import Judgement, Task
from onebase.labels.store import Snapshot
from onebase.reading.databases import agreement_of, asked, beside, left_out, ranking, rankings
from onebase.reading.formats import read_record
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown

Target = Literal["ranked", "pairs", "kto", "dpo", "llamafactory"]
SUFFIXES = (".jsonl", ".json")
_OTHERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "dpo": ("trl", ("tie", "ended", "rows")),
    "llamafactory": ("llamafactory", ("tie", "margin", "ended", "rows")),
}
"""Another tool's layout, and what it cannot hold."""


def write(found: Snapshot, output: Path, to: Target, *, max_pairs: int, seed: int) -> int:
    """Writes the judgements in force to a file, whole or not at all; returns how many rows, and says what is left out.

    Args:
        max_pairs: at most so many pairs of a prompt, drawn by the seed.

    Raises:
        ConfigError: `output` is of another type than .jsonl or .json.
        DataError: there is nothing to write.
    """
    if output.suffix not in SUFFIXES:
        raise ConfigError(f"{shown(output, 200)}: name a .jsonl file (an object a line) or a .json file (one list)")
    dropped: Counter[str] = Counter()
    records = list(_records(found, to, max_pairs, seed, dropped))
    ranked = sum(1 for _ in rankings(found))
    for line in left_out(found, ranked):
        say(f"label export: {line}")
    for part, count in sorted(dropped.items()):
        say(f"label export: left out {number_of(count, 'row')}: {part}")
    if not records:
        raise DataError(f"no judgement can be written as {to}; rank some tasks first")
    with atomic_file(output) as handle:
        lines = [json.dumps(_readable(record), ensure_ascii=False) for record in records]
        handle.write("\n".join(lines) + "\n" if output.suffix == ".jsonl" else "[\n" + ",\n".join(lines) + "\n]\n")
    say(f"label export: {number_of(len(records), 'row')} in {shown(output)}")
    if to == "llamafactory":
        keys = {key for record in records for key in record}
        say(f"for LLaMA-Factory's dataset_info.json: {json.dumps(registered(output, keys))}")
    return len(records)


def _records(found: Snapshot, to: Target, max_pairs: int, seed: int, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    if to == "ranked":
        yield from (record for _, record in rankings(found))
    elif to == "kto":
        yield from _labelled(found, dropped)
    elif to == "pairs":
        yield from _pairs(found, max_pairs, seed)
    else:
        layout, cannot = _OTHERS[to]
        rows = (read_record(pair, place=f"task {pair['task']}") for pair in _pairs(found, max_pairs, seed))
        parts: Counter[str] = Counter()
        yield from converted(rows, layout, drop=cannot, dropped=parts)
        words = {"tie": "ties", "rows": f"what {to} cannot hold"}
        dropped.update({words[part]: count for part, count in parts.items() if part in words})


def _pairs(found: Snapshot, most: int, seed: int) -> Iterator[dict[str, Any]]:
    """Pairs of a task's answers, the better one first; of a tie, the one that stands first in the task."""
    for task, given in _judged(found):
        if not given:
            continue
        row = _combined(task, given)
        grades = row.grades or ()
        every = list(combinations(range(len(task.answers)), 2))
        if len(every) > most:
            every = sorted(Random(f"{seed}:{task.key}").sample(every, most))
        for first, second in every:
            better, worse = (first, second) if grades[first] >= grades[second] else (second, first)
            record = {**asked(task), "chosen": task.answers[better], "rejected": task.answers[worse]}
            if grades[better] == grades[worse]:
                record |= {"tie": True, "margin": 0.0}
            if task.ended is not None:
                ended = {"chosen_ended": task.ended[better], "rejected_ended": task.ended[worse]}
                record |= {key: value for key, value in ended.items() if not value}
            of_pair = [[judgement.grades[better], judgement.grades[worse]] for judgement in given if judgement.grades]
            yield record | _columns(task, given, (better, worse)) | {"agreement": agreement_of(of_pair)}


def _labelled(found: Snapshot, dropped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Single answers, good above the middle of the grades and bad below; all bad where most annotators said so."""
    bad: dict[int, list[Judgement]] = {}
    for judgement in found.judgements:
        if judgement.kind == "all_bad":
            bad.setdefault(judgement.task_id, []).append(judgement)
    for task, given in _judged(found):
        against = bad.get(task.id, [])
        if len(against) > len(given):
            labels: list[bool | None] = [False] * len(task.answers)
            given = against
        elif given:
            grades = _combined(task, given).grades or ()
            middle = (max(grades) + min(grades)) / 2
            labels = [None if grade == middle else grade > middle for grade in grades]
            dropped["answers in the middle of their list"] += labels.count(None)
        else:
            continue
        for k, label in enumerate(labels):
            if label is None:
                continue
            record = {**asked(task), "completion": task.answers[k], "label": label}
            if task.ended is not None and not task.ended[k]:
                record["ended"] = False
            yield record | _columns(task, given, (k,))
    dropped += Counter()  # without zeros


def _judged(found: Snapshot) -> Iterator[tuple[Task, list[Judgement]]]:
    """Every task that is no gold question, and its rankings in force."""
    by_task: dict[int, list[Judgement]] = {}
    for judgement in found.judgements:
        if judgement.kind == "ranked":
            by_task.setdefault(judgement.task_id, []).append(judgement)
    return ((task, by_task.get(task.id, [])) for task in found.tasks if task.gold is None)


def _combined(task: Task, given: Sequence[Judgement]) -> Row:
    """The task as training reads it, with one grade per answer from all annotators."""
    return read_record(ranking(task, given), place=f"task {task.id}")


def _columns(task: Task, given: Sequence[Judgement], answers: Sequence[int]) -> dict[str, Any]:
    """The columns beside one or two of a task's answers."""
    found = beside(task, given)
    del found["orders"]
    return found | ({"sources": [task.sources[k] for k in answers]} if task.sources else {})


def _readable(value: Any) -> Any:
    """The value with lone surrogates replaced, which no file in UTF-8 can hold."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _readable(own) for key, own in value.items()}
    return [_readable(own) for own in value] if isinstance(value, list) else value
