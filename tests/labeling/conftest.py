"""A project of a few tasks, and its pages without a socket."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from argon2 import PasswordHasher
from starlette.testclient import TestClient

from onebase.labeling.app import create_app
from onebase.labeling.passwords import Passwords
from onebase.labeling.project import add_tasks, read_project
from onebase.labeling.sessions import Sessions, secret_in
from onebase.labeling.site import Site
from onebase.labels.store import Store
from tests.labels.conftest import server, url  # noqa: F401 - fixtures

HERE = "http://127.0.0.1:8100"
PASSWORD = "correct horse"
ROWS = [
    {"instruction": "What is 2 + 2?", "output": ["4", "5", "It is **four**."]},
    {"instruction": "Name a prime.", "output": ["7", "9"]},
    {"instruction": "Say hello.", "output": ["Hello!", "Hi", "Go away", "你好"]},
]


def write_project(folder: Path, rows: list[dict[str, Any]] | None = None, **keys: Any) -> Path:
    """A PROJECT.yaml with a file of tasks."""
    lines = [json.dumps(row) for row in (ROWS if rows is None else rows)]
    (folder / "tasks.jsonl").write_text("\n".join(lines))
    given = {"tasks": "tasks.jsonl", "overlap": {"share": 0}, **keys}
    (folder / "project.yaml").write_text(yaml.safe_dump(given, allow_unicode=True))
    return folder / "project.yaml"


class Quick(Passwords):
    """Hashes as cheaply as Argon2 allows: the tests log in often."""

    def __init__(self) -> None:
        super().__init__()
        self._hasher = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        self._nobody = self._hasher.hash("nobody's password")


class Visitor:
    """Somebody with a browser: keeps cookies, and sends every form with its page's token."""

    def __init__(self, app: Any) -> None:
        self.client = TestClient(app, base_url=HERE, follow_redirects=False, raise_server_exceptions=False)
        self.token = ""

    def get(self, path: str, **options: Any) -> httpx.Response:
        answer = self.client.get(path, **options)
        self.token = field(answer.text, "csrf") or self.token
        return answer

    def post(self, path: str, data: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        return self.client.post(path, data={"csrf": self.token, **(data or {})}, **options)

    def task(self) -> dict[str, str]:
        """The hidden fields of the task on the page."""
        page = self.get("/").text
        return {name: field(page, name) for name in ("csrf", "key", "task")}

    def rank(self, *order: int, task: dict[str, str] | None = None, **more: Any) -> httpx.Response:
        found = self.task() if task is None else task
        return self.post("/judgements", {**found, "kind": "ranked", "answer": [str(n) for n in order], **more})


def field(page: str, name: str) -> str:
    """The value of a hidden field; empty if there is none."""
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    return found[1] if found else ""


class Opened:
    """A project's pages without a socket."""

    def __init__(self, path: Path) -> None:
        project = read_project(path)
        self.store = Store.open(project.url, create=True)
        add_tasks(project, self.store)
        sessions = Sessions(secret_in(project.secret_path))
        self.site = Site(project, self.store, sessions, HERE, passwords=Quick())
        self.app = create_app(self.site)

    def visitor(self) -> Visitor:
        return Visitor(self.app)

    def person(self, name: str, *, admin: bool = False) -> Visitor:
        """Somebody who is in, by an invitation link."""
        visitor = self.visitor()
        link = f"/invitation/{self.store.people.invite('admin' if admin else 'annotator')}"
        visitor.get(link)
        answer = visitor.post(link, {"name": name, "password": PASSWORD})
        assert answer.status_code == 303, answer.text
        return visitor


Open = Callable[..., Opened]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Opens projects, and closes them at the end."""
    made: list[Opened] = []

    def one(rows: list[dict[str, Any]] | None = None, **keys: Any) -> Opened:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Opened(write_project(folder, rows, **keys)))
        return made[-1]

    yield one
    for project in made:
        project.store.close()
