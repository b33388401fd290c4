"""What the judge says, which training never sees: kept in summaries, and in best-of beside every sample's score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebase.cli.main import main
from onebase.config.rollouts import BestOfConfig
from onebase.errors import ConfigError
from onebase.recipes import best_of, ppo
from onebase.runs.finished import read_run
from tests.recipes.conftest import common, load, prompt_rows, small_ppo, write_rows

JUDGE = "tests.recipes.test_judged_samples:few_letters"


def few_letters(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [-float(len(text)) for text in completions]


def test_best_of_writes_what_the_judge_says_of_every_sample_and_plan_kl_reads_it(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "prompts.jsonl", prompt_rows(12))
    options = {**common(base, tmp_path / "run", data), "data.eval_fraction": None, "judge": JUDGE}
    more = {
        "reward.callable": "tests.recipes.conftest:count_vowels",
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 5,
    }
    best_of.run(load(BestOfConfig, options, more))
    rows = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    assert all(len(row["judged"]) == len(row["scores"]) == 5 for row in rows)
    for row in rows:
        chosen = row["scores"].index(max(row["scores"]))
        assert row["judged"][chosen] <= -len(row["completion"])  # blanks around an answer are not written
    capsys.readouterr()
    assert main(["plan", "kl", str(tmp_path / "run")]) == 0
    assert "judge = " in capsys.readouterr().out


def test_a_judge_without_a_reward_is_refused(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "prompts.jsonl", prompt_rows(4))
    options = {**common(base, tmp_path / "run", data), "data.eval_fraction": None, "judge": JUDGE, "chosen": "data"}
    with pytest.raises(ConfigError, match="'judge' would change nothing: its scores are written beside the reward's"):
        load(BestOfConfig, options)
    with pytest.raises(ConfigError, match="'judge' = nobody: it should be written module:function"):
        load(BestOfConfig, {**options, "judge": "nobody"})


def test_a_run_keeps_the_judges_score_of_its_start_and_its_end(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "prompts.jsonl", prompt_rows())
    measured = {"evaluation.judge": JUDGE, "evaluation.every_steps": 1, "max_steps": 6, "ppo.kl_coefficient": 0.0}
    ppo.run(small_ppo(base, tmp_path / "run", data, measured))
    record = read_run(tmp_path / "run")
    assert record.summary["judge_before"] < 0 and record.summary["judge_after"] < 0
    assert [row["step"] for row in record.rows if "eval/judge" in row] == [1, 2, 3, 4, 5]
    capsys.readouterr()
    assert main(["plan", "kl", str(tmp_path / "run"), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert [point["step"] for point in report["points"]] == [0, 1, 2, 3, 4, 5, 6]
    assert report["points"][0]["judge"] == record.summary["judge_before"] and report["law"]["seen"] > 0
