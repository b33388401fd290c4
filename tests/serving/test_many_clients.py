"""Many clients at once, some going away and some sending nonsense: nothing is lost, and nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx
import psutil
import pytest

from tests.serving.conftest import KEY, Served

NONSENSE: list[dict[str, Any]] = [
    {"content": b"{", "headers": {"Content-Type": "application/json"}},
    {"json": {"model": "nobody", "messages": [{"role": "user", "content": "x"}]}},
    {"json": {"model": "base", "messages": [{"role": "user", "content": "x"}], "max_tokens": -1}},
    {"json": {"model": "base", "messages": "x"}},
]


def body_of(source: random.Random) -> dict[str, Any]:
    return {
        "model": source.choice(["base", "helpful", "brief"]),
        "messages": [{"role": "user", "content": "word " * source.randrange(1, 12)}],
        "max_tokens": source.randrange(1, 24),
        "temperature": source.choice([0, 0.7, 1]),
        "seed": source.randrange(4),
        "n": source.choice([1, 1, 1, 2]),
    }


async def one_client(number: int, count: int, server: Served, outcomes: Counter[str], answers: dict[str, str]) -> None:
    source = random.Random(number)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=240) as client:
        for _ in range(count):
            choice, body = source.random(), body_of(source)
            if choice < 0.1:
                response = await client.post("/v1/chat/completions", **source.choice(NONSENSE))
                assert response.status_code in (400, 404) and response.json()["error"]["message"]
                outcomes["refused"] += 1
            elif choice < 0.3:
                delay = source.random() * 0.2
                try:
                    stream = source.random() < 0.5
                    await asyncio.wait_for(client.post("/v1/chat/completions", json=body | {"stream": stream}), delay)
                except TimeoutError:
                    outcomes["went away"] += 1
                else:
                    outcomes["answered"] += 1
            else:
                response = await client.post("/v1/chat/completions", json=body)
                if response.status_code == 429:
                    outcomes["waited too long"] += 1
                    continue
                assert response.status_code == 200, response.text
                found = response.json()
                told = json.dumps([choice["message"]["content"] for choice in found["choices"]])
                assert answers.setdefault(json.dumps(body), told) == told  # the same request, the same answer
                assert len(found["choices"]) == body["n"]
                assert found["usage"]["completion_tokens"] <= body["max_tokens"] * body["n"]
                outcomes["answered"] += 1


def run(server: Served, *, clients: int, requests: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    answers: dict[str, str] = {}

    async def all_clients() -> None:
        await asyncio.gather(*(one_client(n, requests, server, outcomes, answers) for n in range(clients)))

    asyncio.run(all_clients())
    assert sum(outcomes.values()) == clients * requests
    return outcomes


def gauges(server: Served) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text.splitlines()
    names = ("onebase_running_answers", "onebase_waiting_answers")
    return {name: float(line.split()[1]) for line in lines for name in names if line.startswith(name + " ")}


def test_eight_clients_that_come_and_go_leave_nothing_behind(server: Served) -> None:
    outcomes = run(server, clients=8, requests=12)
    assert outcomes["answered"] > 40 and outcomes["refused"] > 2
    assert gauges(server) == {"onebase_running_answers": 0, "onebase_waiting_answers": 0}


@pytest.mark.slow
def test_64_clients_with_200_requests_each_leave_no_row_and_no_memory_behind(server: Served) -> None:
    process = psutil.Process(server.process.pid)
    run(server, clients=64, requests=20)
    before = process.memory_info().rss
    outcomes = run(server, clients=64, requests=180)
    assert outcomes["answered"] > 7000 and outcomes["went away"] > 100 and outcomes["refused"] > 500
    assert gauges(server) == {"onebase_running_answers": 0, "onebase_waiting_answers": 0}
    assert process.memory_info().rss < before + 50 * 2**20
    assert server.process.poll() is None and not any("Traceback" in line for line in server.lines)
