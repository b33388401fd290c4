"""The pages in a real browser: by mouse, by keys alone, by touch at phone width, and when things break."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onebase.labels.leases import shown_order
from onebase.web.listening import BACKLOG, HTTPServer, address_of, listening
from tests.labeling.conftest import PASSWORD, Opened, write_project
from tests.serving.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian and Ubuntu: apt install chromium)")
AXE = next(
    filter(
        Path.is_file,
        (Path(os.environ.get("ONEBASE_AXE") or "/nowhere"), Path("node_modules/axe-core/axe.min.js")),
    ),
    None,
)
LONG = "\n\n".join(f"Paragraph {n} of a long answer." for n in range(60))
ROWS = [
    {"instruction": "How do I reverse a list?", "output": ["`x[::-1]`", "```py\nx.reverse()\n```", LONG, "no"]},
    {"instruction": "为什么天是蓝的？", "output": ["因为**瑞利散射**。", "不知道"]},
    {"instruction": "Say hello.", "output": ["Hello!", "<script>document.title='gone'</script>", "Hi"]},
]


class Running(Opened):
    """A project's pages on a real socket, in a thread; they can go away and come back."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        listener = listening("127.0.0.1", 0, remedy="")
        self.url = address_of(listener)
        self.site.address = self.url
        self._port = listener.getsockname()[1]
        self._listen(listener)

    def _listen(self, listener: Any) -> None:
        listener.listen(BACKLOG)
        self._http = HTTPServer(self.app, stopping="label: stopping", seconds=5)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._http.serve(sockets=[listener])), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._http.should_exit = self._http.force_exit = True
        self._thread.join(20)

    def again(self) -> None:
        self._listen(listening("127.0.0.1", self._port, remedy=""))


class Guest:
    """Somebody in front of a page, who came by an invitation link."""

    def __init__(self, running: Running, browser: Browser, name: str, *, admin: bool = False, **options: Any) -> None:
        link = f"{running.url}/invitation/{running.store.people.invite('admin' if admin else 'annotator')}"
        self.page, self._url, self.name = browser.open(link, **options), running.url, name
        self.page.js("document.querySelector('#name').focus()")
        self.page.type(name)
        if admin:
            self.page.js("document.querySelector('#password').focus()")
            self.page.type(PASSWORD)
        self.page.press("Enter")
        self.wait_at("/admin" if admin else "/")

    def wait_at(self, path: str) -> None:
        self.page.wait(f"location.pathname === {path!r} && document.readyState === 'complete'")

    def go(self, path: str) -> None:
        self.page.ask("Page.navigate", url=self._url + path)
        self.wait_at(path)

    @property
    def letters(self) -> str:
        """The answers from best to worst, by the letters they are called."""
        return str(self.page.js("[...document.querySelectorAll('.card')].map((one) => one.dataset.letter).join('')"))

    @property
    def places(self) -> list[str]:
        return self.page.texts(".place")

    def wait_for_task(self, text: str) -> None:
        self.page.wait(f"document.querySelector('#main').innerText.includes({text!r})")

    def focus(self, letter: str) -> None:
        self.page.js(f"document.querySelector('#card-{letter}').focus()")

    @property
    def focused(self) -> str:
        return str(self.page.js("document.activeElement.dataset.letter ?? document.activeElement.tagName"))


Enter = Callable[..., Guest]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    rubric = "**Right** before short."
    started = Running(write_project(tmp_path, ROWS, rubric=rubric, overlap={"share": 1, "people": 2}, daily_goal=2))
    yield started
    started.stop()
    started.store.close()


@pytest.fixture
def enter(running: Running, browser: Browser) -> Iterator[Enter]:
    """Lets people in; at the end nothing may have gone wrong on their pages."""
    guests: list[Guest] = []

    def one(name: str, **options: Any) -> Guest:
        guests.append(Guest(running, browser, name, **options))
        return guests[-1]

    yield one
    for guest in guests:
        assert guest.page.complaints() == []
        guest.page.close()


def graded(running: Running, person: str) -> dict[str, int]:
    """The grades of a person's last ranking, by the letters on their page."""
    last = [one for one in running.store.judgements.all() if one.person == person][-1]
    task, found = running.store.tasks.by_id(last.task_id), running.store.people.named(person)
    assert task is not None and found is not None and last.grades is not None
    return {"ABCDEFGHI"[n]: last.grades[index] for n, index in enumerate(shown_order(task, found.id))}


