"""The command itself: what it says and refuses before it serves, and how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.config.files import dump_config, load_config
from onebase.config.serving import ServeConfig, names_of
from onebase.errors import ConfigError
from tests.serving.conftest import Served, write_config


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int) -> str:
    capsys.readouterr()
    assert main(["serve", *words]) == code
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err


def messages(text: str, tmp_path: Path) -> str:
    (tmp_path / "serve.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(ServeConfig, tmp_path / "serve.yaml")
    return str(caught.value)


def test_a_config_names_roles_with_or_without_defaults_and_reads_back(tmp_path: Path) -> None:
    text = "roles: {a: runs/a, 2026: {role: runs/b, temperature: 0.5, system: Be brief.}}\nmodel: here\nport: 0\n"
    (tmp_path / "serve.yaml").write_text(text)
    config = load_config(ServeConfig, tmp_path / "serve.yaml", ["--limits.queue", "7"])
    assert config.roles["a"].role == "runs/a" and config.roles["a"].temperature == 1
    assert (config.roles["2026"].temperature, config.roles["2026"].system) == (0.5, "Be brief.")
    assert (config.model, config.port, config.limits.queue, config.host) == ("here", 0, 7, "127.0.0.1")
    (tmp_path / "again.yaml").write_text(dump_config(config))
    assert load_config(ServeConfig, tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port: 8000\n", "nothing to serve: name a role's folder, or a base with 'model'"),
        (
            "roles: [a]\n",
            "serve.yaml: 'roles' = [a]: it should be names and folders, such as {helpful: runs/dpo/policy}",
        ),
        ("roles: {base: a}\n", "'base' is the name of the base without adapters; give the role another"),
        ("roles: {'a b': a}\n", "'a b' cannot be a role's name: it should have up to 64 letters, digits,"),
        ("roles: {a: {temperature: 1}}\n", "'a' has no folder; add role: FOLDER"),
        ("roles: {a: [b]}\n", "'a' should be a folder, or {role: FOLDER, temperature: 0.7}"),
        ("roles: {a: {role: b, temprature: 1}}\n", "'a' has an unknown key 'temprature'; did you mean 'temperature'?"),
        ("roles: {a: {role: b, xyz: 1}}\n", "unknown key 'xyz'; its keys are role, temperature, top_p, top_k,"),
        ("roles: {a: {role: b, top_p: 0}}\n", "'a': top_p = 0: it should be greater than 0"),
        ("roles: {a: b}\nprot: 1\n", "'prot' is unknown; did you mean 'port'?"),
        ("roles: {a: b}\napi_key: x\n", "'api_key' is unknown"),
        ("roles: {a: b}\nport: 99999\n", "'port' = 99999: it should be less than or equal to 65535"),
        ("roles: {a: b}\nlimits: {queue: 0}\n", "'limits.queue' = 0: it should be greater than or equal to 1"),
    ],
)
def test_a_wrong_config_is_told_what_to_change(text: str, message: str, tmp_path: Path) -> None:
    assert message in messages(text, tmp_path)


def test_a_folder_is_served_under_the_name_of_its_run() -> None:
    named = names_of(["runs/dpo/policy", "runs/b/dpo/policy", "runs/reward/reward/", "base", "runs/ä ö"])
    assert list(named) == ["dpo", "dpo-2", "reward", "base-2", "role"]


def test_what_cannot_be_served_is_refused_before_torch_is_imported(folders: dict[str, str], tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    commands = [
        [],
        ["/nowhere"],
        ["--model", "/nowhere"],
        [folders["helpful"], "--api-key", " "],
        [folders["helpful"], "--config", str(tmp_path / "none.yaml")],
        [folders["helpful"], "--device", "abacus"],
    ]
    code = f"""
import sys
from onebase.cli.main import main
assert [main(["serve", *words]) for words in {commands!r}] == [2] * {len(commands)}
assert not {{"torch", "transformers", "fastapi"}} & set(sys.modules), "imported"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for line, part in zip(
        lines,
        (
            "error: command line: nothing to serve: name a role's folder, or a base with 'model'",
            "error: /nowhere: no such folder;",
            "error: /nowhere: no such folder;",
            "error: --api-key is blank; give a key, or leave it out",
            "error: no config file",
            "error: command line: 'device' = abacus: it should be auto, cpu, cuda or cuda:1",
        ),
        strict=True,
    ):
        assert line.startswith(part), line
    taken.close()


