"""The server as a process: what it prints, and what is left when it is killed."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, text

from onebase.labeling.project import read_project
from onebase.labeling.sessions import Sessions, secret_in
from onebase.labels.store import Store
from tests.labeling.conftest import field, write_project

KILLS = 50
ANNOTATORS = 8


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Nursery:
    """Starts servers by forking, and kills them."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.labeling.serving"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.lines: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()
        assert self._said() == "ready"

    def _said(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _read(self) -> None:
        for line in self._process.stderr or ():
            self.lines.append(line.rstrip("\n"))

    def start(self, path: Path) -> int:
        """Starts a server; returns the number of its process."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{path}\n")
        self._process.stdin.flush()
        return int(self._said())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    started = Nursery()
    yield started
    started.close()


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/login", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait_for(condition: Any, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_first_start_prints_a_link_for_an_admin_and_sigterm_ends_it(nursery: Nursery, tmp_path: Path) -> None:
    port = free_port()
    path, before = write_project(tmp_path, port=port), len(nursery.lines)
    child = nursery.start(path)
    wait_for(lambda: any("/invitation/" in line for line in nursery.lines[before:]))
    said = nursery.lines[before:]
    assert said[0].startswith("label: 3 tasks in sqlite:///") and said[0].endswith("3 of them new")
    assert said[1] == f"label: http://127.0.0.1:{port}; this machine only"
    link = re.search(r"within 2 days: (http://\S+)", said[2])
    assert link is not None
    with httpx.Client() as client:
        page = client.get(link[1])
        given = {"csrf": field(page.text, "csrf"), "name": "Ann", "password": "long enough"}
        assert client.post(link[1], data=given).headers["location"] == "/admin"
        assert client.get(f"http://127.0.0.1:{port}/admin").status_code == 200
        os.kill(child, signal.SIGTERM)
        wait_for(lambda: not answers(f"http://127.0.0.1:{port}"))
        assert (tmp_path / ".project.secret").stat().st_mode & 0o777 == 0o600
        wait_for(lambda: _gone(child))
        second = nursery.start(path)
        wait_for(lambda: answers(f"http://127.0.0.1:{port}"))
        # The session and the people outlive a restart; nobody is asked for again.
        assert client.get(f"http://127.0.0.1:{port}/admin").status_code == 200
    assert sum("/invitation/" in line for line in nursery.lines[before:]) == 1
    os.kill(second, signal.SIGKILL)


def _gone(child: int) -> bool:
    try:
        os.kill(child, 0)
    except ProcessLookupError:
        return True
    return False


class Annotator(threading.Thread):
    """Ranks over HTTP until it is told to stop; sends again, under the same key, whatever was not acknowledged."""

    def __init__(self, url: str, cookie: dict[str, str], stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url, self._cookie, self._stop_asked = url, cookie, stop
        self.acknowledged: list[tuple[int, str]] = []
        self.again = 0
        self.problems: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, cookies=self._cookie, timeout=20) as client:
            while not self._stop_asked.is_set():
                page = self._asked(lambda: client.get("/"))
                task, key = field(page.text, "task"), field(page.text, "key")
                if not task:
                    if "Nothing left" not in page.text:
                        self.problems.append(page.text[-300:])
                    return
                numbers = [str(n) for n in range(page.text.count('name="answer"'))]
                random.shuffle(numbers)
                form = {"csrf": field(page.text, "csrf"), "task": task, "key": key, "kind": "ranked", "answer": numbers}
                answer = self._asked(lambda form=form: client.post("/judgements", data=form))  # type: ignore[misc]
                if answer.status_code != 303:
                    self.problems.append(f"{answer.status_code} {answer.text[-300:]}")
                    return
                self.acknowledged.append((int(task), key))

    def _asked(self, ask: Any) -> httpx.Response:
        while True:
            try:
                answer: httpx.Response = ask()
                if answer.status_code < 500:
                    return answer
            except httpx.HTTPError:
                pass
            self.again += 1
            time.sleep(0.05)


def acknowledged(crowd: list[Annotator]) -> int:
    return sum(len(annotator.acknowledged) for annotator in crowd)


@pytest.mark.slow
def test_a_server_killed_50_times_loses_no_acknowledged_judgement_and_keeps_none_twice(
    nursery: Nursery, tmp_path: Path, url: str
) -> None:
    port = free_port()
    rows = [{"instruction": f"Question {n}", "output": ["a", "b", "c"]} for n in range(400)]
    path = write_project(tmp_path, rows, port=port, database=url, overlap={"share": 1, "people": ANNOTATORS})
    here, project = f"http://127.0.0.1:{port}", read_project(path)
    store, sessions = Store.open(project.url, create=True), Sessions(secret_in(project.secret_path))
    store.people.add("Root", "admin")
    people = [store.people.add(f"P{n}") for n in range(ANNOTATORS)]
    stop = threading.Event()
    crowd = [Annotator(here, {sessions.name: sessions.enter(person).cookie}, stop) for person in people]
    chance = random.Random(0)
    for annotator in crowd:
        annotator.start()
    for _ in range(KILLS):
        child = nursery.start(path)
        wait_for(lambda: answers(here))
        goal = acknowledged(crowd) + chance.randint(1, 8)
        wait_for(lambda goal=goal: acknowledged(crowd) >= goal)  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.03))  # into the middle of something
        os.kill(child, signal.SIGKILL)
        wait_for(lambda child=child: _gone(child))  # type: ignore[misc]
    child = nursery.start(path)
    wait_for(lambda: answers(here))
    stop.set()
    for annotator in crowd:
        annotator.join(60)
    os.kill(child, signal.SIGKILL)
    assert [annotator.problems for annotator in crowd] == [[]] * ANNOTATORS
    engine = create_engine(project.url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        kept = connection.execute(text("SELECT person_id, task_id, key FROM judgements")).all()
    engine.dispose()
    assert max(Counter((row.person_id, row.task_id) for row in kept).values()) == 1
    assert max(Counter((row.person_id, row.key) for row in kept).values()) == 1
    there = {(row.person_id, row.task_id, row.key) for row in kept}
    said = [(person.id, *one) for person, who in zip(people, crowd, strict=True) for one in who.acknowledged]
    assert len(set(said)) == len(said) > 2 * KILLS and set(said) <= there
    assert sum(annotator.again for annotator in crowd) > KILLS  # they did meet a server that was gone
    assert len(store.judgements.all()) == len(kept)
    store.close()
