"""What every server asks of a request before it is answered: the host it names, and a body of bounded size."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

WITH_BODY = ("POST", "PUT", "PATCH")


class BodyTooLarge(Exception):
    """A body has more bytes than a server takes."""


class ClientGone(Exception):
    """A client closed its connection before its body was there."""


def is_local(host: str) -> bool:
    """Whether this is the name or address of the machine itself, which no other reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_of(header: bytes) -> str:
    """The name in a Host header, without the port and the brackets of an IPv6 address."""
    name = header.decode("latin-1").lower()
    name = name if name.endswith("]") else name.rpartition(":")[0] or name
    return name.strip("[]")


def fits(declared: bytes, most_bytes: int) -> bool:
    """Whether a Content-Length header is a number of bytes that is taken."""
    return declared.isdigit() and int(declared) <= most_bytes


async def read_body(receive: Receive, most_bytes: int) -> bytes:
    """The whole body of a request, which may not have said its length, or said a wrong one.

    Raises:
        BodyTooLarge: there is more of it than is taken.
        ClientGone: the connection was closed before its end.
    """
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most_bytes:
            raise BodyTooLarge
        if not message.get("more_body", False):
            return b"".join(parts)


def read_again(body: bytes, receive: Receive) -> Receive:
    """Gives an application a body that was read already, then whatever else the client says."""
    read = False

    async def received() -> Message:
        nonlocal read
        if read:
            return await receive()
        read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return received
