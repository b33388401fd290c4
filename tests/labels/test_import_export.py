"""`onebase label import` and `export`: rankings of other tools come in, and go out in layouts that are read back."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.errors import DataError
from onebase.labeling import inputs, outputs
from onebase.labels.judged import NewTask
from onebase.labels.judgements import Brought
from onebase.labels.store import Store
from onebase.labels.tasks import task_key
from onebase.reading.formats import read_rows
from onebase.records import Message
from tests.labels.conftest import new_tasks

ITEMS = [{"id": "x", "body": "four"}, {"id": "y", "body": "five"}, {"id": "z", "body": "4"}]


def ranker(*order: str) -> list[dict[str, Any]]:
    return [{"type": "ranker", "value": {"ranker": list(order)}}]


LABEL_STUDIO = [
    {
        "id": 1,
        "data": {"prompt": "2 + 2?", "items": ITEMS},
        "annotations": [
            {"completed_by": 7, "result": ranker("z", "x", "y")},
            {"was_cancelled": True, "completed_by": 8, "result": []},
            {"completed_by": {"id": 9, "email": "bo@example.org"}, "result": ranker("x", "z", "y")},
        ],
    }
]
SHORT = [
    {"id": 1, "prompt": "2 + 2?", "items": ITEMS, "rank": [{"ranker": order}], "annotator": who}
    for who, order in ((3, ["z", "x", "y"]), (4, ["y", "x", "z"]))
]


def argilla_ranks(*ranks: int) -> list[dict[str, Any]]:
    return [{"value": f"response-{n}", "rank": rank} for n, rank in enumerate(ranks, start=1)]


ARGILLA_1 = [
    {
        "fields": {"prompt": "2 + 2?", "response-1": "four", "response-2": "five", "response-3": "4"},
        "responses": [
            {"user_id": "cy", "status": "submitted", "values": {"best": {"value": argilla_ranks(1, 2, 1)}}},
            {"user_id": "di", "status": "discarded", "values": {"best": {"value": argilla_ranks(3, 2, 1)}}},
            {"user_id": "ed", "status": "submitted", "values": {"best": {"value": argilla_ranks(3, 1, 2)}}},
        ],
    }
]
ARGILLA_2 = [
    {
        "fields": ARGILLA_1[0]["fields"],
        "responses": {"best": [{"value": argilla_ranks(2, 2, 1), "status": "submitted", "user_id": "cy"},
                               {"value": argilla_ranks(1, 2, 3), "status": "draft", "user_id": "di"}]},
    }
]  # fmt: skip
ARGILLA_COLUMNS = [
    {"prompt": "2 + 2?", "response-1": "four", "response-2": "five", "response-3": "4",
     "best": [{"value": argilla_ranks(1, 2, 3), "status": "submitted"}]}
]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LABEL_STUDIO, {"annotator-7": (2, 1, 3), "bo@example.org": (3, 1, 2)}),
        (SHORT, {"annotator-3": (2, 1, 3), "annotator-4": (2, 3, 1)}),
        (ARGILLA_1, {"cy": (3, 1, 3), "ed": (1, 3, 2)}),
        (ARGILLA_2, {"cy": (2, 2, 3)}),
        (ARGILLA_COLUMNS, {"annotator-1": (3, 2, 1)}),
    ],
    ids=["label_studio", "label_studio_short", "argilla_1", "argilla_2", "argilla_columns"],
)
def test_rankings_of_other_tools_come_with_their_people_and_ties(
    tmp_path: Path, content: Any, said: dict[str, tuple[int, ...]]
) -> None:
    file = tmp_path / "export.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    store = Store.open(tmp_path / "label.db", create=True)
    assert inputs.bring_in(store, file) == (1, len(said))
    assert inputs.bring_in(store, file) == (0, 0)
    (task,) = store.tasks.all()
    assert (task.prompt, task.answers) == ((Message("user", "2 + 2?"),), ("four", "five", "4"))
    assert {judgement.person: judgement.grades for judgement in store.judgements.all()} == said
    assert [person.password for person in store.people.all()] == [None] * len(said)
    # What the database says of the task is what the readers of the export say.
    expected, (row,) = read_rows(file)[0], read_rows(tmp_path / "label.db")
    if len({original["prompt"] for original in content if "prompt" in original}) <= 1 and content is not SHORT:
        order = [sorted(range(3), key=lambda k: -found.grades[k]) for found in (expected, row) if found.grades]
        assert order[0] == order[1]
    store.close()


def test_rankings_find_the_answers_of_a_task_that_has_them_in_another_order(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "label.db", create=True)
    store.tasks.add([NewTask((Message("user", "2 + 2?"),), ("4", "five", "four"))])
    file = tmp_path / "export.json"
    file.write_text(json.dumps(LABEL_STUDIO), encoding="utf-8")
    assert inputs.bring_in(store, file) == (0, 2)
    assert [judgement.grades for judgement in store.judgements.all()] == [(3, 1, 2), (2, 1, 3)]
    store.close()


def test_rows_that_nobody_could_rank_are_left_out_with_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [
        {"instruction": "2 + 2?", "output": ["4", "four", "4"], "ended": [True, False, True]},
        {"instruction": "3 + 3?", "output": ["6"]},
        {"instruction": "4 + 4?", "output": ["8", "8"]},
        {"instruction": "5 + 5?", "output": [str(number) for number in range(10)]},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    store = Store.open(tmp_path / "label.db", create=True)
    assert inputs.bring_in(store, file) == (1, 0)
    told = capsys.readouterr().err
    for reason in ("fewer than 2 answers", "all answers are the same", "more than 9 answers"):
        assert f"1 row is no task: {reason} (first {file}:" in told
    (task,) = store.tasks.all()
    assert (task.answers, task.ended) == (("4", "four"), (True, False))
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "Just a text."}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"texts.jsonl holds nothing to rank: no prompt \(first .*texts.jsonl:1\)"):
        inputs.bring_in(store, texts)
    store.close()


@pytest.fixture
def ranked(tmp_path: Path) -> Store:
    """Three people's rankings of six answers each, a tie, a conversation, one task all bad, one waiting, one gold."""
    store = Store.open(tmp_path / "label.db", create=True)
    tasks = new_tasks(4, answers=6)
    turns = (
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "Yes?"),
        Message("user", "Why?"),
    )
    tasks[1] = NewTask(turns, ("because", "so what", "don't"), sources=("policy", "policy", "reference"))
    tasks[2] = NewTask(tasks[2].prompt, ("yes", "no"), ended=(True, False))
    store.tasks.add(tasks, overlap=3)
    store.tasks.add(new_tasks(1, gold=True))
    keys = [task_key(task) for task in tasks]
    given = [(6, 5, 4, 3, 2, 1), (6, 5, 4, 3, 1, 2), (5, 6, 4, 3, 1, 2)]
    store.judgements.bring([Brought(f"annotator {n}", keys[0], grades) for n, grades in enumerate(given)])
    store.judgements.bring([Brought("annotator 0", keys[1], (3, 3, 1)), Brought("annotator 1", keys[2], (2, 2))])
    bo = store.people.add("Bo")
    for lease in iter(lambda: store.leases.take(bo.id, gold_share=0.0), None):
        assert lease is not None
        if lease.task.id == 4:
            store.judgements.save(bo.id, 4, key="bad", kind="all_bad")
            break
        store.judgements.save(bo.id, lease.task.id, key=f"skipped {lease.task.id}", kind="skipped")
    return store


