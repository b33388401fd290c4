"""The web application: all pages behind the guard, and errors as a page with one sentence."""

from __future__ import annotations

import traceback

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from onebase.errors import DataError, OnebaseError
from onebase.labeling.administration import add_administration
from onebase.labeling.entering import add_entering
from onebase.labeling.guard import Guard
from onebase.labeling.ranking import add_ranking
from onebase.labeling.site import STATIC, BadForm, Site
from onebase.labels.database import Unreachable
from onebase.runs.progress import say
from onebase.web.requests import is_local


def create_app(site: Site) -> ASGIApp:
    """The pages of a project."""
    app = FastAPI(title="onebase", docs_url=None, redoc_url=None, openapi_url=None)
    add_entering(app, site)
    add_ranking(app, site)
    add_administration(app, site)
    app.mount("/static", StaticFiles(directory=STATIC))
    _answer_errors(app, site)
    return Guard(
        app,
        sessions=site.sessions,
        find=site.store.people.by_id,
        address=site.project.config.address,
        local=is_local(site.project.config.host),
    )


def _answer_errors(app: FastAPI, site: Site) -> None:
    @app.exception_handler(HTTPException)
    async def wrong_place(request: Request, error: HTTPException) -> Response:
        return site.page("message.html", request, status=error.status_code, said=site.said(request, "no-page"))

    @app.exception_handler(RequestValidationError)
    async def no_number(request: Request, error: RequestValidationError) -> Response:
        return site.page("message.html", request, status=404, said=site.said(request, "no-page"))

    @app.exception_handler(OnebaseError)
    async def refused(request: Request, error: OnebaseError) -> Response:
        if isinstance(error, Unreachable) or not isinstance(error, DataError):
            say(f"label: {error}")
            response = site.page("message.html", request, status=503, said=site.said(request, "away"))
            response.headers["Retry-After"] = "2"
            return response
        said = site.said(request, "bad-form") if isinstance(error, BadForm) else str(error)
        return site.page("message.html", request, status=400, said=said)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        say(f"label: a page failed:\n{''.join(traceback.format_exception(error))}")
        return site.page("message.html", request, status=500, said=site.said(request, "failed"))
