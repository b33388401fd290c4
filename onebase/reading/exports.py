"""Readers for what annotation tools export: rankings of Label Studio and Argilla.

Ranks of several annotators become one grade per answer, its wins minus its losses (`ranked.by_wins`); the ranks
themselves are the column `orders`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from onebase.errors import DataError
from onebase.reading.fields import Fields
from onebase.reading.json_text import listed
from onebase.reading.layouts import prompt_of
from onebase.reading.ranked import TEXT, by_wins, first_of
from onebase.records import Row


def is_label_studio(row: Mapping[str, Any]) -> bool:
    """Whether a row is a task that Label Studio exported, whole (JSON) or short (JSON_MIN)."""
    whole = isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)
    return whole or _short_key(row) is not None


def _short_key(row: Mapping[str, Any]) -> str | None:
    """The key of a short export under which a `Ranker`'s results stand: `[{ranker: {..}}]`."""
    for key, value in row.items():
        if isinstance(value, list) and value and all(isinstance(entry, dict) and "ranker" in entry for entry in value):
            return key
    return None


def read_label_studio(fields: Fields) -> Row:
    """A task of Label Studio's export with a `Ranker` over a list of items; cancelled annotations do not count.

    A result is the order of the items' ids, best first, under `value.ranker`, alone or under the tag's name. A short
    export has a row for each annotation.
    """
    short = _short_key(fields.values)
    if short is None:
        task = Fields(fields.take("data"), f"{fields.place}: data")
        annotations = fields.items("annotations", "a list of annotations")
    else:
        task = fields
        annotations = [{"result": [{"type": "ranker", "value": value} for value in fields.take(short)]}]
    key, items = next(
        ((key, value) for key, value in task.values.items() if isinstance(value, list) and _has_ids(value)), ("", [])
    )
    if not items:
        raise DataError(f"{task.place} holds no list of items with the key 'id'; only ranked lists can be read")
    task.taken.add(key)
    text = first_of(("body", "html", *TEXT, "title"), items[0])
    if text is None:
        raise task.wrong(f"{key}[0]", items[0], "an item with the key 'body', 'text' or 'title'")
    answers = {}
    for index, item in enumerate(items):
        answers[str(item["id"])] = task.checked(f"{key}[{index}].{text}", item.get(text))
        task.note_left_out(f"{key}[{index}]", item, (text, "id"))
    orders = []
    for index, annotation in enumerate(annotations):
        if not isinstance(annotation, dict):
            raise fields.wrong(f"annotations[{index}]", annotation, "an object")
        if annotation.get("was_cancelled"):
            fields.notes.append("what 'annotations' hold that were cancelled is left out")
            continue
        fields.note_left_out(f"annotations[{index}]", annotation, ("result", "was_cancelled"))
        orders.append(_order(fields, f"annotations[{index}]", annotation, list(answers)))
    if not orders:
        raise DataError(f"{fields.place}: no annotation ranks the items; leave the row out")
    lists = [[-float(order.index(name)) for name in answers] for order in orders]
    grades = by_wins(lists) if len(lists) > 1 else tuple(lists[0])
    prompt = prompt_of(task)
    columns: dict[str, Any] = {"orders": orders}
    if task is not fields:
        fields.notes += task.notes
        columns |= task.left()
    return fields.row(prompt, tuple(answers.values()), grades=grades, more_columns=columns)


def _has_ids(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) and "id" in item for item in value)


def _order(fields: Fields, key: str, annotation: Mapping[str, Any], names: list[str]) -> list[str]:
    results = [found for found in annotation.get("result") or [] if isinstance(found, dict)]
    for index, result in enumerate(results):
        fields.note_left_out(f"{key}.result[{index}]", result, ("type", "value"))
        if result.get("type") != "ranker":
            fields.notes.append("'annotations[].result' of other types than ranker is left out")
            continue
        at = f"{key}.result[{index}].value.ranker"
        value = result.get("value")
        ranker = value.get("ranker") if isinstance(value, dict) else None
        if isinstance(ranker, dict) and len(ranker) > 1:
            raise DataError(
                f"{fields.place}: '{at}' sorts the items into the buckets {', '.join(map(str, ranker))}, which says "
                "nothing of their order; rank them in one list"
            )
        order = next(iter(ranker.values()), None) if isinstance(ranker, dict) else ranker
        if not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
            raise fields.wrong(at, order, f"the {len(names)} ids of the items, best first")
        return [str(name) for name in order]
    raise DataError(f"{fields.place}: '{key}' holds no result of the type 'ranker'; leave it out")


