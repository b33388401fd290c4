from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from onebase.engines.opening import wrap_model
from onebase.errors import DoesNotFitError
from onebase.models.scratch import SPECIAL_TOKENS, make_llama, num_weights, train_tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "猫坐在垫子上", "der Hund sitzt"] * 5


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=300)


@pytest.mark.parametrize("text", ["the cat", " two  blanks\n\n\ttab ", "狗 и 🐈‍⬛", "", "\x00\x7f", "<|unknown|>"])
def test_any_text_comes_back_from_its_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    assert tokenizer.unk_token_id is None and all(0 <= i < len(tokenizer) for i in ids)


def test_the_special_tokens_come_first_and_stand_for_themselves(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2]
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.encode("the<|eos|>", add_special_tokens=False)[-1] == 2


def test_the_vocabulary_is_the_size_asked_or_smaller_where_texts_give_no_more(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    assert len(tokenizer) == 300
    few = train_tokenizer(["ab"], vocab_size=300)
    assert 256 + 3 <= len(few) < 300
    assert len(tokenizer.encode("the cat", add_special_tokens=False)) < len("the cat")


def test_the_same_texts_give_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert train_tokenizer(iter(TEXTS), vocab_size=300).get_vocab() == tokenizer.get_vocab()


def test_a_saved_tokenizer_is_the_same_one(tokenizer: PreTrainedTokenizerFast, tmp_path: object) -> None:
    tokenizer.save_pretrained(str(tmp_path))
    again = PreTrainedTokenizerFast.from_pretrained(str(tmp_path))
    assert again.encode("the cat sat <|eos|>猫") == tokenizer.encode("the cat sat <|eos|>猫")
    assert again.eos_token_id == 2 and again.pad_token_id == 0


def test_the_same_seed_gives_the_same_weights_and_spends_no_random_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "max_length": 64}
    before = torch.get_rng_state()
    first = make_llama(tokenizer, **sizes, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, other = make_llama(tokenizer, **sizes, seed=5), make_llama(tokenizer, **sizes, seed=6)
    for (name, weight), (_, same) in zip(first.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(weight, same), name
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_the_model_is_a_small_llama_in_float32_that_fits_its_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make_llama(tokenizer, hidden_size=48, num_layers=3, num_heads=4, max_length=64, seed=0)
    config = model.config
    assert config.intermediate_size == 128 and config.intermediate_size % 16 == 0
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (config.vocab_size, config.num_hidden_layers, config.max_position_embeddings) == (len(tokenizer), 3, 64)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert num_weights(config) == sum(parameter.numel() for parameter in model.parameters())
    base = wrap_model(model, tokenizer)
    assert base.layout == "tree" and base.context_length == 64


@pytest.mark.parametrize("sizes", [{"hidden_size": 10**9, "num_layers": 2}, {"hidden_size": 64, "num_layers": 10**9}])
def test_a_model_larger_than_the_memory_is_refused_before_it_is_made(
    tokenizer: PreTrainedTokenizerFast, sizes: dict[str, int]
) -> None:
    with pytest.raises(DoesNotFitError, match=r"the new model's weights take .* GiB, and .* GiB are free"):
        make_llama(tokenizer, **sizes, num_heads=4, max_length=64, seed=0)
