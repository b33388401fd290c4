"""Runs on streamed rows and on mixtures: the same bytes as in memory, and a record of what was read."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.data import token_cache
from onebase.data.chat import chat_format
from onebase.errors import ConfigError, DataError
from onebase.models.loading import load_tokenizer
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
    packed = tmp_path / "d.jsonl.gz"
    packed.write_bytes(gzip.compress(data.read_bytes()))
    assert roles(run(verb, base, tmp_path / "packed", packed, more, {"data.streaming": True})) == expected
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


def test_kto_reads_large_files_at_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onebase.recipes.setup.data.STREAMED_FROM", 1)
    data = write_rows(tmp_path / "d.jsonl", [{**row, "label": bool(i % 2)} for i, row in enumerate(answered_rows())])
    config = load(DPOConfig, common(base, tmp_path / "run", data), SHORT, {"loss": "kto"})
    assert "streamed" not in dpo.plan(config)


def test_large_files_are_streamed_where_there_is_a_place_for_copies(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onebase.recipes.setup.data.STREAMED_FROM", 1)
    plain, listed = write_rows(tmp_path / "d.jsonl", answered_rows()), tmp_path / "d.json"
    listed.write_text(json.dumps(answered_rows()))

    def streams(data: Path) -> bool:
        return "streamed rows" in sft.plan(load(SFTConfig, common(base, tmp_path / "run", data)))

    assert streams(plain) and not streams(listed)
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    assert streams(plain) and streams(listed)
    monkeypatch.setattr("onebase.recipes.setup.data.STREAMED_FROM", 1 << 20)
    assert not streams(plain)


def test_a_limit_and_the_columns_hold_for_streamed_rows(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"frage": row["prompt"], "antwort": row["completion"]} for row in answered_rows(60)]
    rows[5] = rows[3]
    data = write_rows(tmp_path / "d.jsonl", rows)
    mapped = {"data.columns": {"prompt": "frage", "completion": "antwort"}, "data.limit": 20, "data.streaming": True}
    config = load(SFTConfig, common(base, tmp_path / "run", data), mapped)
    assert "20 streamed rows, about " in sft.plan(config)
    said = capsys.readouterr().err
    assert "20 rows are streamed, found in" in said and "and 4 are held out" in said
    assert f"of 20 rows looked at: the training data repeats rows: 1 row ({data}:6)" in said


def test_evaluation_data_is_no_streamed_training_data(base: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", answered_rows())
    more: Options = {"data.streaming": True, "data.eval": str(data), "data.eval_fraction": None}
    with pytest.raises(DataError, match="is evaluation data, and training data as"):
        run("sft", base, tmp_path / "run", data, more)


@pytest.mark.parametrize("verb", ["reward", "dpo"])
def test_answers_that_are_ranked_beside_other_rows_are_not_streamed(base: Path, tmp_path: Path, verb: str) -> None:
    rows = [{"prompt": "Is it?", "completion": f"It is {i}.", "score": i} for i in range(20)]
    data = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(
        DataError, match=r"d.jsonl:\d+: this answer would be ranked beside .* set data.streaming: false"
    ):
        run(verb, base, tmp_path / "run", data, {"data.streaming": True})


@pytest.mark.parametrize("verb", ["reward", "dpo"])
def test_large_files_whose_answers_are_ranked_across_rows_are_read_at_once(
    base: Path, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("onebase.recipes.setup.data.STREAMED_FROM", 1)
    chat = chat_format(load_tokenizer(str(base)), "hh")
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(20))
    rows = [{"prompt": f"Is it {i // 4}?", "completion": f"It is {i}.", "score": i} for i in range(40)]
    scored = write_rows(tmp_path / "scored.jsonl", rows)
    for data, held in (([scored], 0), ([pairs, scored], 10)):
        config = load(VERBS[verb][1], common(base, tmp_path / "run", scored), {"data.train": [str(f) for f in data]})
        train, held_out = VERBS[verb][0].read_examples(config, chat, 96)
        said = capsys.readouterr().err
        assert said.count(f"{scored}:1: answers are ranked beside those of other rows, so the rows are not strea") == 1
        assert "rows are streamed" not in said and isinstance(train, list)
        assert {len(e.completions) for e in train} <= {2, 4} and len(train) + len(held_out) >= 10 + held
    config = load(VERBS[verb][1], common(base, tmp_path / "run", pairs))
    assert not isinstance(VERBS[verb][0].read_examples(config, chat, 96)[0], list)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("verb", ["sft", "dpo"])
def test_a_policy_that_would_never_stop_is_not_trained(base: Path, tmp_path: Path, verb: str, streaming: bool) -> None:
    rows = VERBS[verb][2](30)
    for row in rows:
        better = "chosen" if verb == "dpo" else "completion"
        row[better] += " I like it, and so do all the others." * 2  # only the worse answers end
    data = write_rows(tmp_path / "d.jsonl", rows)
    more = {"data.streaming": streaming, "data.max_completion_tokens": 20}
    word = "better answer" if verb == "dpo" else "answer"
    with pytest.raises(DataError, match=f"no {word}'s end token is learned, so the policy would never stop: of "):
        run(verb, base, tmp_path / "run", data, more)


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


PRETRAIN: Options = {"block_length": 24, "batch.minibatch": 4, "max_steps": 6, "evaluation.every_steps": 2}


def pretrained(base: Path, folder: Path, data: Path, *more: Options) -> dict[str, bytes]:
    pretrain.run(load(PretrainConfig, common(base, folder, data), PRETRAIN, *more))
    return {name: found for name, found in file_bytes(folder / "model").items() if name.endswith(".safetensors")}


@pytest.mark.parametrize("name", ["d.jsonl", "d.txt", "d.txt.gz"])
def test_pretraining_streams_to_the_same_bytes_and_tokenizes_once(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    texts, data = [f"The cat is big. I like the cat number {i}." for i in range(60)], tmp_path / name
    if name == "d.jsonl":
        write_rows(data, [{"text": text} for text in texts])
    else:
        written = "\n\n".join(texts).encode()
        data.write_bytes(gzip.compress(written) if name.endswith(".gz") else written)
    held = tmp_path / "h.txt"
    held.write_text("The dog is bad.\n\nI like the fish.")
    more: Options = {"data.eval": str(held), "data.eval_fraction": None}
    expected = pretrained(base, tmp_path / "memory", data, more)
    capsys.readouterr()
    for folder, times in (("first", 1), ("second", 0)):
        assert pretrained(base, tmp_path / folder, data, more, {"data.streaming": True}) == expected
        assert capsys.readouterr().err.count("60 texts are tokenized once, and kept in the cache") == times
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("memory", "first")]
    assert summaries[0]["data"] == summaries[1]["data"]


def test_streamed_pretraining_mixes_holds_out_and_plans(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    texts = [{"text": f"The cat is big. I like the cat number {i}."} for i in range(300)]
    data, replay = write_rows(tmp_path / "t.jsonl", [*texts, {"text": " "}]), tmp_path / "r.jsonl"
    write_rows(replay, answered_rows(60))
    more: Options = {"data.replay.path": str(replay), "data.replay.share": 0.25, "data.streaming": True}
    config = load(PretrainConfig, common(base, tmp_path / "run", data), PRETRAIN, more)
    plan = pretrain.plan(config)
    assert not list((tmp_path / "cache").glob("kept-texts-*"))  # a plan reads a sample
    assert "data        361 streamed texts, about " in plan and "; 60 held out" in plan
    assert "(24.9% of an epoch, replayed)" in plan
    pretrain.run(config)
    said = capsys.readouterr().err
    assert "361 rows are streamed" in said and "60 are held out" in said
    assert f"left out: 1 with empty answer ({data}:301)" in said
    drawn = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["sources"]
    assert drawn[0]["drawn"] == 18 and drawn[1]["drawn"] == 6


def test_a_new_model_s_tokenizer_is_trained_on_streamed_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEBASE_CACHE", str(tmp_path / "cache"))
    texts = write_rows(tmp_path / "t.jsonl", [{"text": f"The cat is big. I like cat {i}."} for i in range(40)])
    held = write_rows(tmp_path / "h.jsonl", [{"text": "A dog."}])
    tiny = {"tiny.vocab_size": 300, "tiny.hidden_size": 32, "tiny.num_layers": 1, "tiny.num_heads": 2}
    base: Options = {"data.train": str(texts), "data.eval": str(held), "max_steps": 2, "block_length": 16, **tiny}
    found = []
    for streaming in (False, True):
        config = load(PretrainConfig, base, {"output_dir": str(tmp_path / str(streaming)), "data.streaming": streaming})
        assert ("40 streamed texts" if streaming else "41 texts, ") in pretrain.plan(config)
        pretrain.run(config)
        found.append(file_bytes(tmp_path / str(streaming) / "model"))
    assert found[0] == found[1]


def test_streamed_pretraining_needs_a_place_for_its_tokens(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "t.jsonl", [{"text": f"The cat is big {i}."} for i in range(40)])
    with pytest.raises(DataError, match="needs a place to keep them, and the cache is off"):
        pretrained(base, tmp_path / "run", data, {"data.streaming": True})
    monkeypatch.setattr("onebase.recipes.setup.data.STREAMED_FROM", 1)
    assert "streamed rows" not in pretrain.plan(load(PretrainConfig, common(base, tmp_path / "a", data), PRETRAIN))


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
