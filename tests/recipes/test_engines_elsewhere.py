"""Runs whose rollouts a server draws: they learn as with our own loop, and stop before a step is spoilt."""

from __future__ import annotations

import json
import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from onebase import asking
from onebase.cli.failures import told
from onebase.config.rollouts import BestOfConfig, PPOConfig
from onebase.errors import ConfigError, QualityError, Stopped, UnansweredError
from onebase.recipes import best_of, ppo, rft
from onebase.training.loop import Loop
from tests.recipes.conftest import Options, common, load, metric_rows, small_ppo, small_rft
from tests.recipes.test_bandit import WORDS, bandit, distributions, options
from tests.sampling.vllm_like import VLLMLike

__all__ = ["bandit"]


@pytest.fixture
def server(base: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VLLMLike]:
    monkeypatch.setattr(asking, "WAITS", ())
    served = VLLMLike(base)
    yield served
    served.close()


def drawn_by(server: VLLMLike, **more: object) -> Options:
    return {"generation.engine": "vllm", "generation.url": server.url} | {f"generation.{k}": v for k, v in more.items()}


def adapter(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "policy" / "adapter_model.safetensors")


def same(some: Path, other: Path) -> bool:
    a, b = adapter(some), adapter(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("ahead", [0, 1])
def test_ppo_is_learned_from_a_server_s_tokens(
    ahead: int, base: Path, prompts: Path, server: VLLMLike, tmp_path: Path
) -> None:
    more = {"max_steps": 3, "generation.temperature": 0.8}
    summary = ppo.run(small_ppo(base, tmp_path / "run", prompts, more, drawn_by(server, ahead=ahead)))
    rows = metric_rows(tmp_path / "run")
    assert summary["rollouts"] == len(rows) == 3
    steps = rows[0]["train/optimizer_steps"]
    assert [row["sampling/staleness"] for row in rows] == [0, ahead * steps, ahead * steps]
    assert all(row["sampling/probability_difference"] < 1e-4 for row in rows)
    if ahead:
        assert rows[1]["sampling/logp_difference"] > 1e-4 and rows[1]["sampling/weight"] != 1
    else:
        assert all(row["sampling/weight"] == pytest.approx(1, abs=1e-3) for row in rows)
    assert len(set(server.loaded)) == len(server.loaded) == 3 - ahead and server.adapters == []
    assert not (tmp_path / "run" / "published").exists()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"generation.ahead": 1},
        {"rft.num_epochs": 1, "rft.minibatch_prompts": 4},
        {"rft.dynamic_sampling": True, "generation.ahead": 1},
    ],
    ids=["two epochs", "ahead", "one step", "dynamic sampling ahead"],
)
def test_rft_is_learned_from_a_server_s_tokens(
    more: Options, base: Path, prompts: Path, server: VLLMLike, tmp_path: Path
) -> None:
    rft.run(small_rft(base, tmp_path / "run", prompts, drawn_by(server), more))
    for row in metric_rows(tmp_path / "run"):
        assert row["sampling/probability_difference"] < 1e-4 and 0.3 < row["sampling/weight"] < 2
    assert server.adapters == []


def test_best_of_takes_its_answers_from_a_server(
    base: Path, sft_role: Path, prompts: Path, server: VLLMLike, tmp_path: Path
) -> None:
    more: Options = {
        "start_from": str(sft_role),
        "generation.samples_per_prompt": 2,
        "generation.max_new_tokens": 5,
        "reward.callable": "tests.recipes.conftest:count_vowels",
        "data.eval_fraction": None,
    }
    summary = best_of.run(load(BestOfConfig, common(base, tmp_path / "run", prompts), more, drawn_by(server)))
    assert summary["prompts"] == 16 and len(server.loaded) == 1 and server.adapters == []
    assert metric_rows(tmp_path / "run")[-1]["sampling/probability_difference"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 1])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(
    ahead: int, base: Path, prompts: Path, server: VLLMLike, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"max_steps": 4} | drawn_by(server, ahead=ahead)
    ppo.run(small_ppo(base, tmp_path / "whole", prompts, more))
    end_step = Loop.end_step

    def stopping(self: Loop, *arguments: object, **words: object) -> None:
        if self.done == 1:
            self.note_signal(15, None)
        end_step(self, *arguments, **words)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "end_step", stopping)
    with pytest.raises(Stopped):
        ppo.run(small_ppo(base, tmp_path / "parts", prompts, more))
    monkeypatch.setattr(Loop, "end_step", end_step)
    ppo.run(small_ppo(base, tmp_path / "parts", prompts, more))
    assert same(tmp_path / "whole", tmp_path / "parts")
    names = ("objective/scores", "sampling/staleness", "loss/policy")
    whole, parts = (
        [[row[name] for name in names] for row in metric_rows(tmp_path / run)] for run in ("whole", "parts")
    )
    assert whole == parts


