"""Rounds: what each leaves, which reference it learns against, and that the score rises with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from onebase.config.rollouts import BestOfConfig, IterateConfig
from onebase.errors import ConfigError, DataError
from onebase.recipes import best_of, dpo, iterate
from tests.recipes.conftest import Options, load, metric_rows, write_rows


def few_letters(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [-float(len(text)) for text in completions]


def all_alike(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    return [1.0 for _ in completions]


@pytest.fixture
def asked(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Is {n} good?", "completion": f"The cat is {n}.", "gold": str(n)} for n in range(24)]
    return write_rows(tmp_path / "asked.jsonl", rows)


def config_of(base: Path, run: Path, data: Path, *more: Options) -> IterateConfig:
    options: Options = {
        "output_dir": str(run),
        "model.model_name_or_path": str(base),
        "model.dtype": "float32",
        "model.chat_template": "hh",
        "data.train": str(data),
        "reward.callable": "tests.recipes.test_iterate:few_letters",
        "generation.max_new_tokens": 6,
        "generation.samples_per_prompt": 4,
        "rounds": 3,
        "prompts_per_round": 12,
        "optimizer.learning_rate": 1e-2,
        "optimizer.num_epochs": 3,
        "lora.r": 4,
        "batch.minibatch": 4,
        "batch.microbatch_tokens": 1024,
    }
    return load(IterateConfig, options, *more)


def asked_in(folder: Path) -> set[str]:
    return {json.loads(line)["prompt"] for line in (folder / "best.jsonl").read_text().splitlines()}


def test_rounds_of_dpo_raise_the_score_and_draw_other_prompts(base: Path, asked: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more: Options = {"generation.samples_per_prompt": 8, "optimizer.num_epochs": 4}
    iterate.run(config_of(base, run, asked, more))
    scores = [row["samples/mean_score"] for row in metric_rows(run)]
    assert len(scores) == 3 and scores[2] > scores[0]
    first, second, third = (asked_in(run / f"round-{n}" / "samples") for n in (1, 2, 3))
    assert not first & second and len(first) == len(second) == len(third) == 12
    last = load_file(run / "round-3" / "learn" / "policy" / "adapter_model.safetensors")
    kept = load_file(run / "policy" / "adapter_model.safetensors")
    assert all(torch.equal(last[name], kept[name]) for name in last)


def test_a_kept_reference_is_the_first_policy_and_a_renewed_one_the_last(
    base: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str | None, str | None]] = []
    learn = dpo.run
    monkeypatch.setattr(
        dpo, "run", lambda config: (seen.append((config.start_from, config.reference_role)), learn(config))[1]
    )
    iterate.run(config_of(base, tmp_path / "kept", asked, {"reference": "kept", "rounds": 2}))
    before = str(tmp_path / "kept" / "round-1" / "learn" / "policy")
    assert seen == [(None, "base"), (before, "base")]
    seen.clear()
    started = {"start_from": before, "rounds": 2}
    iterate.run(config_of(base, tmp_path / "kept2", asked, {**started, "reference": "kept"}))
    assert seen == [(before, before), (str(tmp_path / "kept2" / "round-1" / "learn" / "policy"), before)]
    seen.clear()
    iterate.run(config_of(base, tmp_path / "renewed", asked, {**started, "rounds": 1}))
    assert seen == [(before, None)]
    # Against the reference it started from, a policy starts at margin 0; against an older one it does not.
    margins = [
        metric_rows(tmp_path / name / f"round-{n}" / "learn")[0]["rewards/margins"]
        for name, n in (("kept", 2), ("renewed", 1))
    ]
    assert abs(margins[0]) > 1e-3 and abs(margins[1]) < 1e-5


def test_spin_pairs_the_data_with_the_policys_own_answers_and_needs_no_reward(
    base: Path, asked: Path, tmp_path: Path
) -> None:
    more: Options = {"chosen": "data", "reward.callable": None, "generation.samples_per_prompt": 1, "rounds": 2}
    iterate.run(config_of(base, tmp_path / "run", asked, more))
    for number in (1, 2):
        samples = tmp_path / "run" / f"round-{number}" / "samples"
        assert not (samples / "best.jsonl").exists()
        pairs = [json.loads(line) for line in (samples / "pairs.jsonl").read_text().splitlines()]
        assert len(pairs) == 12
        assert all(pair["chosen"] == f"The cat is {pair['gold']}." != pair["rejected"] for pair in pairs)
    margins = [row["rewards/margins"] for row in metric_rows(tmp_path / "run" / "round-1" / "learn")]
    assert margins[-1] > margins[0]


def test_every_round_samples_and_learns_with_a_seed_of_its_own(
    base: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[str, list[int]] = {"sample": [], "learn": []}
    sample, learn = best_of.run, dpo.run
    monkeypatch.setattr(
        best_of, "run", lambda config, rows: (seeds["sample"].append(config.seed), sample(config, rows))[1]
    )
    monkeypatch.setattr(dpo, "run", lambda config: (seeds["learn"].append(config.seed), learn(config))[1])
    iterate.run(config_of(base, tmp_path / "run", asked, {"rounds": 2, "prompts_per_round": 8}))
    assert all(len(of_rounds) == len(set(of_rounds)) == 2 for of_rounds in seeds.values())


def test_raft_learns_from_the_best(base: Path, asked: Path, tmp_path: Path) -> None:
    more: Options = {"learn": "sft", "generation.samples_per_prompt": 8, "rounds": 2, "prompts_per_round": 24}
    iterate.run(config_of(base, tmp_path / "run", asked, more))
    scores = [row["samples/mean_score"] for row in metric_rows(tmp_path / "run")]
    assert scores[1] > scores[0]


def test_a_finished_round_is_not_done_again(
    base: Path, asked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    iterate.run(config_of(base, whole, asked, {"rounds": 2}))
    iterate.run(config_of(base, cut, asked, {"rounds": 1}))
    (cut / "summary.json").unlink()
    times = (cut / "round-1" / "learn" / "summary.json").stat().st_mtime_ns
    iterate.run(config_of(base, cut, asked, {"rounds": 2}))
    assert (cut / "round-1" / "learn" / "summary.json").stat().st_mtime_ns == times
    for name in ("policy/adapter_model.safetensors", "round-2/samples/pairs.jsonl"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()


def test_samples_that_all_score_alike_are_said_to_teach_nothing(base: Path, asked: Path, tmp_path: Path) -> None:
    alike: Options = {"reward.callable": "tests.recipes.test_iterate:all_alike"}
    with pytest.raises(DataError, match="no two answers to a prompt differ in score"):
        iterate.run(config_of(base, tmp_path / "run", asked, alike))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"reward.callable": None}, "'reward' needs 'reward.verifiers', or one of"),
        ({"generation.samples_per_prompt": 1}, "leaves nothing to choose from"),
        ({"learn": "sft", "chosen": "data"}, "'chosen' = data is for 'learn' = dpo"),
        ({"loss": "sigmod"}, "did you mean sigmoid"),
    ],
)
def test_keys_that_do_not_agree_are_told_apart(
    base: Path, asked: Path, tmp_path: Path, more: Options, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(base, tmp_path / "run", asked, more)


def test_spin_on_rows_without_an_answer_names_the_row(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "bare.jsonl", [{"prompt": f"Is {n} good?"} for n in range(4)])
    config = load(
        BestOfConfig,
        {
            "output_dir": str(tmp_path / "run"),
            "model.model_name_or_path": str(base),
            "model.chat_template": "hh",
            "data.train": str(rows),
            "chosen": "data",
            "generation.max_new_tokens": 4,
        },
    )
    with pytest.raises(DataError, match=r"bare.jsonl:1: chosen: data pairs the data's answer"):
        best_of.run(config)
