"""Many people at once, killed processes, a server that restarts: every acknowledged judgement is there, once."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from onebase.labels import database
from onebase.labels.database import Unreachable
from onebase.labels.store import Store
from tests.labels.conftest import new_tasks
from tests.labels.postgres import Server


def at_once(works: Sequence[Callable[[], object]]) -> None:
    """Runs all in threads; raises what one of them raised."""
    failed: list[BaseException] = []

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


def test_eight_people_at_once_never_share_a_task_beyond_its_overlap(store: Store) -> None:
    store.tasks.add(new_tasks(24), overlap_share=0.5, people=3)
    people = [store.people.add(f"annotator {number}") for number in range(8)]
    held: Counter[int] = Counter()
    lock = threading.Lock()

    def rank(person_id: int) -> None:
        while lease := store.leases.take(person_id):
            with lock:
                held[lease.task.id] += 1
            # Twice, as a double click does; the second may overtake the first.
            click = partial(store.judgements.save, person_id, lease.task.id, key=f"key {lease.task.id}", kind="ranked")
            at_once([partial(click, grades=[3, 2, 1])] * 2)

    at_once([partial(rank, person.id) for person in people])
    overlap = {task.id: task.overlap for task in store.tasks.all()}
    assert held == overlap
    said = Counter((judgement.task_id, judgement.person) for judgement in store.judgements.all())
    assert set(said.values()) == {1} and len(said) == sum(overlap.values())


def test_one_person_in_many_tabs_gets_one_task(store: Store) -> None:
    store.tasks.add(new_tasks(8))
    ann = store.people.add("Ann")
    seen: list[int] = []

    def open_tab() -> None:
        lease = store.leases.take(ann.id)
        assert lease is not None
        seen.append(lease.task.id)

    at_once([open_tab] * 8)
    assert seen == [1] * 8


def test_the_last_place_goes_to_one_of_many(store: Store) -> None:
    people = [store.people.add(f"annotator {number}") for number in range(8)]
    for number, task in enumerate(new_tasks(5), start=1):
        store.tasks.add([task])
        got: list[int] = []

        def take(person_id: int, got: list[int] = got) -> None:
            if (lease := store.leases.take(person_id)) is not None:
                assert lease.task.id == number  # noqa: B023
                got.append(person_id)

        at_once([partial(take, person.id) for person in people])
        assert len(got) == 1
        store.judgements.save(got[0], number, key=f"key {number}", kind="all_bad")


def ranking_process(url: str, person_id: int, pipe: int) -> None:
    """Ranks task after task in this process, and writes a line to the pipe for every save that returned."""
    store = Store.open(url)
    # The lease outlives the test: a judgement that comes after its end counts beside the one that took its place.
    while lease := store.leases.take(person_id):
        key = f"{os.getpid()} {lease.task.id}"
        saved = store.judgements.save(person_id, lease.task.id, key=key, kind="ranked", grades=[3, 2, 1])
        os.write(pipe, f"{lease.task.id} {saved.id}\n".encode())
        time.sleep(0.002)  # SQLite's writers do not queue: one that never pauses may keep the others out for seconds


def start(url: str, person_id: int) -> tuple[int, Any]:
    """The number of a process that ranks, and what reads its acknowledgements."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            ranking_process(url, person_id, writing)
        finally:
            os._exit(0)
    os.close(writing)
    return child, os.fdopen(reading, "rb")


def test_killed_processes_lose_no_acknowledged_judgement_and_double_none(url: str) -> None:
    store = Store.open(url, create=True)
    store.tasks.add(new_tasks(4000))  # more than they can rank
    people = [store.people.add(f"annotator {number}") for number in range(3)]
    store.close()  # connections are not for two processes
    draw, acknowledged = random.Random(0), []
    for _ in range(5):
        running = [start(url, person.id) for person in people]
        for child, pipe in running:
            acknowledged += [pipe.readline() for _ in range(draw.randint(1, 5))]
            time.sleep(draw.random() * 0.01)
            os.kill(child, signal.SIGKILL)
        for child, pipe in running:
            os.waitpid(child, 0)
            acknowledged += [line for line in pipe if line.endswith(b"\n")]
            pipe.close()
    store = Store.open(url)
    there = {judgement.id: judgement for judgement in store.judgements.all()}
    told = [tuple(map(int, line.split())) for line in acknowledged if line.endswith(b"\n")]  # the last may be cut
    assert len(told) >= 15 and len(set(told)) == len(told)
    assert all(there[number].task_id == task_id for task_id, number in told)
    assert set(Counter(judgement.task_id for judgement in there.values()).values()) == {1}
    assert store.leases.take(people[0].id) is not None  # nothing is left locked
    store.close()


