"""`onebase label next` and `onebase label curve` on a real database with a real role."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest

pytest.importorskip("sqlalchemy", reason="the database needs onebase[label]")

from onebase.active_learning import next_round
from onebase.active_learning.features import answers_of, comparable
from onebase.cli.label_next import curve, next_
from onebase.errors import ConfigError, DataError
from onebase.labels.judged import NewTask
from onebase.labels.judgements import Brought
from onebase.labels.store import Store
from onebase.records import Message
from onebase.tools.score import run as score
from tests.recipes.conftest import ANIMALS, write_rows

WORDS = ("good", "bad", "big", "old", "warm")


def candidate(n: int) -> dict[str, object]:
    """A question with three answers; which of them are there depends on the number."""
    animal, other = ANIMALS[n % 12], ANIMALS[(n * 5 + 1) % 12]
    chosen = [WORDS[(n + k * (1 + n % 2)) % 5] for k in range(3)]
    answers = [f"The {animal} is {word}. I like the {other} {n * 37 % 101}." for word in chosen]
    return {"instruction": f"Is the {animal} number {n * 7919 % 1009} {WORDS[n % 5]}?", "input": "", "output": answers}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "candidates.jsonl", [candidate(n) for n in range(60)])


def rank_all(url: str, names: tuple[str, ...] = ("Ann",)) -> None:
    """Everybody ranks every task: `good` first, `bad` last, what is longer before what is shorter."""
    store, given = Store.open(url), []
    for task in store.tasks.all():
        value = [("good" in a) * 100 - ("bad" in a) * 100 + len(a) for a in task.answers]
        grades = tuple(1 + sum(one > other for other in value) for one in value)
        given += [Brought(name, next_round.task_key(task), grades) for name in names]
    store.judgements.bring(given)
    store.close()


def tasks_in(url: str) -> list[NewTask]:
    store = Store.open(url)
    found = list(store.tasks.all())
    store.close()
    return found


def test_rounds_from_the_first_to_the_forecast(
    file: Path, tmp_path: Path, reward_role: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "label.db")
    next_(url, file, num=24)
    first = tasks_in(url)
    assert {(task.chosen, task.round) for task in first} == {("random", 0)} and len(first) == 24
    assert "all random" in capsys.readouterr().out
    rank_all(url, ("Ann", "Bo"))

    next_(url, file, num=16, role=str(reward_role), random_share=0.25)
    said = capsys.readouterr().out
    second = tasks_in(url)[24:]
    assert [task.chosen for task in second].count("random") == 4 and {task.round for task in second} == {1}
    assert [task.chosen for task in second].count("active") == 12 and "24 known" in said
    assert "heads split on the pairs of the active tasks" in said
    assert len({(task.prompt, task.answers) for task in tasks_in(url)}) == 40
    rank_all(url)

    plot = tmp_path / "curve.png"
    curve(url, role=str(base), json=True, plot=plot)
    found = json.loads(capsys.readouterr().out)
    assert found["rankings"] == 24 * 2 + 16 and found["held_out_prompts"] == 28
    assert set(found["rounds"]) == {"0", "1"}
    assert found["human_ceiling"]["agreement"]["mean"] == 1 and found["human_ceiling"]["tasks"] == 24
    assert found["forecast"]["says"].startswith("another 200 rankings buy about +") and plot.stat().st_size > 5000

    curve(url, role=str(reward_role))
    printed = capsys.readouterr()
    assert "human ceiling: people agree on 100.0 [100.0, 100.0] % of pairs" in printed.out
    assert "is a reward role; if it was trained on these rankings" in printed.err


def test_too_few_rankings_make_a_random_round_and_no_curve(
    file: Path, tmp_path: Path, reward_role: Path, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "label.db")
    next_(url, file, num=5)
    rank_all(url)
    next_(url, file, num=5, role=str(reward_role))
    printed = capsys.readouterr()
    assert {task.chosen for task in tasks_in(url)} == {"random"}
    assert "5 rankings so far, too few to choose by (at least 20)" in printed.err
    with pytest.raises(DataError, match="5 rankings, with 5 prompts that no role chose.* a curve needs 20 rankings"):
        curve(url, role=str(base))


def test_known_tasks_and_near_duplicates_are_left_out(tmp_path: Path) -> None:
    url = str(tmp_path / "label.db")
    rows = [candidate(n) for n in range(6)]
    again = candidate(0) | {"output": list(reversed(candidate(0)["output"]))}  # type: ignore[call-overload]
    nearly = candidate(1) | {"output": [str(a) + "!" for a in candidate(1)["output"]]}  # type: ignore[attr-defined]
    file = write_rows(tmp_path / "few.jsonl", [*rows, again, nearly])
    tasks = next_round.read_candidates(file, None)
    left, known, near = next_round.unasked(tasks, [])
    assert (len(left), known, near) == (6, 0, 2)
    next_(url, file, num=100)
    assert len(tasks_in(url)) == 6
    with pytest.raises(DataError, match="all 8 candidates are in the database or near-duplicates"):
        next_(url, file, num=1)


def test_a_round_is_the_same_with_the_same_seed(file: Path, tmp_path: Path, reward_role: Path) -> None:
    chosen = []
    for name in ("a.db", "b.db"):
        url = str(tmp_path / name)
        next_(url, file, num=24, seed=3)
        rank_all(url)
        next_(url, file, num=8, role=str(reward_role), seed=3)
        chosen.append([(task.prompt, task.answers, task.chosen) for task in tasks_in(url)])
    assert chosen[0] == chosen[1]


def test_features_times_the_head_are_the_roles_scores(
    file: Path, reward_role: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = {f"candidate {n}": task for n, task in enumerate(next_round.read_candidates(file, None)[:5])}
    seen = answers_of(tasks, str(reward_role))
    score(role=str(reward_role), file=file, rank=False, model=None, microbatch_tokens=None)
    lines = [json.loads(line)["scores"] for line in capsys.readouterr().out.splitlines()]
    for n in range(5):
        own = seen[f"candidate {n}"]
        assert own.features.shape == (3, 32) and own.scores == pytest.approx(lines[n], abs=1e-4)


def test_comparable_features_have_no_mean_and_one_size() -> None:
    generator = numpy.random.default_rng(0)
    scale = numpy.array([1e-3, 1, 1e3, 0])
    found = comparable([generator.normal(size=(k, 4)) * scale + 5 for k in (2, 3, 4)] * 30)
    assert all(own.mean(0) == pytest.approx(numpy.zeros(4), abs=1e-9) for own in found)
    assert numpy.concatenate(found).std(0) == pytest.approx([1, 1, 1, 0])
    assert comparable([generator.normal(size=(4, 200)) for _ in range(100)])[0].shape == (4, 64)


def test_gold_questions_teach_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "label.db")
    store = Store.open(url, create=True)
    store.tasks.add([NewTask((Message("user", "Which?"),), ("a", "b"), gold=(2.0, 1.0))])
    store.close()
    rank_all(url)
    store = Store.open(url)
    assert next_round.rankings_in(store.tasks.all(), store.judgements.all()) == [] and len(store.judgements.all()) == 1
    store.close()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Q", "chosen": "a", "rejected": "a"}, "2 answers, 1 of them different; people rank 2 to 9"),
        ({"instruction": "Q", "input": "", "output": [str(n) for n in range(10)]}, "10 answers, 10 of them different"),
        ({"text": "only a text"}, "a candidate has a prompt and its answers; this row is a plain text"),
    ],
)
def test_a_row_that_is_no_task_is_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    file = write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=message) as error:
        next_round.read_candidates(file, None)
    assert "rows.jsonl:1" in str(error.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num": 0}, "--num is 0; it should be at least 1"),
        ({"num": 3, "random_share": 1.5}, "--random-share is 1.5; it should be between 0 and 1"),
        ({"num": 3, "seed": -1}, "--seed is -1; it should be between 0 and 4294967295"),
    ],
)
def test_wrong_options_are_named(file: Path, given: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next_("label.db", file, **given)  # type: ignore[arg-type]


def test_what_is_no_project_is_named(file: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match="rows.txt is no project; name its .yaml file, or its database"):
        next_("rows.txt", file, num=1)
    with pytest.raises(DataError, match="nowhere.db"):
        curve("nowhere.db", role=str(base))


def test_a_role_for_which_no_ranked_task_is_left_is_named(file: Path, reward_role: Path) -> None:
    left = next_round.read_candidates(file, None)[:3]
    with pytest.raises(DataError, match="no ranked task fits its context"):
        next_round.by_role(left, [], str(reward_role), 2, 0.0, 0, None, "auto")


def test_a_project_says_where_its_database_is_how_tasks_overlap_and_what_its_columns_mean(tmp_path: Path) -> None:
    project = tmp_path / "animals.yaml"
    project.write_text(
        "database: sqlite:///ranked.db\n"
        "columns: {prompt: q, chosen: a, rejected: b}\n"
        "overlap: {share: 1.0, people: 3}\n"
    )
    rows = [{"q": f"Which of these, number {n}?", "a": f"{n} cats", "b": f"{n} dogs"} for n in range(3)]
    next_(str(project), write_rows(tmp_path / "rows.jsonl", rows), num=2)
    store = Store.open(tmp_path / "ranked.db")
    assert [task.overlap for task in store.tasks.all()] == [3, 3]
    store.close()
