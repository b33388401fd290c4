"""A database wherever a data file may be named: its rows, what is left out, and training on it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from onebase.cli.main import main
from onebase.config.files import load_config
from onebase.config.preferences import RewardConfig
from onebase.data.chat import chat_format
from onebase.data.mixing import Source, read_sources
from onebase.errors import ConfigError, DataError
from onebase.labels.judged import NewTask
from onebase.labels.store import Store
from onebase.models.loading import load_tokenizer
from onebase.reading.files import check_file, content_hash, expand, file_id, kind_of
from onebase.reading.formats import iter_rows, read_rows
from onebase.recipes import reward
from onebase.records import Message
from onebase.streaming.rows import StreamedRows
from tests.labels.conftest import new_tasks
from tests.recipes.conftest import common, file_bytes, make_base

RANKED = [[[3, 2, 1]], [[1, 3, 3]], [[3, 2, 2], [3, 1, 2], [1, 3, 3]], [[2, 3, 3], [3, 2, 2]]]
"""Of each task the annotators' grades."""


def filled(
    url: str | Path, tasks: Sequence[NewTask] | None = None, given: Sequence[Sequence[list[int]]] = RANKED
) -> Store:
    """A store in which the tasks are ranked like this, the next one was called all bad, and one is gold."""
    store = Store.open(url, create=True)
    tasks = tasks or new_tasks(6)
    store.tasks.add(tasks, overlap=3)
    store.tasks.add(new_tasks(1, gold=True))
    for number in range(3):
        person = store.people.add(f"annotator {number}")
        for task in store.tasks.all():
            lease = store.leases.take(person.id, gold_share=0.0)
            assert lease is not None and lease.task.id == task.id
            lists = given[task.id - 1] if task.id <= len(given) else []
            if task.gold is not None or number < len(lists):
                grades = [3, 2, 1] if task.gold is not None else lists[number]
                store.judgements.save(person.id, task.id, key=f"k{task.id}", kind="ranked", grades=grades)
            else:
                bad = task.id == len(given) + 1
                store.judgements.save(person.id, task.id, key=f"k{task.id}", kind="all_bad" if bad else "skipped")
    return store


def test_a_task_with_rankings_is_one_row(url: str) -> None:
    filled(url).close()
    rows = read_rows(url)
    assert [row.grades for row in rows] == [(3, 2, 1), (1, 3, 3), (2, -2, 0), (0, 0, 0)]
    third = rows[2]
    assert (third.messages, third.answers) == ((Message("user", "Open question 2?"),), ("a2", "b2", "c2"))
    assert third.columns == {
        "task": 3,
        "annotators": ["annotator 0", "annotator 1", "annotator 2"],
        "orders": [[[1], [2, 3]], [[1], [3], [2]], [[2, 3], [1]]],
        "agreement": 0.333333,
        "chosen_by": "file",
    }
    assert rows[0].columns["agreement"] is None
    shown = url.replace("of%20the%20tests", "***")
    assert [row.place for row in rows] == [f"{shown}:task {number}" for number in (1, 2, 3, 4)]
    assert rows[0].notes == (
        "tasks of the database that are no rows: 2 called all bad or skipped by everybody, 1 gold question",
    )


def test_a_database_without_rankings_is_no_data(url: str) -> None:
    store = Store.open(url, create=True)
    store.tasks.add(new_tasks(2))
    with pytest.raises(
        DataError, match="holds no rankings yet: .*2 judged by nobody yet; rank some tasks first"
    ) as empty:
        read_rows(url)
    assert "of the tests" not in str(empty.value) and "%20" not in str(empty.value)
    store.close()


def test_a_database_is_itself_by_any_name_and_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = filled("label.db")
    names = ["label.db", "sqlite:///label.db", f"sqlite:///{tmp_path}/label.db"]
    assert len({file_id(expand(name)[0]) for name in names}) == 1
    with pytest.raises(DataError, match="are the same file"):
        read_sources([Source((names[0],)), Source((names[1],))])
    before = content_hash(Path("label.db"))
    store.judgements.undo(1)  # stands in the log beside the file
    assert content_hash(Path("label.db")) == before  # a withdrawn gold answer is in no row
    store.judgements.undo(1)
    store.judgements.undo(1)
    store.judgements.save(1, 5, key="again", kind="ranked", grades=[1, 2, 3])
    assert content_hash(Path("label.db")) != before
    store.close()
    (tmp_path / "label.db").rename("renamed")
    assert kind_of(Path("renamed")) == "database" and len(read_rows("sqlite:///renamed")) == 5


def test_a_read_is_of_one_moment(url: str) -> None:
    store = filled(url)
    before, rows = read_rows(url), iter_rows(url)
    first = next(rows)
    for number in (1, 2, 3):
        while store.judgements.undo(number):
            pass
    assert [first, *rows] == before and len(before) == 4
    with pytest.raises(DataError, match="holds no rankings yet"):
        read_rows(url)
    store.close()


def test_a_database_is_not_streamed(url: str) -> None:
    filled(url).close()
    with pytest.raises(DataError, match="a database is not streamed"):
        StreamedRows([Source((url,))])