def test_an_address_that_others_reach_needs_a_key_and_a_taken_one_is_told(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEBASE_API_KEY", raising=False)
    err = said(capsys, folders["helpful"], "--host", "0.0.0.0", code=2)
    assert "error: host 0.0.0.0 can be reached from other machines, and there is no API key: give one with" in err
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        err = said(capsys, folders["helpful"], "--port", port, code=2)
        assert f"error: cannot listen on 127.0.0.1, port {port}: address already in use; choose another" in err
    err = said(capsys, folders["helpful"], "--host", "no.such.host.invalid", "--api-key", "k", code=2)
    assert "error: cannot listen on no.such.host.invalid, port 8000: " in err


def test_without_its_packages_serve_says_which_to_install(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebase.cli.serving.find_spec", lambda name: None if name == "uvicorn" else object())
    err = said(capsys, folders["helpful"], code=6)
    assert err == 'error: serve needs uvicorn: pip install "onebase[serve]"\n'


def test_a_role_of_another_base_and_a_reward_role_with_a_temperature_are_refused(
    folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Path(folders["brief"]) / "role.json"
    entries = json.loads(card.read_text())
    try:
        card.write_text(json.dumps(entries | {"base_fingerprint": "0" * 16}))
        assert "made on another base" in said(capsys, folders["helpful"], folders["brief"], "--port", "0", code=2)
    finally:
        card.write_text(json.dumps(entries))
    roles = {"roles": {"judge": {"role": folders["judge"], "temperature": 0.5}}}
    config = write_config(tmp_path, folders, **roles)
    err = said(capsys, "--config", config, "--port", "0", code=2)
    assert "'judge' is a reward role: temperature, max_tokens and the like would change nothing" in err


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(
        urllib.request.Request(url + path, data, {"Content-Type": "application/json"}), timeout=60
    ) as response:
        found: dict[str, Any] = json.load(response)
    return found


def test_sigterm_lets_running_answers_finish_and_the_last_line_says_what_was_done(
    folders: dict[str, str], start: Callable[..., Served]
) -> None:
    served = start(folders["helpful"], folders["judge"], "--price-per-hour", "1.5")
    assert served.lines[-1] == f"serve: {served.url}; this machine only"
    assert ask(served.url, "/health")["policies"] == ["base", "helpful"]
    answers: list[dict[str, Any]] = []
    body = {"model": "base", "prompt": "Once", "max_tokens": 480, "n": 16, "temperature": 1.5, "seed": 1}
    asking = threading.Thread(target=lambda: answers.append(ask(served.url, "/v1/completions", body)))
    asking.start()
    while "completion" not in (seen := _metrics(served.url)) or "running_answers 0.0" in seen:
        pass
    assert served.stop(signal.SIGTERM) == 0
    asking.join(10)
    assert len(answers[0]["choices"]) == 16
    tokens = answers[0]["usage"]["total_tokens"]
    assert served.lines[-1].startswith("serve: ") and f" requests, {tokens} tokens in " in served.lines[-1]
    assert "tokens/s); " in served.lines[-1] and "per 1k tokens at 1.5 per hour" in served.lines[-1]
    with pytest.raises(OSError):
        ask(served.url, "/health")


def test_an_idle_server_ends_on_sigterm_with_its_summary(folders: dict[str, str], start: Callable[..., Served]) -> None:
    served = start(folders["helpful"])
    assert served.stop(signal.SIGTERM) == 0
    assert served.lines[-2:-1] == ["serve: stopping; running answers finish first, a second signal ends them"]
    assert re.fullmatch(r"serve: 0 requests, 0 tokens in [\d.]+ s.*", served.lines[-1])


def _metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        return str(response.read().decode())


def test_a_second_signal_ends_what_is_running(folders: dict[str, str], start: Callable[..., Served]) -> None:
    served = start("--model", folders["base"])
    body = {"model": "base", "prompt": "Once", "max_tokens": 500, "n": 60, "temperature": 1.5, "seed": 1}
    asking = threading.Thread(target=lambda: _ignoring_errors(served.url, body))
    asking.start()
    while "completion" not in _metrics(served.url):
        pass
    served.process.send_signal(signal.SIGINT)
    assert served.stop(signal.SIGINT) == 0
    asking.join(10)
    assert any("running answers finish first" in line for line in served.lines)


def _ignoring_errors(url: str, body: dict[str, Any]) -> None:
    try:
        ask(url, "/v1/completions", body)
    except OSError:
        pass
