"""What every request passes before a page sees it: the host it names, its size, its origin, its form's token, and who
asks. A page that is not on the list of open ones needs a session; one under /admin, an admin's."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from onebase.errors import OnebaseError
from onebase.labeling.sessions import Session, Sessions
from onebase.labels.judged import Person
from onebase.runs.progress import say
from onebase.web.requests import (
    WITH_BODY,
    BodyTooLarge,
    ClientGone,
    Message,
    Receive,
    Send,
    fits,
    host_of,
    is_local,
    read_again,
    read_body,
)

MOST_BYTES = 100_000
MOST_FIELDS = 100
OPEN = ("/login", "/language", "/invitation/", "/static/")
"""What nobody needs a session for; everything else needs one."""
LEAVING = "/logout"
"""Whoever sends this form twice is out the second time, and goes where it leads."""
LOGGED_OUT = "you are logged out; log in and send it again"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """ASGI middleware; pages find `session`, `person` and `form` in the request's state.

    Args:
        find: the person with a number, None if there is none.
        address: under which people reach the pages; None: the one that the server listens on.
        local: the server listens on this machine's own address, so that every request has to name it. Without this, a
            web page could send requests under a name of its own that leads here.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        sessions: Sessions,
        find: Callable[[int], Person | None],
        address: str | None,
        local: bool,
    ) -> None:
        self._app, self._sessions, self._find, self._local = app, sessions, find, local
        self._place = None if address is None else urlsplit(address).netloc.lower()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        state = scope.setdefault("state", {})
        state |= {"form": {}, "person": None}
        session, fresh = self._session(headers), False
        try:
            person = await run_in_threadpool(self._person, session)
        except OnebaseError as error:
            say(f"label: {error}")
            await _refuse(send, 503, "the database does not answer; try again in a moment", retry=True)
            return
        if session is None or (session.person is not None and person is None):
            session, fresh = self._sessions.visit(), True
        state |= {"session": session, "person": person}
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] in WITH_BODY:
            try:
                body = await read_body(receive, MOST_BYTES)
                receive = read_again(body, receive)
                refusal = self._wrong_form(body, scope, session)
            except BodyTooLarge:
                refusal = 413, f"this is more than the {MOST_BYTES} bytes that a form may have; shorten it"
            except ClientGone:
                return
        if refusal is None:
            refusal = self._closed(scope, person)
        if refusal is not None:
            status, said = refusal
            await _refuse(send, status, said, cookie=self._cookie(session, scope) if fresh else None)
            return

        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in _encoded(HEADERS) if pair[0] not in given),
                    *([] if b"cache-control" in given else [(b"cache-control", b"no-store")]),
                ]
                latest = state["session"]  # a page may have let somebody in, or out
                if fresh or latest is not session:
                    message["headers"].append((b"set-cookie", self._cookie(latest, scope)))
            await send(message)

        await self._app(scope, receive, sent)

    def _session(self, headers: dict[bytes, bytes]) -> Session | None:
        try:
            cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(self._sessions.name)
        except CookieError:
            return None
        return None if cookie is None else self._sessions.read(cookie.value)

    def _person(self, session: Session | None) -> Person | None:
        person = None if session is None or session.person is None else self._find(session.person)
        if person is None or session is None or not person.active:
            return None
        return person if person.session == session.number else None

    def _cookie(self, session: Session, scope: Message) -> bytes:
        secure = scope.get("scheme") == "https"
        text = f"{self._sessions.name}={session.cookie}; Path=/; HttpOnly; SameSite=Lax; Max-Age=2592000"
        return (text + ("; Secure" if secure else "")).encode()

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"")
        here = host.decode("latin-1").lower() == self._place
        if not here and (self._local or self._place is not None) and not is_local(host_of(host)):
            return 403, "this server answers only under its own address; open the page by the link you were given"
        if not fits(headers.get(b"content-length", b"0"), MOST_BYTES):
            return 413, f"this is more than the {MOST_BYTES} bytes that a form may have; shorten it"
        if scope["method"] not in WITH_BODY:
            return None
        origin = headers.get(b"origin")
        known = {host.decode("latin-1").lower(), self._place}
        foreign = origin is not None and urlsplit(origin.decode("latin-1").lower()).netloc not in known
        if foreign or headers.get(b"sec-fetch-site", b"same-origin") not in (b"same-origin", b"none"):
            return 403, "this was sent by a page of another site; open the page here and send it again"
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/x-www-form-urlencoded":
            return 415, "only the forms of these pages are read"
        return None

    def _wrong_form(self, body: bytes, scope: Message, session: Session) -> tuple[int, str] | None:
        try:
            form = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:  # not UTF-8 or too many fields
            return 400, "this form cannot be read; open the page again"
        scope["state"]["form"] = form
        token = form.get("csrf", [""])[0]
        if not hmac.compare_digest(token.encode(), session.token.encode()):
            if scope["state"]["person"] is None and not scope["path"].startswith(OPEN):
                return self._closed(scope, None) if scope["path"] == LEAVING else (401, LOGGED_OUT)
            return 403, "this form is from before you logged in; open the page again"
        return None

    def _closed(self, scope: Message, person: Person | None) -> tuple[int, str] | None:
        path = scope["path"]
        if path.startswith(OPEN):
            return None
        if person is None:
            return (303, "/login") if scope["method"] in ("GET", "HEAD") or path == LEAVING else (401, LOGGED_OUT)
        if (path + "/").startswith("/admin/") and person.role != "admin":
            return 403, "this page is for those who run the project"
        return None


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _refuse(send: Send, status: int, said: str, *, retry: bool = False, cookie: bytes | None = None) -> None:
    """Answers without a page: a status with a sentence, or a redirection."""
    headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store", **HEADERS}
    body = b""
    if status == 303:
        headers["Location"] = said
    else:
        body = (said + "\n").encode()
    if retry:
        headers["Retry-After"] = "2"
    sent = [*_encoded(headers), (b"content-length", str(len(body)).encode())]
    if cookie is not None:
        sent.append((b"set-cookie", cookie))
    if status == 413:
        sent.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})
