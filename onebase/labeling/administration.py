"""The pages of those who run a project: progress, people and their invitations, tasks."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from fastapi import FastAPI, Request, Response

from onebase.errors import DataError
from onebase.labeling.agreement import agreement_of
from onebase.labeling.agreement_page import fragment
from onebase.labeling.site import Site, median, midnight, number_in, preview, somebody, value_of
from onebase.labels.judged import Judgement, Person

ON_A_PAGE = 50


def add_administration(app: FastAPI, site: Site) -> None:
    """Adds these pages; the guard shows them to admins alone."""
    store = site.store

    @app.get("/admin")
    def progress(request: Request) -> Response:
        seen, since = store.snapshot(), midnight()
        count = Counter(one.task_id for one in seen.judgements if one.kind != "skipped")
        asked = [task for task in seen.tasks if task.gold is None]
        return site.page(
            "progress.html",
            request,
            tasks=len(seen.tasks),
            finished=f"{sum(count[task.id] >= task.overlap for task in asked)} / {len(asked)}",
            judged=len(seen.judgements),
            today=sum(one.at >= since for one in seen.judgements),
            rows=[_row(person, seen.judgements) for person in store.people.all()],
            stopped=site.stopped(),
        )

    reported: dict[str, Any] = {"state": None}

    @app.get("/admin/agreement")
    def agreement(request: Request) -> Response:
        seen = store.snapshot()
        # Its intervals take a while: they are worked out again once somebody has said more.
        state = (len(seen.tasks), tuple(one.id for one in seen.judgements))
        if reported["state"] != state:
            reported.update(state=state, report=agreement_of(seen.tasks, seen.judgements))
        return site.page("agreement_admin.html", request, fragment=fragment(reported["report"], site.language(request)))

    @app.get("/admin/people")
    def people(request: Request) -> Response:
        return _people(site, request)

    @app.post("/admin/people")
    def invite(request: Request) -> Response:
        name, role, days = value_of(request, "name").strip(), value_of(request, "role"), number_in(request, "days")
        try:
            if role not in ("annotator", "admin") or not 1 <= days <= 365:
                raise DataError("an invitation is for an annotator or an admin, for 1 to 365 days")
            token = store.people.invite(role, name or None, days)  # type: ignore[arg-type]
        except DataError as error:
            return _people(site, request, problem=str(error), status=400)
        return _people(site, request, link=f"{site.address}/invitation/{token}")

    @app.post("/admin/people/{person_id}")
    def let_in(request: Request, person_id: int) -> Response:
        found = store.people.by_id(person_id) if 0 < person_id < 2**31 else None
        if found is None:
            return site.page("message.html", request, status=404, said=site.said(request, "no-page"))
        if found.id == somebody(request).id:
            return _people(site, request, problem=site.said(request, "not-you"), status=400)
        store.people.set_active(found.name, value_of(request, "active") == "yes")
        return _people(site, request)

    @app.get("/admin/tasks")
    def tasks(request: Request) -> Response:
        seen = store.snapshot()
        count = Counter(one.task_id for one in seen.judgements if one.kind != "skipped")
        pages = max(1, math.ceil(len(seen.tasks) / ON_A_PAGE))
        asked = request.query_params.get("page", "1")
        page = min(pages, max(1, int(asked))) if asked.isascii() and asked.isdigit() and len(asked) < 9 else 1
        rows = [
            {
                "id": task.id,
                "prompt": preview(task.prompt[-1].text),
                "count": len(task.answers),
                "writers": ", ".join(sorted(set(filter(None, task.sources)))),
                "chosen": task.chosen,
                "gold": task.gold is not None,
                "place": task.place,
                "judged": count[task.id],
                "overlap": task.overlap,
            }
            for task in seen.tasks[(page - 1) * ON_A_PAGE : page * ON_A_PAGE]
        ]
        return site.page("tasks.html", request, rows=rows, page=page, pages=pages)


def _people(site: Site, request: Request, *, link: str = "", problem: str = "", status: int = 200) -> Response:
    everybody = site.store.people.all()
    here = "/admin/people"
    return site.page("people.html", request, status=status, everybody=everybody, link=link, problem=problem, here=here)


def _row(person: Person, judgements: list[Judgement]) -> dict[str, Any]:
    mine, since = [one for one in judgements if one.person == person.name], midnight()
    kinds = Counter(one.kind for one in mine)
    return {
        "name": person.name,
        "ranked": kinds["ranked"],
        "all_bad": kinds["all_bad"],
        "skipped": kinds["skipped"],
        "today": sum(one.at >= since for one in mine),
        "seconds": median([one.seconds for one in mine if one.kind == "ranked"]),
        "last": max((one.at for one in mine), default=None),
    }
