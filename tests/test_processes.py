"""Several processes on one run, started by torchrun as a user would: the same result, and a resume across them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebase import processes
from onebase.cli.main import main
from onebase.errors import ConfigError
from onebase.processes import ALONE, Group
from onebase.training import update
from tests.recipes.conftest import (
    SMALL_PPO,
    SMALL_RFT,
    Options,
    answered_rows,
    common,
    make_base,
    metric_rows,
    pair_rows,
    prompt_rows,
    words,
    write_rows,
)
from tests.stops_itself import spoiling, stopping_in

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def in_two(
    verb: str, options: list[str], *, stop_after: int = 0, spoil: Sequence[int] = ()
) -> subprocess.CompletedProcess[str]:
    """A verb in two processes; with `stop_after`, a SIGTERM to the second one alone in that step; with `spoil`, a
    gradient there that is not finite in these."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "STOP_AFTER": str(stop_after),
        "SPOIL": " ".join(map(str, spoil)),
    }
    module = "tests.stops_itself" if stop_after or spoil else "onebase"
    return subprocess.run(
        [*start, module, verb, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def largest_difference(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


class Pretended(Group):
    """One of several processes, as far as dealing out work goes."""

    def __init__(self, count: int, index: int) -> None:
        self.count, self.index = count, index


def test_the_deal_is_even_and_complete() -> None:
    sizes = [7, 1, 9, 3, 3, 8, 2]
    shares = [Pretended(3, index).share(sizes) for index in range(3)]
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert [sum(sizes[i] for i in share) for share in shares] == [11, 11, 11]
    assert [Pretended(3, index).is_main for index in range(3)] == [True, False, False]
    assert [Pretended(3, index).share([5]) for index in range(3)] == [[0], [], []]


def test_one_process_alone_shares_nothing() -> None:
    assert (ALONE.count, ALONE.index, ALONE.is_main, ALONE.local_device()) == (1, 0, True, None)
    assert processes.launched() is ALONE and processes.is_main()
    assert ALONE.share([3, 5]) == [0, 1]
    assert ALONE.gather("mine") == ["mine"]
    assert ALONE.any(True) and not ALONE.any(False)
    assert ALONE.gather_items(["b", "a"], [1, 0], 2) == ["a", "b"]
    assert ALONE.from_main(lambda: 4) == 4
    parameter = torch.nn.Parameter(torch.ones(2))
    ALONE.sum_gradients([parameter])
    assert parameter.grad is None


def test_an_error_of_the_first_process_is_raised_in_all() -> None:
    def fail() -> int:
        raise ConfigError("no such thing")

    class WithOthers(Pretended):
        def gather(self, mine: Any) -> list[Any]:
            first = mine if self.is_main else (None, ConfigError("of the first"))
            return [first, mine]

    assert WithOthers(2, 0).from_main(lambda: 4) == 4
    with pytest.raises(ConfigError, match="no such thing"):
        WithOthers(2, 0).from_main(fail)
    with pytest.raises(ConfigError, match="of the first"):
        WithOthers(2, 1).from_main(fail)  # where it is not called at all


AMONG_OTHERS = """
import json
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores, token_logprobs
from onebase.engines.passes import per_completion, per_token
from onebase.processes import ALONE
from onebase.records import Example
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from tests.tiny_models import add_adapter_role, random_ids, tiny_base

base = tiny_base("llama")
assert base.group is ALONE
add_adapter_role(base, "policy", head=True)
prompts = [random_ids(length, seed=length) for length in (5, 9, 2)]
samples = generate(base, prompts, role="policy", sampling=Sampling(6), seeds=[1, 2, 3])
examples = [Example(prompt, [sample.ids]) for prompt, sample in zip(prompts, samples)]
budget = TokenBudget(20)
logprobs = per_token(base, examples, lambda b: {"p": token_logprobs(base, b, role="policy")}, budget=budget)["p"]
scores = per_completion(base, examples, lambda b: completion_scores(base, b, role="policy"), budget=budget)
import torch.distributed
assert not torch.distributed.is_initialized()
print(json.dumps([[s.ids for s in samples], [p.tolist() for p in logprobs], [s.tolist() for s in scores]]))
"""


def test_nothing_ambient_makes_a_base_that_is_alone_share_its_work() -> None:
    """As in a server or a notebook that a launcher started: without a group, one process does everything."""
    around = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    found = []
    for environment in ({}, around, {"WORLD_SIZE": "2"}):
        clean = {name: value for name, value in os.environ.items() if name not in around}
        done = subprocess.run(
            [sys.executable, "-c", AMONG_OTHERS],
            cwd=ROOT,
            env={**clean, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert found[0] == found[1] == found[2]
    assert [len(part) for part in found[0]] == [3, 3, 3] and all(found[0][0])


@pytest.mark.slow
def test_sft_goes_from_one_process_to_two_and_back(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(24))
    more: Options = {"max_steps": 9, "optimizer.learning_rate": 5e-3, "batch.minibatch": 5, "checkpoint.every_steps": 1}

    def options(name: str) -> list[str]:
        return words(common(base, tmp_path / name, rows), more)

    assert main(["sft", *options("whole")]) == 0
    step = update.Update.step
    with monkeypatch.context() as patch:
        patch.setattr(update.Update, "step", stopping_in(3, step))
        assert main(["sft", *options("mixed")]) == 75
    both = in_two("sft", options("mixed"), stop_after=6)
    assert "found checkpoint-3" in both.stderr and both.returncode != 0, both.stderr
    capsys.readouterr()
    assert main(["sft", *options("mixed")]) == 0
    assert "found checkpoint-6" in capsys.readouterr().err
    assert largest_difference(tmp_path / "whole" / "policy", tmp_path / "mixed" / "policy") < 1e-5
    losses = [[row["loss"] for row in metric_rows(tmp_path / name)] for name in ("whole", "mixed")]
    assert losses[1] == pytest.approx(losses[0], abs=1e-5) and len(losses[1]) == 9


@pytest.mark.slow
def test_ppo_in_two_processes_is_ppo_in_one(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a rollout of a lone prompt, a critic that warms up, and steps that one process alone would refuse."""
    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows())  # 13 of them train
    more: Options = {
        "max_steps": 5,
        "ppo.critic_warmup_rollouts": 2,
        "ppo.num_ppo_epochs": 2,
        "ppo.kl_target": 0.5,
        "ppo.kl_horizon": 50,
        "evaluation.every_steps": 2,
    }
    spoil = (2, 11, 15)
    with monkeypatch.context() as patch:
        patch.setattr(Group, "sum_gradients", spoiling(spoil, Group.sum_gradients))
        assert main(["ppo", *words(common(base, tmp_path / "one", prompts), SMALL_PPO, more)]) == 0
    done = in_two("ppo", words(common(base, tmp_path / "two", prompts), SMALL_PPO, more), spoil=spoil)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out prompts, means") == 1, "the first process alone speaks"
    for role in ("policy", "critic"):
        assert largest_difference(tmp_path / "one" / role, tmp_path / "two" / role) < 1e-5
    rows = [metric_rows(tmp_path / name) for name in ("one", "two")]
    assert [row["completions/num_tokens"] for row in rows[0]] == [row["completions/num_tokens"] for row in rows[1]]
    for name in ("objective/kl", "objective/kl_coef", "loss/value", "critic/grad_norm", "train/refused_steps"):
        values = [[row.get(name) or 0.0 for row in of_run] for of_run in rows]  # none where it was not finite
        assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-5), name
    assert sum(row.get("train/refused_steps") is not None for row in rows[1]) == 3
    assert (tmp_path / "two" / "samples.jsonl").read_bytes() == (tmp_path / "one" / "samples.jsonl").read_bytes()


@pytest.mark.slow
def test_a_lone_prompt_and_a_lone_row_are_shared_by_two(base: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows(1))
    options: Options = {
        "reward.callable": "tests.recipes.conftest:count_vowels",
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 3,
        "data.eval_fraction": None,
    }
    assert main(["best-of", *words(common(base, tmp_path / "one", prompts), options)]) == 0
    done = in_two("best-of", words(common(base, tmp_path / "two", prompts), options))
    assert done.returncode == 0, done.stderr
    for name in ("best.jsonl", "pairs.jsonl"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(5))
    more: Options = {"max_steps": 3, "batch.minibatch": 3, "optimizer.learning_rate": 5e-3}  # 3 rows and 1 by turns
    assert main(["dpo", *words(common(base, tmp_path / "dpo-one", pairs), more)]) == 0
    done = in_two("dpo", words(common(base, tmp_path / "dpo-two", pairs), more))
    assert done.returncode == 0, done.stderr
    assert largest_difference(tmp_path / "dpo-one" / "policy", tmp_path / "dpo-two" / "policy") < 1e-5


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE = 'abc' in the environment is not a number of processes; start several "),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE = -1 in the environment is not a number of processes; start several "),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"},
            "WORLD_SIZE = 2 in the environment, without LOCAL_RANK, MASTER_ADDR; start several processes with "
            "--processes or torchrun, and a single one with WORLD_SIZE unset",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "zero", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "LOCAL_RANK = 'zero' in the environment is not a number; ",
        ),
    ],
)
def test_a_launch_that_is_not_whole_is_one_line(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name in ("WORLD_SIZE", *processes.PLACES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.launched.cache_clear()
    try:
        with pytest.raises(ConfigError) as caught:
            processes.launched()
    finally:
        processes.launched.cache_clear()
    assert str(caught.value).startswith(message) and caught.value.exit_code == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"advantage": "gae", "rft.policy_loss": "kl_penalty", "rft.critic_warmup_rollouts": 1},
        {"rft.dynamic_sampling": True, "rft.kl_coefficient": 0.1, "rft.max_refills": 2},
    ],
    ids=["a critic and a penalty that adapts", "refills and a reference"],
)
def test_rft_in_two_processes_is_rft_in_one(base: Path, tmp_path: Path, more: Options) -> None:
    """Beside a verifier, which the first process alone asks."""
    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    rules = '[{name: length, most: 3, unit: characters}, "tests.recipes.conftest:count_vowels"]'
    options: Options = {**SMALL_RFT, "max_steps": 4, "reward.verifiers": rules, "evaluation.every_steps": 2, **more}
    assert main(["rft", *words(common(base, tmp_path / "one", prompts), options)]) == 0
    done = in_two("rft", words(common(base, tmp_path / "two", prompts), options))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out prompts, means") == 1, "the first process alone speaks"
    assert largest_difference(tmp_path / "one" / "policy", tmp_path / "two" / "policy") < 2e-5
    rows = [metric_rows(tmp_path / name) for name in ("one", "two")]
    for name in ("completions/num_tokens", "objective/scores", "groups/without_variance", "rewards/length/mean"):
        assert [row[name] for row in rows[1]] == pytest.approx([row[name] for row in rows[0]], abs=1e-6), name
