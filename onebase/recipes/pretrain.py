"""Pretraining: trains a language model on plain text, from scratch or further.

    L = -(1 / M) sum log p(token | earlier tokens of its block)

Texts are laid end to end, each between a beginning and an end token, and cut into blocks of equal length. Without
`model.model_name_or_path` the model is made from the `tiny` keys, and the tokenizer is `tiny.tokenizer` or trained on
the same texts. Every parameter trains; the result is a transformers folder, the base for all later stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from onebase.config.files import dump_config
from onebase.config.language import PretrainConfig
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.mixing import Order
from onebase.data.prepare import best_answer
from onebase.data.view import first_lines
from onebase.engines.opening import load_base, wrap_model
from onebase.engines.passes import num_counted
from onebase.errors import DataError, ModelError
from onebase.models.base import OneBase
from onebase.models.hardware import peak_memory_mb
from onebase.models.role_files import save_base
from onebase.models.scratch import make_llama, read_tokenizer, train_tokenizer
from onebase.recipes.setup.data import read_record, read_rows, sources_of
from onebase.recipes.setup.shared import (
    as_configured,
    best_by,
    largest_example,
    make_update,
    num_steps,
    open_chat,
    open_run,
    token_budget,
    warn_of_warmup,
)
from onebase.records import Example, Row
from onebase.runs.progress import say
from onebase.runs.trackers import require_trackers
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.language import language_step, mean_nll
from onebase.training.loop import Loop
from onebase.training.plan import describe_base, describe_steps
from onebase.training.run import check_writable
from onebase.training.update import ParameterGroup

LONGEST_BLOCK = 1024
VOCAB_SIZE = 1024
"""A new tokenizer's vocabulary size, if none is configured."""


