"""Pretraining: trains a language model on plain text, from scratch or further.

    L = -(1 / M) sum log p(token | earlier tokens of its block)

Texts are laid end to end, each between a beginning and an end token, and cut into blocks of equal length. Without
`model.model_name_or_path` the model is made from the `tiny` keys, and the tokenizer is `tiny.tokenizer` or trained on
the same texts. Every parameter trains; the result is a transformers folder, the base for all later stages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from onebase.config.files import dump_config
from onebase.config.language import PretrainConfig
from onebase.data.chat import ChatFormat, chat_format
from onebase.data.mixing import Order
from onebase.data.prepare import dropped_line
from onebase.data.texts import as_text, blocks_of
from onebase.data.view import first_lines
from onebase.engines.opening import load_base, wrap_model
from onebase.engines.passes import num_counted
from onebase.errors import ModelError
from onebase.models.base import OneBase
from onebase.models.hardware import peak_memory_mb
from onebase.models.loading import choose_device
from onebase.models.role_files import save_base
from onebase.models.scratch import make_llama, read_tokenizer, train_tokenizer
from onebase.processes import ALONE, Group
from onebase.recipes.setup.data import is_streamed, read_record, read_rows, sources_of, streamed_rows
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
from onebase.shown import number_of
from onebase.streaming.blocks import Blocks, tokenized
from onebase.streaming.rows import StreamedRows
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
    train_rows, held_out_rows = read_texts(config)
    learned = train_rows.learned() if isinstance(train_rows, StreamedRows) else train_rows
    base = open_or_make(config, learned, group=run.group)
    chat = open_chat(base.tokenizer, config.model)
    train, counts = blocks_to_learn(base, train_rows, config, chat)
    held_out = to_blocks(base, held_out_rows, config, chat)
    order = Order(sources_of(config.data), counts, seed=config.seed)
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
    counted = train.num_counted if isinstance(train, Blocks) else num_counted(train)
    say(
        f"pretrain: {parameters / 1e6:.2f} M parameters, vocabulary {len(base.tokenizer)}, "
        f"{number_of(len(train), 'block')} "
        f"({number_of(counted, 'token')}), {len(held_out)} held out, {number_of(total, 'step')}"
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


def read_texts(config: PretrainConfig) -> tuple[Sequence[Row], list[Row]]:
    """Training and held-out rows; training rows that are streamed are `StreamedRows`."""
    if is_streamed(config.data, kept=True):
        return streamed_rows(config.data)
    return read_rows(config.data, config.seed)


def open_or_make(config: PretrainConfig, rows: Iterable[Row], *, group: Group = ALONE) -> OneBase:
    """Loads the model to train further, or makes a new one with the given tokenizer or one trained on the texts."""
    if config.model.model_name_or_path is not None:
        # In float32: an update is often smaller than the last bit of a bfloat16 weight.
        dtype = "float32" if config.model.dtype == "auto" else config.model.dtype
        base = load_base(
            config.model.model_name_or_path,
            dtype=dtype,
            device=config.model.device,
            layout=config.model.layout,
            group=group,
        )
        return as_configured(base, config.model)
    tiny = config.tiny
    if tiny.tokenizer is not None:
        tokenizer = read_tokenizer(tiny.tokenizer)
    else:
        texts = (text for row in rows for text in (*(turn.content for turn in row.messages), *row.answers))
        tokenizer = group.from_main(lambda: train_tokenizer(texts, vocab_size=tiny.vocab_size or VOCAB_SIZE))
    model = make_llama(
        tokenizer,
        hidden_size=tiny.hidden_size,
        num_layers=tiny.num_layers,
        num_heads=tiny.num_heads,
        max_length=tiny.max_length,
        seed=config.seed,
    )
    model = model.to(choose_device(config.model.device, group))  # type: ignore[arg-type]
    return as_configured(wrap_model(model, tokenizer, layout="tree", name_or_path="", group=group), config.model)


def blocks_to_learn(
    base: OneBase, rows: Sequence[Row], config: PretrainConfig, chat: ChatFormat
) -> tuple[Sequence[Example], list[int]]:
    """The blocks of all sources, in order, and how many each source has: no block holds texts of two.

    Raises:
        DataError: no row is left, or as `to_blocks`.
    """
    if isinstance(rows, StreamedRows):
        train, dropped = tokenized(
            rows,
            chat,
            block_length(base, config),
            max_dropped_share=config.data.max_dropped_share,
            tell=say,
        )
        if dropped:
            say(dropped_line(dropped))
        return train, train.counts
    sources = range(len(sources_of(config.data)))
    found = [to_blocks(base, [row for row in rows if row.source == number], config, chat) for number in sources]
    return [block for some in found for block in some], list(map(len, found))


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
    return blocks_of((as_text(row, chat) for row in rows), block_length(base, config))


def block_length(base: OneBase, config: PretrainConfig) -> int:
    """Tokens of a block. Raises ModelError if they are more than the model's context."""
    length = config.block_length or min(LONGEST_BLOCK, base.context_length)
    if length > base.context_length:
        raise ModelError(f"block_length = {length} exceeds the model's context of {base.context_length}; lower it")
    return length


