"""Supervised fine-tuning: the policy learns answers that people (or better models) wrote.

    L = -(1 / M) sum log p(token | prompt, earlier tokens of the answer)

over the M counted completion tokens of the whole minibatch, however it is split. The prompt is masked by default
(`data.train_on`). With `lora.r = 0` the base itself trains, and is saved as a full model.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onebase.config.language import SFTConfig
from onebase.data.chat import ChatFormat
from onebase.data.encoded import Encoder, open_cache
from onebase.data.fit import require_end
from onebase.data.prepare import best_answer, encode_rows
from onebase.data.view import first_lines
from onebase.evaluation.answers import answers, write_answers
from onebase.models.base import OneBase
from onebase.models.hardware import peak_memory_mb
from onebase.models.role_files import save_base, save_role
from onebase.recipes.setup.data import is_streamed, order_of, read_record, read_rows, streamed
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.shared import (
    best_by,
    largest_example,
    limits_of,
    load_start,
    make_update,
    new_lora,
    num_steps,
    open_base,
    open_chat,
    open_run,
    token_budget,
    warn_of_warmup,
)
from onebase.records import Example
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.streaming.minibatches import Minibatches
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.language import language_step, mean_nll
from onebase.training.loop import Loop
from onebase.training.plan import amount, describe_steps
from onebase.training.update import ParameterGroup


def run(config: SFTConfig) -> dict[str, Any]:
    """Trains, evaluates and saves `policy/` (or `model/`) in the run's folder; returns the summary."""
    run = open_run(config)
    base = open_base(config.model, run.group, trained_in_full=config.lora.r == 0)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context_length)
    add_policy(base, config)
    order = order_of(config.data, train, config.seed)
    total = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, total)
    update = make_update(
        base,
        [ParameterGroup(base.parameters("policy"), config.optimizer.learning_rate)],
        config.optimizer,
        total_steps=total,
        dropout=config.lora.dropout > 0,
        budget=token_budget(
            base, config.batch, role="policy", longest=largest_example(base, train, held_out), before=run.token_budget
        ),
        repro_folder=run.folder / "refused",
    )
    before = mean_nll(base, held_out, budget=update.budget, trained=False)
    answers_before = answers(base, chat, held_out, role="policy")
    say(
        f"sft: {amount(train)}, {len(held_out)} held out, {number_of(total, 'step')}, "
        f"train_on {config.data.train_on}, layout {base.layout}"
    )

    def save(folder: Path) -> None:
        if config.lora.r == 0:
            save_base(base, folder / "model", chat=chat)
        else:
            save_role(base, "policy", folder / "policy", kind="policy", chat=chat)

    with (
        Loop(
            run,
            "sft",
            total,
            save=save,
            weights=TrainedWeights(base, "policy"),
            update=update,
            inputs=inputs_of(base, train, held_out),
            best=best_by("-eval/loss", config.evaluation),
        ) as loop,
        Minibatches(train, order, config.batch.minibatch, total=total) as minibatches,
    ):
        for step in loop:
            metrics = language_step(base, minibatches.examples(step), update)
            if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0:
                metrics["eval/loss"] = mean_nll(base, held_out, budget=update.budget)
            loop.end_step(metrics | minibatches.speed(), shown=["loss"])
        loop.end_steps()
        after = mean_nll(base, held_out, budget=update.budget)
        loop.keep_best({"eval/loss": after})
    save(run.folder)
    write_answers(run.folder / "samples.jsonl", answers_before, answers(base, chat, held_out, role="policy"))
    summary = {
        "verb": "sft",
        "steps": total,
        "eval_loss_before": before,
        "eval_loss_after": after,
        "data": read_record(order, train, held_out, total, config.batch.minibatch),
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    loop.finish(summary)
    saved = run.folder / ("policy" if config.lora.r else "model")
    say(f"sft: held-out loss {before:.3f} -> {after:.3f}; saved {saved}")
    return summary


def add_policy(base: OneBase, config: SFTConfig) -> None:
    """Adds the role that trains: a saved one, a new adapter, or the whole base."""
    if config.start_from is not None:
        load_start(base, "policy", config.start_from, config.lora, kinds=("policy",), trains=True)
    elif config.lora.r == 0:
        base.add_role("policy")
        base.train_base("policy")
    else:
        base.add_role("policy", adapter=new_lora(base, config.lora), trains=True)


def read_examples(config: SFTConfig, chat: ChatFormat, context: int) -> tuple[Sequence[Example], list[Example]]:
    """Reads training and held-out examples, encoded within the limits."""
    limits, train_on = limits_of(config.data, context), config.data.train_on
    cache = open_cache(chat, limits, train_on)
    if is_streamed(config.data):
        encode = Encoder(chat, train_on, cache)
        stream, others = streamed(config.data, lambda row, cuts: encode(best_answer(row), cuts), limits, cache=cache)
        require_end(stream.sample(), chat, say)
        return stream, others
    read = read_rows(config.data, config.seed)
    if compared := sum(len(row.answers) > 1 and row.grades is not None for rows in read for row in rows):
        say(f"{number_of(compared, 'row compares', 'rows compare')} answers; sft learns the best of each")
    train, held_out = ([best_answer(row) for row in rows] for rows in read)
    examples = encode_rows(train, chat, limits, train_on=train_on, cache=cache)
    require_end(examples, chat, say)
    return examples, encode_rows(held_out, chat, limits, train_on=train_on) if held_out else []


def plan(config: SFTConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context)
    order = order_of(config.data, train, config.seed)
    steps = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, steps)
    return "\n".join(
        [
            *base.lines,
            *describe_steps(train, held_out, steps=steps, minibatch=config.batch.minibatch),
            *order.lines(),
            *first_lines(train[0], chat),
            f"saves       {config.output_dir}/{'policy' if config.lora.r else 'model'}",
        ]
    )
