"""`onebase eval`: the rates it prints are those of the samples it writes, and every mistake is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.cli.main import main
from onebase.evaluation.pass_rates import majority_at_k, pass_at_k
from onebase.records import Example, Message, Prompt, Row, ScoreRequest, Scores
from onebase.reporting.intervals import bootstrap_mean
from onebase.rollouts.collect import Rollout
from onebase.sampling.sampler import Sample
from onebase.tools.evaluate import judge, report, sample_lines
from tests.recipes.conftest import ANIMALS, write_rows
from tests.tools.test_score_and_chat import one_error, said

SHORT = ["--max-new-tokens", "4", "--dtype", "float32"]


def questions(count: int = 6) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Is the {ANIMALS[i]} number {i}?", "gold": f"no {i}", "size": i % 2, "kind": "animal"}
        for i in range(count)
    ]


def samples_of(path: Path) -> list[list[dict[str, Any]]]:
    """The written samples, row by row."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        rows.setdefault(json.loads(line)["row"], []).append(json.loads(line))
    return list(rows.values())


@pytest.fixture
def answered(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Questions whose gold answer is what the base says in its first sample, or its third."""
    asked, drawn = write_rows(tmp_path / "asked.jsonl", questions()), tmp_path / "drawn.jsonl"
    said(capsys, "eval", str(base), str(asked), "--verifier", "exact", "--output", str(drawn), *SHORT)
    rows = []
    for row, samples in zip(questions(), samples_of(drawn), strict=True):
        own = [sample["answer"] for sample in samples if sample["answer"]]
        rows.append({**row, "gold": own[0] if row["size"] else own[2]})
    return write_rows(tmp_path / "rows.jsonl", rows)


def test_the_rates_are_those_of_the_samples_that_it_writes(
    base: Path, answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "samples.jsonl"
    words = [str(base), str(answered), "--verifier", "exact", "--verifier", "{name: length, most: 3, weight: 0.5}"]
    out, err = said(capsys, "eval", *words, *SHORT, "--by", "size", "--json", "--output", str(output))
    found, rows = json.loads(out), samples_of(output)
    assert f"eval: wrote 48 samples to {output}" in err
    assert found["samples_per_prompt"] == 8 and found["all"]["prompts"] == 6 and list(found["by"]) == ["size"]
    groups = {"0": rows[0::2], "1": rows[1::2]}
    for figures, own in [(found["all"], rows), *((found["by"]["size"][value], own) for value, own in groups.items())]:
        counts = [sum(sample["right"] for sample in row) for row in own]
        for k in (1, 2, 4, 8):
            expected = bootstrap_mean([pass_at_k(8, count, k) for count in counts])
            assert figures[f"pass@{k}"] == {"mean": expected.mean, "low": expected.low, "high": expected.high}
        votes = [majority_at_k([s["answer"] for s in row], [s["right"] for s in row], 8) for row in own]
        assert figures["maj@8"]["mean"] == bootstrap_mean(votes).mean and "maj@2" not in figures
        assert figures["ended"] == sum(sample["ended"] for row in own for sample in row) / (8 * len(own))
        assert figures["not_checked"] == 0
    assert found["all"]["pass@8"]["mean"] == 1.0 and 0 < found["all"]["pass@1"]["mean"] < 1
    for row, question in zip(rows, questions(), strict=True):
        assert [sample["sample"] for sample in row] == list(range(8))
        for sample in row:
            assert sample["prompt"] == question["prompt"] and "failure" not in sample
            assert sample["right"] == (sample["scores"]["exact"] == 1)
            total = sample["scores"]["exact"] + 0.5 * sample["scores"]["length"]
            assert sample["score"] == pytest.approx(total, abs=1e-5)


def test_the_table_is_split_by_columns(base: Path, answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by = ["--by", "size", "--by", "kind"]
    words = [str(base), str(answered), "--verifier", "exact", "--samples", "4", "--k", "1", "--k", "3", *SHORT, *by]
    out, _ = said(capsys, "eval", *words)
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    assert [row[:2] for row in cells if row[0]] == [
        ["all", "6"],
        ["size 0", "3"],
        ["size 1", "3"],
        ["kind animal", "6"],
    ]
    (heading,) = [line.replace("┃", " ").split() for line in out.splitlines() if "pass@1" in line]
    assert heading == ["prompts", "pass@1", "pass@3", "maj@3", "ended", "not", "checked"]
    assert cells[0][2:] == cells[6][2:]  # every row is an animal's


def test_a_role_and_the_first_rows_are_sampled_alike_every_time(
    sft_role: Path, answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = []
    for name, more in (("a", []), ("b", ["--limit", "2"]), ("c", ["--seed", "1"])):
        words = [
            str(sft_role),
            str(answered),
            "--verifier",
            "exact",
            "--samples",
            "2",
            "--output",
            str(tmp_path / name),
        ]
        said(capsys, "eval", *words, *SHORT, *more)
        drawn.append([[sample["completion"] for sample in row] for row in samples_of(tmp_path / name)])
    assert len(drawn[0]) == 6 and drawn[0][:2] == drawn[1] and drawn[2] != drawn[0]


def test_greedy_answers_are_one_per_question(base: Path, answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(base), str(answered), "--verifier", "exact", "--temperature", "0", "--samples", "1", "--json", *SHORT]
    out, _ = said(capsys, "eval", *words)
    assert out == said(capsys, "eval", *words, "--seed", "5")[0]
    assert list(json.loads(out)["all"]) == ["prompts", "pass@1", "ended", "not_checked"]


def test_completions_that_could_not_be_checked_are_counted_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = [Prompt([1], Row((Message("user", text),), place=f"d.jsonl:{n}")) for n, text in enumerate("ab", start=1)]
    samples = [Sample(prompt, [5], [0.0], ended=prompt == 0) for prompt in (0, 0, 1, 1)]
    examples = [Example(prompt.ids, [[5], [5]], row=prompt.row) for prompt in prompts]
    scores = Scores(
        torch.tensor([1.0, 0.0, 0.1, 0.0]),
        {"maths": torch.tensor([1.0, 0.0, 0.1, 0.0])},
        {1: "maths: no verdict within 5 s", 3: "maths: out of memory"},
        torch.tensor([True, False, False, False]),
        ["4", None, "5", None],
        {2: "code: NameError: x"},
    )
    request = ScoreRequest(examples, ["a", "a", "b", "b"], ["4", "9**9", "5", "(("])
    rollout = Rollout(examples, samples, request, scores)
    judged, lines = list(judge(prompts, rollout)), list(sample_lines(prompts, rollout, ["a", "b"]))
    assert [one.failed for one in judged] == [1, 1] and [list(one.right) for one in judged] == [
        [True, False],
        [False] * 2,
    ]
    assert [line.get("failure") for line in lines] == [
        None,
        "maths: no verdict within 5 s",
        None,
        "maths: out of memory",
    ]
    assert [line.get("note") for line in lines] == [None, None, "code: NameError: x", None]
    report(judged, lines, samples=2, ks=[1], by=[], seed=0, output=None, as_json=True)
    printed = capsys.readouterr()
    assert json.loads(printed.out)["all"]["not_checked"] == 2 and json.loads(printed.out)["all"]["ended"] == 0.5
    assert printed.err == (
        "eval: 2 of 4 completions could not be checked and count as wrong; the first: maths: no verdict within 5 s\n"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], 'Command "eval" parameter --verifier requires an argument'),
        (["--verifier", "numeri"], "--verifier: there is no verifier 'numeri'; there are exact, numeric, "),
        (["--verifier", "{name: numeric, tol: 1}"], "--verifier: numeric has no option 'tol'; its options are name, "),
        (["--verifier", "{name: numeric"], "--verifier is not valid YAML: "),
        (["--verifier", "exact", "--samples", "0"], "--samples is 0; it should be at least 1"),
        (["--verifier", "exact", "--k", "9"], "--k is 9; it should be between 1 and the 8 of --samples"),
        (
            ["--verifier", "exact", "--temperature", "0"],
            "--samples is 8, but at --temperature 0 all are the same; add --samples 1",
        ),
        (["--verifier", "exact", "--limit", "0"], "--limit is 0; it should be at least 1, or left out"),
        (["--verifier", "exact", "--output", "."], ". is a folder; name a file with --output"),
        (["--verifier", "exact", "--output", "a.jsonl/b"], "a.jsonl: cannot be written (a.jsonl is a file)"),
        (["--verifier", "exact", "--max-new-tokens", "0"], "--max-new-tokens is 0; it should be at least 1"),
        (["--verifier", "exact"], "/nowhere: no such folder; "),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(words: list[str], message: str, tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", questions())
    code = (
        "import sys\nfrom onebase.cli.main import main\n"
        f"assert main(['eval', '/nowhere', 'a.jsonl', *{words!r}]) == 2\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    # A path is shown in full.
    assert one_error(done.stderr).replace(f"{tmp_path}/", "").startswith(message), done.stderr


def test_only_what_decides_can_count(base: Path, answered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(base), str(answered)]
    _, err = said(capsys, *words, "--verifier", "{name: length, most: 3}", "--verifier", "answer_format", code=2)
    expected = (
        "length, answer_format: this says nothing about right or wrong; add a verifier of answers, such as numeric"
    )
    assert one_error(err) == expected


def test_rows_that_are_no_tasks_are_named(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(row: dict[str, Any], *more: str) -> str:
        rows = write_rows(tmp_path / "rows.jsonl", [row])
        _, err = said(capsys, "eval", str(base), str(rows), "--verifier", "exact", *more, code=3)
        return one_error(err).removeprefix(f"{rows}:1: ")

    assert refused({"text": "Once."}) == "a text without a question; correct the row"
    assert refused({"prompt": " ", "gold": "4"}) == "empty prompt; correct the row"
    message = refused({"prompt": "a", "gold": "4"}, "--by", "grade")
    assert message == "there is no column 'grade' to split by; the row has gold"
    assert "1 of 1 rows" in refused({"prompt": "a"}) and main(["eval", "--help"]) == 0


def test_the_gold_answers_may_be_in_any_column(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Is the {animal} one?", "gold": "none", "count": str(i)} for i, animal in enumerate(ANIMALS)]
    file = write_rows(tmp_path / "rows.jsonl", rows[:2])
    words = [str(base), str(file), "--verifier", "numeric", "--samples", "1", *SHORT]
    out, _ = said(capsys, "eval", *words, "--gold", "count", "--json")
    assert json.loads(out)["all"]["prompts"] == 2
    _, err = said(capsys, "eval", *words, code=3)
    assert one_error(err) == (
        f"numeric: 2 of 2 rows do not pass their own check: {file}:1: the gold answer 'none' is not a number; "
        f"{file}:2: the gold answer 'none' is not a number; "
        "correct these rows, name the right column (reward.gold, or --gold in eval), or take that verifier out"
    )
    _, err = said(capsys, "eval", *words, "--gold", "number", code=3)
    assert one_error(err) == f"{file}:1: there is no column 'number' with a gold answer; the row has gold, count"


def test_the_samples_are_judged_by_the_column_named(
    base: Path, answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in answered.read_text(encoding="utf-8").splitlines()]
    renamed = write_rows(
        tmp_path / "renamed.jsonl", [{"prompt": row["prompt"], "gold": "x", "mine": row["gold"]} for row in rows]
    )
    words = ["--verifier", "exact", "--json", *SHORT]
    expected, _ = said(capsys, "eval", str(base), str(answered), *words)
    found, _ = said(capsys, "eval", str(base), str(renamed), *words, "--gold", "mine")
    assert json.loads(found)["all"] == json.loads(expected)["all"]


def test_a_function_that_cannot_be_called_is_named_by_the_flag(
    base: Path, answered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("def score(prompts): return []\n")
    words = ["eval", str(base), str(answered), "--verifier", "exact", "--verifier"]
    for named in (f"{tmp_path}/own.py:score", f"{tmp_path}/own.py:nosuch"):
        _, err = said(capsys, *words, named, code=2)
        assert one_error(err).startswith("--verifier") and "reward." not in one_error(err)