def plan(config: PretrainConfig) -> str:
    """What `run` would do, in words."""
    check_writable(Path(config.output_dir), dump_config(config))
    require_trackers(config.report_to)
    if config.model.model_name_or_path is None:
        return "\n".join([*lines_on_new_model(config), f"saves       {config.output_dir}/model"])
    base = describe_base(config.model.model_name_or_path, "none", config.model.dtype)
    rows, held_out = read_texts(config)
    chat, sources = open_chat(base.tokenizer, config.model), sources_of(config.data)
    seen = rows.sample() if isinstance(rows, StreamedRows) else rows
    texts = [as_text(row, chat) for row in seen]
    tokens: list[list[int]] = [[] for _ in sources]
    for row, text in zip(seen, texts, strict=True):
        tokens[row.source].append(num_counted([text]))
    totals = list(map(sum, tokens))
    if isinstance(rows, StreamedRows):  # the sample stands for all
        mean = fmean(count for own in tokens for count in own)
        totals = [round(count * (fmean(own) if own else mean)) for own, count in zip(tokens, rows.counts, strict=True)]
    length = config.block_length or min(LONGEST_BLOCK, base.context)
    order = Order(sources, [-(-count // length) for count in totals], seed=config.seed)
    steps = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, steps)
    amounts = describe_steps(texts, held_out, steps=steps, minibatch=config.batch.minibatch)
    if isinstance(rows, StreamedRows):
        amounts[0] = (
            f"data        {number_of(len(rows), 'streamed text')}, about {number_of(sum(totals), 'token')}; "
            f"{len(held_out)} held out"
        )
    return "\n".join(
        [
            *base.lines,
            *amounts,
            *order.lines(),
            *first_lines(texts[0], chat),
            f"saves       {config.output_dir}/model",
        ]
    )


def lines_on_new_model(config: PretrainConfig) -> list[str]:
    """The plan's lines on a model that is made, and on its texts."""
    tiny, (train, held_out) = config.tiny, read_texts(config)
    vocabulary = f"of at most {tiny.vocab_size or VOCAB_SIZE}"
    if tiny.tokenizer is not None:
        vocabulary = f"{len(read_tokenizer(tiny.tokenizer))} of {tiny.tokenizer}"
    if isinstance(train, StreamedRows):
        amount = f"{number_of(len(train), 'streamed text')}"
    else:
        characters = sum(len(row.answers[0]) for row in [*train, *held_out] if row.answers)
        amount = f"{number_of(len(train) + len(held_out), 'text')}, {number_of(characters, 'character')}"
    return [
        f"base        new: Llama, {number_of(tiny.num_layers, 'layer')}, width {tiny.hidden_size}, context "
        f"{tiny.max_length}, vocabulary {vocabulary}",
        f"data        {amount}",
    ]
