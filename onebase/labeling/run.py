"""`onebase label serve` and `invite`: the pages of one project, until they are told to stop."""

from __future__ import annotations

import asyncio
import signal
import socket
import webbrowser
from contextlib import ExitStack
from pathlib import Path

from starlette.types import ASGIApp

from onebase.errors import ConfigError, DataError
from onebase.labeling.app import create_app
from onebase.labeling.project import Project, add_tasks, read_project
from onebase.labeling.sessions import Sessions, secret_in
from onebase.labeling.site import Site
from onebase.labels.store import Store
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.web.listening import BACKLOG, HTTPServer, address_of, listening, reach
from onebase.web.requests import is_local

DAYS_OF_FIRST = 2
"""How long the first admin's invitation is good."""
STOPPING = "label: stopping; what is being saved is saved first"


def serve(path: Path, *, opens: bool = False) -> None:
    """Serves a project's pages until SIGTERM or Ctrl-C.

    Args:
        opens: also opens the pages in this machine's browser.

    Raises:
        ConfigError: a wrong key or value, or the address is taken.
        DataError: a file or the database cannot be used.
        ModelError: a role cannot be opened.
    """
    project = read_project(path)
    with ExitStack() as stack:
        store = Store.open(project.url, create=True)
        stack.callback(store.close)
        added = add_tasks(project, store)
        say(f"label: {number_of(store.tasks.count(), 'task')} in {store.shown_url}, {added} of them new")
        listener = stack.enter_context(
            listening(project.config.host, project.config.port, remedy="choose another host or port in the project")
        )
        site = Site(project, store, Sessions(secret_in(project.secret_path)), _address(project, listener))
        settings = project.config.answers
        if settings.roles:
            say(f"label: loading {', '.join(settings.roles)}")
            from onebase.labeling.drawing import Drawing, wanted_by  # with it come transformers and PEFT, some seconds

            drawing = stack.enter_context(Drawing(wanted_by(project), store))
            site.stopped = lambda: drawing.stopped
        elif not store.tasks.count():
            raise DataError(f"{store.shown_url} has no tasks; name data files with answers, or roles that write them")
        link = _first_admin(store, site.address)
        asyncio.run(_serve(create_app(site), project, listener, link, opens=opens))


def invite(path: Path, *, name: str | None, admin: bool, days: int) -> str:
    """Returns the link of an invitation.

    Raises:
        ConfigError: the project does not say under which address its pages are reached.
        DataError: there is no such database, or the person of this name has the other role.
    """
    project = read_project(path)
    config = project.config
    if config.address is None and config.port == 0:
        raise ConfigError("with 'port' = 0 nobody can say where the pages will be; set 'port' or 'address'")
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = config.address or f"http://{host}:{config.port}"
    store = Store.open(project.url, create=True)
    try:
        return f"{address.rstrip('/')}/invitation/{store.people.invite('admin' if admin else 'annotator', name, days)}"
    finally:
        store.close()


def _address(project: Project, listener: socket.socket) -> str:
    return (project.config.address or address_of(listener)).rstrip("/")


def _first_admin(store: Store, address: str) -> str | None:
    """The link by which the first admin comes in, while there is none."""
    if any(person.role == "admin" and person.active for person in store.people.all()):
        return None
    return f"{address}/invitation/{store.people.invite('admin', days=DAYS_OF_FIRST)}"


async def _serve(app: ASGIApp, project: Project, listener: socket.socket, link: str | None, *, opens: bool) -> None:
    loop, config = asyncio.get_running_loop(), project.config
    http = HTTPServer(app, stopping=STOPPING, seconds=30)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, http.finish)
    listener.listen(BACKLOG)  # whoever reads the next line may ask at once
    here = address_of(listener)
    say(f"label: {here}{reach(config.host)}")
    if not is_local(config.host) and not (config.address or "").startswith("https://"):
        say("label: names and passwords travel unencrypted; put a proxy with https in front, and name it in 'address'")
    if link is not None:
        say(f"label: nobody runs this project yet; come in as its admin, within {DAYS_OF_FIRST} days: {link}")
    if opens:
        await loop.run_in_executor(None, webbrowser.open, link or here)
    await http.serve(sockets=[listener])
