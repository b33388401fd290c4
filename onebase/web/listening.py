"""Binds an address and answers on it, with the process's signals left to the command."""

from __future__ import annotations

import socket
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from onebase.errors import ConfigError
from onebase.runs.progress import say
from onebase.shown import shown
from onebase.web.requests import is_local

BACKLOG = 2048
"""Connections that may wait to be accepted."""


def listening(host: str, port: int, *, remedy: str) -> socket.socket:
    """A socket bound to the address.

    Args:
        remedy: where another address is chosen, for the error.

    Raises:
        ConfigError: the address is taken, or is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        return listener
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or "no such address").lower()
        raise ConfigError(f"cannot listen on {shown(host, 100)}, port {port}: {reason}; {remedy}") from None


def address_of(listener: socket.socket) -> str:
    """The address to reach a bound socket under, such as `http://127.0.0.1:8000`."""
    host, port = listener.getsockname()[:2]
    named = f"[{host}]" if ":" in host else host
    return f"http://{named}:{port}"


def reach(host: str) -> str:
    """What to say behind an address that no other machine reaches."""
    return "; this machine only" if is_local(host) else ""


class HTTPServer(uvicorn.Server):
    """A server that leaves the process's signals to us: uvicorn would raise them again once it has stopped.

    Args:
        stopping: the line to say when it is asked to stop.
        seconds: how long running answers may take to finish then.
    """

    def __init__(self, app: ASGIApp, *, stopping: str, seconds: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=seconds,
                lifespan="off",
                backlog=BACKLOG,
            )
        )
        self._stopping = stopping

    @contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield

    def finish(self) -> None:
        """No new requests; running answers finish. Asked again, they do not."""
        if self.should_exit:
            self.force_exit = True
        else:
            self.should_exit = True
            say(self._stopping)
