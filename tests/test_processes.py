"""Several processes on one run, started by torchrun as a user would: the same result, and a resume across them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from onebase import processes
from onebase.cli import main
from onebase.training import update
from tests.recipes.conftest import (
    SMALL_PPO,
    Options,
    answered_rows,
    common,
    make_base,
    metric_rows,
    prompt_rows,
    words,
    write_rows,
)
from tests.stops_itself import stopping_in

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


def in_two(verb: str, options: list[str], *, stop_after: int = 0) -> subprocess.CompletedProcess[str]:
    """A verb in two processes; with `stop_after`, a SIGTERM to the second one alone in that step."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "STOP_AFTER": str(stop_after)}
    module = "tests.stops_itself" if stop_after else "onebase"
    return subprocess.run(
        [*start, module, verb, *options], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def largest_difference(one: Path, other: Path) -> float:
    a, b = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_the_deal_is_even_and_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [7, 1, 9, 3, 3, 8, 2]
    monkeypatch.setattr(processes, "count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        shares.append(processes.share(sizes))
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert [sum(sizes[i] for i in share) for share in shares] == [11, 11, 11]


def test_one_process_alone_shares_nothing() -> None:
    assert processes.count() == 1 and processes.is_main()
    assert processes.share([3, 5]) == [0, 1]
    assert processes.gather("mine") == ["mine"]
    assert processes.gather_items(["b", "a"], [1, 0], 2) == ["a", "b"]
    assert processes.from_main(lambda: 4) == 4


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


def test_ppo_in_two_processes_is_ppo_in_one(base: Path, tmp_path: Path) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    assert main(["ppo", *words(common(base, tmp_path / "one", prompts), SMALL_PPO)]) == 0
    done = in_two("ppo", words(common(base, tmp_path / "two", prompts), SMALL_PPO))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("held-out prompts, means") == 1, "the first process alone speaks"
    for role in ("policy", "critic"):
        assert largest_difference(tmp_path / "one" / role, tmp_path / "two" / role) < 1e-5
    assert (tmp_path / "two" / "samples.jsonl").exists() and len(metric_rows(tmp_path / "two")) == 2
