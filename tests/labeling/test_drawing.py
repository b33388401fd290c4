"""Answers sampled while people rank: from real roles on a tiny base."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from onebase.config.labeling import AnswersGroup
from onebase.errors import DoesNotFitError
from onebase.labeling import drawing
from onebase.labeling.drawing import Drawing, Wanted
from onebase.labels.store import Store
from tests.serving.conftest import folders  # noqa: F401 - a fixture: two policies on a tiny base


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "label.db", create=True)
    yield opened
    opened.close()


def wanted(tmp_path: Path, folders: dict[str, str], *prompts: str, **settings: object) -> Wanted:  # noqa: F811
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    given = {"roles": ["x"], "prompts": ["x"], "max_tokens": 6, "per_prompt": 3, "queue": 2, **settings}
    roles = [folders["helpful"], folders["brief"]]
    return Wanted(AnswersGroup.model_validate(given), roles, [str(path)], 0.0, 2, 0)


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_queue_stays_filled_and_no_prompt_is_asked_twice(
    tmp_path: Path,
    folders: dict[str, str],  # noqa: F811
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drawing, "SECONDS", 0.02)
    plan = wanted(tmp_path, folders, "One", "Two", "Three", "Four", "x" * 600)
    with Drawing(plan, store):
        wait(lambda: store.tasks.count() == 2)
        time.sleep(0.3)
        assert store.tasks.count() == 2  # enough wait
        person = store.people.add("Ann")
        lease = store.leases.take(person.id)
        assert lease is not None
        store.judgements.save(person.id, lease.task.id, key="a", kind="all_bad")
        wait(lambda: store.tasks.count() == 3)
    tasks = store.tasks.all()
    assert [task.prompt[0].content for task in tasks] == ["One", "Two", "Three"]
    assert all(2 <= len(task.answers) <= 3 and task.chosen == "random" for task in tasks)
    assert {name for task in tasks for name in task.sources} == {"helpful", "brief"}
    assert all(task.ended is not None and len(task.ended) == len(task.answers) for task in tasks)
    with Drawing(wanted(tmp_path, folders, "One", "Two", "Three", "Four", "x" * 600, queue=50), store) as again:
        wait(lambda: not again._thread.is_alive())
    assert [task.prompt[0].content for task in store.tasks.all()] == ["One", "Two", "Three", "Four"]
    assert again.stopped == ""


def test_a_model_that_fails_is_told_and_ends_nothing_else(
    tmp_path: Path,
    folders: dict[str, str],  # noqa: F811
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*given: object, **options: object) -> None:
        raise DoesNotFitError("too large")

    monkeypatch.setattr(drawing, "generate", fail)
    with Drawing(wanted(tmp_path, folders, "One"), store) as running:
        wait(lambda: bool(running.stopped))
    assert running.stopped == "too large" and store.tasks.count() == 0
    assert "label: no more answers are sampled: too large" in capsys.readouterr().err


def test_answers_that_are_all_the_same_are_left_out(
    tmp_path: Path,
    folders: dict[str, str],  # noqa: F811
    store: Store,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Cold enough that every answer is the likeliest, and one role under two names.
    plan = wanted(tmp_path, folders, "One", temperature=1e-6)
    same = Wanted(plan.settings, [folders["helpful"]], plan.prompts, 0.0, 2, 0)
    with Drawing(same, store) as running:
        wait(lambda: not running._thread.is_alive())
    assert store.tasks.count() == 0 and "is left out: all answers to it are the same" in capsys.readouterr().err
