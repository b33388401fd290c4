"""`onebase doctor --distributed`: what is in order, and each fault as one sentence with exit code 5."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebase.errors import ConfigError
from onebase.tools.doctor_distributed import facts_of
from tests.distributed.ranks import Task, run_all

FAULTS = {
    "other version": ["onebase: process 1 (", " has 0.0.9, and process 0 (", "make them the same"],
    "other machine": ["writes: its '", "' is another folder; mount one file system on all machines, at the same place"],
    "half-written": [" found a file half-written while process 0 (", "renaming is not atomic in '"],
    "no locks": ["got a lock that process 0 (", "mount it so that flock holds across machines"],
    "closed ports": ["process 0 (", ") cannot connect to process 1 (", "open all of them between the machines"],
    "one missing": ["process 1 of 2 did not answer process 0 (", "look at what it says, and whether it was started"],
    "no meeting": ["process 1 (", "cannot reach 127.0.0.1:", "open this port, and give every machine the same"],
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "rows.jsonl").write_text('{"text": "a"}\n')
    (folder / "config.yaml").write_text(f"data:\n  train: [{folder}/rows.jsonl, {folder}/none]\n")
    relative = ["--output-dir", "here/runs", "--config", "config.yaml"]
    tasks = []
    for count in (2, 4):
        words = [
            "check",
            "doctor",
            "none",
            "--json",
            "--output-dir",
            f"{folder}/runs",
            "--config",
            f"{folder}/config.yaml",
        ]
        tasks.append(Task(f"in order {count}", count, words))
    for fault in FAULTS:
        words = relative if fault == "other machine" else ["--output-dir", f"{folder}/runs"]
        tasks.append(Task(fault, 2, ["check", "doctor", fault, *words]))
    return run_all(tasks, folder, may_fail=True)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_what_is_in_order_is_measured_and_told_once(ran: dict[str, Task], count: int) -> None:
    task = ran[f"in order {count}"]
    assert task.codes == [0] * count
    found = json.loads(task.said(0, "stdout"))
    assert found["problems"] == [] and found["processes"] == count == len(found["hosts"])
    assert 0 < found["all_reduce"]["gigabytes_per_second"] and 0 < found["all_reduce"]["milliseconds"]
    assert found["seconds"] < 60
    kinds = {name.split(" = ")[0]: value for name, value in found["facts"].items()}
    assert kinds["data.train"] is None and kinds["torch"] and kinds["onebase's own files"]
    assert sum(name.startswith("data.train = ") for name in found["facts"]) == 2
    assert all(task.said(rank, "stdout") == task.said(rank) == "" for rank in range(1, count))
    folder = Path(found["folder"])
    assert not list(folder.glob(".onebase-doctor-*")) and not (folder / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_sentence(ran: dict[str, Task], fault: str) -> None:
    task, alone = ran[fault], fault in ("one missing", "no meeting")
    speaking = 1 if fault == "no meeting" else 0
    assert task.codes[speaking] == 5 and (alone or task.codes == [5, 5])
    lines = task.said(speaking).splitlines()
    told = [line for line in lines if all(part in line for part in FAULTS[fault])]
    assert len(told) == 1 and told[0].startswith("error: "), lines
    if fault == "other machine":
        assert any(line.startswith("error: config.yaml: process 1 (") for line in lines), lines
    else:
        assert len(lines) == 1, lines


def test_facts_name_what_a_config_reads(tmp_path: Path) -> None:
    config, data = tmp_path / "c.yaml", tmp_path / "d.jsonl"
    data.write_text("{}")
    config.write_text(f"data:\n  train:\n  - {{path: {data}, weight: 2}}\nstart_from: {tmp_path}/none\n")
    before = facts_of(config)
    assert before[f"start_from = {tmp_path}/none"] is None
    data.write_text("{ }")
    after = facts_of(config)
    assert {name for name in before if before[name] != after[name]} == {f"data.train = {data}"}


def test_a_config_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="c.yaml: cannot be read .*; name a config file") as caught:
        facts_of(tmp_path / "c.yaml")
    assert caught.value.exit_code == 2
