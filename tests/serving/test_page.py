"""The chat page in a real browser, against a real server on a tiny base."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from onebase.data.chat import chat_format
from onebase.engines.opening import load_base
from onebase.models.role_files import save_role
from onebase.models.roles import Moments
from onebase.models.scratch import make_llama, train_tokenizer
from tests.recipes.conftest import SENTENCES
from tests.serving.browser import CHROMIUM, Browser, Page
from tests.serving.conftest import Served
from tests.tiny_models import add_adapter_role, disturb

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium (on Debian and Ubuntu: apt install chromium)")
KEY = "a-key-of-the-tests"
SECONDS = 30.0
LONGEST = 24
"""Tokens of an answer, unless a test asks for more."""
CONTEXT = 2048
REQUEST_BYTES = 20_000
Open = Callable[..., Page]
ANSWERED = "[...document.querySelectorAll('.answer')].every((one) => !one.ariaBusy || one.ariaBusy === 'false')"


class Server(Served):
    """A running server, asked without the page."""

    def ask(self, path: str, body: object = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            return json.loads(response.read() or b"null")

    def running(self) -> float:
        """Answers that are being decoded."""
        request = urllib.request.Request(f"{self.url}/metrics", headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            lines = response.read().decode().splitlines()
        return float(next(line.split()[1] for line in lines if line.startswith("onebase_running_answers ")))

    def start_long_answer(self) -> Any:
        """A streamed answer that nobody reads to its end; closing it gives its row back."""
        body = {"model": "helpful", "prompt": "a", "max_tokens": 1900, "stream": True}
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(), headers)
        return urllib.request.urlopen(request, timeout=SECONDS)

    def answer(self, model: str, *messages: str) -> str:
        """The answer to a conversation whose turns these are, by the user and the model in turn."""
        turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(messages)]
        found = self.ask("v1/chat/completions", {"model": model, "messages": turns})
        return str(found["choices"][0]["message"]["content"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A serve.yaml with two policies and a reward role on a base that hardly ever ends by itself."""
    folder = tmp_path_factory.mktemp("served")
    tokenizer = train_tokenizer(SENTENCES, vocab_size=320)
    model = make_llama(tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_length=CONTEXT, seed=0)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(4)
        model.model.embed_tokens.weight[tokenizer.eos_token_id] = 0
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base = load_base(str(folder / "base"), dtype="float32")
    chat = chat_format(base.tokenizer, "vicuna")
    for seed, name in enumerate(("helpful", "terse", "judge"), start=1):
        add_adapter_role(base, name, seed=seed, head=name == "judge")
        disturb(base, name, seed=seed, size=0.5)  # so that they answer differently
        if name == "judge":
            base.scalar_role(name).moments = Moments(0.5, 2.0, measured=True)
        save_role(base, name, folder / name, kind="reward" if name == "judge" else "policy", chat=chat)
    usual = {"temperature": 0, "max_tokens": LONGEST}
    config = {
        "roles": {
            "helpful": {"role": str(folder / "helpful"), **usual},
            "terse": {"role": str(folder / "terse"), **usual},
            "judge": str(folder / "judge"),
        },
        "limits": {"request_bytes": REQUEST_BYTES, "rows": 1, "queue": 2},
        "allow_role_changes": True,
        "threads": 1,
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def server(served: Path) -> Iterator[Server]:
    running = Server("--config", str(served / "serve.yaml"), env={"ONEBASE_API_KEY": KEY})
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    running = Browser(tmp_path_factory.mktemp("profile"))
    yield running
    running.close()


@pytest.fixture
def open_page(server: Server, browser: Browser) -> Iterator[Open]:
    """Opens the page; at the end nothing may have gone wrong in it."""
    pages = []

    def opened(*, key: str = KEY, **options: Any) -> Page:
        kept = f"sessionStorage.setItem('onebase.key', {json.dumps(key)})" if key else ""
        pages.append(browser.open(server.url, first=kept, **options))
        if key:
            pages[-1].wait("document.querySelector('#role').options.length > 0")
        return pages[-1]

    yield opened
    for page in pages:
        assert page.complaints() == []
        page.close()


def say(page: Page, text: str) -> None:
    """Types a message, sends it, and waits for the answers."""
    before = len(page.texts(".answer"))
    page.js("document.querySelector('#message').focus()")
    page.type(text)
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.answer').length > {before} && {ANSWERED}")
    page.wait("!document.querySelector('#send').hidden")


def answers(page: Page) -> list[str]:
    found = page.js("[...document.querySelectorAll('.answer .text')].map((one) => one.textContent)")
    return [str(one) for one in found]


def message(page: Page) -> str:
    return str(page.js("document.querySelector('#message').value"))


def problem(page: Page) -> str:
    return str(page.wait("document.querySelector('#problem').textContent"))


def test_a_conversation_goes_on_with_what_was_said(open_page: Open, server: Server) -> None:
    page = open_page()
    assert page.text("#welcome") == "Say something to helpful."
    say(page, "Is the cat good?")
    first = server.answer("helpful", "Is the cat good?")
    assert answers(page) == [first]
    assert message(page) == ""
    facts = page.text(".facts")
    assert facts == f"{LONGEST} tokens · cut at the limit"
    say(page, "And the dog?")
    assert answers(page) == [first, server.answer("helpful", "Is the cat good?", first, "And the dog?")]
    assert page.texts(".asked") == ["Is the cat good?", "And the dog?"]
    assert page.js("document.querySelector('#heard').textContent").startswith(f"helpful: {answers(page)[1]}")
    page.click("#fresh")
    assert page.texts(".answer") == [] and page.text("#welcome") == "Say something to helpful."
    say(page, "Is the cat good?")
    assert answers(page) == [first]


def test_two_roles_answer_side_by_side_with_scores(open_page: Open, server: Server) -> None:
    page = open_page()
    page.choose("#beside", "terse")
    page.choose("#reward", "judge")
    say(page, "Is the cat good?")
    both = answers(page)
    assert both == [server.answer("helpful", "Is the cat good?"), server.answer("terse", "Is the cat good?")]
    assert both[0] != both[1]
    body = {"model": "judge", "messages": [{"role": "user", "content": "Is the cat good?"}], "completions": both}
    scored = server.ask("v1/score", body)["data"]
    wanted = [f"score {one['normalised']:+.2f}{' · higher' if one['rank'] == 1 else ''}" for one in scored]
    assert [text.replace("−", "-") for text in page.texts(".scored")] == wanted
    assert page.text(".answer h2") == "helpful"
    left, right = page.js("[...document.querySelectorAll('.answer')].map((one) => one.getBoundingClientRect().x)")
    assert left < right
    # The conversation goes on from the left answer, or from the one that was chosen.
    page.click(".answer:nth-child(2) button[aria-pressed]")
    pressed = page.js("[...document.querySelectorAll('[aria-pressed]')].map((one) => one.ariaPressed)")
    assert pressed == ["false", "true"]
    page.choose("#beside", "")
    say(page, "Why?")
    assert answers(page)[2] == server.answer("helpful", "Is the cat good?", both[1], "Why?")


def test_of_two_equal_answers_neither_scores_higher(open_page: Open) -> None:
    page = open_page()
    page.choose("#beside", "helpful")
    page.choose("#reward", "judge")
    say(page, "Is the cat good?")
    assert len(set(answers(page))) == 1
    assert len(page.texts(".scored")) == 2 and not any("higher" in text for text in page.texts(".scored"))


def test_escape_and_the_button_stop_an_answer_and_free_its_row(open_page: Open, server: Server) -> None:
    page = open_page()
    page.click("#fold summary")
    page.js("document.querySelector('[name=max_tokens]').value = 1900")
    page.choose("#reward", "")
    for stop in (lambda: page.press("Escape"), lambda: page.click("#stop")):
        page.js("document.querySelector('#message').focus()")
        page.type("Go on and on.")
        page.press("Enter")
        page.wait("[...document.querySelectorAll('.text')].at(-1)?.textContent.length > 20")
        page.type("typed meanwhile")
        assert server.running() == 1
        stop()
        page.wait(ANSWERED)
        assert page.texts(".facts")[-1] == "stopped"
        end = time.monotonic() + SECONDS
        while server.running():
            assert time.monotonic() < end
        assert message(page) == "typed meanwhile"
        page.js("document.querySelector('#message').value = ''")
    # What was written until then stays, and can be gone on from.
    assert all(len(text) > 20 for text in answers(page))


def test_sampling_goes_with_the_request_and_a_wrong_number_is_not_sent(open_page: Open, server: Server) -> None:
    page = open_page()
    page.click("#fold summary")
    page.js("document.querySelector('[name=max_tokens]').value = 3")
    page.js("document.querySelector('[name=system]').value = 'Be brief.'")
    say(page, "Is the cat good?")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the cat good?"}]
    same = server.ask("v1/chat/completions", {"model": "helpful", "messages": turns, "max_tokens": 3})
    assert answers(page) == [same["choices"][0]["message"]["content"]]
    assert page.text(".facts").startswith("3 tokens")
    page.js("document.querySelector('[name=temperature]').value = -1")
    page.js("document.querySelector('#fold').open = false")
    page.js("document.querySelector('#message').focus()")
    page.type("Again?")
    page.press("Enter")
    assert page.js("document.querySelector('#fold').open") and message(page) == "Again?"
    assert page.js("document.activeElement.name") == "temperature"
    assert len(page.texts(".answer")) == 1


@pytest.mark.parametrize("language", ["en", "zh-CN"])
def test_nothing_reaches_over_the_edge_of_a_phone(open_page: Open, language: str) -> None:
    page = open_page(language=language, width=360, height=640)
    page.choose("#beside", "terse")
    say(page, "x" * 300 + "\n" + "中文" * 100)
    page.js("document.querySelector('#fold').open = true")
    page.js("for (const one of document.querySelectorAll('.text p')) one.textContent = 'y'.repeat(400)")
    page.js("document.querySelector('#key').hidden = false")
    assert page.js("document.documentElement.scrollWidth") == 360
    for part in ("#conversation", "header", "footer", "#choices"):
        assert page.js(f"document.querySelector('{part}').scrollWidth") <= 360
    # The columns stand below each other, and what is pressed with a thumb is large enough.
    tops = page.js("[...document.querySelectorAll('.answer')].map((one) => one.getBoundingClientRect().top)")
    assert tops[0] < tops[1]
    for button in ("#send", "#fresh", "#language", "#role"):
        assert page.js(f"document.querySelector('{button}').getBoundingClientRect().height") >= 40


def test_the_page_speaks_the_browsers_language_and_the_other_on_request(open_page: Open) -> None:
    page = open_page(language="zh-CN")
    assert page.js("document.documentElement.lang") == "zh-CN"
    assert (page.text("#send"), page.text("#welcome"), page.text("#language")) == (
        "发送",
        "和 helpful 聊点什么吧。",
        "English",
    )
    say(page, "你好")
    assert page.text(".facts") == f"{LONGEST} 个 token · 达到上限，已截断"
    assert page.text(".scored").startswith("得分 ")
    page.click("#language")
    assert page.js("document.documentElement.lang") == "en"
    assert page.text(".facts") == f"{LONGEST} tokens · cut at the limit"
    assert page.text("#send") == "Send" and page.text("#language") == "中文"
    page.reload()
    page.wait("document.querySelector('#welcome').innerText === 'Say something to helpful.'")
    other = open_page(language="en-GB")
    assert other.text("#send") == "Send"


def test_every_word_is_there_in_both_languages_and_none_is_left_empty(open_page: Open) -> None:
    for language in ("en", "zh-CN"):
        page = open_page(language=language)
        page.js("for (const one of document.querySelectorAll('[hidden]')) one.hidden = false")
        said = page.js(
            "[...document.querySelectorAll('[data-text]')].map((one) => [one.dataset.text, one.textContent])"
        )
        assert said and all(text and text != "undefined" for _, text in said), said


def test_text_is_never_read_as_html(open_page: Open) -> None:
    page = open_page()
    text = "<img src=x onerror=alert(1)><b>bold</b>\n\n    indented"
    say(page, text.replace("\n", " "))
    assert page.js("document.querySelectorAll('.asked *, .text img').length") == 0
    assert page.text(".asked") == text.replace("\n", " ")
    for script in (Path(__file__).parents[2] / "onebase/serving/page").glob("*.js"):
        assert not {"innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"} & set(
            script.read_text().replace("(", " ").replace(".", " ").split()
        )


def test_code_between_fences_is_shown_as_code_and_lines_are_kept(open_page: Open, browser: Browser) -> None:
    page = open_page()
    text = "Look:\n```python\nif x:\n    y = '<b>'\n```\nDone."
    chunks = [{"choices": [{"delta": {"content": part}}]} for part in (text[:9], text[9:20], text[20:])]
    page.js(
        "import('./page/answer.js').then(({ AnswerCard }) => {"
        " const card = new AnswerCard('helpful', null); document.querySelector('#turns').append(card.element);"
        f" for (const chunk of {json.dumps(chunks)}) card.take(chunk); card.end(); }})"
    )
    blocks = page.js("[...document.querySelector('.text').children].map((one) => [one.tagName, one.textContent])")
    assert blocks == [["P", "Look:"], ["PRE", "if x:\n    y = '<b>'"], ["P", "Done."]]


def test_an_empty_answer_is_said_and_left_out_of_what_follows(open_page: Open) -> None:
    page = open_page()
    # A real role cannot be made to end at once, so this one answer is made up.
    page.js(
        "window.asked = []; window.before = window.fetch; window.fetch = (path, options) => {"
        " if (path !== 'v1/chat/completions') return before(path, options); asked.push(JSON.parse(options.body));"
        " return asked.length > 1 ? before(path, options) : Promise.resolve(new Response("
        ' \'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\\n\\ndata: [DONE]\\n\\n\')); }; 0'
    )
    say(page, "Nothing to say?")
    assert page.texts(".facts") == ["an empty answer"] and page.texts(".asked") == ["Nothing to say?"]
    assert page.js("document.querySelector('.answer button').hidden")
    say(page, "Is the cat good?")
    assert page.js("asked[1].messages") == [{"role": "user", "content": "Is the cat good?"}]


def test_enter_that_ends_a_composition_does_not_send(open_page: Open) -> None:
    page = open_page()
    page.js("document.querySelector('#message').focus()")
    page.ask("Input.imeSetComposition", text="ni hao", selectionStart=6, selectionEnd=6)
    page.js(
        "document.querySelector('#message').dispatchEvent("
        "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true}))"
    )
    page.type("你好")
    assert page.texts(".answer") == [] and message(page) == "你好"
    page.press("Enter", shift=True)
    page.type("second line")
    assert page.texts(".answer") == [] and message(page) == "你好\nsecond line"
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.answer').length === 1 && {ANSWERED}")
    assert page.text(".asked") == "你好\nsecond line"


def test_what_the_server_refuses_is_one_line_and_the_message_stays(open_page: Open) -> None:
    page = open_page()
    for text, line in (
        ("long " * REQUEST_BYTES, "This is more text than the server takes; shorten it."),
        ("word " * CONTEXT, "This conversation no longer fits the model's context; start a new one, or shorten it."),
    ):
        page.js("document.querySelector('#message').value = ''; document.querySelector('#message').focus()")
        page.type(text)
        page.press("Enter")
        page.wait(f"document.querySelector('#problem').innerText === {json.dumps(line)}")
        assert page.texts(".answer") == [] and message(page) == text


def test_a_full_queue_is_said_and_the_message_can_be_sent_again(open_page: Open, server: Server) -> None:
    page = open_page()
    one = server.start_long_answer()
    end = time.monotonic() + SECONDS
    while not server.running():
        assert time.monotonic() < end
    others = [server.start_long_answer(), server.start_long_answer()]
    page.js("document.querySelector('#message').focus()")
    page.type("Is the cat good?")
    page.press("Enter")
    assert problem(page) == "The server's queue is full; try again in a moment."
    assert message(page) == "Is the cat good?"
    for long in (one, *others):
        long.close()
    end = time.monotonic() + SECONDS
    while server.running():
        assert time.monotonic() < end
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.answer').length === 1 && {ANSWERED}")
    assert answers(page) == [server.answer("helpful", "Is the cat good?")] and page.text("#problem") == ""


def test_a_role_that_was_unloaded_and_a_server_that_is_gone_are_said(
    open_page: Open, server: Server, served: Path
) -> None:
    server.ask("v1/roles", {"name": "passing", "role": str(served / "terse")})
    page = open_page()
    page.choose("#role", "passing")
    server.ask("v1/roles/passing", method="DELETE")
    page.js("document.querySelector('#message').focus()")
    page.type("Hello?")
    page.press("Enter")
    assert problem(page) == "This role is no longer there; choose another."
    page.wait("document.querySelector('#role').value === 'helpful' || document.querySelector('#role').value === 'base'")
    assert message(page) == "Hello?"
    page.wait("document.querySelector('#problem').innerText.length > 0")
    page.go_offline(True)
    page.press("Enter")
    page.wait("document.querySelector('#problem').innerText.startsWith('The server does not answer.')")
    assert message(page) == "Hello?"
    page.go_offline(False)
    page.choose("#role", "helpful")
    page.press("Enter")
    page.wait(f"document.querySelectorAll('.answer').length === 1 && {ANSWERED}")
    assert page.text("#problem") == "" and message(page) == ""


def test_a_key_is_asked_for_only_where_it_is_missing(open_page: Open) -> None:
    page = open_page(key="")
    page.wait("document.querySelector('#role').options.length > 0")
    assert page.js("document.querySelector('#key').hidden")
    page.type("Is the cat good?")
    page.press("Enter")
    for key in ("a-wrong-key", KEY):
        page.wait("!document.querySelector('#key').hidden && document.activeElement.name === 'key'")
        assert problem(page) == "This server asks for an API key."
        assert message(page) == "Is the cat good?"
        page.type(key)
        page.press("Enter")
    page.wait(f"document.querySelectorAll('.answer').length === 1 && {ANSWERED}")  # what was refused is sent again
    assert page.text(".asked") == "Is the cat good?" and len(answers(page)[0]) > 0
    assert page.js("document.querySelector('#key').hidden") and page.text("#problem") == ""
    page.reload()
    page.wait("document.querySelector('#role').options.length > 0")
    say(page, "Is the dog good?")  # the key is kept for this tab, and for no other
    assert page.js("localStorage.length") == 0


def test_an_answer_can_be_copied(open_page: Open, browser: Browser) -> None:
    page = open_page()
    say(page, "Is the cat good?")
    page.allow("clipboardReadWrite")
    page.click(".answer button")
    page.wait("document.querySelector('.answer button').innerText === 'Copied'")
    assert page.js("navigator.clipboard.readText()") == answers(page)[0]
    page.wait("document.querySelector('.answer button').innerText === 'Copy'")


def test_everything_can_be_reached_by_keyboard_and_is_named(open_page: Open) -> None:
    page = open_page()
    page.choose("#beside", "terse")
    say(page, "Is the cat good?")
    reached = set()
    for _ in range(40):
        page.press("Tab")
        reached.add(page.js("document.activeElement.id || document.activeElement.innerText"))
    everything = {"role", "beside", "reward", "fresh", "language", "conversation", "message", "Copy"}
    assert everything | {"Continue from this"} <= reached
    tree = page.ask("Accessibility.getFullAXTree")["nodes"]
    named = {"button", "combobox", "textbox", "spinbutton"}
    unnamed = [
        node
        for node in tree
        if node.get("role", {}).get("value") in named and not node.get("name", {}).get("value") and not node["ignored"]
    ]
    assert not unnamed


def test_the_page_asks_no_other_host_and_says_so(server: Server) -> None:
    with urllib.request.urlopen(server.url) as response:
        policy = response.headers["Content-Security-Policy"]
        html = response.read().decode()
    assert "default-src 'self'" in policy and "unsafe" not in policy
    assert "://" not in html
