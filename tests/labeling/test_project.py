"""A project's file, its tasks and its rubric: what is read, and what a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.cli import main as cli
from onebase.config.files import dump_config, load_config
from onebase.config.labeling import LabelConfig
from onebase.errors import ConfigError, DataError
from onebase.labeling.inputs import read_tasks
from onebase.labeling.project import add_tasks, read_project
from onebase.labeling.words import WORDS, language_of, word
from onebase.labels.store import Store
from tests.labeling.conftest import Open, write_project

WRONG = [
    ("task: a.jsonl", "'task' is unknown; did you mean 'tasks'?"),
    ("answers: {role: a}", "'answers.role' is unknown; did you mean 'answers.roles'?"),
    ("answers: {roles: a}", "'answers.roles' needs 'answers.prompts' beside it"),
    ("answers: {prompts: a}", "'answers.prompts' needs 'answers.roles' beside it"),
    ("answers: {per_prompt: 10}", "'answers.per_prompt' = 10: it should be less than or equal to 9"),
    ("overlap: {share: 1.5}", "'overlap.share' = 1.5"),
    ("overlap: {people: 1}", "'overlap.people' = 1"),
    ("gold_share: 1", "'gold_share' = 1"),
    ("lease_seconds: 5", "'lease_seconds' = 5"),
    ("language: fr", "'language' = fr"),
    ("address: rank.example.org", "'address' = rank.example.org should start with https:// or http://"),
    ("port: 99999", "'port' = 99999"),
    ("rubric: nowhere.md", "'rubric' names .*nowhere.md: No such file or directory; correct the path"),
    ("rubric: latin.md", "'rubric' names .*latin.md: it is not UTF-8 text"),
    ("rubric: long.md", "long.md: a rubric of 50001 characters; people read 50000 at most"),
]


@pytest.mark.parametrize(("text", "said"), WRONG)
def test_a_mistake_in_the_file_is_named_with_its_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    (tmp_path / "long.md").write_text("x" * 50_001)
    (tmp_path / "project.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_project(tmp_path / "project.yaml")


def test_the_config_is_written_and_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("tasks: a.jsonl\nanswers: {roles: r, prompts: p}\noverlap: {share: 0.5}")
    config = load_config(LabelConfig, tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text(dump_config(config))
    assert load_config(LabelConfig, tmp_path / "b.yaml") == config and config.tasks == ["a.jsonl"]


def test_files_are_looked_for_beside_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rubric.md").write_text("# Be right")
    path = write_project(tmp_path, rubric="rubric.md")
    monkeypatch.chdir("/")
    project = read_project(path)
    assert project.rubric == "# Be right" and project.url == f"sqlite:///{tmp_path}/label.db"
    assert project.beside(["tasks.jsonl", "owner/name"]) == [str(tmp_path / "tasks.jsonl"), "owner/name"]


def test_tasks_are_added_once_and_new_rows_at_the_next_start(opened: Open) -> None:
    project = opened()
    assert project.store.tasks.count() == 3 and add_tasks(project.site.project, project.store) == 0
    file = project.site.project.path.with_name("tasks.jsonl")
    file.write_text(file.read_text() + "\n" + json.dumps({"instruction": "New", "output": ["a", "b", "a"]}))
    assert add_tasks(project.site.project, project.store) == 1
    assert project.store.tasks.all()[-1].answers == ("a", "b")  # what stands there twice is asked about once


@pytest.mark.parametrize("key", ["answers", "completions", "responses", "outputs"])
def test_answers_that_nothing_ranks_are_a_plain_list(tmp_path: Path, key: str) -> None:
    (tmp_path / "plain.jsonl").write_text(json.dumps({"prompt": "Q", key: ["a", "b", "c"], "topic": "x"}))
    project = read_project(write_project(tmp_path, tasks="plain.jsonl"))
    store = Store.open(project.url, create=True)
    assert add_tasks(project, store) == 1
    assert store.tasks.all()[0].answers == ("a", "b", "c") and store.tasks.all()[0].gold is None
    store.close()
    assert read_tasks(tmp_path / "plain.jsonl").tasks[0].answers == ("a", "b", "c")


def test_gold_questions_have_grades_and_are_mixed_in(tmp_path: Path) -> None:
    (tmp_path / "gold.jsonl").write_text(json.dumps({"instruction": "2+2", "output": ["4", "5"], "grades": [2, 1]}))
    project = read_project(write_project(tmp_path, gold="gold.jsonl"))
    store = Store.open(project.url, create=True)
    assert add_tasks(project, store) == 4
    assert [task.gold for task in store.tasks.all()] == [None] * 3 + [(2.0, 1.0)]
    store.close()


@pytest.mark.parametrize(
    ("row", "key", "said"),
    [
        ({"instruction": "Q", "output": ["a", "a"]}, "tasks", "1 different answer; people rank 2 to 9"),
        ({"prompt": "Q", "completion": "a"}, "tasks", "1 different answer; people rank 2 to 9"),
        ({"prompt": "Q", "completion": "a"}, "gold", "a gold question needs grades"),
    ],
)
def test_a_row_that_is_no_task_is_named(tmp_path: Path, row: dict[str, Any], key: str, said: str) -> None:
    (tmp_path / "odd.jsonl").write_text(json.dumps(row))
    project = read_project(write_project(tmp_path, **{key: "odd.jsonl"}))
    store = Store.open(project.url, create=True)
    with pytest.raises(DataError, match=rf"odd.jsonl:1: .*{said}"):
        add_tasks(project, store)
    store.close()


def test_the_browser_says_which_language() -> None:
    given = {"zh-CN,zh;q=0.9": "zh", "en-GB": "en", "de, zh;q=0.5": "zh", "fr": "en", "": "en", "ZH": "zh"}
    assert {accepted: language_of(accepted) for accepted in given} == given


def test_every_word_is_there_in_both_languages_with_the_same_values() -> None:
    import re

    for key, (english, chinese) in WORDS.items():
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", chinese)), key
        assert re.search(r"[\u4e00-\u9fff]", chinese) and not re.search(r"[\u4e00-\u9fff]", english), key
    assert word("zh", "today-of", today=1, goal=2) == "今日 1 / 2"


def test_every_word_that_a_page_asks_for_is_there() -> None:
    import re

    from onebase.labeling.site import PAGES

    for page in PAGES.glob("*.html"):
        for key in re.findall(r'\bt\("([\w-]+)"', page.read_text()):
            assert key in WORDS or key in ("from-", "reason-"), f"{page.name}: {key}"


def test_an_invitation_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_project(tmp_path))
    assert cli.main(["label", "invite", path, "--name", "O'Neil", "--days", "3"]) == 0
    link = capsys.readouterr().out.strip()
    assert link.startswith("http://127.0.0.1:8100/invitation/")
    store = Store.open(tmp_path / "label.db")
    assert store.people.invitation(link.rpartition("/")[2]) == ("O'Neil", "annotator")
    store.close()
    assert cli.main(["label", "invite", path, "--admin"]) == 0
    for words, said in [
        (["--days", "0"], "--days is 0; it should be between 1 and 365"),
        (["--name", "x" * 101], "is no name"),
    ]:
        assert cli.main(["label", "invite", path, *words]) in (2, 3)
        assert said in capsys.readouterr().err


def test_an_invitation_needs_an_address(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["label", "invite", str(write_project(tmp_path, port=0))]) == 2
    assert "with 'port' = 0 nobody can say where the pages will be" in capsys.readouterr().err


def test_a_project_without_anything_to_rank_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "project.yaml").write_text("port: 0")
    assert cli.main(["label", "serve", str(tmp_path / "project.yaml")]) == 3
    assert "has no tasks; name data files with answers, or roles that write them" in capsys.readouterr().err


def test_without_the_extra_its_name_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onebase.cli import labeling

    monkeypatch.setattr(labeling, "find_spec", lambda name: None if name in ("nh3", "argon2") else True)
    assert cli.main(["label", "serve", str(write_project(tmp_path))]) == 6
    assert "label needs argon2-cffi, nh3: pip install 'onebase[label]'" in capsys.readouterr().err
