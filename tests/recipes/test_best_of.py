"""Best of K: what is written, by which score, and that sft and dpo learn from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from onebase.config import BestOfConfig, DPOConfig, SFTConfig
from onebase.data.formats import read_rows
from onebase.errors import ConfigError
from onebase.recipes import best_of, dpo, sft
from tests.recipes.conftest import Options, common, load, write_rows


def few_letters(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    assert len(columns["gold"]) == len(prompts)
    return [-float(len(text)) if text.strip() else -100.0 for text in completions]


def best_of_config(base: Path, run: Path, data: Path, more: Options) -> BestOfConfig:
    options = {
        "output_dir": str(run),
        "model.model_name_or_path": str(base),
        "model.dtype": "float32",
        "model.chat_template": "hh",
        "data.train": str(data),
        "reward.callable": "tests.recipes.test_best_of:few_letters",
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 5,
    }
    return load(BestOfConfig, options, more)


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "asked.jsonl", [{"prompt": f"Is {n} good?", "gold": str(n)} for n in range(40)])


def test_the_best_and_the_worst_by_score_are_written(base: Path, asked: Path, tmp_path: Path) -> None:
    summary = best_of.run(best_of_config(base, tmp_path / "run", asked, {}))
    best = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in best] == [f"Is {n} good?" for n in range(40)]
    assert all(row["score"] == max(row["scores"]) and len(row["scores"]) == 5 for row in best)
    assert all(row["gold"] == str(n) for n, row in enumerate(best))
    assert all(row["chosen_score"] > row["rejected_score"] for row in pairs) and summary["pairs"] == len(pairs) > 30
    assert summary["rise"][1] > 0
    assert len(read_rows(tmp_path / "run" / "best.jsonl")) == 40
    assert all(row.grades == (1.0, 0.0) for row in read_rows(tmp_path / "run" / "pairs.jsonl"))


def test_the_same_seed_writes_the_same_bytes_and_another_does_not(base: Path, asked: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        best_of.run(best_of_config(base, tmp_path / name, asked, {"seed": seed}))
    a, b, c = ((tmp_path / name / "best.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_sft_on_the_best_and_dpo_on_the_pairs_shorten_the_answers(base: Path, asked: Path, tmp_path: Path) -> None:
    """RAFT, and one round of online DPO, by configuration alone."""
    start = best_of.run(best_of_config(base, tmp_path / "run", asked, {"generation.samples_per_prompt": 8}))
    more: Options = {"optimizer.learning_rate": 1e-2, "max_steps": 60, "model.chat_template": "hh"}
    sft.run(load(SFTConfig, common(base, tmp_path / "raft", tmp_path / "run" / "best.jsonl"), more))
    dpo.run(load(DPOConfig, common(base, tmp_path / "dpo", tmp_path / "run" / "pairs.jsonl"), more))
    for name in ("raft", "dpo"):
        policy = {"policy": str(tmp_path / name / "policy"), "seed": 7}
        after = best_of.run(best_of_config(base, tmp_path / f"after-{name}", asked, policy))
        assert after["mean_score"] > start["mean_score"]


def test_plain_text_is_continued_and_stays_text(base: Path, tmp_path: Path) -> None:
    texts = [{"text": f"The cat is {word}. I like the cat.", "gold": word} for word in ("good", "bad", "big")]
    data = write_rows(tmp_path / "texts.jsonl", texts)
    best_of.run(best_of_config(base, tmp_path / "run", data, {"data.opening_tokens": 3}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    assert all(row["text"].startswith("The") for row in rows)


def test_one_sample_leaves_nothing_to_choose(base: Path, asked: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to choose from"):
        best_of_config(base, tmp_path / "run", asked, {"generation.samples_per_prompt": 1})


def test_the_plan_says_what_would_be_written(base: Path, asked: Path, tmp_path: Path) -> None:
    assert "40 prompts x 5 answers" in best_of.plan(best_of_config(base, tmp_path / "run", asked, {}))
    assert not (tmp_path / "run").exists()


def empty_is_best(prompts: Sequence[str], completions: Sequence[str], **columns: Any) -> list[float]:
    return [1.0 if not text.strip() else -float(len(text)) for text in completions]


def test_an_empty_answer_is_counted_and_never_written(base: Path, asked: Path, tmp_path: Path) -> None:
    more: Options = {
        "reward.callable": "tests.recipes.test_best_of:empty_is_best",
        "generation.max_new_tokens": 1,
        "generation.samples_per_prompt": 16,
    }
    summary = best_of.run(best_of_config(base, tmp_path / "run", asked, more))
    assert summary["empty"] > 0
    best = [json.loads(line) for line in (tmp_path / "run" / "best.jsonl").read_text().splitlines()]
    pairs = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    assert best and all(row["completion"].strip() and row["score"] < 0 for row in best)
    assert any(max(row["scores"]) == 1.0 for row in best)
    assert pairs and all(pair["chosen"].strip() and pair["rejected"].strip() for pair in pairs)