@pytest.mark.parametrize(
    ("to", "rows"),
    [
        ("ranked", 3),
        ("pairs", 10 + 3 + 1),
        # 3 above and 3 below the middle; two above and one below; a tie says nothing; all 6 bad.
        ("kto", 6 + 3 + 6),
        ("dpo", 10 + 2),
        ("llamafactory", 10 + 2),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_every_export_is_read_back_by_its_path(
    ranked: Store, tmp_path: Path, to: outputs.Target, rows: int, suffix: str
) -> None:
    output = tmp_path / f"out{suffix}"
    assert outputs.write(ranked.snapshot(), output, to, max_pairs=10, seed=0) == rows
    found = read_rows(output)
    assert len(found) == rows
    assert {tuple(sorted(row.columns)) for row in found} <= {
        tuple(sorted((*more, "agreement", "annotators", "chosen_by", "task")))
        for more in ((), ("sources",), ("label",), ("label", "sources"), ("orders",), ("orders", "sources"))
    }
    assert all(row.messages[-1].role == "user" for row in found)
    ranked.close()


def test_the_ranked_export_is_the_database_and_comes_back_whole(ranked: Store, tmp_path: Path) -> None:
    output = tmp_path / "ranked.jsonl"
    outputs.write(ranked.snapshot(), output, "ranked", max_pairs=1, seed=0)

    def told(row: Any) -> tuple[Any, ...]:
        return row.messages, row.answers, row.grades, row.columns, row.ended

    assert list(map(told, read_rows(output))) == list(map(told, read_rows(tmp_path / "label.db")))
    again = Store.open(tmp_path / "again.db", create=True)
    assert inputs.bring_in(again, output) == (3, 5)

    def said(store: Store) -> set[tuple[Any, ...]]:
        tasks = {task.id: task for task in store.tasks.all()}
        return {(tasks[j.task_id].key, tasks[j.task_id].sources, j.person, j.grades)
                for j in store.judgements.all() if j.kind == "ranked"}  # fmt: skip

    assert said(again) == said(ranked)
    again.close()
    ranked.close()


def test_pairs_say_which_annotators_agree_and_ties_have_no_margin(ranked: Store, tmp_path: Path) -> None:
    output = tmp_path / "pairs.jsonl"
    outputs.write(ranked.snapshot(), output, "pairs", max_pairs=100, seed=0)
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert Counter(row["task"] for row in rows) == {1: 15, 2: 3, 3: 1}
    by_answers = {(row["chosen"], row["rejected"]): row for row in rows}
    assert by_answers["a0", "b0"]["agreement"] == pytest.approx(1 / 3, abs=1e-6)
    assert by_answers["a0", "c0"]["agreement"] == 1.0
    assert by_answers["a0", "c0"]["annotators"] == ["annotator 0", "annotator 1", "annotator 2"]
    tie = by_answers["because", "so what"]
    assert (tie["tie"], tie["margin"], tie["sources"]) == (True, 0.0, ["policy", "policy"])
    assert by_answers["yes", "no"]["rejected_ended"] is False
    read = {row.answers: row for row in read_rows(output)}
    assert read["because", "so what"].grades == (0.0, 0.0) and read["because", "so what"].margin == 0.0
    assert read["because", "don't"].grades == (1.0, 0.0) and read["because", "don't"].margin is None
    assert read["yes", "no"].ended == (True, False)
    ranked.close()


def test_at_most_so_many_pairs_of_a_prompt_are_drawn_by_the_seed(ranked: Store, tmp_path: Path) -> None:
    texts = []
    for number, seed in enumerate((0, 0, 1)):
        outputs.write(ranked.snapshot(), tmp_path / f"{number}.jsonl", "pairs", max_pairs=4, seed=seed)
        texts.append((tmp_path / f"{number}.jsonl").read_text(encoding="utf-8"))
    assert texts[0] == texts[1] != texts[2]
    assert Counter(json.loads(line)["task"] for line in texts[0].splitlines()) == {1: 4, 2: 3, 3: 1}
    ranked.close()


def test_kto_labels_by_the_middle_of_the_grades(ranked: Store, tmp_path: Path) -> None:
    output = tmp_path / "kto.jsonl"
    outputs.write(ranked.snapshot(), output, "kto", max_pairs=1, seed=0)
    labels = {row.answers[0]: row.columns["label"] for row in read_rows(output)}
    assert [labels[f"{letter}0"] for letter in "abcdef"] == [True] * 3 + [False] * 3
    assert (labels["because"], labels["so what"], labels["don't"]) == (True, True, False)
    assert [labels[f"{letter}3"] for letter in "abcdef"] == [False] * 6
    assert "yes" not in labels
    ranked.close()


def test_an_export_says_what_it_leaves_out(ranked: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs.write(ranked.snapshot(), tmp_path / "dpo.jsonl", "dpo", max_pairs=10, seed=0)
    told = capsys.readouterr().err
    assert "tasks of the database that are no rows: 1 called all bad or skipped by everybody, 1 gold question" in told
    assert "left out 2 rows: ties" in told
    outputs.write(ranked.snapshot(), tmp_path / "lf.json", "llamafactory", max_pairs=10, seed=0)
    assert '"ranking": true' in capsys.readouterr().err
    ranked.close()


def test_the_verbs_take_a_project_or_a_database(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "project.yaml").write_text("database: sqlite:///own.db\noverlap: {share: 1.0, people: 3}\n")
    (tmp_path / "export.json").write_text(json.dumps(LABEL_STUDIO), encoding="utf-8")
    assert main(["label", "import", "there/project.yaml", "export.json"]) == 0
    assert "1 new task and 2 new rankings in sqlite:///" in capsys.readouterr().err
    store = Store.open(tmp_path / "there" / "own.db")
    assert store.tasks.all()[0].overlap == 3
    assert store.judgements.undo(store.people.all()[0].id) is not None
    store.close()
    assert main(["label", "import", "there/project.yaml", "export.json"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"label import: 0 new tasks and 0 new rankings in sqlite:///{tmp_path}/there/own.db",
        "label import: 1 ranking came before and had been undone; what is undone stays so until it is ranked again on "
        "the page",
    ]
    store = Store.open(tmp_path / "there" / "own.db")
    assert len(store.judgements.all()) == 1 and len(store.judgements.all(withdrawn=True)) == 2
    store.close()
    assert main(["label", "export", "there/project.yaml", "pairs.jsonl", "--to", "pairs"]) == 0
    assert len(read_rows("pairs.jsonl")) == 3
    capsys.readouterr()
    ends = {
        ("export", "there/project.yaml", "pairs.jsonl", "--to", "pairs"): (
            2,
            "pairs.jsonl exists; choose another name",
        ),
        ("export", "there/project.yaml", "pairs.csv", "--to", "pairs"): (2, "name a .jsonl file (an object a line)"),
        ("export", "there/own.db", "x.jsonl", "--to", "pairs", "--max-pairs", "0"): (2, "--max-pairs is 0"),
        ("export", "there/project.yml", "x.jsonl", "--to", "pairs"): (2, "no config file 'there/project.yml'"),
        ("export", "none.db", "x.jsonl", "--to", "pairs"): (3, "there is no database none.db"),
        ("import", "there/own.db", "none.jsonl"): (3, "none.jsonl does not exist"),
    }
    for words, (code, message) in ends.items():
        assert main(["label", *words]) == code
        told = capsys.readouterr().err
        assert message in told and told.count("\n") == 1
    Store.open("empty.db", create=True).close()
    assert main(["label", "export", "empty.db", "x.jsonl", "--to", "kto"]) == 3
    assert "no judgement can be written as kto; rank some tasks first" in capsys.readouterr().err
    assert not (tmp_path / "x.jsonl").exists()