def test_a_server_that_restarts_while_people_save_loses_and_doubles_nothing(server: Server) -> None:
    store = Store.open(server.new_database(), create=True)
    store.tasks.add(new_tasks(4000))
    people = [store.people.add(f"annotator {number}") for number in range(4)]
    stopped = threading.Event()
    acknowledged: list[tuple[int, int, bool]] = []

    def rank(person_id: int) -> None:
        while not stopped.is_set():
            lease = store.leases.take(person_id)
            assert lease is not None
            saved = store.judgements.save(
                person_id, lease.task.id, key=f"key {lease.task.id}", kind="ranked", grades=[1, 2, 3]
            )
            acknowledged.append((lease.task.id, saved.id, saved.new))

    def restart() -> None:
        for mode in ("fast", "immediate"):
            before = len(acknowledged)
            while len(acknowledged) < before + 20:
                time.sleep(0.01)
            server.halt(mode)
            server.start()
        before = len(acknowledged)
        while len(acknowledged) < before + 20:
            time.sleep(0.01)
        stopped.set()

    at_once([restart, *(partial(rank, person.id) for person in people)])
    there = {judgement.id: judgement.task_id for judgement in store.judgements.all()}
    assert len(acknowledged) >= 60
    assert sorted((number, task) for task, number, _ in acknowledged) == sorted(there.items())
    assert set(Counter(there.values()).values()) == {1}
    store.close()


def test_a_server_that_stays_away_is_told_and_the_same_save_counts_once_later(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "PATIENCE", 0.3)
    store = Store.open(server.new_database(), create=True)
    store.tasks.add(new_tasks(1))
    ann = store.people.add("Ann")
    assert store.leases.take(ann.id)
    server.halt("immediate")
    sent: dict[str, Any] = {"key": "k", "kind": "ranked", "grades": [3, 2, 1]}
    try:
        with pytest.raises(Unreachable, match="does not answer: .*check that it runs, and try again") as away:
            store.judgements.save(ann.id, 1, **sent)
        assert "\n" not in str(away.value) and "of the tests" not in str(away.value)
    finally:
        server.start()
    assert [store.judgements.save(ann.id, 1, **sent).new for _ in range(2)] == [True, False]
    assert len(store.judgements.all()) == 1
    store.close()


@pytest.fixture
def lost_answers(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each transaction that writes commits, and its answer is lost the first time, as when a cable is pulled."""
    through = store._database._in_transaction
    lost: list[str] = []

    def cut(work: Any, *, write: bool) -> Any:
        result = through(work, write=write)
        if write and work.__qualname__ not in lost:
            lost.append(work.__qualname__)
            raise OperationalError("COMMIT", {}, Exception("server closed the connection"), connection_invalidated=True)
        return result

    monkeypatch.setattr(store._database, "_in_transaction", cut)
    return lost


def test_an_answer_lost_after_the_commit_does_nothing_twice(store: Store, request: pytest.FixtureRequest) -> None:
    store.tasks.add(new_tasks(3))
    ann = store.people.add("Ann")
    for task_id in (1, 2):
        assert store.leases.take(ann.id)
        store.judgements.save(ann.id, task_id, key=f"key {task_id}", kind="all_bad")
    lost = request.getfixturevalue("lost_answers")
    lease = store.leases.take(ann.id)
    assert lease is not None and lease.task.id == 3
    assert store.judgements.save(ann.id, 3, key="key 3", kind="all_bad").new is False  # the first try was committed
    undone = store.judgements.undo(ann.id)
    assert undone is not None and undone.id == 3
    assert [judgement.task_id for judgement in store.judgements.all()] == [1, 2]
    assert len(lost) == 3


def test_the_file_survives_as_it_was_copied_in_the_middle_of_a_save(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "label.db", create=True)
    store.tasks.add(new_tasks(2))
    ann = store.people.add("Ann")
    for task_id in (1, 2):
        assert store.leases.take(ann.id)
        store.judgements.save(ann.id, task_id, key=f"key {task_id}", kind="all_bad")
    # What a power cut leaves: the file and its log, without the writer having closed them.
    for name in ("label.db", "label.db-wal"):
        (tmp_path / f"copy-{name}").write_bytes((tmp_path / name).read_bytes())
    copied = Store.open(tmp_path / "copy-label.db")
    assert [judgement.task_id for judgement in copied.judgements.all()] == [1, 2]
    copied.close()
    store.close()
