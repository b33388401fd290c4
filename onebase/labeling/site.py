"""What every page needs, and how it is written."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from onebase.errors import DataError
from onebase.labeling.passwords import OF_ONE_ADDRESS, OF_ONE_NAME, Limiter, Passwords
from onebase.labeling.project import Project
from onebase.labeling.rendering import encodable, shown_text
from onebase.labeling.sessions import Sessions
from onebase.labeling.words import Language, language_of, word
from onebase.labels.judged import Person
from onebase.labels.store import Store

PAGES = Path(__file__).with_name("pages")
STATIC = Path(__file__).with_name("static")
LANGUAGE_COOKIE = "onebase-language"
LINKS = [("/", "rank"), ("/history", "history"), ("/help", "help")]
ADMIN_LINKS = [
    ("/admin", "progress"),
    ("/admin/tasks", "tasks"),
    ("/admin/people", "people"),
    ("/admin/agreement", "agreement"),
]
MOST_PREVIEW = 160
"""Characters of a prompt in a table."""


class BadForm(DataError):
    """A form lacks a field, or has one that no page of ours sends."""


@dataclass(slots=True)
class Site:
    """One project's pages."""

    project: Project
    store: Store
    sessions: Sessions
    address: str
    """Where the pages are reached, without a slash at the end; for links to send."""
    stopped: Callable[[], str] = lambda: ""
    """Why answers are no longer sampled; empty if they are, or never were."""
    passwords: Passwords = field(default_factory=Passwords)
    of_names: Limiter = field(default_factory=lambda: Limiter(OF_ONE_NAME))
    of_addresses: Limiter = field(default_factory=lambda: Limiter(OF_ONE_ADDRESS))
    _environment: Environment = field(init=False)

    def __post_init__(self) -> None:
        self._environment = Environment(
            loader=FileSystemLoader(PAGES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
        )

    def language(self, request: Request) -> Language:
        """The project's language, or the one a person chose, or the browser's."""
        configured = self.project.config.language
        if configured != "auto":
            return configured
        chosen = request.cookies.get(LANGUAGE_COOKIE)
        if chosen in ("en", "zh"):
            return "zh" if chosen == "zh" else "en"
        return language_of(request.headers.get("accept-language", ""))

    def said(self, request: Request, key: str, **values: object) -> str:
        """The words for this reader."""
        return word(self.language(request), key, **values)

    def html(self, template: str, request: Request, **values: Any) -> str:
        """A page as text."""
        language, person = self.language(request), person_of(request)

        def t(key: str, **given: object) -> str:
            return word(language, key, **given)

        auto = self.project.config.language == "auto"
        usual: dict[str, Any] = {
            "language": language,
            "other": ("en" if language == "zh" else "zh") if auto else None,
            "t": t,
            "project": self.project.config.name,
            "session": request.state.session,
            "person": person,
            "links": LINKS + (ADMIN_LINKS if person is not None and person.role == "admin" else []),
            "here": request.url.path if request.method == "GET" else "/",
            "notice": "",
            "problem": "",
            "moment": moment,
        }
        return self._environment.get_template(template).render(usual | values)

    def page(self, template: str, request: Request, *, status: int = 200, **values: Any) -> Response:
        """A page as a response; its values are those of the template."""
        return HTMLResponse(self.html(template, request, **values), status_code=status)

    @property
    def rubric(self) -> Markup:
        return shown_text(self.project.rubric).html if self.project.rubric else Markup("")


def person_of(request: Request) -> Person | None:
    """Who is asking; None if nobody is logged in."""
    found = request.state.person
    assert found is None or isinstance(found, Person)
    return found


def somebody(request: Request) -> Person:
    """Who is asking, on a page that the guard shows to nobody else."""
    person = person_of(request)
    assert person is not None, "the guard lets nobody else here"
    return person


def fields(request: Request, name: str) -> list[str]:
    """All values of a form's field."""
    form: Mapping[str, list[str]] = request.state.form
    return form.get(name, [])


def value_of(request: Request, name: str, *, default: str | None = None) -> str:
    """A form's field. Raises BadForm if it is not there and has no default."""
    found = fields(request, name)
    if not found and default is None:
        raise BadForm(f"the form has no '{name}'; open the page again")
    return found[0] if found else str(default)


def number_in(request: Request, name: str) -> int:
    """A form's field with a whole number. Raises BadForm if it is none."""
    text = value_of(request, name)
    if not (text.isascii() and text.isdigit() and len(text) < 18):
        raise BadForm(f"the form's '{name}' is no number; open the page again")
    return int(text)


def sent_to(path: str) -> Response:
    """Sends the browser to a page by GET, so that reloading it sends nothing again."""
    return RedirectResponse(path, status_code=303)


def moment(at: datetime) -> str:
    """A moment as this machine's clock shows it."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M")


def midnight() -> datetime:
    """The beginning of this machine's day, in UTC."""
    return datetime.now().astimezone().replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)


def median(numbers: list[float]) -> float | None:
    """The middle one; None of none."""
    return statistics.median(numbers) if numbers else None


def preview(text: str) -> str:
    """A text's beginning on one line."""
    line = " ".join(encodable(text[: 4 * MOST_PREVIEW]).split())
    return line if len(line) <= MOST_PREVIEW else line[: MOST_PREVIEW - 1] + "…"