def test_a_person_ranks_by_mouse(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    assert ann.letters == "ABCD" and ann.places[0] == "place 1 of 4"
    x, y = ann.page.middle("#card-A")
    ann.page.drag("#card-B .grip", (x, y - 60))
    ann.page.wait("document.querySelector('.card').dataset.letter === 'B'")
    assert ann.letters == "BACD"
    ann.page.click("#card-D .up")
    ann.page.click("#card-C input[type=checkbox]")
    assert ann.letters == "BADC"
    assert ann.places == ["place 1 of 4", "place 2 of 4", "place 3 of 4, tied", "place 3 of 4, tied"]
    ann.page.js("document.querySelector('#note').focus()")
    ann.page.type("b = best, 1 2 u s")  # keys are text where one writes
    ann.page.click("[data-send=ranked]")
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann") == {"B": 4, "A": 3, "D": 2, "C": 2}
    assert (
        running.store.judgements.all()[0].note == "b = best, 1 2 u s" and running.store.judgements.all()[0].seconds > 0
    )
    ann.page.click("[data-send=all_bad]")
    ann.wait_for_task("Say hello.")
    assert "Saved: all bad." in ann.page.text("#notice") and "2 of 2 today" in ann.page.text("aside")
    ann.page.click("#skip-open")
    ann.page.click("[data-send=skipped]")
    assert "Choose why you skip it." in ann.page.text("#problem")
    ann.page.click("#skip [value=unclear]")
    ann.page.click("[data-send=skipped]")
    ann.wait_for_task("Nothing left to rank")
    assert [one.kind for one in running.store.judgements.all()] == ["ranked", "all_bad", "skipped"]


def test_a_person_ranks_by_keys_alone(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    press = ann.page.press
    press("3")  # nothing has the focus: the third answer gets it
    assert ann.focused == "C"
    press("1")
    assert ann.letters == "CABD" and ann.focused == "C"
    assert ann.page.text("#heard") == "Answer C: place 1 of 4"
    press("ArrowDown")
    press("ArrowDown")
    assert ann.focused == "B"
    press("=")
    assert ann.page.text("#heard") == "Answer B: place 2 of 4, tied"
    press("ArrowDown", shift=True)
    assert ann.letters == "CADB" and ann.places == [f"place {n} of 4" for n in (1, 2, 3, 4)]
    press("=")
    assert ann.places[2:] == ["place 3 of 4, tied"] * 2
    press("Enter")
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann") == {"C": 4, "A": 3, "D": 2, "B": 2}
    assert ann.focused == "A"  # the next task's first answer
    press("u")
    ann.wait_for_task("Taken back")
    assert ann.letters == "CADB" and ann.places[2:] == ["place 3 of 4, tied"] * 2
    press("4")
    press("Enter")
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann")["C"] == 1
    press("b")
    ann.wait_for_task("Say hello.")
    press("s")
    assert ann.page.js("document.activeElement.value") == "unclear"
    press("Escape")
    press("s")
    press("ArrowDown")
    press("Enter")
    ann.wait_for_task("Nothing left to rank")
    assert [(one.kind, one.reason) for one in running.store.judgements.all()][-1] == ("skipped", "expertise")


def test_a_person_ranks_by_touch_at_phone_width(enter: Enter, running: Running) -> None:
    ann = enter("Ann", width=390, height=844)
    assert ann.page.js("document.documentElement.scrollWidth") == 390
    ann.page.tap("#card-A .down")
    ann.page.wait("document.querySelector('.card').dataset.letter === 'B'")
    ann.page.js("document.querySelector('#card-B').scrollIntoView()")
    x, y = ann.page.middle("#card-B .grip")
    ann.page.drag("#card-A .grip", (x, y - 20), touch=True, steps=25)
    ann.page.wait("document.querySelector('.card').dataset.letter === 'A'")
    ann.page.tap("#card-B .tie")
    ann.page.wait("document.querySelector('.place').innerText.includes('tied')")
    assert ann.places[:2] == ["place 1 of 4, tied"] * 2
    ann.page.tap("[data-send=ranked]")
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann") == {"A": 4, "B": 4, "C": 2, "D": 1}
    ann.page.tap("#undo button")
    ann.wait_for_task("Taken back")
    assert running.store.judgements.all() == []


def test_two_people_rank_at_once(enter: Enter, running: Running) -> None:
    ann, bob = enter("Ann"), enter("Bob", language="zh-CN")
    for guest, key in ((ann, "2"), (bob, "3")):
        guest.focus("A")
        guest.page.press(key)
        guest.page.press("Enter")
    ann.wait_for_task("为什么天是蓝的")
    bob.wait_for_task("已保存。")
    assert graded(running, "Ann")["A"] == 3 and graded(running, "Bob")["A"] == 2
    assert {one.task_id for one in running.store.judgements.all()} == {1}


def test_what_was_not_touched_is_sent_only_when_said_twice(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.focus("A")
    ann.page.press("Enter")
    assert "You have not moved anything." in ann.page.text("#problem") and running.store.judgements.all() == []
    ann.page.press("Enter")
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann") == {"A": 4, "B": 3, "C": 2, "D": 1}


def test_without_a_connection_nothing_is_lost_and_it_is_sent_again_by_itself(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.focus("B")
    ann.page.press("1")
    ann.page.go_offline(True)
    ann.page.press("Enter")
    ann.page.wait("document.querySelector('#problem').innerText.includes('No connection.')")
    ann.page.press("3")  # what is on its way stays as it is
    assert ann.letters == "BACD" and running.store.judgements.all() == []
    ann.page.go_offline(False)
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann") == {"B": 4, "A": 3, "C": 2, "D": 1}


def test_a_server_that_goes_away_gets_it_when_it_is_back(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.focus("B")
    ann.page.press("1")
    running.stop()
    ann.page.press("Enter")
    ann.page.wait("document.querySelector('#problem').innerText.includes('No connection.')")
    running.again()
    ann.wait_for_task("为什么天是蓝的")
    assert len(running.store.judgements.all()) == 1


def test_a_double_click_counts_once_and_two_tabs_show_the_same(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.page.js("document.querySelector('#card-B .up').click()")
    ann.page.js("{ const one = document.querySelector('[data-send=ranked]'); one.click(); one.click(); }")
    ann.wait_for_task("为什么天是蓝的")
    assert len(running.store.judgements.all()) == 1


def test_a_reload_keeps_order_ties_and_note(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.focus("D")
    ann.page.press("1")
    ann.focus("B")
    ann.page.press("=")
    ann.page.js("document.querySelector('#note').focus()")
    ann.page.type("half a thou")
    ann.page.reload()
    ann.page.wait("document.querySelector('.place').innerText !== ''")
    assert ann.letters == "DABC" and ann.page.js("document.querySelector('#note').value") == "half a thou"
    assert ann.places[1:3] == ["place 2 of 4, tied"] * 2


def test_who_was_logged_out_meanwhile_sends_after_a_new_login(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.focus("B")
    ann.page.press("1")
    person = running.store.people.named("Ann")
    assert person is not None
    running.store.people.set_password("Ann", running.site.passwords.hash(PASSWORD))  # ends all sessions
    ann.page.press("Enter")
    ann.page.wait("document.querySelector('#problem').innerText.includes('You are logged out.')")
    csrf = "new DOMParser().parseFromString(await (await fetch('/login')).text(), 'text/html').forms[1].csrf.value"
    body = f"new URLSearchParams({{csrf: {csrf}, name: 'Ann', password: '{PASSWORD}'}})"
    ann.page.js(f"(async () => {{ await fetch('/login', {{method: 'POST', body: {body}}}); }})()")
    ann.wait_for_task("为什么天是蓝的")
    assert graded(running, "Ann")["B"] == 4


def test_long_answers_fold_and_open(enter: Enter) -> None:
    ann = enter("Ann")
    folded = "document.querySelectorAll('.text.folded').length"
    assert ann.page.js(folded) == 1
    letter = ann.page.js("document.querySelector('.text.folded').closest('.card').dataset.letter")
    ann.page.click(f"#card-{letter} .fold")
    assert ann.page.js(folded) == 0 and ann.page.text(f"#card-{letter} .fold") == "Show less"
    assert ann.page.js(f"document.querySelector('#card-{letter} .fold').ariaExpanded") == "true"


def test_only_the_time_in_front_of_a_visible_page_counts(enter: Enter, running: Running) -> None:
    ann = enter("Ann")
    ann.page.js("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    ann.page.js("document.dispatchEvent(new Event('visibilitychange'))")
    before = ann.page.js("work.time")
    ann.page.js("new Promise((done) => setTimeout(done, 300))")
    assert ann.page.js("work.time") == before
    ann.page.js("Object.defineProperty(document, 'hidden', {value: false, configurable: true})")
    ann.page.js("document.dispatchEvent(new Event('visibilitychange'))")
    ann.page.js("new Promise((done) => setTimeout(done, 300))")
    assert before + 0.2 < ann.page.js("work.time") < before + 20


def test_no_script_of_an_answer_runs(enter: Enter) -> None:
    ann = enter("Ann")
    for _ in range(2):
        ann.focus("A")
        ann.page.press("b")
        ann.page.wait("!document.querySelector('#ranking.sending')")
    ann.wait_for_task("Say hello.")
    assert "<script>document.title='gone'</script>" in ann.page.text("#cards")
    assert ann.page.js("document.title") == "Rank · Ranking"


def test_the_pages_are_in_chinese_and_dark_where_the_browser_asks(enter: Enter) -> None:
    ann = enter("王小明", language="zh-CN", dark=True)
    assert "回答（从好到差）" in ann.page.text("#main") and ann.places[0] == "第 1 名，共 4 个"
    assert ann.page.js("document.documentElement.lang") == "zh-CN"
    assert ann.page.js("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    ann.page.click("[name=language]")
    ann.page.wait("document.documentElement?.lang === 'en' && document.readyState === 'complete'")
    assert "Answers, best first" in ann.page.text("#main")


@pytest.mark.slow
@pytest.mark.skipif(AXE is None, reason="needs axe-core: npm install axe-core, or its axe.min.js named by ONEBASE_AXE")
@pytest.mark.parametrize("look", [{}, {"dark": True}, {"width": 390, "height": 844, "language": "zh-CN"}])
def test_axe_finds_nothing_serious_on_any_page(enter: Enter, running: Running, look: dict[str, Any]) -> None:
    root = enter("Root", admin=True, **look)
    paths = ["/", "/admin", "/admin/people", "/admin/tasks", "/admin/agreement", "/history", "/help", "/account"]
    found = {path: _violations(root, path) for path in paths}
    root.go("/")
    root.focus("A")
    for key in ("2", "Enter"):
        root.page.press(key)
    root.page.wait("!!document.querySelector('#notice')")
    root.page.press("s")
    found["a task with all its parts"] = _axe(root)
    for path in ("/history", "/admin", "/admin/agreement"):
        found[f"{path} with rows"] = _violations(root, path)
    root.page.js("document.querySelector('[action=\"/logout\"] button').click()")
    root.wait_at("/login")
    found["/login"] = _axe(root)
    found["/invitation"] = _violations(root, f"/invitation/{running.store.people.invite()}")
    assert {path: problems for path, problems in found.items() if problems} == {}


def _violations(guest: Guest, path: str) -> list[str]:
    guest.go(path)
    return _axe(guest)


def _axe(guest: Guest) -> list[str]:
    assert AXE is not None
    guest.page.js(AXE.read_text(encoding="utf-8") + ";0")
    found: list[str] = guest.page.js(
        "axe.run(document).then((result) => result.violations.filter((one) => /serious|critical/.test(one.impact))"
        ".map((one) => `${one.id}: ${one.nodes.map((node) => node.html.slice(0, 100)).join(' | ')}`))"
    )
    return found


def test_every_word_that_the_script_says_is_in_the_table(running: Running) -> None:
    from onebase.labeling.site import STATIC
    from onebase.labeling.words import IN_SCRIPTS, WORDS

    said = set(re.findall(r'(?:say|later)\((?:\w+ \? )?"([\w-]+)"', (STATIC / "ranking.js").read_text()))
    assert said <= set(IN_SCRIPTS) <= set(WORDS) and len(said) > 8