def test_what_is_no_database_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "label.db").write_text("no database\n" * 200)
    with pytest.raises(DataError, match="is not an SQLite database, or is damaged"):
        check_file(tmp_path / "label.db")
    with pytest.raises(DataError, match="none.db does not exist"):
        check_file(tmp_path / "none.db")


def test_a_config_holds_no_password(tmp_path: Path) -> None:
    words = ["--output_dir", str(tmp_path), "--model.model_name_or_path", "x", "--data.train"]
    with pytest.raises(ConfigError, match="it should name a database without a password; set PGPASSWORD") as refused:
        load_config(RewardConfig, None, [*words, "postgresql://u:secret@h/x"])
    assert "data.train" in str(refused.value)
    assert load_config(RewardConfig, None, [*words, "postgresql://u@h/x"]).data.train == ["postgresql://u@h/x"]


def test_the_data_verbs_read_a_database(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(url).close()
    assert main(["data", "stats", url, "--json"]) == 0
    (figures,) = json.loads(capsys.readouterr().out)["files"]
    assert figures["rows"] == 4 and "kendalls_w (mean over rows)" in figures["agreement"]
    assert "of the tests" not in figures["file"] and "%20" not in figures["file"]
    assert main(["data", "convert", url, str(tmp_path / "rows.jsonl"), "--to", "jsonl"]) == 0
    told = capsys.readouterr()
    assert [row.grades for row in read_rows(tmp_path / "rows.jsonl")] != [] and "%20" not in told.err
    base = make_base(tmp_path / "base")
    assert main(["data", "show", url, "--model", str(base), "--row", "3", "--chat-template", "hh"]) == 0
    assert ":task 3" in capsys.readouterr().out


def test_a_database_is_cleaned_split_and_scored_by_its_url(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled(url).close()
    whole = [row.grades for row in read_rows(url)]
    assert main(["data", "clean", url, "--output", str(tmp_path / "clean"), "--filter", "encoding"]) == 0
    (kept,) = (tmp_path / "clean" / "kept").iterdir()
    assert [row.grades for row in read_rows(kept)] == whole and kept.name.endswith(".jsonl") and "." not in kept.stem
    assert main(["data", "split", url, "--output", str(tmp_path / "apart"), "--test", "0.5"]) == 0
    apart = [row.grades for side in ("train", "test") for row in read_rows(tmp_path / "apart" / f"{side}.jsonl")]
    assert sorted(apart) == sorted(whole)
    against = ["--output", str(tmp_path / "none"), "--against", url, "--filter", "encoding"]
    assert main(["data", "clean", str(kept), *against]) == 3
    told = capsys.readouterr()
    assert "all 4 rows would be dropped, the first by the filter leaks" in told.err
    written = "".join(file.read_text() for file in (tmp_path / "clean").rglob("*.json*"))
    shown = url.replace("of%20the%20tests", "***")
    report = json.loads((tmp_path / "clean" / "report.json").read_text())
    assert report["files"] == [shown.removeprefix("sqlite:///")] and report["rows"] == 4
    for text in (told.out, told.err, written, (tmp_path / "apart" / "split.json").read_text()):
        assert "of the tests" not in text and "%20" not in text


def test_reward_trains_and_scores_alike_on_the_database_and_on_its_export(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["It is good.", "It is big.", "It is bad."]
    tasks = [NewTask((Message("user", f"Say something of animal {n}."),), tuple(words[n % 3 :] + words[: n % 3]))
             for n in range(12)]  # fmt: skip
    given = [RANKED[n % 3] for n in range(10)]
    filled(url, tasks, given).close()
    export = tmp_path / "ranked.jsonl"
    assert main(["label", "export", url, str(export), "--to", "ranked"]) == 0
    base, runs = make_base(tmp_path / "base"), []
    for number, source in enumerate((url.replace(":of%20the%20tests", ""), str(export))):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PGPASSWORD", "of the tests")
            options = common(base, tmp_path / f"run {number}", Path("unread"))
            options |= {"data.train": source, "data.eval_fraction": 0.2, "lora.r": 2, "max_steps": 2}
            config = load_config(RewardConfig, None, [w for k, v in options.items() for w in (f"--{k}", json.dumps(v))])
            chat = chat_format(load_tokenizer(str(base)), "hh")
            runs.append([[(e.prompt_ids, e.completions, e.grades) for e in side]
                         for side in reward.read_examples(config, chat, 96)])  # fmt: skip
            reward.run(config)
    assert runs[0] == runs[1] and len(runs[0][0]) == 8 and len(runs[0][1]) == 2
    assert file_bytes(tmp_path / "run 0" / "reward") == file_bytes(tmp_path / "run 1" / "reward")
    scored = []
    for source in (url, str(export)):
        capsys.readouterr()
        assert main(["score", str(tmp_path / "run 0" / "reward"), source, "--device", "cpu"]) == 0
        told = capsys.readouterr()
        scored.append([json.loads(line)["scores"] for line in told.out.splitlines()])
        assert "of the tests" not in told.out + told.err and "%20" not in told.out + told.err
    assert scored[0] == scored[1] and len(scored[0]) == 10
