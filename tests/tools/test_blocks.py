"""Scoring block by block: kept in a folder, by one process or by actors on a Ray cluster, always the same bytes."""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch

from onebase.cli.main import main
from onebase.distributed.ray_actors import Applied, Cluster, in_order, over_blocks, require_room
from onebase.errors import DataError, DoesNotFitError, MissingExtraError
from onebase.tools import blocks
from onebase.tools.blocks import RowBlocks, digest_of, fingerprint_of, unchanged
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
    words = ("postgresql://ann:secret@localhost/labels", "--ray", "local")
    for verb in (("score", reward_role), ("data", "clean", "--output", reward_role / "new")):
        capsys.readouterr()
        assert main([*map(str, verb), *words]) == 2
        assert (
            "actors on Ray read files, and postgresql://ann:***@localhost/labels is a database on a server; leave "
            in capsys.readouterr().err
        )


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r'^Ray is not installed; pip install "onebase\[ray\]"$'):
        next(over_blocks([(0, [])], lambda: list, Cluster("local", 1, 1, False)))


def test_a_cluster_without_room_is_said() -> None:
    require_room({"CPU": 4.0, "GPU": 2.0}, {"CPU": 4, "GPU": 2}, "2 actors")
    with pytest.raises(
        DoesNotFitError,
        match="^the Ray cluster has 3 CPUs, and 2 actors need 4; take fewer, or add machines to it$",
    ):
        require_room({"CPU": 3.0}, {"CPU": 4}, "2 actors")
    with pytest.raises(DoesNotFitError, match="^the Ray cluster has 0 GPUs, and 1 workers need 1; "):
        require_room({"CPU": 3.0}, {"CPU": 1, "GPU": 1}, "1 workers")


def test_an_actor_hands_on_an_error_of_ours_and_no_other() -> None:
    threads = torch.get_num_threads()
    batch = {"number": numpy.array([0, 1]), "block": numpy.array([pickle.dumps(n) for n in (1, 5)], dtype=object)}
    one, five = map(pickle.loads, Applied(refuse_five, threads, os.getcwd())(batch)["found"])
    assert one == 1 and isinstance(five, DataError) and str(five) == "row 5: no answer"
    with pytest.raises(TypeError):
        Applied(refuse_five, threads, os.getcwd())(batch | {"block": [pickle.dumps(None)]})


def test_what_is_kept_depends_on_the_names_and_contents_of_a_role(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    found = {fingerprint_of(tmp_path)}
    (tmp_path / "a").write_text("2")
    found.add(fingerprint_of(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    found.add(fingerprint_of(tmp_path))
    assert len(found) == 3


def test_a_block_is_the_same_read_in_order_or_by_its_number(rows: Path, tmp_path: Path, small_blocks: None) -> None:
    table = tmp_path / "table.csv"
    table.write_text("prompt,completion\n" + "".join(f"is {n} good?,{n}\n" for n in range(12)))
    questions = [{"question": f"Is {n}?", "answers": [{"text": "it", "answer_start": 0}]} for n in range(11)]
    squad = tmp_path / "squad.json"
    squad.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": "it is", "qas": questions}]}]}))
    for files in ([rows], [table], [rows, table], [squad]):
        dealt = RowBlocks(tuple(map(str, files)))
        found = list(dealt)
        assert [len(block) for block in found[:-1]] == [10] * (len(found) - 1) and 0 < len(found[-1]) <= 10
        assert [digest_of(dealt[number]) for number in range(len(found))] == [digest_of(block) for block in found]
    mapped = RowBlocks((str(table),), {"prompt": "completion"})
    assert mapped[1][0].messages[-1].content == "10"


def test_rows_that_changed_since_they_were_read_first_are_not_taken_for_them(rows: Path) -> None:
    block = next(iter(RowBlocks((str(rows),))))
    digest = digest_of(block)
    assert unchanged(block, digest, 0) is block
    with pytest.raises(DataError, match="rows.jsonl:2: the rows from 2001 to 3000 are not those that were read first"):
        unchanged(block[1:], digest, 2)
    with pytest.raises(DataError, match="^row 1: the rows from 1 to 1000 are not those"):
        unchanged([], digest, 0)


def test_what_comes_out_of_order_waits_for_its_turn() -> None:
    found = [(4, "e"), (1, "b"), (7, "h"), (2, "c")]
    assert list(in_order(iter(found), [1, 2, 4, 7])) == ["b", "c", "e", "h"]
    taken: list[int] = []
    assert next(in_order(((n, taken.append(n)) for n in (0, 1)), [0, 1])) is None and taken == [0]


def refuse_five() -> Callable[[int], int]:
    def checked(number: int) -> int:
        if number == 5:
            raise DataError("row 5: no answer")
        return number * 1

    return checked
