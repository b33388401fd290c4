"""The pages on which people rank: the task in front of them, what they said before, and help."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, PlainTextResponse

from onebase.labeling.rendering import LONGEST_SHOWN, Shown, encodable, shown_text
from onebase.labeling.site import (
    BadForm,
    Site,
    fields,
    midnight,
    number_in,
    preview,
    sent_to,
    somebody,
    value_of,
)
from onebase.labeling.words import IN_SCRIPTS, WORDS, word
from onebase.labels.judged import Judgement, Lease, Person, Task
from onebase.labels.judgements import AlreadyJudged, NotLeased
from onebase.labels.leases import shown_order
from onebase.shown import number_of

LETTERS = "ABCDEFGHI"
REASONS = ("unclear", "expertise", "uncomfortable", "broken", "other")
LONGEST_NOTE = 4000
LONGEST_SECONDS = 24 * 3600.0
MOST_HISTORY = 200
NOTICES = {"ranked": "saved", "all_bad": "saved-bad", "skipped": "saved-skip"}


@dataclass(frozen=True, slots=True)
class Card:
    """An answer as it lies on the page. It tells nothing of where the answer stands in the file."""

    number: int
    """Where it was shown to this person, from 0."""
    text: Shown
    unfinished: bool
    tied: bool = False

    @property
    def letter(self) -> str:
        return LETTERS[self.number]


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    name: str
    text: Shown


@dataclass(frozen=True, slots=True)
class Work:
    """A task as it lies on the page."""

    task: int
    turns: list[Turn]
    cards: list[Card]
    note: str = ""
    key: str = field(default_factory=lambda: secrets.token_hex(16))
    """Made for this page: what is sent under it counts once, however often it is sent."""


def add_ranking(app: FastAPI, site: Site) -> None:
    """Adds these pages."""
    store, config = site.store, site.project.config

    @app.get("/")
    def rank(request: Request) -> Response:
        return HTMLResponse(_page(site, request, "rank.html"))

    @app.post("/judgements")
    def judge(request: Request) -> Response:
        notice = _judge(site, request)
        if "hx-request" not in request.headers:
            return sent_to("/")
        return HTMLResponse(_page(site, request, "work.html", notice=notice))

    @app.post("/undo")
    def undo(request: Request) -> Response:
        person = somebody(request)
        before = [one for one in store.judgements.all() if one.person == person.name]
        task = store.judgements.undo(person.id, seconds=config.lease_seconds)
        if "hx-request" not in request.headers:
            return sent_to("/")
        notice = site.said(request, "undone" if task is not None else "nothing-to-undo")
        earlier = before[-1] if task is not None and before and before[-1].task_id == task.id else None
        return HTMLResponse(_page(site, request, "work.html", notice=notice, earlier=earlier))

    @app.get("/token")
    def token(request: Request) -> Response:
        """For a page that was open while its person logged in again."""
        return PlainTextResponse(request.state.session.token, headers={"X-Person": str(somebody(request).id)})

    @app.get("/tasks/{task_id}/answers/{number}")
    def whole_answer(request: Request, task_id: int, number: int) -> Response:
        task, person = _theirs(site, request, task_id), somebody(request)
        if task is None or not 0 <= number < len(task.answers):
            return site.page("message.html", request, status=404, said=site.said(request, "no-page"))
        return PlainTextResponse(encodable(task.answers[shown_order(task, person.id)[number]]))

    @app.get("/tasks/{task_id}/turns/{number}")
    def whole_turn(request: Request, task_id: int, number: int) -> Response:
        task = _theirs(site, request, task_id)
        if task is None or not 0 <= number < len(task.prompt):
            return site.page("message.html", request, status=404, said=site.said(request, "no-page"))
        return PlainTextResponse(encodable(task.prompt[number].text))

    @app.get("/history")
    def history(request: Request) -> Response:
        person = somebody(request)
        mine = [one for one in store.judgements.all() if one.person == person.name]
        rows = [_row(site, person, one) for one in mine[: -MOST_HISTORY - 1 : -1]]
        return site.page("history.html", request, rows=rows, total=len(mine), reasons=REASONS)

    @app.get("/help")
    def explain(request: Request) -> Response:
        return site.page("help.html", request, rubric=site.rubric, minutes=math.ceil(config.lease_seconds / 60))


def _judge(site: Site, request: Request) -> str:
    """Saves what a form says; returns what to tell its sender."""
    person, task = somebody(request), site.store.tasks.by_id(number_in(request, "task"))
    kind = value_of(request, "kind")
    if task is None or kind not in NOTICES:
        raise BadForm("the form is not about a task; open the page again")
    grades = None
    if kind == "ranked":
        order, tied = _numbers(request, "answer"), set(_numbers(request, "tied"))
        grades = grades_in_order(order, tied, shown_order(task, person.id))
    reason = value_of(request, "reason", default="") if kind == "skipped" else ""
    if kind == "skipped" and reason not in REASONS:
        raise BadForm("a task is skipped for one of the reasons on the page; choose one")
    try:
        site.store.judgements.save(
            person.id,
            task.id,
            key=value_of(request, "key"),
            kind=kind,  # type: ignore[arg-type]
            grades=grades,
            reason=reason,
            note=value_of(request, "note", default="").strip()[:LONGEST_NOTE],
            seconds=_seconds(value_of(request, "seconds", default="0")),
        )
    except AlreadyJudged:
        return site.said(request, "judged-before")
    except NotLeased:
        return site.said(request, "not-yours")
    return site.said(request, NOTICES[kind])


def grades_in_order(order: Sequence[int], tied: set[int], shown: Sequence[int]) -> tuple[int, ...]:
    """A grade for each answer, in the task's order: K for the best, equal for ties, then as many less as are better.

    Args:
        order: the answers from best to worst, by where each was shown.
        tied: those as good as the one before them in the order.
        shown: for every place on the page, which of the task's answers was shown there.

    Raises:
        BadForm: the order does not name every answer once, or a tie names none.
    """
    count = len(shown)
    if sorted(order) != list(range(count)) or not tied <= set(order):
        raise BadForm(f"a ranking names each of the {number_of(count, 'answer')} once; open the page again")
    grades = [0] * count
    for place, number in enumerate(order):
        ties = place > 0 and number in tied
        grades[shown[number]] = grades[shown[order[place - 1]]] if ties else count - place
    return tuple(grades)


def _page(site: Site, request: Request, name: str, *, notice: str = "", earlier: Judgement | None = None) -> str:
    person, config = somebody(request), site.project.config
    lease = site.store.leases.take(person.id, seconds=config.lease_seconds, gold_share=config.gold_share)
    language = site.language(request)
    return site.html(
        name,
        request,
        work=None if lease is None else _work(site, request, lease, person, earlier),
        progress=site.store.judgements.progress(person.id, since=midnight()),
        goal=config.daily_goal,
        rubric=site.rubric,
        reasons=REASONS,
        notice=notice,
        drawing=bool(config.answers.roles) and not site.stopped(),
        most_shown=LONGEST_SHOWN,
        script_words={key: WORDS[key][language == "zh"] for key in IN_SCRIPTS},
    )


def _work(site: Site, request: Request, lease: Lease, person: Person, earlier: Judgement | None) -> Work:
    task, language = lease.task, site.language(request)
    cards = [
        Card(number, shown_text(task.answers[index]), unfinished=task.ended is not None and not task.ended[index])
        for number, index in enumerate(lease.order)
    ]
    turns = [Turn(message.role, _role(language, message.role), shown_text(message.text)) for message in task.prompt]
    if earlier is None or earlier.task_id != task.id:
        return Work(task.id, turns, cards)
    if earlier.grades is not None:
        grade = {number: earlier.grades[index] for number, index in enumerate(lease.order)}
        cards.sort(key=lambda card: -grade[card.number])
        above = [None, *cards[:-1]]
        cards = [
            Card(card.number, card.text, card.unfinished, up is not None and grade[up.number] == grade[card.number])
            for card, up in zip(cards, above, strict=True)
        ]
    return Work(task.id, turns, cards, note=earlier.note)


def _role(language: str, role: str) -> str:
    return word("zh" if language == "zh" else "en", f"role-{role}") if f"role-{role}" in WORDS else role


def _row(site: Site, person: Person, judgement: Judgement) -> dict[str, object]:
    task = site.store.tasks.by_id(judgement.task_id)
    assert task is not None, "a judgement refers to a task"
    best = ""
    if judgement.grades is not None:
        top, order = max(judgement.grades), shown_order(task, person.id)
        best = " = ".join(LETTERS[n] for n, index in enumerate(order) if judgement.grades[index] == top)
    return {
        "at": judgement.at,
        "prompt": preview(task.prompt[-1].text),
        "kind": judgement.kind,
        "best": best,
        "reason": judgement.reason,
        "note": judgement.note,
        "seconds": judgement.seconds,
    }


def _theirs(site: Site, request: Request, task_id: int) -> Task | None:
    """A task that this person has in front of them, or any for an admin."""
    person, task = somebody(request), site.store.tasks.by_id(task_id) if 0 < task_id < 2**31 else None
    if task is None or person.role == "admin":
        return task
    config = site.project.config
    lease = site.store.leases.take(person.id, seconds=config.lease_seconds, gold_share=config.gold_share)
    return task if lease is not None and lease.task.id == task.id else None


def _numbers(request: Request, name: str) -> list[int]:
    found = fields(request, name)
    if not all(text.isascii() and text.isdigit() and len(text) < 4 for text in found):
        raise BadForm("a ranking names answers by number; open the page again")
    return [int(text) for text in found]


def _seconds(text: str) -> float:
    """The time a page says it was looked at; what is no time is none."""
    try:
        said = float(text)
    except ValueError:
        return 0.0
    return min(max(0.0, said), LONGEST_SECONDS) if math.isfinite(said) else 0.0
