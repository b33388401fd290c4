"""What `onebase export --to vllm` writes, served by vLLM itself; `ONEBASE_VLLM` names its program."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import torch

from onebase.cli.main import main
from onebase.data.chat import chat_format
from onebase.engines.opening import load_base
from onebase.models.base import OneBase
from onebase.models.role_files import save_role
from onebase.records import Message
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from tests.tiny_models import add_adapter_role, tiny_model, tiny_tokenizer

PROGRAM = os.environ.get("ONEBASE_VLLM")
PATIENCE = 500.0
QUESTIONS = ["What is 2 + 2?", "Name a prime.", "Say hello in French, please."]
NEW_TOKENS = 24


@contextmanager
def served(words: list[str], log: Path) -> Iterator[str]:
    """Runs the exported command with vLLM's program on a free port; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # vLLM's CPU build compiles for minutes without this, and has no kernels for other adapters than these.
    more = ["--port", str(port), "--enforce-eager", "--max-model-len", "256", "--dtype", "float32"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop("PYTHONPATH", None)
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(PROGRAM), *words[1:], *more], env=environment, stdout=file, stderr=file, start_new_session=True
        )
        try:
            url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + PATIENCE
            while True:
                with suppress(httpx.HTTPError):
                    if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                        break
                assert process.poll() is None and time.monotonic() < deadline, log.read_text(errors="replace")[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
@pytest.mark.skipif(not PROGRAM, reason="ONEBASE_VLLM does not name a vllm program")
def test_vllm_answers_with_the_exported_adapter_as_we_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, role, out = tmp_path / "base", tmp_path / "policy", tmp_path / "out"
    # vLLM's CPU kernels need heads of 32 or more.
    model = tiny_model("llama", hidden_size=128, intermediate_size=128, max_position_embeddings=256)
    tokenizer = tiny_tokenizer()
    printed = {id for token, id in tokenizer.get_vocab().items() if len(token) == 1 and token.isascii()}
    with torch.no_grad():  # answers in ASCII: bytes that are no characters have no text that could be compared
        model.lm_head.weight[[id for id in range(len(tokenizer)) if id not in printed]] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    base = load_base(str(folder), dtype="float32", device="cpu")
    add_adapter_role(base, "policy", r=8, seed=3)
    save_role(base, "policy", role, kind="policy", chat=chat_format(base.tokenizer, "chatml"))
    base.add_role("base")
    ours, plain = answers(base, "policy"), answers(base, "base")
    assert all(one != other for one, other in zip(ours, plain, strict=True)), "the adapter changes nothing"
    capsys.readouterr()
    assert main(["export", str(role), str(out), "--to", "vllm", "--device", "cpu"]) == 0
    words = shlex.split(capsys.readouterr().out.splitlines()[0])
    with served(words, tmp_path / "log") as url:
        listed = {model["id"] for model in httpx.get(f"{url}/v1/models", timeout=30).json()["data"]}
        found = {model: [asked(url, model, question) for question in QUESTIONS] for model in ("policy", str(folder))}
    assert listed == {"policy", str(folder)}
    assert found == {"policy": ours, str(folder): plain}


def answers(base: OneBase, role: str) -> list[str]:
    """Our own greedy answers."""
    chat = chat_format(base.tokenizer, "chatml")
    prompts = [chat.encode_prompt((Message("user", question),)) for question in QUESTIONS]
    sampling = Sampling(NEW_TOKENS, temperature=0, stop_ids=(chat.end_token_id,))
    samples = generate(base, prompts, role=role, sampling=sampling, seeds=[0] * len(prompts))
    return [chat.decode(sample.ids) for sample in samples]


def asked(url: str, model: str, question: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])
