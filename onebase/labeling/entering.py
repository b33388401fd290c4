"""The pages through which people come in and go: login, invitation, account, language."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from onebase.errors import DataError
from onebase.labeling.passwords import FEWEST, MOST
from onebase.labeling.site import LANGUAGE_COOKIE, Site, person_of, sent_to, somebody, value_of
from onebase.labels.judged import Person


def add_entering(app: FastAPI, site: Site) -> None:
    """Adds these pages."""
    store = site.store

    @app.get("/login")
    def login(request: Request) -> Response:
        return sent_to("/") if person_of(request) is not None else site.page("login.html", request, name="")

    @app.post("/login")
    def log_in(request: Request) -> Response:
        name, password = value_of(request, "name").strip(), value_of(request, "password")
        by_name, by_address = f"name {name.casefold()[:200]}", f"address {_address(request)}"
        if not site.of_addresses.allows(by_address) or not site.of_names.allows(by_name):
            return _too_many(site, request, name)
        person = store.people.named(name)
        # An unknown name takes as long as a wrong password, and is told the same.
        right = site.passwords.is_right(None if person is None else person.password, password)
        if person is None or not right or not person.active:
            return site.page(
                "login.html", request, status=403, name=name[:100], problem=site.said(request, "wrong-login")
            )
        site.of_names.forget(by_name)
        request.state.session = site.sessions.enter(person)
        return sent_to("/")

    @app.post("/logout")
    def log_out(request: Request) -> Response:
        store.people.end_sessions(somebody(request).name)  # so that a copied cookie is worth nothing
        request.state.session = site.sessions.visit()
        return sent_to("/login")

    @app.get("/invitation/{token}")
    def invitation(request: Request, token: str) -> Response:
        return _invitation(site, request, token)

    @app.post("/invitation/{token}")
    def accept(request: Request, token: str) -> Response:
        return _accept(site, request, token)

    @app.get("/account")
    def account(request: Request) -> Response:
        return site.page("account.html", request, fewest=FEWEST)

    @app.post("/account")
    def set_password(request: Request) -> Response:
        person, password = somebody(request), value_of(request, "password")
        problem = ""
        if person.password is not None:
            if not site.of_names.allows(f"name {person.name.casefold()}"):
                problem = site.said(request, "too-many")
            elif not site.passwords.is_right(person.password, value_of(request, "old")):
                problem = site.said(request, "wrong-password")
        problem = problem or _wrong_length(site, request, password)
        if problem:
            return site.page("account.html", request, status=400, fewest=FEWEST, problem=problem)
        site.of_names.forget(f"name {person.name.casefold()}")
        changed = _with_password(site, person, password)
        request.state.session, request.state.person = site.sessions.enter(changed), changed
        return site.page("account.html", request, fewest=FEWEST, notice=site.said(request, "password-kept"))

    @app.post("/language")
    def choose_language(request: Request) -> Response:
        chosen, to = value_of(request, "language"), value_of(request, "to")
        # A path of ours; `//host` and `/\host` would lead elsewhere.
        response = sent_to(to if to.startswith("/") and not to.startswith(("//", "/\\")) else "/")
        if chosen in ("en", "zh"):
            response.set_cookie(LANGUAGE_COOKIE, chosen, max_age=365 * 24 * 3600, samesite="lax", httponly=True)
        return response


def _invitation(site: Site, request: Request, token: str, *, problem: str = "", status: int = 200) -> Response:
    if not site.of_addresses.allows(f"invitation {_address(request)}"):
        return _too_many(site, request)
    found = site.store.people.invitation(token)
    known, role = found or (None, None)
    person = None if known is None else site.store.people.named(known)
    return site.page(
        "invitation.html",
        request,
        status=status if role else 404,
        role=role,
        known=known,
        name=value_of(request, "name", default="")[:100],
        asks=person is None or (person.password is None and role == "admin"),
        fewest=FEWEST,
        problem=problem,
    )


def _accept(site: Site, request: Request, token: str) -> Response:
    found = site.store.people.invitation(token)
    if found is None:
        return _invitation(site, request, token)
    known, role = found
    person = None if known is None else site.store.people.named(known)
    password = value_of(request, "password", default="")
    needed = role == "admin" and (person is None or person.password is None)
    if password or needed:
        if problem := _wrong_length(site, request, password):
            return _invitation(site, request, token, problem=problem, status=400)
    try:
        entered = site.store.people.accept(token, known if known is not None else value_of(request, "name"))
    except DataError as error:
        said = str(error)
        return _invitation(site, request, token, problem=said[:1].upper() + said[1:] + ".", status=400)
    # Who has a password changes it by saying the old one, never by a link.
    if password and entered.password is None:
        entered = _with_password(site, entered, password)
    request.state.session = site.sessions.enter(entered)
    return sent_to("/admin" if entered.role == "admin" else "/")


def _with_password(site: Site, person: Person, password: str) -> Person:
    site.store.people.set_password(person.name, site.passwords.hash(password))
    changed = site.store.people.by_id(person.id)
    assert changed is not None
    return changed


def _wrong_length(site: Site, request: Request, password: str) -> str:
    if FEWEST <= len(password) <= MOST:
        return ""
    return site.said(request, "password-length", fewest=FEWEST, most=MOST)


def _too_many(site: Site, request: Request, name: str = "") -> Response:
    problem = site.said(request, "too-many")
    response = site.page("login.html", request, status=429, name=name[:100], problem=problem)
    response.headers["Retry-After"] = "600"
    return response


def _address(request: Request) -> str:
    return request.client.host if request.client else "nowhere"
