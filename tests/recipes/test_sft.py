"""Supervised fine-tuning: adapters and full parameters, which tokens count, and what the roles become."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from onebase.config.language import SFTConfig
from onebase.config.preferences import RewardConfig
from onebase.data.batches import minibatch_indices
from onebase.data.chat import ChatFormat, chat_format
from onebase.engines.opening import load_base
from onebase.errors import ConfigError
from onebase.models.base import OneBase
from onebase.models.loading import load_tokenizer
from onebase.recipes import ppo, reward, sft
from onebase.records import Example
from onebase.tools import chat
from tests.recipes.conftest import (
    CONTEXT,
    Options,
    answered_rows,
    common,
    file_bytes,
    leftovers,
    load,
    make_base,
    metric_rows,
    pair_rows,
    small_ppo,
    write_rows,
)

CONVERSATION = {
    "messages": [
        {"role": "user", "content": "Is the cat good?"},
        {"role": "assistant", "content": "The cat is good."},
        {"role": "user", "content": "Is the dog bad?"},
        {"role": "assistant", "content": "The dog is big."},
    ]
}


@pytest.fixture
def answered(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "sft.jsonl", answered_rows())


def hh(base: Path) -> ChatFormat:
    return chat_format(load_tokenizer(str(base)), "hh")


def literal_loss(model: torch.nn.Module, examples: Sequence[Example]) -> float:
    """Mean negative log-likelihood of the counted tokens, each completion in a row of its own."""
    losses = []
    for example in examples:
        for k, completion in enumerate(example.completions):
            ids = [*example.prompt_ids, *completion]
            with torch.no_grad():
                logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            for c, token in enumerate(completion):
                if example.counted is None or example.counted[k][c]:
                    losses.append(-float(logprobs[len(example.prompt_ids) + c - 1, token]))
    return sum(losses) / len(losses)


def first_minibatch(config: SFTConfig, base: Path) -> list[Example]:
    train, _ = sft.read_examples(config, chat_format(load_tokenizer(str(base)), config.model.chat_template), 96)
    size = config.batch.minibatch
    return [train[i] for i in minibatch_indices(0, num_examples=len(train), size=size, seed=config.seed)]


def test_an_adapter_learns_and_the_base_stays(base: Path, answered: Path, tmp_path: Path) -> None:
    before = file_bytes(base)
    more: Options = {"optimizer.learning_rate": 5e-3, "max_steps": 12}
    summary = sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), more))
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 0.2
    assert sorted(path.name for path in (tmp_path / "run" / "policy").iterdir() if path.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "role.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert file_bytes(base) == before and not leftovers(tmp_path)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_the_policy_answered_before_and_after_is_left_to_read(
    resumed: bool, base: Path, answered: Path, tmp_path: Path
) -> None:
    more: Options = {"optimizer.learning_rate": 5e-3, "max_steps": 12, "data.eval_fraction": 0.5}
    if resumed:  # a longer run still tells what was answered before the first step
        sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), more, {"max_steps": 6}))
    config = load(SFTConfig, common(base, tmp_path / "run", answered), more)
    sft.run(config)
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    _, held_out = sft.read_examples(config, hh(base), CONTEXT)
    assert len(rows) == min(4, len({tuple(e.prompt_ids) for e in held_out})) > 1
    tokenizer = load_tokenizer(str(base))
    for name, folder in (("before", None), ("after", tmp_path / "run" / "policy")):
        model = AutoModelForCausalLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, str(folder)) if folder else model
        for row in rows:
            ids = next(e.prompt_ids for e in held_out if e.row.messages[-1].content == row["prompt"])
            found = model.generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=48)[0, len(ids) :]
            assert tokenizer.decode(found, skip_special_tokens=True) == row[name]["completion"]
    assert rows[0]["before"] != rows[0]["after"]


def test_plain_texts_are_continued_from_their_openings(base: Path, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text(
        "\n\n".join(
            f"The {animal} number {i} is good and big and bad. The end of text {i}."
            for i, animal in enumerate(["cat", "dog", "hen"] * 4)
        )
    )
    sft.run(load(SFTConfig, common(base, tmp_path / "run", path), {"max_steps": 1, "data.eval_fraction": 0.5}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 4 and all(path.read_text().count(row["prompt"].strip()) >= 1 for row in rows)


@pytest.mark.parametrize("train_on", ["completion", "assistant", "all"])
def test_the_loss_is_the_mean_over_exactly_the_tokens_that_count(train_on: str, base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [CONVERSATION, *answered_rows(7)])
    rows.write_text(rows.read_text().splitlines()[0] + "\n")
    more: Options = {"data.train_on": train_on, "data.eval_fraction": 0, "max_steps": 1}
    config = load(SFTConfig, common(base, tmp_path / "run", rows), more)
    (example,) = first_minibatch(config, base)
    sft.run(config)
    (row,) = metric_rows(tmp_path / "run")
    # The tokens that should count, by the texts alone.
    tokenizer = load_tokenizer(str(base))

    def count(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = "\n\nHuman: Is the cat good?\n\nAssistant: The cat is good.\n\nHuman: Is the dog bad?\n\nAssistant:"
    expected = {
        "completion": count(" The dog is big.") + 1,
        "assistant": count(" The cat is good.") + count(" The dog is big.") + 1,
        "all": count(prompt) + count(" The dog is big.") + 1,
    }
    assert row["num_tokens"] == expected[train_on]
    model = AutoModelForCausalLM.from_pretrained(base)
    assert row["loss"] == pytest.approx(literal_loss(model, [example]), abs=1e-5)


def test_the_last_token_that_counts_is_the_end_token(base: Path, answered: Path, tmp_path: Path) -> None:
    config = load(SFTConfig, common(base, tmp_path / "run", answered))
    end = load_tokenizer(str(base)).eos_token_id
    for example in first_minibatch(config, base):
        assert example.completions[0][-1] == end and example.completions[0].count(end) == 1 and example.counted is None


def test_the_split_into_microbatches_changes_nothing(base: Path, answered: Path, tmp_path: Path) -> None:
    rows = []
    for tokens in (40, 4096):
        folder = tmp_path / str(tokens)
        more: Options = {"batch.microbatch_tokens": tokens, "max_steps": 3}
        sft.run(load(SFTConfig, common(base, folder, answered), more))
        rows.append(metric_rows(folder))
    for small, large in zip(*rows, strict=True):
        assert small["loss"] == pytest.approx(large["loss"], abs=1e-5)
        assert small["grad_norm"] == pytest.approx(large["grad_norm"], rel=1e-4)


def test_an_epoch_reads_every_row_once(
    base: Path, answered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    step = sft.language_step

    def watched(loaded: OneBase, examples: Sequence[Example], update: Any) -> dict[str, float]:
        read.extend(example.row.place for example in examples if example.row)
        return step(loaded, examples, update)

    monkeypatch.setattr(sft, "language_step", watched)
    more: Options = {"optimizer.num_epochs": 1, "batch.minibatch": 4}
    config = load(SFTConfig, common(base, tmp_path / "run", answered), more)
    train, _ = sft.read_examples(config, chat_format(load_tokenizer(str(base)), "hh"), 96)
    sft.run(config)
    assert sorted(read) == sorted(example.row.place for example in train if example.row)


def test_a_role_is_trained_further_from_where_it_was(base: Path, answered: Path, tmp_path: Path) -> None:
    first = sft.run(load(SFTConfig, common(base, tmp_path / "a", answered), {"max_steps": 3}))
    more: Options = {"start_from": str(tmp_path / "a" / "policy"), "max_steps": 3}
    second = sft.run(load(SFTConfig, common(base, tmp_path / "b", answered), more))
    assert second["eval_loss_before"] == pytest.approx(first["eval_loss_after"], abs=1e-6)
    assert second["eval_loss_after"] < first["eval_loss_after"]


def test_full_parameters_leave_a_model_that_chats_and_is_a_base(
    base: Path, answered: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_bytes(base)
    more: Options = {"lora.r": 0, "max_steps": 25, "optimizer.learning_rate": 5e-3}
    summary = sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), more))
    model = tmp_path / "run" / "model"
    assert file_bytes(base) == before and not (tmp_path / "run" / "policy").exists()
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 1
    config = load(SFTConfig, common(model, tmp_path / "again", answered))
    _, held_out = sft.read_examples(config, chat_format(load_tokenizer(str(model)), "hh"), 96)
    loss = literal_loss(AutoModelForCausalLM.from_pretrained(model), held_out)
    assert loss == pytest.approx(summary["eval_loss_after"], abs=1e-4)
    capsys.readouterr()
    asked = {"once": "Is the cat good?", "max_new_tokens": 8, "temperature": 0, "seed": 0}
    chat.run(role=str(model), compare=None, reward=None, model=None, **asked)  # type: ignore[arg-type]
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert ppo.run(small_ppo(model, tmp_path / "ppo", prompts))["rollouts"] == 2


def test_full_parameters_do_not_go_on_from_a_role(base: Path, sft_role: Path, answered: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'lora.r' = 0 .*'start_from'"):
        load(SFTConfig, common(base, tmp_path / "run", answered), {"lora.r": 0, "start_from": str(sft_role)})


def test_an_adapter_of_the_upper_half_has_no_weights_below(base: Path, answered: Path, tmp_path: Path) -> None:
    more: Options = {"lora.layers": "upper-half", "max_steps": 2}
    sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), more))
    weights = load_file(tmp_path / "run" / "policy" / "adapter_model.safetensors")
    assert weights and all(".layers.1." in name for name in weights)


def test_padding_with_the_end_token_still_learns_to_end(answered: Path, tmp_path: Path) -> None:
    folder = make_base(tmp_path / "base", pad_is_end=True)
    more: Options = {"lora.r": 0, "max_steps": 40, "optimizer.learning_rate": 1e-2, "data.eval_fraction": 0.1}
    sft.run(load(SFTConfig, common(folder, tmp_path / "run", answered), more))
    loaded = load_base(str(tmp_path / "run" / "model"))
    assert loaded.tokenizer.pad_token_id == loaded.tokenizer.eos_token_id
    config = load(SFTConfig, common(folder, tmp_path / "again", answered))
    for example in first_minibatch(config, folder):
        with torch.no_grad():
            logits = loaded.model(torch.tensor([[*example.prompt_ids, *example.completions[0][:-1]]])).logits[0, -1]
        assert float(logits.softmax(-1)[loaded.tokenizer.eos_token_id]) > 0.9


def test_of_compared_answers_the_best_one_alone_is_learned(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(6))
    train, _ = sft.read_examples(load(SFTConfig, common(base, tmp_path / "run", rows)), hh(base), 96)
    assert all(len(example.completions) == 1 and example.grades is None for example in train)
    assert all(hh(base).decode(example.completions[0]).endswith(" is good.") for example in train)


@pytest.mark.parametrize(
    ("more", "dtype"),
    [
        ({}, torch.float32),
        ({"model.dtype": "bfloat16"}, torch.bfloat16),
        ({"lora.r": 4}, torch.bfloat16),
    ],
)
@pytest.mark.parametrize("verb", [sft, reward])
def test_full_parameters_are_trained_in_float32_unless_another_type_is_named(
    verb: ModuleType, more: Options, dtype: torch.dtype, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[torch.dtype] = []
    open_base = verb.open_base

    def watched(*args: Any, **named: Any) -> OneBase:
        loaded = open_base(*args, **named)
        opened.append(loaded.model.dtype)
        return loaded

    monkeypatch.setattr(verb, "open_base", watched)
    monkeypatch.setattr("onebase.engines.opening.hardware_dtype", lambda device: torch.bfloat16)
    rows = write_rows(tmp_path / "pairs.jsonl", pair_rows(6))
    options = common(base, tmp_path / "run", rows) | {"model.dtype": "auto", "lora.r": 0, "max_steps": 1} | more
    verb.run(load(SFTConfig if verb is sft else RewardConfig, options))
    assert opened == [dtype]


def test_dropout_trains_and_leaves_the_held_out_loss_alone(base: Path, answered: Path, tmp_path: Path) -> None:
    more: Options = {
        "optimizer.learning_rate": 5e-3,
        "max_steps": 12,
        "lora.dropout": 0.3,
        "evaluation.every_steps": 12,
    }
    summary = sft.run(load(SFTConfig, common(base, tmp_path / "run", answered), more))
    assert metric_rows(tmp_path / "run")[-1]["eval/loss"] == pytest.approx(summary["eval_loss_after"], abs=1e-6)
    plain = sft.run(load(SFTConfig, common(base, tmp_path / "plain", answered), more, {"lora.dropout": 0}))
    assert plain["eval_loss_after"] != summary["eval_loss_after"] < summary["eval_loss_before"] - 0.1


def test_the_plan_trains_nothing(base: Path, answered: Path, tmp_path: Path) -> None:
    text = sft.plan(load(SFTConfig, common(base, tmp_path / "run", answered)))
    assert "LlamaForCausalLM" in text and "policy" in text and not (tmp_path / "run").exists()
