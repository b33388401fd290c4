"""`onebase label agreement`: the report on agreement as tables in a terminal, and as JSON."""

from __future__ import annotations

from typing import Any

from onebase.labeling.agreement import Figure, Report, agreement_of
from onebase.labeling.agreement_words import say, shown_figure
from onebase.labels.store import Store
from onebase.shown import json_shown, shown
from onebase.tools.tables import print_table

MOST_SHOWN = 5
"""Disputed tasks in the terminal; JSON has more."""


def run(*, url: str, as_json: bool) -> None:
    """Prints the report on a database.

    Raises:
        DataError: there is no such database.
    """
    store = Store.open(url)
    try:
        seen = store.snapshot()
    finally:
        store.close()
    report = agreement_of(seen.tasks, seen.judgements)
    if as_json:
        print(json_shown(as_data(report), indent=2))
    else:
        print_report(report)


def as_data(report: Report) -> dict[str, Any]:
    """The report for JSON; a figure that cannot be given has the value null and says why."""
    figures = ("skipped", "all_bad", "others", "bradley_terry", "gamma", "dawid_skene", "gold")
    return {
        "tasks": report.tasks,
        "judgements": report.judgements,
        "shared_tasks": report.shared,
        "overall": {name: _data(found) for name, found in report.overall.items()},
        "people": [
            {"name": one.name, "judged": one.judged, "ranked": one.ranked, "seconds": one.seconds}
            | {name: _data(getattr(one, name)) for name in figures}
            for one in report.people
        ],
        "between": [
            {"people": [two.first, two.second], "cohens_kappa": _data(two.kappa), "agreement": _data(two.agreement)}
            for two in report.between
        ],
        "disputed": [
            {
                "task": dispute.task.id,
                "prompt": dispute.task.prompt[-1].content,
                "agreement": dispute.agreement,
                "consensus": dispute.consensus,
                "said": [{"person": one.person, "order": one.order, "note": one.note} for one in dispute.said],
            }
            for dispute in report.disputed
        ],
    }


def _data(found: Figure) -> dict[str, Any]:
    if found.interval is None:
        return {"value": None, "number": found.number, "why": shown_figure(found, "en")}
    interval = found.interval
    return {"value": interval.mean, "low": interval.low, "high": interval.high, "number": found.number}


def print_report(report: Report) -> None:
    """Prints the report as tables; what too few data cannot tell is said once below its table."""
    print(say("summary", "en", judgements=report.judgements, tasks=report.tasks, shared=report.shared))
    if not report.people:
        print(say("nobody", "en"))
        return
    if not report.shared:
        print(say("nothing-shared", "en"))
    else:
        print(say("brackets", "en"), "\n", sep="", end="")
        _print(
            ("coefficient", "value", "rests-on"),
            [[say(name, "en"), found, str(found.number)] for name, found in report.overall.items()],
        )
    figures = ("others", "bradley_terry", "gamma", "dawid_skene", "gold", "skipped", "all_bad")
    people = []
    for one in report.people:
        seconds = "-" if one.seconds is None else f"{one.seconds:.0f}"
        people.append([one.name, str(one.judged), seconds, *(getattr(one, name) for name in figures)])
    _print(("person", "judged", "seconds", *figures), people)
    if report.between:
        lines = [[f"{two.first}, {two.second}", two.kappa, two.agreement] for two in report.between]
        _print(("between", "kappa", "agreement-share"), lines)
    if report.disputed:
        print(f"\n{say('disputed-title', 'en')}")
    for dispute in report.disputed[:MOST_SHOWN]:
        prompt = shown(dispute.task.prompt[-1].content, 100)
        told = "; ".join(f"{one.person}: {one.order}" for one in dispute.said)
        print(f"  {say('task', 'en', id=dispute.task.id)} ({dispute.agreement:.2f}) {prompt}\n    {shown(told)}")


def _print(head: tuple[str, ...], lines: list[list[Any]]) -> None:
    """A table whose missing figures are dashes, with the reasons below it."""
    print()
    reasons: dict[str, None] = {}
    cells = []
    for line in lines:
        for found in line:
            if isinstance(found, Figure) and found.interval is None:
                reasons[shown_figure(found, "en")] = None
        cells.append([_cell(found) for found in line])
    print_table([say(name, "en") for name in head], cells)
    for reason in reasons:
        print(f"-: {reason}")


def _cell(found: Figure | str) -> str:
    if isinstance(found, str):
        return found
    return "-" if found.interval is None else shown_figure(found, "en")
