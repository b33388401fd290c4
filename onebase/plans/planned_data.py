"""How long a planned run's data is: read with the base's tokenizer where both are here, else what the keys allow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import DPOConfig, RewardConfig
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import BestOfConfig, IterateConfig, PPOConfig
from onebase.config.run import RunConfig
from onebase.data.chat import ChatFormat
from onebase.data.texts import as_text
from onebase.models.loading import load_tokenizer
from onebase.planning.architecture import Architecture
from onebase.planning.run import Lengths, Span
from onebase.recipes import best_of, iterate, pretrain, reward, sft
from onebase.recipes.setup import dpo
from onebase.recipes.setup.rollouts import read_prompts
from onebase.recipes.setup.shared import open_chat
from onebase.records import Example, Prompt
from onebase.shown import number_of
from onebase.streaming.examples import OnDemand
from onebase.streaming.rows import StreamedRows

ASSUMED_EXAMPLES = 1000
"""Examples of data that is not here."""
ASSUMED_LENGTH = 2048
"""Longest example of data that is not here, where neither a key nor the model's context says less."""
_TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt")


def read_lengths(config: RunConfig, architecture: Architecture) -> Lengths:
    """The lengths of the run's examples.

    Raises:
        DataError, ModelError: the data or the tokenizer is here, and cannot be used.
    """
    absent = _what_is_absent(config)
    if isinstance(config, PretrainConfig):
        return _of_texts(config, architecture, absent)
    if absent:
        return _allowed(config, architecture, absent)
    keys: Any = config
    chat = open_chat(load_tokenizer(keys.model.model_name_or_path), keys.model)
    context = architecture.context
    if isinstance(config, PPOConfig | RFTConfig | BestOfConfig | IterateConfig):
        return _of_prompts(config, chat, context)
    readers: dict[type, Any] = {
        SFTConfig: sft.read_examples,
        RewardConfig: reward.read_examples,
        DPOConfig: dpo.read_examples,
    }
    train, held_out = readers[type(config)](config, chat, context)
    return _of_examples(train, held_out)


def _what_is_absent(config: RunConfig) -> str:
    """The tokenizer or the first data file that is not here, in words; empty if all is."""
    keys: Any = config
    name = keys.model.model_name_or_path
    if name is not None and not any((Path(name) / file).is_file() for file in _TOKENIZERS):
        return "the tokenizer is not here"
    files = keys.data.files if hasattr(keys.data, "files") else keys.data.train
    for file in files:
        if not Path(file).exists() and not any(mark in file for mark in "*?[:"):
            return f"{file} is not here"
    return ""


def _span(values: Sequence[int]) -> Span:
    return Span(statistics.fmean(values), max(values)) if values else Span(0.0, 0)


def _of_examples(train: Sequence[Example], held_out: Sequence[Example]) -> Lengths:
    seen = train.sample() if isinstance(train, OnDemand) else train
    of_both = [*seen, *held_out]
    trees = [example.num_tokens for example in of_both]
    return Lengths(
        prompt=_span([len(example.prompt_ids) for example in of_both]),
        completion=_span([len(ids) for example in of_both for ids in example.completions]),
        tree=_span(trees),
        completions=_span([len(example.completions) for example in of_both]),
        counted=statistics.fmean(example.num_counted for example in of_both),
        examples=len(train),
        held_out=len(held_out),
        source=f"read: {number_of(len(of_both), 'example')}" + (" of a stream" if seen is not train else ""),
        measured=True,
        deviation=statistics.pstdev(trees),
    )


def _of_prompts(config: Any, chat: ChatFormat, context: int) -> Lengths:
    held_out: Sequence[Prompt] = []
    if isinstance(config, BestOfConfig | IterateConfig):
        if isinstance(config, IterateConfig):
            config = BestOfConfig.model_validate(iterate.sampling_options(config))
        prompts = best_of.encode(config, chat, context)
    else:
        prompts, held_out = read_prompts(
            config.data, config.evaluation, config.generation, chat, context, seed=config.seed
        )
    lengths = [len(prompt.ids) for prompt in [*prompts, *held_out]]
    return _sampled(
        config,
        _span(lengths),
        examples=len(prompts),
        held_out=len(held_out),
        source=f"read: {number_of(len(lengths), 'prompt')}; completions as long as they may be",
        measured=True,
        deviation=statistics.pstdev(lengths),
    )


