"""Short runs of every verb on the real data beside the clone; they skip where it is absent."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from onebase.cli.main import main
from onebase.models.scratch import make_llama
from tests.recipes.conftest import Options, metric_rows, words, write_rows


def stories(shared: Path, output: Path, *data: str) -> Options:
    """Options of a run on the real 260 k-parameter model."""
    return {
        "output_dir": str(output),
        "model.model_name_or_path": str(shared / "models" / "stories260K" / "hf"),
        "model.dtype": "float32",
        "model.chat_template": "hh",
        "data.train": str(shared.joinpath("data", *data)),
        "max_steps": 3,
        "lora.r": 4,
    }


def ran(verb: str, *options: Options) -> None:
    assert main([verb, *words(*options)]) == 0


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    assert main(command) == 0
    return capsys.readouterr().out


def test_the_stages_follow_each_other_on_real_data(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], pictures: None
) -> None:
    """SFT on stories, a reward role from human preferences, PPO on questions, then what a user does with them."""
    texts = {"data.limit": 30, "optimizer.learning_rate": 1e-3}
    ran("sft", stories(shared, tmp_path / "sft", "text_en", "tinystories_sample.txt.gz"), texts)
    policy = str(tmp_path / "sft" / "policy")
    hh = stories(shared, tmp_path / "reward", "hh_rlhf", "harmless-base-test.jsonl.gz")
    ran("reward", hh, {"data.limit": 40, "start_from": policy, "data.max_prompt_tokens": 200, "batch.minibatch": 8})
    role = str(tmp_path / "reward" / "reward")
    xquad = stories(shared, tmp_path / "ppo", "xquad", "xquad.en.json.gz")
    ran(
        "ppo",
        xquad,
        {
            "start_from": policy,
            "reward.role": role,
            "data.limit": 30,
            "data.max_prompt_tokens": 128,
            "max_steps": 2,
            "ppo.rollout_prompts": 4,
            "ppo.minibatch_prompts": 2,
            "generation.max_new_tokens": 12,
            "evaluation.prompts": 2,
            "lora.r": None,
        },
    )
    rows = metric_rows(tmp_path / "ppo")
    assert len(rows) == 2 and all(math.isfinite(row["objective/scores"]) for row in rows)
    # Rounding apart, decoding sees the log-probs of the training pass.
    assert all(row["sampling/logp_difference"] < 1e-4 for row in rows)
    assert abs(rows[0]["objective/kl"]) < 1e-3
    for run in ("sft", "reward", "ppo"):
        assert (tmp_path / run / "plots" / "metrics.png").stat().st_size > 1000
        json.loads((tmp_path / run / "summary.json").read_text())

    pairs = tmp_path / "pairs.jsonl"
    with gzip.open(shared / "data" / "hh_rlhf" / "harmless-base-test.jsonl.gz", "rt") as file:
        pairs.write_text("".join(line for line, _ in zip(file, range(5), strict=False)))
    lines = [json.loads(line) for line in said(capsys, "score", role, str(pairs), "--rank").splitlines()]
    assert len(lines) == 5
    for line in lines:
        assert len(line["scores"]) == 2 and line["ranking"][0]["score"] == max(line["scores"])
    trained = str(tmp_path / "ppo" / "policy")
    assert said(capsys, "chat", trained, "--once", "Tell me of a cat.", "--max-new-tokens", "8").strip()
    both = said(
        capsys, "chat", "--compare", policy, trained, "--reward", role, "--once", "Who?", "--max-new-tokens", "8"
    )
    assert both.count("(reward ") == 2


@pytest.mark.parametrize("verb", ["sft", "dpo", "reward"])
def test_real_conversations_longer_than_the_context_train_by_default(
    verb: str, shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hh = stories(shared, tmp_path / "run", "hh_rlhf", "harmless-base-test.jsonl.gz")
    ran(verb, hh, {"data.limit": 120, "max_steps": 1})
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("of ")]
    assert "prompts lost their oldest turns" in lines[0] and "of the model's 512 positions" in lines[0]


def test_ranked_lists_in_chinese_with_a_chat_tokenizer(shared: Path, tmp_path: Path) -> None:
    files = tmp_path / "tokenizer"
    files.mkdir()
    minimind = shared / "data" / "tokenizers" / "minimind"
    shutil.copy(minimind / "tokenizer_config.json", files)
    (files / "tokenizer.json").write_bytes(gzip.decompress((minimind / "tokenizer.json.gz").read_bytes()))
    tokenizer: Any = AutoTokenizer.from_pretrained(files)
    model = make_llama(tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_length=512, seed=0)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    options = stories(shared, tmp_path / "run", "oasst1_zh", "oaast_rm_zh.json.gz")
    more: Options = {
        "model.model_name_or_path": str(tmp_path / "base"),
        "model.chat_template": None,
        "data.limit": 20,
        "ranking.max_pairs": 3,
        "batch.minibatch": 4,
    }
    ran("reward", options, more)
    rows = metric_rows(tmp_path / "run")
    assert len(rows) == 3 and rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


def test_labelled_sentences_become_pairs(shared: Path, tmp_path: Path) -> None:
    with gzip.open(shared / "data" / "sentiment" / "sentence_polarity.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    by_label = [[row for row in rows if row["label"] == label][:100] for label in (0, 1)]
    data = write_rows(tmp_path / "labels.jsonl", by_label[0] + by_label[1])
    options = stories(shared, tmp_path / "run", "sentiment") | {"data.train": str(data), "data.limit": 200}
    ran("reward", options)
    rows = metric_rows(tmp_path / "run")
    assert len(rows) == 3 and rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("file", ["text_zh/xiyouji.txt.gz", "text_en/tinystories_sample.txt.gz"])
def test_a_new_model_is_made_from_real_texts(file: str, shared: Path, tmp_path: Path) -> None:
    ran(
        "pretrain",
        {
            "output_dir": str(tmp_path / "run"),
            "data.train": str(shared / "data" / file),
            "data.limit": 20,
            "tiny.vocab_size": 600,
            "tiny.hidden_size": 32,
            "tiny.num_layers": 2,
            "tiny.num_heads": 2,
            "max_steps": 3,
            "batch.minibatch": 4,
        },
    )
    assert (tmp_path / "run" / "model" / "config.json").is_file()


def test_real_configs_can_be_planned(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = stories(shared, tmp_path / "run", "text_en", "tinystories_sample.txt.gz")
    assert main(["sft", "--dry-run", *words(options)]) == 0
    assert "optimizer steps" in capsys.readouterr().err and not (tmp_path / "run").exists()