def run(config: PretrainConfig) -> dict[str, Any]:
    """Trains a model and saves it as `model/` in the run's folder; returns the summary."""
    run = open_run(config)
    train_rows, held_out_rows = read_rows(config.data, config.seed)
    base = open_or_make(config, train_rows)
    chat = open_chat(base.tokenizer, config.model)
    of_sources = blocks_of_sources(base, train_rows, config, chat)
    train, held_out = [block for some in of_sources for block in some], to_blocks(base, held_out_rows, config, chat)
    order = Order(sources_of(config.data), [len(some) for some in of_sources], seed=config.seed)
    base.add_role("policy")
    base.train_base("policy")
    total = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, total)
    update = make_update(
        base,
        [ParameterGroup(base.parameters("policy"), config.optimizer.learning_rate)],
        config.optimizer,
        total_steps=total,
        budget=token_budget(
            base, config.batch, role="policy", longest=largest_example(base, train, held_out), before=run.token_budget
        ),
        repro_folder=run.folder / "refused",
    )
    before = mean_nll(base, held_out, budget=update.budget, trained=False)
    parameters = sum(p.numel() for p in base.model.parameters())
    say(
        f"pretrain: {parameters / 1e6:.2f} M parameters, vocabulary {len(base.tokenizer)}, {len(train)} blocks "
        f"({num_counted(train)} tokens), {len(held_out)} held out, {total} steps"
    )

    def save(folder: Path) -> None:
        save_base(base, folder / "model", chat=chat)

    with Loop(
        run,
        "pretrain",
        total,
        save=save,
        weights=TrainedWeights(base, "policy"),
        update=update,
        inputs=inputs_of(base, train, held_out),
        best=best_by("-eval/loss", config.evaluation),
    ) as loop:
        for step in loop:
            chosen = order.minibatch(step, config.batch.minibatch)
            metrics = language_step(base, [train[i] for i in chosen], update)
            if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0:
                metrics["eval/loss"] = mean_nll(base, held_out, budget=update.budget)
            loop.end_step(metrics, shown=["loss"])
        loop.end_steps()
        after = mean_nll(base, held_out, budget=update.budget)
        loop.keep_best({"eval/loss": after})
    save(run.folder)
    summary = {
        "verb": "pretrain",
        "steps": total,
        "parameters": parameters,
        "eval_loss_before": before,
        "eval_loss_after": after,
        "data": read_record(order, train, held_out, total, config.batch.minibatch),
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    loop.finish(summary)
    say(f"pretrain: held-out loss {before:.3f} -> {after:.3f}; saved {run.folder / 'model'}")
    return summary


def open_or_make(config: PretrainConfig, rows: Sequence[Row]) -> OneBase:
    """Loads the model to train further, or makes a new one with the given tokenizer or one trained on the texts."""
    if config.model.model_name_or_path is not None:
        # In float32: an update is often smaller than the last bit of a bfloat16 weight.
        dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
        base = load_base(
            config.model.model_name_or_path, dtype=dtype, device=config.model.device, layout=config.model.layout
        )
        return as_configured(base, config.model)
    tiny = config.tiny
    if tiny.tokenizer is not None:
        tokenizer = read_tokenizer(tiny.tokenizer)
    else:
        texts = (text for row in rows for text in (*(turn.content for turn in row.messages), *row.answers))
        tokenizer = train_tokenizer(texts, vocab_size=tiny.vocab_size or VOCAB_SIZE)
    model = make_llama(
        tokenizer,
        hidden_size=tiny.hidden_size,
        num_layers=tiny.num_layers,
        num_heads=tiny.num_heads,
        max_length=tiny.max_length,
        seed=config.seed,
    )
    if config.model.device != "auto":
        model = model.to(config.model.device)  # type: ignore[arg-type]
    elif torch.cuda.is_available():
        model = model.to("cuda")  # type: ignore[arg-type]
    return as_configured(wrap_model(model, tokenizer, layout="tree", name_or_path=""), config.model)


def to_blocks(
    base: OneBase, rows: Sequence[Row], config: PretrainConfig, chat: ChatFormat | None = None
) -> list[Example]:
    """Lays the texts end to end and cuts them into blocks; the last block may be shorter.

    A conversation is laid out as its chat template writes it, and every token of it is learned.

    Raises:
        DataError: a row is a conversation, and there is no chat template to write it in.
        ModelError: blocks are longer than the model's context.
    """
    chat = chat or chat_format(base.tokenizer)
    ids: list[int] = []
    for row in rows:
        text = as_text(row, chat)
        # Without a beginning token, a text starts after the end token of the previous one.
        start = [] if ids and text.prompt_ids[0] == ids[-1] else text.prompt_ids
        ids += [*start, *text.completions[0]]
    length = config.block_length or min(LONGEST_BLOCK, base.context_length)
    if length > base.context_length:
        raise ModelError(f"block_length = {length} exceeds the model's context of {base.context_length}; lower it")
    blocks = [ids[start : start + length] for start in range(0, len(ids), length)]
    return [Example(block[:1], [block[1:]]) for block in blocks if len(block) > 1]


def as_text(row: Row, chat: ChatFormat) -> Example:
    """A plain text, or a conversation as its chat template writes it, every token counted.

    Raises:
        DataError: it is a conversation, and there is no chat template.
    """
    if (row.messages and chat.template is None) or (not row.messages and len(row.answers) != 1):
        raise DataError(
            f"{row.place}: pretraining reads plain text (.txt, or rows with a 'text' key), and the base has no chat "
            "template to write conversations in; set model.chat_template, or use `onebase sft`"
        )
    return chat.encode_example(best_answer(row), train_on="all")


def blocks_of_sources(
    base: OneBase, rows: Sequence[Row], config: PretrainConfig, chat: ChatFormat
) -> list[list[Example]]:
    """The blocks of each source: no block holds texts of two."""
    return [
        to_blocks(base, [row for row in rows if row.source == number], config, chat)
        for number in range(len(sources_of(config.data)))
    ]


def plan(config: PretrainConfig) -> str:
    """What `run` would do, in words."""
    check_writable(Path(config.output_dir), dump_config(config))
    require_trackers(config.report_to)
    if config.model.model_name_or_path is None:
        tiny, rows = config.tiny, [row for side in read_rows(config.data, config.seed) for row in side]
        vocabulary = f"of at most {tiny.vocab_size or VOCAB_SIZE}"
        if tiny.tokenizer is not None:
            vocabulary = f"{len(read_tokenizer(tiny.tokenizer))} of {tiny.tokenizer}"
        return "\n".join(
            [
                f"base        new: Llama, {tiny.num_layers} layers, width {tiny.hidden_size}, context "
                f"{tiny.max_length}, vocabulary {vocabulary}",
                f"data        {len(rows)} texts, {sum(len(row.answers[0]) for row in rows if row.answers)} characters",
                f"saves       {config.output_dir}/model",
            ]
        )
    base = describe_base(config.model.model_name_or_path, "none", config.model.dtype)
    train_rows, _ = read_rows(config.data, config.seed)
    chat, sources = open_chat(base.tokenizer, config.model), sources_of(config.data)
    train = [as_text(row, chat) for row in train_rows]
    length = config.block_length or min(LONGEST_BLOCK, base.context)
    tokens = [0] * len(sources)
    for row, text in zip(train_rows, train, strict=True):
        tokens[row.source] += num_counted([text])
    order = Order(sources, [-(-count // length) for count in tokens], seed=config.seed)
    steps = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, steps)
    return "\n".join(
        [
            *base.lines,
            *describe_steps(train, [], steps=steps, minibatch=config.batch.minibatch),
            *order.lines(),
            *first_lines(train[0], chat),
            f"saves       {config.output_dir}/model",
        ]
    )
