"""`--to ray`: a real cluster on this machine, with workers that are lost and workers that fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from onebase.cli.main import main
from onebase.errors import MissingExtraError
from onebase.submitting.ray_train import Board, End, Workers, run, verdict
from tests.ray_cluster import RayCluster
from tests.recipes.conftest import SMALL_PPO, common, metric_rows, prompt_rows, words, write_rows

ROOT = Path(__file__).resolve().parents[2]


def test_the_board_finds_the_process_that_failed_first_for_a_reason_of_its_own() -> None:
    board = Board({"A": "1"})
    assert board.environment() == {"A": "1"} and board.begin("") == 1
    board.say(0, "stdout", "a line")
    assert board.take() == [(0, "stdout", "a line")] and board.take() == []
    assert board.cause() is None and not board.final()
    board.end(End(1, 0, 1, "the connection was closed", 10.0))
    assert not board.final() and board.cause() == End(1, 0, 1, "the connection was closed", 10.0)
    board.end(End(1, 2, 3, "row 5: no answer", 11.0))
    assert board.final() and board.cause() == End(1, 2, 3, "row 5: no answer", 11.0)
    board.begin("checkpoint-1")
    assert board.cause() is None


def test_a_run_ends_with_the_code_of_the_process_that_failed_or_with_what_ray_says() -> None:
    found = verdict(End(1, 2, 3, "row 5: no answer", 11.0), RuntimeError("a worker failed"), 3)
    assert found is not None and found.exit_code == 3
    assert str(found) == "worker 2 of 3 ended with exit code 3: row 5: no answer"
    assert (
        str(verdict(End(1, 0, 75, "", 1.0), None, 2)) == "worker 0 of 2 ended with exit code 75: stopped after saving"
    )
    assert str(verdict(End(1, 0, 137, "", 1.0), None, 2)) == "worker 0 of 2 ended with exit code 137: it said nothing"
    lost = verdict(None, RuntimeError("no room"), 2)
    assert lost is not None and str(lost) == "Ray ended the workers: no room" and lost.exit_code == 1
    assert verdict(None, None, 2) is None


def test_a_failure_that_repeats_itself_without_a_newer_checkpoint_is_the_end() -> None:
    board = Board({})
    for newest, final in (("", False), ("", True), ("checkpoint-2", False), ("checkpoint-2", True)):
        start = board.begin(newest)
        board.end(End(start, 0, 1, "it failed", float(start)))
        assert board.final() == final, newest
    board.begin("checkpoint-4")
    assert not board.final() and not board.is_stopping()
    board.stop()
    assert board.final() and board.is_stopping()


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'^Ray is not installed; pip install "onebase\[ray\]"$'):
        run(["sft"], Workers(1), folder=tmp_path)


def submitted(work: Path, cluster: RayCluster, *more: str, workers: int = 2) -> subprocess.Popen[str]:
    """`onebase submit --to ray --go`."""
    line = [sys.executable, "-m", "onebase", "submit", "--to", "ray", "--nodes", str(workers), "--go", *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(line, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def of_rank(cluster: RayCluster, rank: int) -> psutil.Process | None:
    """The process of `onebase` that a worker started."""
    return cluster.find(lambda one: "onebase" in one.cmdline() and one.environ().get("RANK") == str(rank))


@pytest.mark.slow
def test_ppo_on_three_workers_of_which_one_is_killed_ends_as_without(work: Path, ray_cluster: RayCluster) -> None:
    prompts = write_rows(work / "prompts.jsonl", prompt_rows())
    options = {
        **SMALL_PPO,
        "reward.callable": "tests.recipes.conftest:count_vowels",
        "max_steps": 4,
        "checkpoint.every_steps": 1,
    }
    assert main(["ppo", *words(common(work / "base", work / "one", prompts), options)]) == 0
    asked = words(common(work / "base", work / "three", prompts), options)
    started = submitted(work, ray_cluster, "ppo", "--into", "job", *asked, workers=3)
    killed = None
    while killed is None and started.poll() is None:
        time.sleep(0.05)
        if (work / "three" / "checkpoint-2").is_dir() and (found := of_rank(ray_cluster, 1)) is not None:
            killed = found.parent()
            assert killed is not None
            os.kill(killed.pid, signal.SIGKILL)  # Ray's worker, and with it the process it started
    out, error = started.communicate(timeout=500)
    assert started.returncode == 0, error
    assert killed is not None and "found checkpoint-" in error, error
    assert out.count("held-out prompts, means") == 1, "what the first process prints comes back, and of no other"
    for role in ("policy", "critic"):
        a, b = (load_file(work / name / role / "adapter_model.safetensors") for name in ("one", "three"))
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-5
    rows = [metric_rows(work / name) for name in ("one", "three")]
    assert [row["completions/num_tokens"] for row in rows[1]] == [row["completions/num_tokens"] for row in rows[0]]


@pytest.mark.slow
def test_the_error_of_a_worker_that_failed_comes_back_with_its_code(work: Path, ray_cluster: RayCluster) -> None:
    (work / "rows.jsonl").rename(work / "good.jsonl")
    lines = (work / "good.jsonl").read_text().splitlines()
    (work / "rows.jsonl").write_text("\n".join([*lines[:3], json.dumps({"prompt": "a", "completion": 5}), *lines[3:]]))
    started = submitted(work, ray_cluster, "sft", "sft.yaml", "--into", "job")
    _, error = started.communicate(timeout=500)
    assert started.returncode == 3, error
    last = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "of 2 ended with exit code 3: " in error and "rows.jsonl" in error, error
    assert last[-1] == "error: python job.py ended with exit code 3; its own lines are above"


@pytest.mark.slow
def test_a_stop_that_is_asked_for_lets_all_workers_save(work: Path, ray_cluster: RayCluster) -> None:
    started = submitted(
        work, ray_cluster, "sft", "sft.yaml", "--into", "job", "--max_steps", "3000", "--checkpoint.every_steps", "1"
    )
    folder = work / "runs" / "sft"
    while started.poll() is None and not (folder / "checkpoint-2").is_dir():
        time.sleep(0.05)
    started.terminate()
    _, error = started.communicate(timeout=300)
    assert started.returncode == 75, error
    newest = max(int(path.name.partition("-")[2]) for path in folder.glob("checkpoint-*"))
    assert f"stopped after step {newest} and saved" in error and not (folder / "summary.json").exists()
