"""Data files as tasks, and the rankings that people gave in Label Studio, in Argilla or here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebase.errors import DataError
from onebase.labels.judged import NewTask
from onebase.labels.judgements import Brought
from onebase.labels.people import checked_name
from onebase.labels.store import Store
from onebase.labels.tasks import MOST_ANSWERS, task_key
from onebase.reading.exports import is_label_studio, rankings_of
from onebase.reading.formats import Original, iter_originals
from onebase.reading.ranked import with_unranked
from onebase.records import Row
from onebase.runs.progress import say
from onebase.shown import number_of, shown


@dataclass
class Found:
    """What a file holds."""

    tasks: list[NewTask] = field(default_factory=list)
    rankings: list[tuple[str, NewTask, tuple[int, ...]]] = field(default_factory=list)
    """Who, what, and a grade per answer."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows by why they are no tasks."""
    first: dict[str, str] = field(default_factory=dict)
    """Where each reason was met first."""


def bring_in(
    store: Store, file: str | Path, *, columns: Mapping[str, str] | None = None, share: float = 0.0, people: int = 2
) -> tuple[int, int]:
    """Adds a file's tasks and the rankings in it to the database; returns how many of each are new, and says the rest.

    Args:
        share: this share of the tasks goes to `people` people each, the others to one.

    Raises:
        DataError: the file cannot be read, or none of its rows is a task.
    """
    found = read_tasks(file, columns=columns)
    for reason, count in found.left_out.most_common():
        say(
            f"label import: {number_of(count, 'row is no task', 'rows are no tasks')}: {reason} (first "
            f"{shown(found.first[reason], 200)})"
        )
    if not found.tasks:
        reasons = "; ".join(f"{reason} (first {shown(found.first[reason], 200)})" for reason in found.left_out)
        raise DataError(f"{shown(file)} holds nothing to rank: {reasons}")
    new = store.tasks.add(found.tasks, overlap_share=share, people=people)
    stored = {task.key: task for task in store.tasks.all()}
    brought = []
    for person, task, grades in found.rankings:
        key = task_key(task)
        of_answer = dict(zip(task.answers, grades, strict=True))
        brought.append(Brought(person, key, tuple(of_answer[answer] for answer in stored[key].answers)))
    arrived = store.judgements.bring(brought)
    new_tasks, new_rankings = number_of(new, "new task"), number_of(arrived.new, "new ranking")
    say(f"label import: {new_tasks} and {new_rankings} in {store.shown_url}")
    if arrived.undone:
        say(
            f"label import: {number_of(arrived.undone, 'ranking')} came before and had been undone; what is undone "
            "stays so until it is ranked again on the page"
        )
    return new, arrived.new


def read_tasks(file: str | Path, *, columns: Mapping[str, str] | None = None) -> Found:
    """The tasks in a data file, and who ranked them. Raises DataError if the file cannot be read."""
    found = Found()
    for original in iter_originals(file, columns=columns):
        row = with_unranked(original.row)
        reason = _unfit(row)
        # An answer that stands there twice cannot be told from itself.
        kept = [k for k, answer in enumerate(row.answers) if answer not in row.answers[:k]]
        if not reason and len(kept) < 2:
            reason = "all answers are the same"
        if reason:
            found.left_out[reason] += 1
            found.first.setdefault(reason, row.place)
            continue
        sources = row.columns.get("sources")
        named = isinstance(sources, list) and len(sources) == len(row.answers) and all(map(_is_text, sources))
        chosen = row.only(kept)
        task = NewTask(
            row.messages,
            chosen.answers,
            tuple(sources[k] for k in kept) if named and isinstance(sources, list) else (),
            place=row.place,
            ended=chosen.ended,
            tools=row.tools,
        )
        found.tasks.append(task)
        for person, scores in _given(original):
            found.rankings.append((checked_name(person), task, _grades([scores[k] for k in kept])))
    return found


