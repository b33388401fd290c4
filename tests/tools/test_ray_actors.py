"""Verbs whose rows actors on a Ray cluster compute: the files of one process, one actor killed included."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import pytest

from onebase.distributed.ray_actors import Cluster, over_blocks
from onebase.errors import DataError
from tests.ray_cluster import RayCluster
from tests.recipes.conftest import Options, common, file_bytes, pair_rows, prompt_rows, words, write_rows
from tests.tools.test_blocks import refuse_five

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
IN_SMALL_BLOCKS = """
import sys
from onebase.cli.main import main
from onebase.tools import blocks
blocks.BLOCK_ROWS = 10
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path is short enough for the sockets that Ray puts there."""
    with TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def started(*line: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", IN_SMALL_BLOCKS, *map(str, line)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*line: object) -> str:
    running = started(*line)
    printed, said = running.communicate(timeout=400)
    assert running.returncode == 0, said
    return printed


def is_actor(process: psutil.Process) -> bool:
    return "MapWorker" in " ".join(process.cmdline())


def test_actors_score_the_bytes_of_one_process(reward_role: Path, tmp_path: Path, ray_cluster: RayCluster) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", pair_rows(25))
    line = ("score", reward_role, rows, "--rank", "--output", tmp_path / "kept")
    alone = run(*line)
    assert len(alone.splitlines()) == 25
    for number in (0, 2):
        (tmp_path / "kept" / f"block-00000{number}.jsonl").unlink()
    assert run(*line, "--ray", ray_cluster.address, "--actors", "2") == alone


def test_actors_judge_rows_as_one_process_does_though_one_is_killed(
    reward_role: Path, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    twice = [*pair_rows(30), *pair_rows(5), {"prompt": "a", "chosen": "\ufffd", "rejected": "b"}]
    rows = write_rows(tmp_path / "rows.jsonl", twice)
    line = ("data", "clean", rows, "--difficulty", reward_role, "--reward", reward_role)
    run(*line, "--output", tmp_path / "one")
    running = started(*line, "--output", tmp_path / "several", "--ray", ray_cluster.address, "--actors", "2")
    killed = None
    while killed is None and running.poll() is None:
        time.sleep(0.05)
        killed = ray_cluster.find(is_actor)
    assert killed is not None, running.communicate()
    os.kill(killed.pid, signal.SIGKILL)
    _, said = running.communicate(timeout=400)
    assert running.returncode == 0, said
    assert file_bytes(tmp_path / "several") == file_bytes(tmp_path / "one")
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert {found["name"]: found["dropped"] for found in report["filters"]}["duplicates"] == 5
    assert not (tmp_path / "several.blocks").exists()


def test_actors_draw_the_answers_of_one_process(
    base: Path, reward_role: Path, tmp_path: Path, ray_cluster: RayCluster
) -> None:
    prompts = write_rows(tmp_path / "prompts.jsonl", prompt_rows(70))
    more: Options = {
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 3,
        "reward.role": str(reward_role),
        "data.eval_fraction": None,
        "data.limit": 70,
    }
    run("best-of", *words(common(base, tmp_path / "one", prompts), more))
    asked = words(common(base, tmp_path / "several", prompts), more)
    run("best-of", *asked, "--ray", ray_cluster.address, "--actors", "2")
    for name in ("best.jsonl", "pairs.jsonl"):
        assert (tmp_path / "several" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "one" / name).stat().st_size > 0


def test_a_cluster_that_is_gone_is_not_joined(
    reward_role: Path, tmp_path: Path, short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (short_folder / "ray").mkdir()
    (short_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # as a killed one leaves it
    monkeypatch.setenv("RAY_TMPDIR", str(short_folder))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    line = ("score", reward_role, write_rows(tmp_path / "rows.jsonl", pair_rows(12)))
    assert run(*line, "--ray", "local", "--actors", "1") == run(*line)


def test_an_error_in_an_actor_comes_back_as_itself(ray_cluster: RayCluster, capfd: pytest.CaptureFixture[str]) -> None:
    make: Callable[[], Callable[[int], int]] = refuse_five
    with pytest.raises(DataError, match="^row 5: no answer$"):
        list(over_blocks([(0, 1), (1, 5)], make, Cluster(ray_cluster.address, 1, 1, False)))
