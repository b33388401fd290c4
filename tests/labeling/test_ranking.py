"""What people say of answers, from the form to the database, and what an answer may not do to the page."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from onebase.errors import DataError
from onebase.labeling.ranking import grades_in_order
from onebase.labeling.rendering import LONGEST_SHOWN, shown_text
from onebase.labeling.site import BadForm
from onebase.labels.database import Database, Unreachable
from onebase.labels.judged import NewTask
from onebase.labels.leases import shown_order
from onebase.records import Message
from tests.labeling.conftest import Open

HTMX = {"HX-Request": "true"}


def test_places_become_grades_in_the_tasks_order() -> None:
    assert grades_in_order([0, 1, 2], set(), [0, 1, 2]) == (3, 2, 1)
    assert grades_in_order([2, 0, 1], set(), [0, 1, 2]) == (2, 1, 3)
    assert grades_in_order([0, 1, 2], set(), [2, 0, 1]) == (2, 1, 3)
    assert grades_in_order([0, 1, 2, 3], {1, 2}, [0, 1, 2, 3]) == (4, 4, 4, 1)
    assert grades_in_order([3, 1, 0, 2], {0}, [0, 1, 2, 3]) == (3, 3, 1, 4)
    assert grades_in_order([0, 1], {0}, [0, 1]) == (2, 1)  # the first has none above it
    for order, tied in [([0, 0, 1], set()), ([0, 1], set()), ([0, 1, 3], set()), ([0, 1, 2], {7}), ([], set())]:
        with pytest.raises(BadForm, match="names each of the 3 answers once; open the page again"):
            grades_in_order(order, tied, [0, 1, 2])


def test_a_ranking_is_kept_with_who_when_and_how_long(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    assert ann.rank(2, 0, 1, tied=["1"], note="  clear  ", seconds="12.5").headers["location"] == "/"
    (kept,) = project.store.judgements.all()
    order = shown_order(project.store.tasks.all()[0], 1)
    grades = dict(zip(order, kept.grades or (), strict=False))
    assert kept.grades is not None and [kept.grades[order[n]] for n in (2, 0, 1)] == [3, 2, 2] and grades
    assert (kept.person, kept.kind, kept.note, kept.seconds) == ("Ann", "ranked", "clear", 12.5)
    assert "Name a prime." in ann.get("/").text


def test_with_htmx_the_next_task_comes_back_at_once(opened: Open) -> None:
    ann = opened().person("Ann")
    page = ann.rank(0, 1, 2).status_code, ann.post("/judgements", {**ann.task(), "kind": "all_bad"}, headers=HTMX).text
    assert page[0] == 303 and page[1].startswith("<main") and "Saved: all bad." in page[1] and "Say hello." in page[1]


def test_what_is_sent_twice_counts_once(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    task = ann.task()
    for _ in range(3):  # a double click, a lost answer
        assert ann.rank(0, 1, 2, task=task).status_code == 303
    assert len(project.store.judgements.all()) == 1


def test_two_tabs_show_the_same_task_and_the_first_that_is_sent_counts(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    one, two = ann.task(), ann.task()
    assert one["task"] == two["task"] and one["key"] != two["key"]
    ann.rank(0, 1, 2, task=one)
    answer = ann.post("/judgements", {**two, "kind": "all_bad"}, headers=HTMX)
    assert "You had judged this task already; the earlier judgement counts." in answer.text
    assert [judgement.kind for judgement in project.store.judgements.all()] == ["ranked"]


def test_two_people_get_different_tasks_and_different_orders(opened: Open) -> None:
    rows: list[dict[str, Any]] = [{"instruction": "One", "output": [f"answer {n}" for n in range(9)]}]
    project = opened([*rows, {"instruction": "Two", "output": ["a", "b"]}], overlap={"share": 0})
    ann, bob = project.person("Ann"), project.person("Bob")
    assert ann.task()["task"] != bob.task()["task"]
    both = opened(rows, overlap={"share": 1, "people": 2})
    pages = [both.person(name).get("/").text for name in ("Ann", "Bob")]
    shown = [re.findall(r"answer (\d)</p>", page) for page in pages]
    assert shown[0] != shown[1] and sorted(shown[0]) == sorted(shown[1]) == list("012345678")
    assert all("tasks.jsonl" not in page for page in pages)


def test_a_task_that_was_never_given_is_not_taken(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    task = ann.task() | {"task": "3"}
    answer = ann.post("/judgements", {**task, "kind": "all_bad"}, headers=HTMX)
    assert "This task is not yours any more; here is the next one." in answer.text
    assert project.store.judgements.all() == []


def test_a_lease_that_ended_loses_nothing(opened: Open) -> None:
    project = opened(ROWS_OF_ONE, lease_seconds=30)
    ann, bob = project.person("Ann"), project.person("Bob")
    task = ann.task()
    assert "Nothing left to rank" in bob.get("/").text
    later = datetime.now(UTC) + timedelta(seconds=31)
    lease = project.store.leases.take(2, now=later)
    assert lease is not None and lease.task.id == 1  # it came back, and Bob has it
    assert ann.rank(1, 0, task=task).status_code == 303
    assert len(project.store.judgements.all()) == 1


ROWS_OF_ONE: list[dict[str, Any]] = [{"instruction": "One", "output": ["a", "b"]}]
WRONG = [
    {"task": "99"},
    {"task": "x"},
    {"task": "9" * 30},
    {"kind": "best"},
    {"answer": ["0", "1"]},
    {"answer": ["0", "1", "1"]},
    {"answer": ["0", "1", "2", "3"]},
    {"answer": ["0", "1", "-1"]},
    {"answer": ["0", "1", "x"]},
    {"answer": ["0", "1", "2"], "tied": "8"},
    {"kind": "skipped"},
    {"kind": "skipped", "reason": "bored"},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_form_that_no_page_sends_gets_a_sentence(opened: Open, wrong: dict[str, Any]) -> None:
    project = opened()
    ann = project.person("Ann")
    given: dict[str, Any] = {**ann.task(), "kind": "ranked", "answer": ["0", "1", "2"], **wrong}
    answer = ann.post("/judgements", given)
    assert answer.status_code == 400 and "This form is incomplete; open the page again." in answer.text
    assert project.store.judgements.all() == []


@pytest.mark.parametrize(
    ("said", "kept"), [("-5", 0), ("nan", 0), ("inf", 0), ("1e9", 86400), ("soon", 0), ("3.25", 3.25)]
)
def test_times_that_are_none_do_not_cost_the_ranking(opened: Open, said: str, kept: float) -> None:
    project = opened()
    project.person("Ann").rank(0, 1, 2, seconds=said)
    assert project.store.judgements.all()[0].seconds == kept


def test_a_key_that_is_none_gets_a_sentence(opened: Open) -> None:
    ann = opened().person("Ann")
    for key in ("", "x" * 201):
        answer = ann.rank(0, 1, 2, task=ann.task() | {"key": key})
        assert answer.status_code == 400 and "the key of a judgement has 1 to 200 characters" in answer.text


def test_skipping_needs_a_reason_and_gives_the_task_to_others(opened: Open) -> None:
    project = opened(ROWS_OF_ONE)
    ann, bob = project.person("Ann"), project.person("Bob")
    ann.post("/judgements", {**ann.task(), "kind": "skipped", "reason": "expertise", "note": "chemistry"})
    (kept,) = project.store.judgements.all()
    assert (kept.kind, kept.reason, kept.note, kept.grades) == ("skipped", "expertise", "chemistry", None)
    assert bob.rank(0, 1).status_code == 303 and len(project.store.judgements.all()) == 2


def test_undo_brings_the_task_back_as_it_was_ranked(opened: Open) -> None:
    project = opened()
    ann = project.person("Ann")
    ann.rank(2, 0, 1, tied=["1"], note="hm")
    ann.get("/")
    page = ann.post("/undo", headers=HTMX).text
    assert "Taken back; rank it again." in page and "What is 2 + 2?" in page and ">hm</textarea>" in page
    assert re.findall(r'name="answer" value="(\d)"', page) == ["2", "0", "1"]
    assert re.findall(r'name="tied" value="(\d)" checked', page) == ["1"]
    assert project.store.judgements.all() == [] and len(project.store.judgements.all(withdrawn=True)) == 1
    assert ann.rank(1, 2, 0).status_code == 303 and len(project.store.judgements.all()) == 1
    assert ann.post("/undo").status_code == 303
    assert "There is nothing to undo." in ann.post("/undo", headers=HTMX).text


def test_my_rankings_lists_mine_alone(opened: Open) -> None:
    project = opened(overlap={"share": 1, "people": 2})
    ann, bob = project.person("Ann"), project.person("Bob")
    assert "You have not ranked anything yet." in ann.get("/history").text
    ann.rank(1, 0, 2, note="<i>mine</i>")
    bob.post("/judgements", {**bob.task(), "kind": "skipped", "reason": "other", "note": "bobs"})
    page = ann.get("/history").text
    assert "Best: B" in page and "&lt;i&gt;mine&lt;/i&gt;" in page and "bobs" not in page
    assert "Something else" in bob.get("/history").text


ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![pixel](https://evil.test/pixel.png)",
    "[go](javascript:alert(1))",
    "[go](data:text/html;base64,PHNjcmlwdD4=)",
    "<svg/onload=alert(1)>",
    '<a href="x" onclick="alert(1)" style="position:fixed">x</a>',
    "<iframe src=https://evil.test></iframe><style>body{display:none}</style>",
    '</div></main><form action="https://evil.test"><button>Send</button></form>',
    "```html\n<script>alert(1)</script>\n```",
    "{{ 7 * 7 }} {% raw %}",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_in_an_answer_becomes_part_of_the_page(opened: Open, attack: str) -> None:
    harmless = opened([{"instruction": "plain", "output": ["plain", "two"]}]).person("Ann").get("/").text
    page = opened([{"instruction": attack, "output": [attack, "two"]}]).person("Ann").get("/").text
    for tag in ("script", "img", "svg", "iframe", "style", "form", "button", "main", "input", "link"):
        assert len(re.findall(f"<{tag}[ >/]", page)) == len(re.findall(f"<{tag}[ >/]", harmless)), tag
    for sign in ('src="http', "onerror=alert(1)>", 'href="javascript', 'href="data', 'evil.test/pixel.png"', "49"):
        assert sign not in shown_text(attack).html


def test_markdown_is_shown_and_its_headings_stand_below_the_pages() -> None:
    html = shown_text(
        "# Big\n\n**b** `c` [l](https://a.test/?q=1) ~~s~~\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n1. x"
    ).html
    for part in ("<h4>Big</h4>", "<strong>b</strong>", "<code>c</code>", "<s>s</s>", "<table>", "<ol>"):
        assert part in html
    assert 'rel="noopener noreferrer nofollow"' in html and 'target="_blank"' in html


def test_an_answer_of_two_megabytes_is_cut_with_a_link_to_all_of_it(opened: Open) -> None:
    huge = "word *x* <b> " * 160_000
    project = opened([{"instruction": "Q", "output": [huge, "short"]}])
    ann, bob = project.person("Ann"), project.person("Bob")
    page = ann.get("/").text
    assert (
        len(page) < 3 * LONGEST_SHOWN and f"This text has {len(huge)} characters; the first 100000 are shown." in page
    )
    link = re.findall(r"/tasks/1/answers/\d", page)[0]
    answer = ann.get(link)
    assert answer.text == huge and answer.headers["content-type"].startswith("text/plain")
    assert bob.get(link).status_code == 404  # it is in front of somebody else
    assert ann.get("/tasks/1/answers/5").status_code == 404 and ann.get("/tasks/x/answers/0").status_code == 404
    assert ann.get("/tasks/1/turns/0").text == "Q" and ann.get("/tasks/1/turns/4").status_code == 404
    assert ann.rank(1, 0).status_code == 303


def test_deeply_nested_markdown_is_shown_in_time() -> None:
    assert shown_text("> " * 20_000 + "x").length == 40_001
    assert shown_text("[" * 20_000).length == 20_000
    assert shown_text("*a **b " * 6_000).html


def test_an_unfinished_answer_and_odd_characters_are_shown(opened: Open) -> None:
    project = opened([{"instruction": "Q \u202e", "output": ["a\u0000b", "c"], "ended": [True, False]}])
    ann = project.person("Ann")
    assert "This answer was cut off at its length limit." in ann.get("/").text
    project.store.tasks.add([NewTask(prompt=(Message("user", "half \ud83d"),), answers=("\ud83d", "b\x00\x1b"))])
    ann.rank(0, 1)
    assert "half ?" in ann.get("/").text and ann.rank(0, 1).status_code == 303
    assert "half ?" in ann.get("/history").text


def test_a_database_that_is_away_asks_to_send_it_again(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    project = opened()
    ann = project.person("Ann")
    task = ann.task()
    write = Database.write

    def away(*given: Any, **options: Any) -> Any:
        raise Unreachable("postgresql://x does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(Database, "write", away)
        answer = ann.rank(0, 1, 2, task=task)
        assert answer.status_code == 503 and answer.headers["retry-after"] == "2"
        assert "The database does not answer; try again in a moment." in answer.text
    assert Database.write is write and ann.rank(0, 1, 2, task=task).status_code == 303
    with monkeypatch.context() as patch:
        patch.setattr(Database, "read", away)
        answer = ann.get("/")
        assert (answer.status_code, answer.text[:31]) == (503, "the database does not answer; t")
    assert len(project.store.judgements.all()) == 1


def test_a_fault_of_ours_is_one_sentence_to_the_reader(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    project = opened()
    ann = project.person("Ann")
    monkeypatch.setattr(type(project.store.judgements), "progress", lambda *given, **options: 1 / 0)
    answer = ann.get("/")
    assert answer.status_code == 500 and "Something went wrong here; the server&#39;s log says what." in answer.text
    assert "ZeroDivision" not in answer.text


def test_the_goal_counts_todays_rankings(opened: Open) -> None:
    ann = opened(daily_goal=1).person("Ann")
    assert "0 of 1 today" in ann.get("/").text and "0 in all, 3 left" in ann.get("/").text
    ann.rank(0, 1, 2)
    page = ann.get("/").text
    assert "1 of 1 today" in page and "1 in all, 2 left" in page and "Today&#39;s goal is reached." in page


def test_progress_and_tasks_are_told_to_admins(opened: Open) -> None:
    project = opened(overlap={"share": 1, "people": 2})
    ann, root = project.person("Ann"), project.person("Root", admin=True)
    ann.rank(0, 1, 2, seconds="8")
    page = re.sub(r"\s+", " ", root.get("/admin").text)
    assert "<dd>0 / 3</dd>" in page and '<td class="number">8 s</td>' in page
    tasks = root.get("/admin/tasks?page=99").text
    assert "1 / 2" in tasks and "tasks.jsonl:1" in tasks and "Page 1 of 1" in tasks
    assert root.get("/admin/tasks?page=x").status_code == 200
    assert root.get("/tasks/3/answers/0").status_code == 200


def test_two_and_nine_answers_can_be_ranked_and_ten_are_refused(opened: Open) -> None:
    rows: list[dict[str, Any]] = [{"instruction": "Q", "output": [str(n) for n in range(9)]}]
    ann = opened(rows).person("Ann")
    assert ann.rank(*range(9)).status_code == 303
    with pytest.raises(DataError, match=r"tasks.jsonl:1 has 10 answers; people rank 2 to 9"):
        opened([{"instruction": "Q", "output": [str(n) for n in range(10)]}])