def _unfit(row: Row) -> str:
    """Why a row is no task; empty if it is one."""
    if not row.messages:
        return "no prompt"
    if row.prefix is not None:
        return "answers that go on from a beginning"
    if row.calls is not None:
        return "answers that call functions"
    if len(row.answers) < 2:
        return "fewer than 2 answers"
    return f"more than {MOST_ANSWERS} answers" if len(row.answers) > MOST_ANSWERS else ""


def _given(original: Original) -> Iterator[tuple[str, list[float]]]:
    """Who ranked a row in another program, and their scores of its answers, higher is better."""
    row, values = original
    orders = row.columns.get("orders")
    if row.layout == "label_studio" and isinstance(orders, list):
        # The reader keeps the items' ids in each order, and grades the items in the order of the file.
        ids = _ids(values, orders[0])
        for name, order in zip(_names(_who_in_label_studio(values), len(orders)), orders, strict=True):
            yield name, [-float(order.index(item)) for item in ids]
    elif row.layout == "argilla" and isinstance(orders, list):
        keys = list(orders[0])
        for name, ranks in zip(_names(_who_in_argilla(values), len(orders)), orders, strict=True):
            yield name, [-float(ranks[key]) for key in keys]
    elif row.layout == "scored" and isinstance(orders, list) and isinstance(row.columns.get("annotators"), list):
        names, scores = row.columns["annotators"], values.get("scores")
        lists = [scores] if len(names) == 1 else scores
        if isinstance(lists, list) and len(lists) == len(names) and all(map(_is_text, names)):
            yield from zip(names, lists, strict=True)


def _ids(values: Mapping[str, Any], order: Sequence[str]) -> list[str]:
    """The ids of Label Studio's items in the order of the file."""
    holder = values["data"] if isinstance(values.get("data"), dict) else values
    for value in holder.values():
        if isinstance(value, list) and all(isinstance(item, dict) and "id" in item for item in value):
            ids = [str(item["id"]) for item in value]
            if sorted(ids) == sorted(order):
                return ids
    raise AssertionError("the layout was read by these items")


def _who_in_label_studio(values: Mapping[str, Any]) -> list[Any]:
    assert is_label_studio(values)
    if not isinstance(values.get("annotations"), list):
        return [values.get("annotator")]
    counted = [annotation for annotation in values["annotations"] if not annotation.get("was_cancelled")]
    return [annotation.get("completed_by") for annotation in counted]


def _who_in_argilla(values: Mapping[str, Any]) -> list[Any]:
    found = rankings_of(values)
    assert found is not None, "the layout was told by it"
    question, given = found
    responses = values.get("responses")
    if isinstance(responses, list):
        entries = [one for one in responses if isinstance(one, dict) and question in (one.get("values") or {})]
    else:
        holder = responses if isinstance(responses, dict) else values
        listed = holder[question]
        entries = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else [{}] * len(given)
    return [
        entry.get("user_id")
        for entry, (status, value) in zip(entries, given, strict=True)
        if status in (None, "submitted") and value
    ]


def _names(said: Sequence[Any], count: int) -> list[str]:
    """A name for each annotator of a row: as the file has it, else by number."""
    names: list[str] = []
    for number in range(count):
        who = said[number] if number < len(said) else None
        if isinstance(who, dict):
            who = who.get("email") or who.get("username") or who.get("id")
        name = who.strip() if isinstance(who, str) else f"annotator-{who}" if isinstance(who, int) else ""
        if not name or name in names:  # the same person twice in a row is counted as two: both orders stand
            name = f"annotator-{number + 1}"
        names.append(name)
    return names


def _grades(scores: Sequence[float]) -> tuple[int, ...]:
    """K for the best down to 1, equal for ties: K less the number of better answers."""
    whole = all(float(score).is_integer() and 1 <= score <= len(scores) for score in scores)
    if whole and max(scores) == len(scores):
        return tuple(map(int, scores))
    return tuple(len(scores) - sum(other > score for other in scores) for score in scores)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
