"""Pretraining: from nothing and further, with what it saves measured again by plain transformers."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from onebase.config.language import PretrainConfig
from onebase.data.chat import chat_format
from onebase.engines.opening import load_base
from onebase.errors import ConfigError, DataError, ModelError
from onebase.models.scratch import make_llama, read_tokenizer, train_tokenizer
from onebase.recipes import pretrain
from onebase.records import Message, Row
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


NOT_NEW: Options = {key: None for key in TINY if key.startswith("tiny.")}
GIVEN: Options = {**TINY, "tiny.vocab_size": None}
"""A new model on a tokenizer that is there: no vocabulary to choose."""
SPOKEN = ["The cat is good.", "  two  blanks\n\n\ttab", "猫坐在垫子上。你好吗？", "狗 и 🐈‍⬛🙂", "Don't! 2 + 2 = 4", ""]


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    """A chat tokenizer made of other texts than those the model is trained on, without a model."""
    tokenizer = train_tokenizer(["the cat sat on the mat", "猫坐在垫子上", "der Hund sitzt"] * 5, vocab_size=290)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def pack(file: Path) -> None:
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()


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
    more = {
        **NOT_NEW,
        "model.model_name_or_path": str(base),
        "block_length": 24,
        "max_steps": 10,
        "optimizer.learning_rate": 2e-3,
    }
    summary = pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))
    assert summary["eval_loss_before"] == pytest.approx(mean_loss(base, SENTENCES[30:], 24), abs=1e-4)
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 0.2
    assert file_bytes(base) == before
    assert file_bytes(tmp_path / "run" / "model")["tokenizer.json"] == before["tokenizer.json"]


def test_every_token_but_the_first_of_a_block_counts_once(texts: tuple[Path, Path], tmp_path: Path) -> None:
    config = load(PretrainConfig, options(texts, tmp_path / "run", max_steps=1, block_length=16))
    rows, _ = pretrain.read_rows(config.data, config.seed)
    loaded = pretrain.open_or_make(config, rows)
    blocks = pretrain.to_blocks(loaded, rows, config)
    ids = [token for block in blocks for token in [*block.prompt_ids, *block.completions[0]]]
    whole = []
    for row in rows:
        text = loaded.tokenizer(row.answers[0], add_special_tokens=False)["input_ids"]
        whole += [loaded.tokenizer.bos_token_id, *text, loaded.tokenizer.eos_token_id]
    assert ids == whole[: len(ids)] and len(whole) - len(ids) <= 1
    assert {block.num_tokens for block in blocks[:-1]} == {16}


def test_without_a_beginning_token_one_end_token_stands_between_texts(texts: tuple[Path, Path], tmp_path: Path) -> None:
    config = load(PretrainConfig, options(texts, tmp_path / "run", max_steps=1, block_length=16))
    rows, _ = pretrain.read_rows(config.data, config.seed)
    loaded = pretrain.open_or_make(config, rows)
    loaded.tokenizer.bos_token = None
    ids = [t for block in pretrain.to_blocks(loaded, rows, config) for t in [*block.prompt_ids, *block.completions[0]]]
    end = loaded.tokenizer.eos_token_id
    whole = [end]
    for row in rows:
        whole += [*loaded.tokenizer(row.answers[0], add_special_tokens=False)["input_ids"], end]
    assert ids == whole[: len(ids)] and len(whole) - len(ids) <= 1


def test_blocks_longer_than_the_context_are_refused(base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    more = {**NOT_NEW, "model.model_name_or_path": str(base), "block_length": CONTEXT + 1, "max_steps": 1}
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
    with pytest.raises(DataError, match="chat.jsonl:1: pretraining reads plain text .* write conversations in"):
        pretrain.run(load(PretrainConfig, options(texts, tmp_path / "run"), more))


@pytest.mark.parametrize("packed", [False, True])
def test_a_new_model_on_a_given_tokenizer_keeps_it(
    packed: bool, tokenizer_folder: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    given = AutoTokenizer.from_pretrained(tokenizer_folder)
    if packed:
        pack(tokenizer_folder / "tokenizer.json")
    before = file_bytes(tokenizer_folder)
    more = {"tiny.tokenizer": str(tokenizer_folder), "max_steps": 30}
    config = load(PretrainConfig, options(texts, tmp_path / "run"), GIVEN, more)
    assert f"vocabulary 290 of {tokenizer_folder}" in pretrain.plan(config) and not (tmp_path / "run").exists()
    summary = pretrain.run(config)
    assert summary["eval_loss_after"] < summary["eval_loss_before"] - 1
    measured = mean_loss(tmp_path / "run" / "model", SENTENCES[30:], 32)
    assert summary["eval_loss_after"] == pytest.approx(measured, abs=1e-4)
    saved = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    assert [saved(text)["input_ids"] for text in SPOKEN] == [given(text)["input_ids"] for text in SPOKEN]
    assert saved.get_vocab() == given.get_vocab() and saved.chat_template == given.chat_template
    sizes = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").config
    assert (sizes.vocab_size, sizes.bos_token_id, sizes.eos_token_id, sizes.pad_token_id) == (290, 1, 2, 0)
    assert (saved.bos_token_id, saved.eos_token_id, saved.pad_token_id) == (1, 2, 0)
    assert file_bytes(tokenizer_folder) == before and not leftovers(tmp_path)


def test_a_real_chat_tokenizer_is_used_by_later_verbs(shared: Path, tmp_path: Path) -> None:
    """The ids are those that the tokenizers library alone reads from the file, for texts and for written-out turns."""
    folder = shared / "data" / "tokenizers" / "minimind"
    plain = Tokenizer.from_str(gzip.decompress((folder / "tokenizer.json.gz").read_bytes()).decode())
    stories = shared / "data" / "text_en" / "tinystories_sample.txt.gz"
    more = {"data.eval": None, "data.limit": 40, "tiny.tokenizer": str(folder), "max_steps": 2}
    pretrain.run(load(PretrainConfig, options((stories, stories), tmp_path / "run"), GIVEN, more))
    loaded = load_base(str(tmp_path / "run" / "model"), dtype="float32", device="cpu")
    assert [loaded.tokenizer(text)["input_ids"] for text in SPOKEN] == [plain.encode(text).ids for text in SPOKEN]
    assert loaded.model.get_input_embeddings().weight.shape[0] == len(loaded.tokenizer) == 6400  # type: ignore[index]
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert loaded.tokenizer.chat_template == config["chat_template"]

    turns = (Message("user", "你好"), Message("assistant", "Hi"), Message("user", "2+2?"))
    example = chat_format(loaded.tokenizer).encode_example(Row(turns, ("四 🙂",), None), train_on="assistant")
    no_thought = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    first = f"<|im_start|>user\n你好<|im_end|>\n{no_thought}"
    between = f"\n<|im_start|>user\n2+2?<|im_end|>\n{no_thought}"
    assert example.prompt_ids == plain.encode(first).ids
    (ids,), (counted,) = example.completions, example.counted or []
    assert ids == plain.encode(f"Hi<|im_end|>{between}四 🙂<|im_end|>").ids
    learned = [token for token, counts in zip(ids, counted, strict=True) if counts]
    assert learned == [*plain.encode("Hi<|im_end|>").ids, *plain.encode("四 🙂<|im_end|>").ids]


def test_a_tokenizer_that_cannot_be_used_is_named(
    tokenizer_folder: Path, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    config = load(PretrainConfig, options(texts, tmp_path / "run"), GIVEN, {"tiny.tokenizer": str(tokenizer_folder)})
    file = tokenizer_folder / "tokenizer.json"
    whole = file.read_bytes()

    def refused() -> str:
        with pytest.raises(ModelError) as caught:
            pretrain.plan(config)
        message = str(caught.value)
        with pytest.raises(ModelError) as again:
            pretrain.open_or_make(config, [])
        assert str(again.value) == message and "\n" not in message and caught.value.exit_code == 2
        assert str(tokenizer_folder) in message and not (tmp_path / "run").exists()
        return message

    file.write_text('{"model"')
    assert "the tokenizer cannot be read: Expecting ':' delimiter: line 1 column 9" in refused()
    file.unlink()
    assert "no tokenizer.json (or tokenizer.json.gz) in this folder" in refused()
    (tokenizer_folder / "tokenizer.json.gz").write_bytes(gzip.compress(whole)[:100])
    assert "the tokenizer cannot be read: Compressed file ended" in refused()
    file.write_bytes(whole)
    (tokenizer_folder / "tokenizer.json.gz").unlink()
    settings = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    (tokenizer_folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": None}))
    assert "has no end token, so no answer could end; set eos_token in its tokenizer_config.json" in refused()
    tokenizer_folder.rename(tmp_path / "elsewhere")
    assert f"{tokenizer_folder}: no such folder" in refused()


def test_a_given_tokenizer_leaves_no_vocabulary_to_choose(base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    given = {"tiny.tokenizer": str(tmp_path)}
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, options(texts, tmp_path / "run"), given)
    assert str(caught.value) == (
        "command line: 'tiny.vocab_size' is for a new tokenizer, but 'tiny.tokenizer' has its own; leave one out"
    )
    with pytest.raises(ConfigError) as caught:
        load(PretrainConfig, options(texts, tmp_path / "run"), GIVEN, given, {"model.model_name_or_path": str(base)})
    assert "command line: 'tiny.tokenizer' = " in str(caught.value)
    assert "is for a new model, but 'model.model_name_or_path' names an existing one" in str(caught.value)


def test_ids_with_gaps_have_a_row_each(tmp_path: Path) -> None:
    letters = Tokenizer(BPE({"a": 0, "b": 1, "<end>": 9}, []))
    PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<end>").save_pretrained(tmp_path)
    read = read_tokenizer(str(tmp_path))
    model = make_llama(read, hidden_size=32, num_layers=1, num_heads=2, max_length=32, seed=0)
    assert read("ab<end>")["input_ids"] == [0, 1, 9] and model.config.vocab_size == 10


def test_the_plan_trains_nothing(base: Path, texts: tuple[Path, Path], tmp_path: Path) -> None:
    assert "new: Llama, 2 layers" in pretrain.plan(load(PretrainConfig, options(texts, tmp_path / "run")))
    further = {**NOT_NEW, "model.model_name_or_path": str(base)}
    assert "LlamaForCausalLM" in pretrain.plan(load(PretrainConfig, options(texts, tmp_path / "run"), further))
    assert not (tmp_path / "run").exists() and words({"a": None}) == []