@pytest.mark.parametrize(
    ("fault", "error", "code"),
    [
        ({"answers_with": "previous"}, QualityError, 5),
        ({"never_lists": True}, QualityError, 5),
        ({"reads_half": True}, QualityError, 5),
        ({"fails": 10**9}, UnansweredError, 75),
        ({"drops": 10**9}, UnansweredError, 75),
        ({"seconds": 8.0}, UnansweredError, 75),
    ],
    ids=["stale", "never loaded", "half", "500s", "dropped", "slow"],
)
@pytest.mark.parametrize("ahead", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_no_step_is_spoilt_by_a_fault_and_the_run_goes_on_after_it(
    ahead: int,
    fault: dict[str, object],
    error: type[Exception],
    code: int,
    base: Path,
    prompts: Path,
    server: VLLMLike,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more = {"max_steps": 4, "optimizer.learning_rate": 0.02} | drawn_by(server, ahead=ahead, timeout=5)
    end_step, usual = Loop.end_step, {name: getattr(server, name) for name in fault}

    def breaking(self: Loop, *arguments: object, **words: object) -> None:
        end_step(self, *arguments, **words)  # type: ignore[arg-type]
        if self.done == 2:
            for name, value in fault.items():
                setattr(server, name, value)

    monkeypatch.setattr(Loop, "end_step", breaking)
    with pytest.raises(error) as raised:
        ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    assert told(raised.value, "ppo", None) == code
    # Drawn ahead, the third rollout may have been whole already; a fourth never is.
    done = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert done in ([1, 2], [1, 2, 3])
    assert (tmp_path / "run" / f"checkpoint-{done[-1]}").is_dir()
    assert not list((tmp_path / "run").glob("failed-in-step-*")), "weights changed before the fault was noticed"

    monkeypatch.setattr(Loop, "end_step", end_step)
    for name, value in usual.items():
        setattr(server, name, value)
    assert ppo.run(small_ppo(base, tmp_path / "run", prompts, more))["rollouts"] == 4


@pytest.mark.slow
def test_the_best_token_is_found_with_a_server_as_without(bandit: Path, tmp_path: Path) -> None:
    found = {}
    for name, ahead in (("server", 0), ("ahead", 1)):
        served = VLLMLike(bandit)
        more = drawn_by(served, ahead=ahead) | {"max_steps": 14, "generation.samples_per_prompt": 4}
        ppo.run(load(PPOConfig, options(bandit, tmp_path / name, "only_g"), more))
        served.close()
        reference, policy = distributions(bandit, tmp_path / name)
        found[name] = float(policy[WORDS.index("g")])
    assert float(reference[WORDS.index("g")]) < 0.3, "it was found before"
    assert min(found.values()) > 0.8, found


def test_a_server_is_started_with_the_run_and_stopped_with_it(base: Path, prompts: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shlex.join([sys.executable, "-m", "tests.sampling.vllm_like", str(base), "--port", str(port)])
    more = {
        "generation.engine": "vllm",
        "generation.url": f"http://127.0.0.1:{port}",
        "generation.start": command,
        "max_steps": 1,
    }
    ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    assert metric_rows(tmp_path / "run")[0]["sampling/probability_difference"] < 1e-4
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", port)) != 0


def test_a_command_that_fails_is_told_with_its_log(base: Path, prompts: Path, tmp_path: Path) -> None:
    more = {"generation.engine": "vllm", "generation.url": "http://127.0.0.1:9", "generation.start": "ls /not/here"}
    with pytest.raises(ConfigError, match="ls /not/here: ended with exit code 2 before it answered") as raised:
        ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    assert raised.value.facts["log"] == tmp_path / "run" / "engine.log"


def test_a_key_that_is_not_in_the_environment_is_told(base: Path, prompts: Path, tmp_path: Path) -> None:
    more = {"generation.engine": "vllm", "generation.url": "http://127.0.0.1:9", "generation.url_key": "NO_SUCH_KEY"}
    with pytest.raises(ConfigError, match="'generation.url_key' = NO_SUCH_KEY: the environment has no such variable"):
        ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
