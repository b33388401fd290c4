"""Models and tokenizers made from scratch, small enough for a laptop."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from onebase.data.chat import check_tokenizer
from onebase.errors import DoesNotFitError, ModelError
from onebase.models.hardware import free_memory

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>")


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer (any text, any language, no unknown token) on these texts.

    Every digit is a token of its own, so that a model can calculate with numbers it has not seen. The vocabulary is
    smaller than requested if the texts give fewer merges.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    pad, bos, eos = SPECIAL_TOKENS
    # The tokenizer itself adds the beginning token, so that every program that uses it does.
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, SPECIAL_TOKENS.index(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=pad, bos_token=bos, eos_token=eos)


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Reads the tokenizer in a folder; its tokenizer.json may be gzipped.

    Raises:
        ModelError: the folder or its tokenizer.json does not exist or cannot be read, or there is no end token.
    """
    source = Path(folder)
    if not source.is_dir():
        raise ModelError(f"{folder}: no such folder", remedy="no-tokenizer")
    if not any((source / name).is_file() for name in ("tokenizer.json", "tokenizer.json.gz")):
        raise ModelError(f"{folder}: no tokenizer.json (or tokenizer.json.gz) in this folder", remedy="no-tokenizer")
    with TemporaryDirectory() as unpacked:
        try:
            for path in (*source.glob("tokenizer.json.gz"), *source.glob("*.json"), *source.glob("*.jinja")):
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                Path(unpacked, path.name.removesuffix(".gz")).write_bytes(content)
            tokenizer = AutoTokenizer.from_pretrained(unpacked, trust_remote_code=False)
        except Exception as error:  # tokenizers has no error class of its own
            reason = " ".join(str(error).replace(unpacked, folder).split())[:300]
            raise ModelError(f"{folder}: the tokenizer cannot be read: {reason}") from error
    tokenizer.name_or_path = folder
    check_tokenizer(tokenizer)
    return tokenizer


def num_weights(config: LlamaConfig) -> int:
    """Number of weights in a Llama with tied embeddings and as many key heads as query heads."""
    hidden = config.hidden_size
    per_layer = 4 * hidden**2 + 3 * hidden * config.intermediate_size + 2 * hidden
    return config.vocab_size * hidden + config.num_hidden_layers * per_layer + hidden


def make_llama(
    tokenizer: PreTrainedTokenizerBase,
    *,
    hidden_size: int,
    num_layers: int,
    num_heads: int,
    max_length: int,
    seed: int,
) -> LlamaForCausalLM:
    """Makes a randomly initialised Llama in float32 with tied embeddings; the same seed gives the same weights.

    Raises:
        DoesNotFitError: its weights do not fit the free memory.
    """
    config = LlamaConfig(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # len(tokenizer), unless its ids have gaps
        hidden_size=hidden_size,
        intermediate_size=-(-hidden_size * 8 // 3 // 16) * 16,  # SwiGLU's 8/3 of the width (Shazeer 2020), rounded up
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        dtype="float32",
    )
    needed, free = 4 * num_weights(config), free_memory(torch.device("cpu"))
    if needed > free:
        raise DoesNotFitError(
            f"the new model's weights take {needed / 2**30:,.1f} GiB, and {free / 2**30:.1f} GiB are free",
            remedy="new-model-too-large",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
