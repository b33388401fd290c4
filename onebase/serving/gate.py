"""What every request passes before its body is read: who asks, from where, and how much is sent."""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable
from typing import Any

from onebase.serving.errors import Refusal
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


class Gate:
    """ASGI middleware.

    Args:
        api_key: what a client has to send as its bearer token for /v1 and /metrics; None: nothing.
        most_bytes: largest body.
        local: answer only requests that name this machine as their host. Without a key, any web page that a person here
            looks at could otherwise send requests, under a name of its own that leads here.
        count: told of every answer's endpoint and status.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        api_key: str | None,
        most_bytes: int,
        local: bool,
        count: Callable[[str, int], None],
    ) -> None:
        self._app, self._most_bytes, self._local, self._count = app, most_bytes, local, count
        self._key = None if api_key is None else api_key.encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        refusal = self._refusal(scope, headers)
        if refusal is None and scope["method"] in WITH_BODY:
            try:
                receive = read_again(await read_body(receive, self._most_bytes), receive)
            except BodyTooLarge:
                refusal = self._too_large()
            except ClientGone:
                refusal = Refusal(499, "the client went away")
        status = 0

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # The route that was found: what clients make up would give a series of its own to every path.
                route = scope.get("route")
                self._count(getattr(route, "path", "other"), status)
            await send(message)

        if refusal is not None:
            await _send(refusal, sent)
            return
        await self._app(scope, receive, sent)

    def _refusal(self, scope: Message, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._local and not is_local(host_of(headers.get(b"host", b""))):
            return Refusal(403, "without an API key, only requests to this machine's own address are answered")
        guarded = scope["path"].startswith("/v1") or scope["path"] == "/metrics"
        if guarded and self._key is not None:
            kind, _, key = headers.get(b"authorization", b"").partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(key.strip(), self._key):
                return Refusal(401, "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'")
        if not fits(headers.get(b"content-length", b"0"), self._most_bytes):
            return self._too_large()
        # A page of another site may send plain text here without asking, but not JSON.
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if scope["method"] == "POST" and kind != b"application/json":
            return Refusal(415, "send the body as JSON, with 'Content-Type: application/json'")
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body has more than the {self._most_bytes} bytes allowed here")


async def _send(refusal: Refusal, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    body = json.dumps(refusal.body()).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
