"""The store on SQLite and PostgreSQL: who gets which task, what is kept once, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onebase.errors import DataError
from onebase.labels.judged import NewTask, Person, Task
from onebase.labels.judgements import AlreadyJudged, Arrived, Brought, NotLeased
from onebase.labels.store import Store
from onebase.labels.tasks import task_key
from onebase.records import Message, ToolCall
from tests.labels.conftest import new_tasks

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def ranked(store: Store, person: Person, task: Task, *, key: str = "", **more: Any) -> int:
    grades = more.pop("grades", range(len(task.answers), 0, -1))
    saved = store.judgements.save(
        person.id, task.id, key=key or f"key {task.id}", kind="ranked", grades=list(grades), **more
    )
    return saved.id


def test_a_task_comes_back_as_it_was_put_in(store: Store) -> None:
    call = ToolCall("add", '{"a": 1}', "c1")
    odd = NewTask(
        (Message("system", "Be kind."), Message("assistant", "", (call,)), Message("tool", "2\0\ud800", call_id="c1")),
        ("<script>alert('x')</script>", "'); DROP TABLE tasks; --", "好"),
        sources=("policy", "reference", ""),
        gold=(0.5, 1.0, 0.0),
        chosen="active",
        round=2,
        place="a file.jsonl:7",
        ended=(True, False, True),
        tools=('{"type": "function"}',),
    )
    assert store.tasks.add([odd], overlap=3) == 1
    (task,) = store.tasks.all()
    assert {name: getattr(task, name) for name in NewTask.__slots__} == {
        name: getattr(odd, name) for name in NewTask.__slots__
    }
    assert (task.overlap, task.key) == (3, task_key(odd))
    assert store.tasks.by_id(task.id) == task and store.tasks.by_id(99) is None


def test_an_answer_of_two_megabytes_is_kept(store: Store) -> None:
    long = "x" * 2_000_000
    store.tasks.add([NewTask((Message("user", "?"),), (long, "short"))])
    assert store.tasks.all()[0].answers == (long, "short")


def test_a_task_is_added_once_whatever_the_order_of_its_answers(store: Store) -> None:
    tasks = new_tasks(3)
    turned = NewTask(tasks[0].prompt, tasks[0].answers[::-1])
    assert (store.tasks.add(tasks), store.tasks.add([turned, *tasks])) == (3, 0)
    assert store.tasks.count() == 3 and store.tasks.all()[0].answers == tasks[0].answers


def test_a_share_of_the_tasks_goes_to_several_people_by_the_seed(store: Store) -> None:
    store.tasks.add(new_tasks(200), overlap_share=0.3, people=3, seed=1)
    overlaps = [task.overlap for task in store.tasks.all()]
    assert set(overlaps) == {1, 3} and 40 <= overlaps.count(3) <= 80


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (NewTask((), ("a", "b"), place="t.jsonl:3"), "t.jsonl:3 has no prompt"),
        (NewTask((Message("user", "?"),), ("a",)), "a task has 1 answer; people rank 2 to 9"),
        (NewTask((Message("user", "?"),), tuple("abcdefghij")), "has 10 answers"),
        (NewTask((Message("user", "?"),), ("a", "b"), gold=(1.0,)), "has 1 gold for 2 answers"),
    ],
)
def test_what_nobody_could_rank_is_refused(store: Store, task: NewTask, message: str) -> None:
    with pytest.raises(DataError, match=message):
        store.tasks.add([task])


def test_an_impossible_overlap_is_refused(store: Store) -> None:
    with pytest.raises(DataError, match="at least 1 person, not 0"):
        store.tasks.add(new_tasks(1), overlap=0)
    with pytest.raises(DataError, match="a share is between 0 and 1"):
        store.tasks.add(new_tasks(1), overlap_share=1.5)


def test_two_tabs_of_one_person_get_the_same_task_in_the_same_order(store: Store) -> None:
    store.tasks.add(new_tasks(5, answers=9))
    ann, bo = store.people.add("Ann"), store.people.add("Bo")
    first, second = store.leases.take(ann.id, now=NOON), store.leases.take(ann.id, now=NOON + MINUTE)
    assert first is not None and second is not None
    assert (first.task, first.order) == (second.task, second.order) and sorted(first.order) == list(range(9))
    assert second.until - first.until == MINUTE
    other = store.leases.take(bo.id, now=NOON)
    assert other is not None and other.task.id != first.task.id


def test_a_second_tab_draws_no_gold_question_in_place_of_the_open_task(store: Store) -> None:
    store.tasks.add(new_tasks(8))
    store.tasks.add(new_tasks(1, gold=True))
    for number in range(8):
        person = store.people.add(f"annotator {number}")
        first, second = (store.leases.take(person.id, gold_share=0.5) for _ in range(2))
        assert first is not None and second is not None and first.task == second.task


def test_a_task_goes_to_as_many_people_as_its_overlap(store: Store) -> None:
    store.tasks.add(new_tasks(1), overlap=2)
    ann, bo, cy = (store.people.add(name) for name in ("Ann", "Bo", "Cy"))
    assert store.leases.take(ann.id) and store.leases.take(bo.id)
    assert store.leases.take(cy.id) is None
    ranked(store, ann, store.tasks.all()[0])
    assert store.leases.take(ann.id) is None and store.leases.take(cy.id) is None


def test_a_lease_that_ends_gives_the_task_to_the_next_and_loses_no_judgement(store: Store) -> None:
    store.tasks.add(new_tasks(1))
    ann, bo = store.people.add("Ann"), store.people.add("Bo")
    lease = store.leases.take(ann.id, seconds=60, now=NOON)
    assert lease is not None and store.leases.take(bo.id, now=NOON) is None
    assert store.leases.take(bo.id, now=NOON + 2 * MINUTE) is not None
    ranked(store, bo, lease.task, now=NOON + 3 * MINUTE)
    ranked(store, ann, lease.task, now=NOON + 4 * MINUTE)
    assert [judgement.person for judgement in store.judgements.all()] == ["Bo", "Ann"]


def test_a_double_click_counts_once(store: Store) -> None:
    store.tasks.add(new_tasks(1))
    ann = store.people.add("Ann")
    lease = store.leases.take(ann.id)
    assert lease is not None
    sent: Any = dict(key="k", kind="ranked", grades=[1, 3, 3], note="close\0", seconds=4.5, now=NOON)
    first, second = (
        store.judgements.save(ann.id, lease.task.id, **sent),
        store.judgements.save(ann.id, lease.task.id, **sent),
    )
    assert (first.new, second.new) == (True, False) and first.id == second.id
    (said,) = store.judgements.all()
    assert (said.grades, said.note, said.seconds, said.at) == ((1, 3, 3), "close\ufffd", 4.5, NOON)
    with pytest.raises(AlreadyJudged, match="has judged task 1; to change it, undo it first"):
        ranked(store, ann, lease.task, key="another")


def test_one_key_is_for_one_task(store: Store) -> None:
    store.tasks.add(new_tasks(2))
    ann = store.people.add("Ann")
    for _ in range(2):
        lease = store.leases.take(ann.id)
        assert lease is not None
        if lease.task.id == 2:
            with pytest.raises(DataError, match="this key was sent with task 1, now with task 2"):
                ranked(store, ann, lease.task, key="k")
        else:
            ranked(store, ann, lease.task, key="k")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"kind": "ranked"}, "a ranking has grades, and nothing else has"),
        ({"kind": "all_bad", "grades": [1, 2, 3]}, "a ranking has grades, and nothing else has"),
        ({"kind": "ranked", "grades": [1, 2]}, r"task 1 has 3 answers: a grade from 1 to 3 for each, not \[1, 2\]"),
        ({"kind": "ranked", "grades": [1, 2, 4]}, r"not \[1, 2, 4\]"),
        ({"kind": "ranked", "grades": [1, 2, True]}, r"not \[1, 2, True\]"),
        ({"kind": "liked"}, "'liked' is no judgement"),
        ({"kind": "skipped", "seconds": float("nan")}, "nan is no time in seconds"),
        ({"kind": "skipped", "key": ""}, "the key of a judgement has 1 to 200 characters, this one 0"),
        ({"kind": "skipped", "key": "k" * 201}, "this one 201"),
    ],
)
def test_what_is_no_judgement_of_the_task_is_refused(store: Store, sent: dict[str, Any], message: str) -> None:
    store.tasks.add(new_tasks(1))
    ann = store.people.add("Ann")
    assert store.leases.take(ann.id)
    with pytest.raises(DataError, match=message):
        store.judgements.save(ann.id, 1, **({"key": "k"} | sent))
    assert store.judgements.all() == []


def test_nobody_judges_what_they_were_not_given(store: Store) -> None:
    store.tasks.add(new_tasks(2))
    ann = store.people.add("Ann")
    assert store.leases.take(ann.id)
    with pytest.raises(NotLeased, match="task 2 was not given to this person"):
        store.judgements.save(ann.id, 2, key="k", kind="all_bad")
    with pytest.raises(DataError, match="there is no person with the number 77"):
        store.judgements.save(77, 1, key="k", kind="all_bad")
    store.people.set_active("Ann", False)
    with pytest.raises(DataError, match="'Ann' is no longer active"):
        store.judgements.save(ann.id, 1, key="k", kind="all_bad")
    with pytest.raises(DataError, match="'Ann' is no longer active"):
        store.leases.take(ann.id)


def test_a_skipped_task_is_for_someone_else(store: Store) -> None:
    store.tasks.add(new_tasks(1))
    ann, bo = store.people.add("Ann"), store.people.add("Bo")
    assert store.leases.take(ann.id)
    store.judgements.save(ann.id, 1, key="k", kind="skipped", reason="I don't know the field")
    assert store.leases.take(ann.id) is None
    assert store.leases.take(bo.id) is not None
    assert store.judgements.progress(ann.id, since=NOON - 999 * MINUTE).done == 0


def test_undo_withdraws_the_last_judgement_and_gives_the_task_again(store: Store) -> None:
    store.tasks.add(new_tasks(3))
    ann = store.people.add("Ann")
    for number in (1, 2):
        lease = store.leases.take(ann.id)
        assert lease is not None and lease.task.id == number
        ranked(store, ann, lease.task)
    assert store.leases.take(ann.id)  # the third is open in the browser
    undone = store.judgements.undo(ann.id)
    again = store.leases.take(ann.id)
    assert undone is not None and again is not None and undone.id == again.task.id == 2
    assert [judgement.task_id for judgement in store.judgements.all()] == [1]
    ranked(store, ann, again.task, key="better", grades=[1, 2, 3])
    assert [judgement.grades for judgement in store.judgements.all()] == [(3, 2, 1), (1, 2, 3)]
    assert len(store.judgements.all(withdrawn=True)) == 3
    third = store.leases.take(ann.id)
    assert third is not None and third.task.id == 3
    assert [getattr(store.judgements.undo(ann.id), "id", None) for _ in range(3)] == [2, 1, None]


def test_gold_questions_are_mixed_in_at_their_share_and_go_to_everybody(store: Store) -> None:
    store.tasks.add(new_tasks(60))
    store.tasks.add(new_tasks(10, gold=True))
    counts = []
    for name in ("Ann", "Bo"):
        person, asked = store.people.add(name), []
        for _ in range(30):
            lease = store.leases.take(person.id, gold_share=0.2)
            assert lease is not None
            asked.append(lease.task.gold is not None)
            ranked(store, person, lease.task)
        counts.append(sum(asked))
        assert asked != sorted(asked)
    assert all(1 <= count <= 10 for count in counts)
    cy = store.people.add("Cy")
    while lease := store.leases.take(cy.id, gold_share=0.0):
        ranked(store, cy, lease.task)
    given = [store.tasks.by_id(said.task_id) for said in store.judgements.all() if said.person == "Cy"]
    assert sum(task is not None and task.gold is not None for task in given) == 10


def test_progress_counts_what_is_done_today_and_left(store: Store) -> None:
    store.tasks.add(new_tasks(4))
    ann, bo = store.people.add("Ann"), store.people.add("Bo")
    for minute in (0, 10):
        lease = store.leases.take(ann.id, now=NOON + minute * MINUTE)
        assert lease is not None
        ranked(store, ann, lease.task, now=NOON + minute * MINUTE)
    progress = store.judgements.progress(ann.id, since=NOON + MINUTE, now=NOON + 11 * MINUTE)
    assert (progress.done, progress.today, progress.left) == (2, 1, 2)
    assert store.leases.take(bo.id, now=NOON + 11 * MINUTE)
    assert store.judgements.progress(ann.id, since=NOON, now=NOON + 11 * MINUTE).left == 1
    assert store.judgements.progress(bo.id, since=NOON, now=NOON + 11 * MINUTE).left == 2


def test_people_have_names_of_any_script_once(store: Store) -> None:
    names = ['Renée O\'Neil "the judge"', "王小明", "x" * 100]
    added = [store.people.add(f" {name} ", "admin" if name == "王小明" else "annotator", "hash") for name in names]
    assert [person.name for person in store.people.all()] == names
    assert store.people.named("王小明") == added[1] == store.people.by_id(added[1].id) and added[1].role == "admin"
    assert store.people.named("nobody") is None and store.people.by_id(99) is None
    with pytest.raises(DataError, match="there is a person named '王小明' already"):
        store.people.add("王小明")
    for bad in ("", "  ", "y" * 101, "a\nb", "\0", "a\u202eb"):
        with pytest.raises(DataError, match="is no name: 1 to 100 characters that can be printed"):
            store.people.add(bad)
    store.people.set_password("王小明", "new")
    assert getattr(store.people.named("王小明"), "password", "") == "new"
    with pytest.raises(DataError, match="there is no person named 'Zed'"):
        store.people.set_password("Zed", "hash")
    with pytest.raises(DataError, match="'owner' is no role"):
        store.people.add("Owen", "owner")  # type: ignore[arg-type]


def test_an_invitation_lets_one_person_in_until_it_expires(store: Store) -> None:
    token = store.people.invite(days=1, now=NOON)
    assert store.people.invitation(token, now=NOON) == (None, "annotator")
    assert store.people.invitation(token + "x", now=NOON) is None
    assert store.people.invitation(token, now=NOON + timedelta(days=2)) is None
    ann = store.people.accept(token, "Ann", now=NOON)
    assert ann == store.people.named("Ann") and store.people.invitation(token, now=NOON) is None
    with pytest.raises(DataError, match="this invitation is wrong, expired or used"):
        store.people.accept(token, "Bo", now=NOON)
    with pytest.raises(DataError, match="there is a person named 'Ann' already"):
        store.people.accept(store.people.invite(), "Ann")


def test_a_named_invitation_lets_the_same_person_in_again(store: Store) -> None:
    token = store.people.invite("admin", "Ada")
    assert store.people.accept(token, "Ada") == store.people.accept(token, "Ada")
    assert store.people.all()[0].role == "admin"
    with pytest.raises(DataError, match="this invitation is for someone else"):
        store.people.accept(token, "Eve")
    with pytest.raises(DataError, match="'Ada' is admin already, not annotator"):
        store.people.invite("annotator", "Ada")
    store.people.set_active("Ada", False)
    with pytest.raises(DataError, match="'Ada' is no longer active"):
        store.people.accept(token, "Ada")


def test_no_token_stands_in_the_database(store: Store) -> None:
    from sqlalchemy import select

    from onebase.labels.schema import invitations

    token = store.people.invite()
    (row,) = store._database.read(lambda connection: list(connection.execute(select(invitations))))
    assert all(token not in str(value) for value in row)


def test_rankings_from_elsewhere_are_kept_once_and_bring_their_people(store: Store) -> None:
    (task,) = new_tasks(1)
    store.tasks.add([task])
    brought = [Brought(name, task_key(task), (3, 2, 2)) for name in ("Ann", "Bo")]
    assert [store.judgements.bring(brought) for _ in range(2)] == [Arrived(2, 0), Arrived(0, 0)]
    assert [(said.person, said.grades) for said in store.judgements.all()] == [("Ann", (3, 2, 2)), ("Bo", (3, 2, 2))]
    with pytest.raises(DataError, match="Cy ranked a task that is not in the database"):
        store.judgements.bring([Brought("Dora", task_key(task), (1, 2, 3)), Brought("Cy", "?", (1, 2, 3))])
    assert store.people.named("Dora") is None and len(store.judgements.all()) == 2


def test_a_ranking_from_elsewhere_that_was_undone_stays_undone(store: Store) -> None:
    (task,) = new_tasks(1)
    store.tasks.add([task])
    brought = [Brought("Ann", task_key(task), (3, 2, 2))]
    store.judgements.bring(brought)
    (ann,) = store.people.all()
    assert store.judgements.undo(ann.id) is not None
    assert store.judgements.bring(brought) == Arrived(new=0, undone=1)
    assert store.judgements.all() == []
    ranked(store, ann, store.tasks.all()[0], key="anew", grades=[1, 2, 3])
    assert store.judgements.bring(brought) == Arrived(new=0, undone=0)
    assert [said.grades for said in store.judgements.all()] == [(1, 2, 3)]
