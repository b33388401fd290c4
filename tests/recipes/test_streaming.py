"""Runs on streamed rows and on mixtures: the same bytes as in memory, and a record of what was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.data import token_cache
from onebase.errors import ConfigError, DataError
from onebase.recipes import dpo, ppo, pretrain, reward, sft
from tests.recipes.conftest import (
    Options,
    answered_rows,
    common,
    file_bytes,
    load,
    metric_rows,
    pair_rows,
    prompt_rows,
    small_ppo,
    write_rows,
)

SHORT: Options = {"max_steps": 6, "batch.minibatch": 4, "lora.r": 4, "optimizer.learning_rate": 5e-3}
VERBS: dict[str, tuple[Any, Any, Any, Options]] = {
    "sft": (sft, SFTConfig, answered_rows, {}),
    "reward": (reward, RewardConfig, pair_rows, {}),
    "dpo": (dpo, DPOConfig, pair_rows, {"preference.reference": "live"}),
}


def run(verb: str, base: Path, folder: Path, data: Path, *more: Options) -> Path:
    recipe, config, _, options = VERBS[verb]
    recipe.run(load(config, common(base, folder, data), SHORT, options, *more))
    return folder


def roles(folder: Path) -> dict[str, bytes]:
    role = folder / ("reward" if (folder / "reward").exists() else "policy")
    return {name: data for name, data in file_bytes(role).items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("verb", VERBS)
def test_streamed_cached_and_in_memory_runs_end_with_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    rows = VERBS[verb][2](30)
    data, held = write_rows(tmp_path / "d.jsonl", rows), write_rows(tmp_path / "h.jsonl", VERBS[verb][2](36)[30:])
    more: Options = {"data.eval": str(held), "data.eval_fraction": None}
    expected = roles(run(verb, base, tmp_path / "memory", data, more))
    assert expected and roles(run(verb, base, tmp_path / "streamed", data, more, {"data.streaming": True})) == expected
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(token_cache, "FLUSHED_AT", 100)
    monkeypatch.setattr("onebase.data.prepare.FEWEST_ROWS", 10)
    for name, options in (("first", {"data.streaming": True}), ("second", {"data.streaming": True}), ("third", {})):
        assert roles(run(verb, base, tmp_path / name, data, more, options)) == expected
    assert len(list((tmp_path / "cache").glob("tokens-*"))) == 1 and list((tmp_path / "cache").glob("*/segment-*"))
    assert metric_rows(tmp_path / "second")[-1]["perf/rows_per_second"] > 0


def test_streamed_rows_hold_out_a_part_and_say_so(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "d.jsonl", answered_rows(60))
    config = load(SFTConfig, common(base, tmp_path / "run", data), SHORT, {"data.streaming": True})
    plan = sft.plan(config)
    assert "60 streamed rows, about " in plan and "12 held out" in plan
    sft.run(config)
    said = capsys.readouterr().err
    assert "60 rows are streamed, found in" in said and "rows, " in said and "a second beside training" in said


def test_kto_is_not_streamed(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", [{**row, "label": True} for row in answered_rows()])
    more = {"data.streaming": True, "loss": "kto", "preference.reference": "live"}
    with pytest.raises(DataError, match="kto compares all rows' labels and is not streamed"):
        run("dpo", base, tmp_path / "run", data, more)


def test_a_file_of_another_kind_is_streamed_only_if_it_is_plain(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.json"
    data.write_text(json.dumps(answered_rows()))
    with pytest.raises(DataError, match="only plain .jsonl files are streamed"):
        run("sft", base, tmp_path / "run", data, {"data.streaming": True})


def mixture(tmp_path: Path) -> Options:
    general = write_rows(tmp_path / "general.jsonl", [{"prompt": f"g {i}", "completion": "good"} for i in range(80)])
    domain = write_rows(tmp_path / "domain.jsonl", [{"prompt": f"d {i}", "completion": "bad"} for i in range(35)])
    replay = write_rows(tmp_path / "replay.jsonl", [{"prompt": f"r {i}", "completion": "big"} for i in range(10)])
    return {
        "data.train": [{"path": str(general), "weight": 0.3, "limit": 50}, {"path": str(domain), "weight": 0.7}],
        "data.replay.path": str(replay),
        "data.replay.share": 0.2,
        "data.eval_fraction": 0,
        "max_steps": None,
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_a_mixture_is_planned_drawn_and_recorded(base: Path, tmp_path: Path, streaming: bool) -> None:
    more = {**mixture(tmp_path), "data.streaming": streaming}
    config = load(SFTConfig, common(base, tmp_path / "run", tmp_path), SHORT, more)
    plan = sft.plan(config)
    assert "general.jsonl: 15 of 50 examples (24.2% of an epoch)" in plan
    assert "domain.jsonl: 35 of 35 examples (56.5% of an epoch)" in plan
    assert "replay.jsonl: 12 of 10 examples, each 1.2 times (19.4% of an epoch, replayed)" in plan
    sft.run(config)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [source["drawn"] for source in summary["data"]["sources"]] == [15, 35, 12] and summary["steps"] == 16


def test_pretraining_mixes_blocks_of_text_with_conversations(base: Path, tmp_path: Path) -> None:
    texts = write_rows(
        tmp_path / "t.jsonl", [{"text": f"The cat is big. I like the cat number {i}."} for i in range(60)]
    )
    answers = write_rows(tmp_path / "a.jsonl", answered_rows(60))
    options = {
        "output_dir": str(tmp_path / "run"),
        "model.model_name_or_path": str(base),
        "model.chat_template": "hh",
        "data.train": [{"path": str(texts), "weight": 1}, {"path": str(answers), "weight": 1}],
        "data.eval_fraction": 0.1,
        "block_length": 32,
        "batch.minibatch": 4,
    }
    config = load(PretrainConfig, options)
    assert "answers" not in pretrain.plan(config) and "50.0% of an epoch" in pretrain.plan(config)
    pretrain.run(config)
    drawn = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["sources"]
    assert drawn[0]["drawn"] == drawn[1]["drawn"] > 0


def test_prompts_are_mixed_too(base: Path, tmp_path: Path) -> None:
    first, second = (write_rows(tmp_path / f"{name}.jsonl", prompt_rows(n)) for name, n in (("a", 30), ("b", 8)))
    sources = [{"path": str(first), "weight": 1.0}, {"path": str(second), "weight": 1.0}]
    ppo.run(small_ppo(base, tmp_path / "run", first, {"data.train": sources, "max_steps": None}))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    drawn = summary["data"]["sources"]
    assert drawn[0]["drawn"] == drawn[1]["drawn"] == drawn[1]["rows"] and summary["rollouts"] == -(
        -2 * drawn[1]["rows"] // 4
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data.train": [{"path": "a", "weight": 1}, "b"]}, "'data.train' gives some sources a weight and some none"),
        ({"data.replay.share": 0.3}, "'data.replay.share' = 0.3 would change nothing without 'data.replay.path'"),
        ({"data.train": [{"path": "a", "weight": 0}]}, "'data.train' = "),
        ({"data.train": [{"weight": 1}]}, "'data.train' = "),
    ],
)
def test_mixtures_that_say_nothing_are_refused(tmp_path: Path, more: Options, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load(SFTConfig, common(tmp_path, tmp_path / "run", tmp_path), more)
