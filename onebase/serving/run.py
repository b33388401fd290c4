"""`onebase serve`: binds the address, loads the model, and answers until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp

from onebase.config.serving import ServeConfig
from onebase.errors import ConfigError
from onebase.runs.progress import say
from onebase.serving.app import create_app
from onebase.serving.job import Job, Report
from onebase.serving.metrics import Metrics
from onebase.serving.roles import open_roles
from onebase.serving.server import Server
from onebase.serving.worker import Worker
from onebase.shown import shown
from onebase.web.listening import BACKLOG, HTTPServer, address_of, listening, reach
from onebase.web.requests import is_local


def run(config: ServeConfig, *, api_key: str | None, around: Callable[[ASGIApp], ASGIApp] | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C; answers that are being drawn then finish first.

    Args:
        around: puts something of another platform's in front of the web application.

    Raises:
        ConfigError: the address is taken, or reaches other machines and there is no API key.
    """
    check_reach(config.host, api_key)
    with listening(config.host, config.port, remedy="choose another with --host or --port") as listener:
        metrics, limits = Metrics(config.price_per_hour), config.limits
        worker = Worker(lambda: open_roles(config), metrics, tokens=limits.tokens, rows=limits.rows)
        worker.start()
        metrics.watch(lambda: worker.num_running, lambda: worker.num_waiting)
        asyncio.run(_serve(Server(config, worker, metrics), api_key, listener, around))


def check_reach(host: str, api_key: str | None) -> None:
    """Raises ConfigError for an address that other machines reach, unless there is an API key."""
    if api_key is None and not is_local(host):
        raise ConfigError(
            f"host {shown(host, 100)} can be reached from other machines, and there is no API key: give one with "
            "--api-key or in ONEBASE_API_KEY, or leave host at 127.0.0.1"
        )


async def _serve(
    server: Server,
    api_key: str | None,
    listener: socket.socket,
    around: Callable[[ASGIApp], ASGIApp] | None,
) -> None:
    loop, worker, config = asyncio.get_running_loop(), server.worker, server.config
    worker.post = lambda events: _post(loop, events)
    app: ASGIApp = create_app(server, api_key=api_key)
    if around is not None:
        app = around(app)
    stopping = "serve: stopping; running answers finish first, a second signal ends them"
    http = HTTPServer(app, stopping=stopping, seconds=int(config.limits.seconds) + 1)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, http.finish)
    listener.listen(BACKLOG)  # whoever reads the next line may ask at once
    say(f"serve: {address_of(listener)}{reach(config.host)}")
    await http.serve(sockets=[listener])
    await loop.run_in_executor(None, worker.stop)
    say(f"serve: {server.metrics.summary()}")


def _post(loop: asyncio.AbstractEventLoop, events: Sequence[tuple[Job, Sequence[Report]]]) -> None:
    loop.call_soon_threadsafe(_deliver, events)


def _deliver(events: Sequence[tuple[Job, Sequence[Report]]]) -> None:
    for job, reports in events:
        job.report(reports)
