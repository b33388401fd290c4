"""Scoring block by block: kept in a folder, by one process or by actors on a Ray cluster, always the same bytes."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from onebase.cli.main import main
from onebase.errors import DataError, DoesNotFitError, MissingExtraError
from onebase.records import Row
from onebase.tools import blocks, ray_actors
from onebase.tools.blocks import KeptBlocks, blocks_of, fingerprint_of
from onebase.tools.ray_actors import Applied, Cluster, _check_room, over_blocks
from onebase.tools.score import Scorer
from tests.recipes.conftest import SENTENCES, write_rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Answers of different length; three blocks where a block has ten rows."""
    found = [{"prompt": SENTENCES[i][: 9 + i], "completion": SENTENCES[-i - 1][: 3 + 2 * i]} for i in range(25)]
    return write_rows(tmp_path / "rows.jsonl", found)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 10)


def scored(capsys: pytest.CaptureFixture[str], *words: object, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert main(["score", *map(str, words)]) == code
    printed = capsys.readouterr()
    return printed.out, printed.err


def test_blocks_in_a_folder_give_the_same_lines_and_are_not_computed_twice(
    reward_role: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    small_blocks: None,
) -> None:
    folder = tmp_path / "kept"
    alone, said = scored(capsys, reward_role, rows)
    assert len(alone.splitlines()) == 25 and "score  3/3 blocks" in said
    assert scored(capsys, reward_role, rows, "--output", folder)[0] == alone
    assert sorted(path.name for path in folder.iterdir()) == [
        "block-000000.jsonl",
        "block-000001.jsonl",
        "block-000002.jsonl",
        "job.json",
    ]
    (folder / "block-000001.jsonl").unlink()
    (folder / ".block-000001.jsonl.7.tmp").write_text("half a li")  # as a killed process leaves it
    computed: list[int] = []
    call = Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, own: computed.append(len(own)) or call(self, own))
    again, said = scored(capsys, reward_role, rows, "--output", folder)
    assert again == alone and computed == [10] and "2 of 3 blocks are there already" in said
    assert scored(capsys, reward_role, rows, "--output", folder)[0] == alone and computed == [10]


def test_the_blocks_of_another_job_are_not_taken_for_these(
    reward_role: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "kept"
    scored(capsys, reward_role, rows, "--output", folder)
    said = scored(capsys, reward_role, rows, "--output", folder, "--rank", code=2)[1]
    assert "kept holds the blocks of another job: rank differ; name another folder with --output, or remove it" in said
    with rows.open("a") as file:
        file.write(json.dumps({"prompt": "a", "completion": "b"}) + "\n")
    assert "another job: rows differ; " in scored(capsys, reward_role, rows, "--output", folder, code=2)[1]
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    said = scored(capsys, reward_role, rows, "--output", taken, code=2)[1]
    assert "taken is not empty and holds no blocks; name another with --output" in said
    said = scored(capsys, reward_role, rows, "--output", rows, code=2)[1]
    assert "rows.jsonl is a file; name a folder with --output" in said


def test_actors_need_a_cluster(reward_role: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = scored(capsys, reward_role, rows, "--actors", 2, code=2)[1]
    assert "--actors is 2; it should be at least 1, and 1 without --ray" in said
    said = scored(capsys, reward_role, rows, "--actors", 0, "--ray", "local", code=2)[1]
    assert "--actors is 0; it should be at least 1" in said


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'^Ray is not installed; pip install "onebase\[ray\]"$'):
        next(over_blocks([(0, [])], lambda: list, Cluster("local", 1, 1, False)))


def test_a_cluster_without_room_is_said() -> None:
    _check_room({"CPU": 4.0, "GPU": 2.0}, Cluster("local", 2, 2, True))
    with pytest.raises(DoesNotFitError, match="^the Ray cluster has 3 CPUs, and 2 actors need 4; take fewer actors, "):
        _check_room({"CPU": 3.0}, Cluster("local", 2, 2, False))
    with pytest.raises(DoesNotFitError, match="^the Ray cluster has 0 GPUs, and 1 actors need 1; "):
        _check_room({"CPU": 3.0}, Cluster("local", 1, 1, True))


def test_an_actor_hands_on_an_error_of_ours_and_no_other() -> None:
    threads = torch.get_num_threads()
    batch = {"number": numpy.array([0, 1]), "block": numpy.array([pickle.dumps(n) for n in (1, 5)], dtype=object)}
    one, five = map(pickle.loads, Applied(refuse_five, threads)(batch)["found"])
    assert one == 1 and isinstance(five, DataError) and str(five) == "row 5: no answer"
    with pytest.raises(TypeError):
        Applied(refuse_five, threads)(batch | {"block": numpy.array([pickle.dumps(None)] * 2, dtype=object)})


def test_what_is_kept_depends_on_the_names_and_contents_of_a_role(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    found = {fingerprint_of(tmp_path)}
    (tmp_path / "a").write_text("2")
    found.add(fingerprint_of(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    found.add(fingerprint_of(tmp_path))
    assert len(found) == 3


def test_blocks_in_memory_are_kept_for_this_call_alone() -> None:
    kept = KeptBlocks(None, blocks_of([]), {})
    assert kept.missing() == []
    row = Row("a.jsonl: row 1", (), ("text",))
    kept = KeptBlocks(None, blocks_of([row]), {})
    assert kept.missing() == [0]
    kept.keep(0, ["one", "two"])
    assert kept.missing() == [] and kept.text(0) == "one\ntwo\n"


WITH_RAY = """
import sys
from onebase.cli.main import main
from onebase.tools import blocks
blocks.BLOCK_ROWS = 10
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_actors_on_a_cluster_print_the_bytes_of_one_process(reward_role: Path, rows: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed")

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        line = [sys.executable, "-c", WITH_RAY, "score", str(reward_role), str(rows), "--rank", *more]
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=500)

    alone = run()
    assert alone.returncode == 0 and len(alone.stdout.splitlines()) == 25, alone.stderr
    folder = tmp_path / "kept"
    for actors in ("1", "2"):
        found = run("--ray", "local", "--actors", actors, "--output", str(folder))
        assert found.stdout == alone.stdout, found.stderr
        for number in (0, 2):
            (folder / f"block-00000{number}.jsonl").unlink()


@pytest.mark.slow
def test_an_error_in_an_actor_comes_back_as_itself() -> None:
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.raises(DataError, match="^row 5: no answer$"):
        list(over_blocks([(0, 1), (1, 5)], refuse_five, Cluster(ray_actors.HERE, 1, torch.get_num_threads(), False)))


def refuse_five() -> Callable[[int], int]:
    def checked(number: int) -> int:
        if number == 5:
            raise DataError("row 5: no answer")
        return number * 1

    return checked