def _sampled(config: Any, prompt: Span, **rest: Any) -> Lengths:
    """The lengths where completions are sampled: each as long as it may be."""
    generation = config.generation
    count, longest, least = generation.samples_per_prompt, generation.max_new_tokens, generation.random_min_new_tokens
    mean = longest if least is None else (longest + least) / 2
    return Lengths(
        prompt=prompt,
        completion=Span(mean, longest),
        tree=Span(prompt.mean + count * mean, prompt.longest + count * longest),
        completions=Span(count, count),
        counted=count * mean,
        **rest,
    )


def _of_texts(config: PretrainConfig, architecture: Architecture, absent: str) -> Lengths:
    """Blocks of plain text, all but the last of one length."""
    length = min(config.block_length or pretrain.LONGEST_BLOCK, architecture.context)
    examples, held_out = ASSUMED_EXAMPLES, round(ASSUMED_EXAMPLES * config.data.eval_fraction)
    source = f"limits of the keys, {ASSUMED_EXAMPLES} blocks: {absent}"
    if not absent:
        counts, source = _blocks(config, length)
        examples, held_out = counts
    block = Span(length, length)
    return Lengths(
        prompt=Span(1, 1),
        completion=Span(length - 1, length - 1),
        tree=block,
        completions=Span(1, 1),
        counted=length - 1,
        examples=examples,
        held_out=held_out,
        source=source,
        measured=not absent,
    )


def _blocks(config: PretrainConfig, length: int) -> tuple[tuple[int, int], str]:
    """How many blocks there are to train on and held out, counted in tokens or, without a tokenizer, in characters."""
    train, held_out = pretrain.read_texts(config)
    seen = train.sample() if isinstance(train, StreamedRows) else train
    share = len(train) / max(1, len(seen))
    name = config.model.model_name_or_path
    if name is None and config.tiny.tokenizer is None:
        characters = [sum(len(text) for row in rows for text in row.answers) for rows in (seen, held_out)]
        sizes = [count / CHARACTERS_PER_TOKEN for count in characters]
        texts = number_of(len(seen), "text")
        source = f"{texts}, {CHARACTERS_PER_TOKEN:g} characters a token: the tokenizer is made in the run"
    else:
        tokenizer = load_tokenizer(name) if name else pretrain.read_tokenizer(str(config.tiny.tokenizer))
        chat = open_chat(tokenizer, config.model)
        sizes = [float(sum(as_text(row, chat).num_tokens for row in rows)) for rows in (seen, held_out)]
        source = f"read: {number_of(len(seen), 'text')}"
    blocks = max(1, round(sizes[0] * share / length)), round(sizes[1] / length)
    return blocks, source


CHARACTERS_PER_TOKEN = 3.0
"""Of a small vocabulary made for the texts; English with 1,024 entries has about 2.6, with 4,096 about 3.4."""


def _allowed(config: Any, architecture: Architecture, absent: str) -> Lengths:
    """The longest that the keys and the model's context allow."""
    context = min(architecture.context, ASSUMED_LENGTH)
    held_out = round(ASSUMED_EXAMPLES * getattr(config.data, "eval_fraction", 0.0))
    source = f"limits of the keys, {ASSUMED_EXAMPLES} examples: {absent}"
    if hasattr(config, "generation"):
        room = max(1, min(architecture.context - config.generation.max_new_tokens, ASSUMED_LENGTH))
        prompt = min(config.data.max_prompt_tokens or room, room)
        return _sampled(
            config,
            Span(prompt, prompt),
            examples=ASSUMED_EXAMPLES,
            held_out=held_out,
            source=source,
            measured=False,
        )
    completion = min(config.data.max_completion_tokens or context // 2, context)
    prompt = min(config.data.max_prompt_tokens or context - completion, max(1, context - completion))
    count = 1 if isinstance(config, SFTConfig) else 2
    tree = prompt + count * completion
    return Lengths(
        prompt=Span(prompt, prompt),
        completion=Span(completion, completion),
        tree=Span(tree, tree),
        completions=Span(count, count),
        counted=count * completion,
        examples=ASSUMED_EXAMPLES,
        held_out=held_out,
        source=source,
        measured=False,
    )
