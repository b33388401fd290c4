"""Pretraining: from nothing and further, with what it saves measured again by plain transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onebase.config import PretrainConfig
from onebase.errors import DataError, ModelError
from onebase.recipes import pretrain
from tests.recipes.conftest import (
    CONTEXT,
    SENTENCES,
    Options,
    file_bytes,
    leftovers,
    load,
    metric_rows,
    words,
    write_rows,
)

TINY: Options = {
    "tiny.vocab_size": 300,
    "tiny.hidden_size": 32,
    "tiny.num_layers": 2,
    "tiny.num_heads": 2,
    "tiny.max_length": 32,
    "batch.microbatch_tokens": 1024,
    "batch.minibatch": 4,
    "optimizer.learning_rate": 5e-3,
}


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    train, held_out = tmp_path / "train.txt", tmp_path / "held_out.txt"
    train.write_text("\n\n".join(SENTENCES[:30]))
    held_out.write_text("\n\n".join(SENTENCES[30:]))
    return train, held_out


def options(texts: tuple[Path, Path], output: Path, **more: object) -> Options:
    return {"data.train": str(texts[0]), "data.eval": str(texts[1]), "output_dir": str(output), **TINY, **more}


def mean_loss(folder: Path, texts: list[str], block_length: int) -> float:
    """Mean negative log-likelihood over blocks, token by token, by transformers alone."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids: list[int] = []
    for text in texts:
        ids += [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    losses = []
    for start in range(0, len(ids), block_length):
        block = ids[start : start + block_length]
        with torch.no_grad():
            logprobs = model(torch.tensor([block])).logits[0].log_softmax(-1)
        losses += [-float(logprobs[t, block[t + 1]]) for t in range(len(block) - 1)]
    return sum(losses) / len(losses)


def test_from_scratch_lowers_the_held_out_loss(texts: tuple[Path, Path], tmp_path: Path) -> None:
    summary = pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run", max_steps=30)))
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 1
    measured = mean_loss(tmp_path / "run" / "model", SENTENCES[30:], 32)
    assert summary["eval_loss_after"] == pytest.approx(measured, abs=1e-4)
    assert not leftovers(tmp_path)


def test_a_given_model_is_trained_further_and_stays_as_it_was(
    base: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    before = file_bytes(base)
    more = {"model.model_name_or_path": str(base), "block_length": 24, "max_steps": 10, "optimizer.learning_rate": 2e-3}
    summary = pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))
    assert summary["eval_loss_before"] == pytest.approx(mean_loss(base, SENTENCES[30:], 24), abs=1e-4)
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 0.2
    assert file_bytes(base) == before
    assert file_bytes(tmp_path / "run" / "model")["tokenizer.json"] == before["tokenizer.json"]


def test_every_token_but_the_first_of_a_block_counts_once(texts: tuple[Path, Path], tmp_path: Path) -> None:
    config = load(PretrainConfig, options(texts, tmp_path / "run", max_steps=1, block_length=16))
    rows, _ = pretrain.read_rows(config.data, config.seed)
    one = pretrain.open_or_make(config, rows)
    blocks = pretrain.to_blocks(one, rows, config)
    ids = [token for block in blocks for token in [*block.prompt_ids, *block.completions[0]]]
    whole = []
    for row in rows:
        text = one.tokenizer(row.answers[0], add_special_tokens=False)["input_ids"]
        whole += [one.tokenizer.bos_token_id, *text, one.tokenizer.eos_token_id]
    assert ids == whole[: len(ids)] and len(whole) - len(ids) <= 1
    assert {block.num_tokens for block in blocks[:-1]} == {16}


def test_without_a_beginning_token_one_end_token_stands_between_texts(
    texts: tuple[Path, Path], tmp_path: Path
) -> None:
    config = load(PretrainConfig, options(texts, tmp_path / "run", max_steps=1, block_length=16))
    rows, _ = pretrain.read_rows(config.data, config.seed)
    one = pretrain.open_or_make(config, rows)
    one.tokenizer.bos_token = None
    ids = [t for block in pretrain.to_blocks(one, rows, config) for t in [*block.prompt_ids, *block.completions[0]]]
    end = one.tokenizer.eos_token_id
    whole = [end]
    for row in rows:
        whole += [*one.tokenizer(row.answers[0], add_special_tokens=False)["input_ids"], end]
    assert ids == whole[: len(ids)] and len(whole) - len(ids) <= 1


def test_blocks_longer_than_the_context_are_refused(base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    more = {"model.model_name_or_path": str(base), "block_length": CONTEXT + 1, "max_steps": 1}
    with pytest.raises(ModelError) as caught:
        pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))
    message = f"block_length = {CONTEXT + 1} exceeds the model's context of {CONTEXT}; lower it"
    assert str(caught.value) == message and caught.value.exit_code == 2


def test_the_held_out_loss_is_measured_on_the_way(texts: tuple[Path, Path], tmp_path: Path) -> None:
    more = {"evaluation.every_steps": 2, "max_steps": 4}
    summary = pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))
    rows = metric_rows(tmp_path / "run")
    assert [row["step"] for row in rows if "eval/loss" in row] == [2, 4]
    assert rows[-1]["eval/loss"] == pytest.approx(summary["eval_loss_after"], abs=1e-6)


def test_without_held_out_texts_the_summary_is_still_json(texts: tuple[Path, Path], tmp_path: Path) -> None:
    more = {"data.eval": None, "data.eval_fraction": 0, "max_steps": 1}
    pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    summary = json.loads((tmp_path / "run" / "summary.json").read_text(), parse_constant=refuse)
    assert summary["eval_loss_after"] is None


def test_conversations_are_refused_with_their_place(texts: tuple[Path, Path], tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "chat.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    more = {"data.train": str(rows), "data.eval": None, "data.eval_fraction": 0}
    with pytest.raises(DataError, match=r"chat.jsonl:1: pretraining reads plain text .*`onebase sft`"):
        pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))


def test_a_text_too_short_to_learn_from_is_refused(tmp_path: Path) -> None:
    config = load(PretrainConfig, options((tmp_path, tmp_path), tmp_path / "run", block_length=1))
    one_row = tmp_path / "a.txt"
    one_row.write_text("a\n\nb")
    rows = pretrain.read_files([one_row])
    one = pretrain.open_or_make(config, rows)
    with pytest.raises(DataError, match=r"a.txt:1: the texts are too short to learn from"):
        pretrain.to_blocks(one, rows, config)


def test_the_plan_trains_nothing(base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    assert "new: Llama, 2 layers" in pretrain.plan(load(PretrainConfig, options(texts, tmp_path / "run")))
    further = {"model.model_name_or_path": str(base)}
    assert "LlamaForCausalLM" in pretrain.plan(load(PretrainConfig, options(texts, tmp_path / "run"), further))
    assert not (tmp_path / "run").exists() and words({"a": None}) == []