def rankings_of(row: Mapping[str, Any]) -> tuple[str, list[tuple[Any, Any]]] | None:
    """The question of an Argilla export and each response to it as (status, value); None if nothing is ranked.

    Argilla 1 exports `responses: [{values: {question: {value}}, status}]` or `question: [{value, status}]`; Argilla 2
    exports `responses: {question: [{value, status}]}`.
    """
    responses = row.get("responses")
    lists: dict[str, list[tuple[Any, Any]]] = {}
    if isinstance(responses, dict):
        lists = {name: _given(found) for name, found in responses.items() if isinstance(found, list)}
    elif isinstance(responses, list):
        for response in responses:
            values = response.get("values") if isinstance(response, dict) else None
            for name, found in (values or {}).items():
                value = found.get("value") if isinstance(found, dict) else found
                lists.setdefault(name, []).append((response.get("status"), value))
    else:
        lists = {name: _given(found) for name, found in row.items() if isinstance(found, list | dict)}
    return next(((name, found) for name, found in lists.items() if any(_ranks(value) for _, value in found)), None)


def _given(found: Any) -> list[tuple[Any, Any]]:
    if isinstance(found, dict) and isinstance(found.get("value"), list):  # columns, as `datasets` stores lists
        status = found.get("status") or [None] * len(found["value"])
        return list(zip(status, found["value"], strict=False)) if isinstance(status, list) else []
    if not isinstance(found, list):
        return []
    return [(entry.get("status"), entry.get("value")) for entry in found if isinstance(entry, dict)]


def _ranks(value: Any) -> dict[str, Any] | None:
    """Names and their ranks: from `[{value, rank}]` or `{value: [..], rank: [..]}`."""
    if isinstance(value, dict) and isinstance(value.get("value"), list) and isinstance(value.get("rank"), list):
        value = [{"value": name, "rank": rank} for name, rank in zip(value["value"], value["rank"], strict=False)]
    if not isinstance(value, list) or not value:
        return None
    if not all(isinstance(entry, dict) and "rank" in entry and "value" in entry for entry in value):
        return None
    return {str(entry["value"]): entry["rank"] for entry in value}


def read_argilla(fields: Fields) -> Row:
    """A record of an Argilla export with a ranking; equal ranks are ties, and only submitted responses count."""
    found = rankings_of(fields.values)
    assert found is not None, "the layout was told by it"
    question, responses = found
    fields.taken.update(("responses", question))
    fields.notes.append(f"'responses' but for the ranks in '{question}' is left out")
    inner = fields.values.get("fields")
    record = Fields(inner, f"{fields.place}: fields") if isinstance(inner, dict) else fields
    fields.taken.add("fields")
    counted = [ranks for status, value in responses if status in (None, "submitted") and (ranks := _ranks(value))]
    if len(counted) < len(responses):
        fields.notes.append("what 'responses' hold that are not submitted, or rank nothing, is left out")
    if not counted:
        raise DataError(f"{fields.place}: no submitted response ranks the answers; leave the row out")
    names = list(counted[0])
    keys = [_field_of(record, name) for name in names]
    answers = [record.text(key) for key in keys]
    lists = []
    for ranks in counted:
        if list(ranks) != names and sorted(ranks) != sorted(names):
            raise DataError(f"{fields.place}: the responses to '{question}' rank different answers")
        lists.append([-fields.grade(f"{question}: the rank of '{name}'", ranks[name]) for name in names])
    grades = by_wins(lists) if len(lists) > 1 else tuple(lists[0])
    prompt = prompt_of(record)
    columns: dict[str, Any] = {"orders": counted}
    if record is not fields:
        fields.notes += record.notes
        columns |= record.left()
    return fields.row(prompt, answers, grades=grades, more_columns=columns)


def _field_of(record: Fields, name: str) -> str:
    """The field that a ranked value names: by its own name, or `2` for the only field that ends in 2."""
    if name in record.values:
        return name
    ending = [key for key in record.values if re.fullmatch(rf".*\D{re.escape(name)}", key)]
    if len(ending) == 1:
        return ending[0]
    raise DataError(f"{record.place}: no field is named like the ranked value '{name}'; found {listed(record.values)}")
