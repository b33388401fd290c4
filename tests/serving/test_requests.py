"""What clients send wrongly, who may ask, and clients that go away: JSON errors, and a server that goes on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from onebase.config.serving import ServeConfig
from onebase.serving.app import create_app
from onebase.serving.metrics import Metrics
from onebase.serving.roles import open_roles
from onebase.serving.server import Server
from onebase.serving.worker import Worker

ASKED = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "helpful", "messages": ASKED, "max_tokens": 5}


class InProcess:
    """A server without sockets, whose worker can be looked at."""

    def __init__(
        self, folders: dict[str, str], *, rows: int | None = None, roles: dict[str, Any] | None = None, **limits: Any
    ) -> None:
        roles = roles or {name: folder for name, folder in folders.items() if name != "base"}
        self.config = ServeConfig.model_validate(
            {"roles": roles, "dtype": "float32", "threads": 1, "limits": limits, "allow_role_changes": True}
        )
        self.metrics = Metrics(price_per_hour=3.6)
        self.worker = Worker(lambda: open_roles(self.config), self.metrics, rows=rows)
        self.worker.start()
        self.app = create_app(Server(self.config, self.worker, self.metrics), api_key=None)

    def client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()

        def deliver(events: Any) -> None:
            for job, reports in events:
                job.report(reports)

        self.worker.post = lambda events: loop.call_soon_threadsafe(deliver, events)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60)

    def state(self) -> dict[str, Any]:
        return self.worker.call(self.worker.state).result(30)


NOTHING = {"rows": 0, "choices": 0, "waiting": 0, "num_waiting": 0}


@pytest.fixture(scope="module")
def inside(folders: dict[str, str]) -> Any:
    server = InProcess(folders, request_bytes=20_000)
    yield server
    server.worker.stop()


def asked(server: InProcess, path: str = "/v1/chat/completions", body: Any = None, **options: Any) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with server.client() as client:
            method = options.pop("method", "POST")
            return await client.request(method, path, **({"json": body} if body is not None else {}), **options)

    return asyncio.run(ask())


JSON = {"Content-Type": "application/json"}
DEEP = "[" * 9000
BAD: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("nothing", "/v1/chat/completions", {"content": b"", "headers": JSON}, 400, "the body is missing"),
    ("no JSON", "/v1/chat/completions", {"content": b'{"model": ', "headers": JSON}, 400, "not valid JSON"),
    ("not UTF-8", "/v1/chat/completions", {"content": b'{"model": "\xff"}', "headers": JSON}, 400, ""),
    ("too deep", "/v1/chat/completions", {"content": DEEP.encode(), "headers": JSON}, 400, ""),
    ("a list", "/v1/chat/completions", {"json": [1]}, 400, "'body' = [1]"),
    ("plain text", "/v1/chat/completions", {"content": b"{}"}, 415, "Content-Type: application/json"),
    ("too large", "/v1/chat/completions", {"json": CHAT | {"user": "x" * 30_000}}, 413, "more than the 20000 bytes"),
    ("no model", "/v1/chat/completions", {"json": {"messages": ASKED}}, 400, "'model' is missing"),
    ("unknown model", "/v1/chat/completions", {"json": CHAT | {"model": "gpt"}}, 404, "there are base, helpful, brief"),
    ("a reward role", "/v1/chat/completions", {"json": CHAT | {"model": "judge"}}, 400, "it scores answers"),
    ("a policy", "/v1/score", {"json": {"model": "base", "prompt": "a", "completions": ["b"]}}, 400, "scores none"),
    ("no messages", "/v1/chat/completions", {"json": CHAT | {"messages": []}}, 400, "'messages' = []"),
    ("a wrong role", "/v1/chat/completions", {"json": CHAT | {"messages": [{"role": "robot", "content": "x"}]}}, 400,
     "'messages.0.role' = 'robot'"),
    ("a picture", "/v1/chat/completions",
     {"json": CHAT | {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}}, 400, "only text is"),
    ("half a character", "/v1/chat/completions",
     {"content": json.dumps(CHAT | {"messages": [{"role": "user", "content": "\ud800"}]}), "headers": JSON}, 400,
     "surrogate"),
    ("0 tokens", "/v1/chat/completions", {"json": CHAT | {"max_tokens": 0}}, 400, "'max_tokens' = 0"),
    ("10^9 tokens", "/v1/chat/completions", {"json": CHAT | {"max_tokens": 10**9}}, 400, "at most 512 here"),
    ("half a token", "/v1/chat/completions", {"json": CHAT | {"max_tokens": 1.5}}, 400, "it should be a whole number"),
    ("10^5000 tokens", "/v1/chat/completions",
     {"content": json.dumps(CHAT).replace('"max_tokens": 5', '"max_tokens": 1' + "0" * 5000), "headers": JSON},
     400, ""),
    ("NaN", "/v1/chat/completions",
     {"content": json.dumps(CHAT | {"temperature": float("nan")}), "headers": JSON}, 400, "'temperature' = nan"),
    ("below 0", "/v1/chat/completions", {"json": CHAT | {"temperature": -1}}, 400, "'temperature' = -1"),
    ("a word", "/v1/chat/completions", {"json": CHAT | {"temperature": "hot"}}, 400, "it should be a number"),
    ("top_p 0", "/v1/chat/completions", {"json": CHAT | {"top_p": 0}}, 400, "'top_p' = 0"),
    ("n 1000", "/v1/chat/completions", {"json": CHAT | {"n": 1000}}, 400, "'n' = 1000"),
    ("n above rows", "/v1/chat/completions", {"json": CHAT | {"n": 100}}, 400, "n is 100, and 64 fit here"),
    ("an empty stop", "/v1/chat/completions", {"json": CHAT | {"stop": ""}}, 400, "'stop"),
    ("top_logprobs alone", "/v1/chat/completions", {"json": CHAT | {"top_logprobs": 2}}, 400, "needs 'logprobs'"),
    ("tools", "/v1/chat/completions", {"json": CHAT | {"tools": [{}]}}, 400, "'tools' is not supported here"),
    ("a penalty", "/v1/chat/completions", {"json": CHAT | {"presence_penalty": 1}}, 400, "'presence_penalty' is not"),
    ("a long prompt", "/v1/chat/completions", {"json": CHAT | {"messages": [{"role": "user", "content": "x" * 600}]}},
     400, "the prompt has 622 tokens"),
    ("no such token", "/v1/completions", {"json": {"model": "base", "prompt": [5, 999]}}, 400, "999 is no token"),
    ("no prompt", "/v1/completions", {"json": {"model": "base", "prompt": []}}, 400, "'prompt' is an empty list"),
    ("half a text", "/v1/completions", {"content": '{"model": "base", "prompt": "\\ud800"}', "headers": JSON}, 400,
     "'prompt' is not valid Unicode"),
    ("no completions", "/v1/score", {"json": {"model": "judge", "prompt": "a", "completions": []}}, 400, "completions"),
    ("two prompts", "/v1/score", {"json": {"model": "judge", "prompt": "a", "messages": ASKED, "completions": ["b"]}},
     400, "give either 'messages' or 'prompt'"),
    ("a long completion", "/v1/score", {"json": {"model": "judge", "prompt": "a", "completions": ["b" * 600]}}, 400,
     "at most 512 here"),
    ("an unknown reward", "/v1/compare", {"json": {"messages": ASKED, "models": ["base"], "reward": "x"}}, 404,
     "there are judge"),
    ("no such folder", "/v1/roles", {"json": {"name": "new", "role": "/nowhere"}}, 400, "/nowhere: no such folder"),
    ("a wrong name", "/v1/roles", {"json": {"name": "a b", "role": "/nowhere"}}, 400, "cannot be a role's name"),
    ("a taken name", "/v1/roles", {"json": {"name": "brief", "role": "/nowhere"}}, 409, "'brief' is served already"),
    ("the base's name", "/v1/roles", {"json": {"name": "base", "role": "/nowhere"}}, 400, "the name of the base"),
    ("no base", "/v1/roles/base", {"method": "DELETE"}, 400, "every role stands on it"),
    ("nobody", "/v1/roles/nobody", {"method": "DELETE"}, 404, "there is no model 'nobody'"),
    ("no such place", "/v1/nothing", {"method": "GET"}, 404, "there is no GET /v1/nothing"),
    ("a wrong method", "/v1/chat/completions", {"method": "GET"}, 405, "GET /v1/chat/completions is not possible"),
    ("another host", "/v1/models", {"method": "GET", "headers": {"Host": "evil.example"}}, 403, "this machine's own"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "sent", "status", "said"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_request_gets_one_sentence_in_openais_shape(
    inside: InProcess, path: str, sent: dict[str, Any], status: int, said: str
) -> None:
    response = asked(inside, path, **sent)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    assert said in error["message"] and "\n" not in error["message"] and "Traceback" not in error["message"]
    assert inside.state() == NOTHING


def test_errors_name_the_field_and_openais_code(inside: InProcess) -> None:
    errors = [
        asked(inside, body=CHAT | wrong).json()["error"]
        for wrong in ({"model": "gpt"}, {"temperature": "hot"}, {"max_tokens": 600}, {"temperature": -1})
    ]
    assert [(error["param"], error["code"]) for error in errors] == [
        ("model", "model_not_found"),
        ("temperature", None),
        ("max_tokens", "context_length_exceeded"),
        ("temperature", None),
    ]
    assert {error["type"] for error in errors} == {"invalid_request_error"}


def test_unknown_fields_are_ignored_and_misspelt_ones_warned_of(
    inside: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    fine = asked(inside, body=CHAT | {"user": "me", "store": True, "flavour": 3, "frequency_penalty": 0, "tools": []})
    assert fine.status_code == 200 and "x-onebase-warning" not in fine.headers
    capsys.readouterr()
    warned = asked(inside, body=CHAT | {"temprature": 0})
    assert warned.status_code == 200
    assert warned.headers["x-onebase-warning"] == "temprature was ignored; did you mean temperature?"
    assert "serve: temprature was ignored; did you mean temperature?\n" in capsys.readouterr().err


def test_a_roles_own_defaults_hold_where_a_request_says_nothing(folders: dict[str, str]) -> None:
    usual = {"temperature": 0.0, "max_tokens": 6, "system": "Be brief."}
    server = InProcess(folders, roles={"terse": {"role": folders["brief"], **usual}, "brief": folders["brief"]})
    asked_for = {"messages": ASKED, "model": "brief", "temperature": 0, "max_tokens": 6}
    told = asked_for | {"messages": [{"role": "system", "content": "Be brief."}, *ASKED]}

    def answer(body: dict[str, Any]) -> tuple[str, int]:
        found = asked(server, body=body).json()
        return found["choices"][0]["message"]["content"], found["usage"]["prompt_tokens"]

    assert answer({"model": "terse", "messages": ASKED}) == answer(told)
    assert answer({"model": "terse", "messages": ASKED})[1] > answer(asked_for)[1]
    assert answer(told | {"model": "terse"}) == answer(told)  # a conversation's own system turn stays the only one
    hot = {"model": "terse", "messages": ASKED, "temperature": 2, "max_tokens": 30}
    assert answer(hot)[0] != answer(hot)[0]
    server.worker.stop()


def test_a_body_that_does_not_say_its_length_is_measured(inside: InProcess) -> None:
    async def ask() -> httpx.Response:
        async def parts() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b" " * 1000

        async with inside.client() as client:
            return await client.post("/v1/chat/completions", content=parts(), headers=JSON)

    response = asyncio.run(ask())
    assert response.status_code == 413 and "more than the 20000 bytes" in response.json()["error"]["message"]


def test_a_key_is_asked_for_where_models_answer_and_compared_whole(folders: dict[str, str], inside: InProcess) -> None:
    app = create_app(Server(inside.config, inside.worker, inside.metrics), api_key="geheim-钥匙")

    async def ask(path: str, key: bytes | None) -> httpx.Response:
        headers = {b"Authorization": b"Bearer " + key} if key is not None else {}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://any.example") as client:
            return await client.get(path, headers=headers)

    right = "geheim-钥匙".encode()
    for path in ("/v1/models", "/metrics"):
        assert asyncio.run(ask(path, right)).status_code == 200
        for wrong in (None, b"", right[:-1], right + b"x", b"\xff"):
            response = asyncio.run(ask(path, wrong))
            assert response.status_code == 401 and response.json()["error"]["type"] == "authentication_error"
            assert response.headers["www-authenticate"] == "Bearer"
    assert asyncio.run(ask("/health", None)).json()["policies"] == ["base", "helpful", "brief"]


def test_metrics_count_requests_tokens_and_cost(inside: InProcess) -> None:
    inside.metrics.watch(lambda: 0, lambda: 0)
    before = inside.metrics.num_tokens
    answer = asked(inside, body=CHAT | {"temperature": 0}).json()
    assert inside.metrics.num_tokens - before == answer["usage"]["total_tokens"]
    lines = asked(inside, "/metrics", method="GET").text.splitlines()
    found = {name: float(value) for line in lines if line[0] != "#" for name, value in [line.rsplit(" ", 1)]}
    assert found['onebase_requests_total{endpoint="/v1/chat/completions",status="200"}'] >= 1
    assert found['onebase_tokens_total{kind="completion",model="helpful"}'] >= 5
    cost = 3.6 * found["onebase_up_seconds"] / 3600 / (inside.metrics.num_tokens / 1000)
    assert found["onebase_cost_per_1k_tokens"] == pytest.approx(cost, rel=0.05)
    assert "tokens/s); " in inside.metrics.summary() and "per 1k tokens at 3.6 per hour" in inside.metrics.summary()
    assert inside.metrics.cost_per_1k is not None and Metrics().cost_per_1k is None


# ---------------------------------------------------------------------------------------------- alone and together


async def _texts(client: httpx.AsyncClient, bodies: list[dict[str, Any]], *, together: bool) -> list[Any]:
    async def ask(body: dict[str, Any]) -> Any:
        response = await client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200, response.text
        found = response.json()
        told = [token["logprob"] for c in found["choices"] if c["logprobs"] for token in c["logprobs"]["content"]]
        return [(c["message"]["content"], c["finish_reason"]) for c in found["choices"]], found["usage"], told

    if together:
        return await asyncio.gather(*map(ask, bodies))
    return [await ask(body) for body in bodies]


def test_answers_of_mixed_roles_prompts_and_seeds_are_the_same_together_as_one_by_one(inside: InProcess) -> None:
    bodies: list[dict[str, Any]] = [
        {
            "model": ("helpful", "brief", "base")[i % 3],
            "messages": [{"role": "user", "content": "Tell me of cats. " * (1 + i % 5)}],
            "max_tokens": 5 + 7 * (i % 6),
            "temperature": (0, 1, 0.7, 1.3)[i % 4],
            "top_p": (1, 0.9)[i % 2],
            "top_k": (0, 20, 5)[i % 3],
            "seed": i // 2,
            "n": (1, 3, 1, 2)[i % 4],
            "stop": ["ab", "e"] if i % 5 == 0 else None,
            "logprobs": i % 4 == 1,
        }
        for i in range(36)
    ]

    async def both() -> tuple[list[Any], list[Any]]:
        async with inside.client() as client:
            return await _texts(client, bodies, together=False), await _texts(client, bodies, together=True)

    alone, together = asyncio.run(both())
    assert [answer[:2] for answer in together] == [answer[:2] for answer in alone]
    for answer, other in zip(together, alone, strict=True):
        assert answer[2] == pytest.approx(other[2], abs=1e-4)
    assert sum(len(answer[2]) for answer in alone) > 100
    assert len({json.dumps(answer) for answer in alone}) > 30
    assert inside.state() == NOTHING


# ----------------------------------------------------------------------------------------- limits, and going away


def test_an_answer_that_fills_the_context_is_scored_in_a_comparison(inside: InProcess) -> None:
    prompt = [{"role": "user", "content": "x" * 480}]
    body = {"messages": prompt, "models": ["base", "brief"], "reward": "judge", "temperature": 0, "max_tokens": 10}
    response = asked(inside, "/v1/compare", body)
    assert response.status_code == 200, response.text
    assert [item["usage"]["total_tokens"] for item in response.json()["data"]] == [512, 512]
    assert all(isinstance(item["score"], float) for item in response.json()["data"])


def test_more_than_may_wait_is_refused_and_who_waits_is_served(folders: dict[str, str]) -> None:
    server = InProcess(folders, rows=1, queue=3)

    async def flood() -> list[httpx.Response]:
        async with server.client() as client:
            body = CHAT | {"max_tokens": 60, "temperature": 0}
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(20)))

    responses = asyncio.run(flood())
    refused = [response for response in responses if response.status_code == 429]
    served = [response for response in responses if response.status_code == 200]
    assert len(refused) + len(served) == 20 and len(served) >= 3 and len(refused) >= 10
    assert "answers are waiting already" in refused[0].json()["error"]["message"]
    assert refused[0].headers["retry-after"] == "1" and refused[0].json()["error"]["type"] == "rate_limit_error"
    assert len({response.json()["choices"][0]["message"]["content"] for response in served}) == 1
    assert server.state() == NOTHING
    server.worker.stop()


def test_an_answer_ends_at_the_time_limit_as_it_stands_and_who_waits_is_told(folders: dict[str, str]) -> None:
    server = InProcess(folders, rows=1, seconds=0.25)

    async def ask() -> list[httpx.Response]:
        async with server.client() as client:
            body = CHAT | {"max_tokens": 480, "temperature": 0.2, "seed": 1}
            return await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for _ in range(6)))

    responses = asyncio.run(ask())
    choice, usage = responses[0].json()["choices"][0], responses[0].json()["usage"]
    assert choice["finish_reason"] == "length" and 0 < usage["completion_tokens"] < 480
    assert {response.status_code for response in responses} == {200, 503}
    told = [response.text for response in responses if response.status_code == 503]
    assert len(told) >= 4 and all("no place came free in time" in text for text in told)
    assert server.state() == NOTHING
    server.worker.stop()


def test_a_step_that_fails_ends_its_answers_with_an_error_and_the_server_goes_on(
    inside: InProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from onebase.sampling.running import RunningBatch

    def fails(*args: Any) -> None:
        raise RuntimeError("a secret of the machine")

    for method in ("step", "admit"):
        with monkeypatch.context() as patch:
            patch.setattr(RunningBatch, method, fails)
            response = asked(inside, body=CHAT)
            assert response.status_code == 500 and "secret" not in response.text
            assert response.json()["error"]["type"] == "server_error"
        assert "a secret of the machine" in capsys.readouterr().err
        assert inside.state() == NOTHING
        assert asked(inside, body=CHAT).status_code == 200


def test_a_client_that_goes_away_frees_its_rows_at_once(server: Any) -> None:
    from tests.serving.conftest import KEY

    headers = {"Authorization": f"Bearer {KEY}"}

    def running() -> float:
        lines = httpx.get(f"{server.url}/metrics", headers=headers).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("onebase_running_answers"))

    body = {"model": "base", "prompt": "Once", "max_tokens": 490, "n": 64}
    before = time.monotonic()
    for stream in (True, False):
        with httpx.Client(base_url=server.url, headers=headers, timeout=httpx.Timeout(60, read=0.3)) as client:
            with pytest.raises((httpx.ReadTimeout, StopIteration)):
                with client.stream("POST", "/v1/completions", json=body | {"stream": stream}) as response:
                    assert response.status_code == 200, response.read()
                    if stream:
                        lines = response.iter_lines()
                        next(lines)
                        assert running() > 0
                        raise StopIteration
        deadline = time.monotonic() + 5
        while running() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert running() == 0
    assert time.monotonic() - before < 30
