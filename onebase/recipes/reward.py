"""Trains a reward role on preferences: pairs, or ranked lists of any length.

    L = -(1 / P) sum over the P comparisons of a list of  log sigmoid(s_better - s_worse - margin)

(Ouyang et al. 2022, eq. 1: all K answers to a question go through the model once, in one tree, and give all C(K, 2)
comparisons, weighted so that a list counts as much as a pair.) The held-out scores' mean and deviation are saved with
the role, in a form from which transformers' sequence classifiers with PEFT give the same scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.config.preferences import RewardConfig
from onebase.data.chat import ChatFormat
from onebase.data.compared import drop_equal_completions, pair_labelled, rank_scored, unranked_line
from onebase.data.encoded import Encoder, open_cache
from onebase.data.prepare import dropped_line, encode_rows
from onebase.data.view import first_lines
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import num_counted, per_completion
from onebase.errors import DataError
from onebase.models.base import OneBase
from onebase.models.classifier import check_classifier, save_classifier
from onebase.models.hardware import peak_memory_mb
from onebase.models.role_files import save_role
from onebase.models.roles import Moments
from onebase.objectives.reward import (
    Comparison,
    centering_loss,
    ranking_accuracy,
    ranking_loss,
    ranking_pairs,
)
from onebase.recipes.setup.data import (
    check_compares,
    is_streamed,
    order_of,
    read_record,
    read_rows,
    streamed,
)
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
from onebase.records import Example, Row, TreeBatch
from onebase.reporting.intervals import bootstrap_mean
from onebase.runs.progress import say
from onebase.shown import number_of
from onebase.streaming.examples import OnDemand
from onebase.streaming.minibatches import Minibatches
from onebase.training.averages import Averages, require_finite
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.comparisons import PairTensors, draw_comparisons
from onebase.training.loop import Loop
from onebase.training.plan import amount, describe_steps
from onebase.training.update import ParameterGroup, Update


def run(config: RewardConfig) -> dict[str, Any]:
    """Trains, evaluates and saves `reward/` (or `model/`) in the run's folder; returns the summary."""
    run = open_run(config)
    base = open_base(config.model, run.group, trained_in_full=config.lora.r == 0)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context_length)
    add_reward(base, config)
    order = order_of(config.data, train, config.seed)
    total = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, total)
    update = make_update(
        base,
        [ParameterGroup(base.parameters("reward"), config.optimizer.learning_rate, role="reward")],
        config.optimizer,
        total_steps=total,
        dropout=config.lora.dropout > 0,
        budget=token_budget(
            base, config.batch, role="reward", longest=largest_example(base, train, held_out), before=run.token_budget
        ),
        repro_folder=run.folder / "refused",
    )
    say(f"reward: {amount(train)}, {len(held_out)} held out, {number_of(total, 'step')}, layout {base.layout}")

    def save(folder: Path) -> None:
        if config.lora.r == 0:
            save_classifier(base, "reward", folder / "model")
        else:
            save_role(base, "reward", folder / "reward", kind="reward", chat=chat)

    with (
        Loop(
            run,
            "reward",
            total,
            save=save,
            weights=TrainedWeights(base, "reward"),
            update=update,
            inputs=inputs_of(base, train, held_out),
            best=best_by("eval/accuracy", config.evaluation),
        ) as loop,
        Minibatches(train, order, config.batch.minibatch, total=total) as minibatches,
    ):
        for step in loop:
            examples = minibatches.examples(step)
            comparisons = [
                draw_comparisons(example, max_pairs=config.ranking.max_pairs, seed=config.seed, visit=(step, i))
                for i, example in zip(minibatches.indices(step), examples, strict=True)
            ]
            metrics = train_step(base, examples, comparisons, update, config.ranking.centering_coefficient)
            if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0:
                metrics["eval/accuracy"] = evaluate(base, held_out, update.budget)["accuracy"]
            loop.end_step(metrics | minibatches.speed(), shown=["loss", "accuracy"])
        loop.end_steps()
        held = evaluate(base, held_out, update.budget)
        loop.keep_best({"eval/accuracy": held["accuracy"]})
    if held_out:
        base.scalar_role("reward").moments = Moments(held["score_mean"], held["score_std"], measured=True)
    save(run.folder)
    summary = {
        "verb": "reward",
        "steps": total,
        **{f"eval_{name}": value for name, value in held.items()},
        "data": read_record(order, train, held_out, total, config.batch.minibatch),
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    loop.finish(summary)
    saved = run.folder / ("reward" if config.lora.r else "model")
    say(
        f"reward: held-out accuracy {held['accuracy']:.3f} {held.get('accuracy_interval') or ''}, correlation of score "
        f"and length {held.get('length_correlation', math.nan):.2f}; saved {saved}"
    )
    return summary


def train_step(
    base: OneBase,
    examples: Sequence[Example],
    comparisons: Sequence[Sequence[Comparison]],
    update: Update,
    centering_coefficient: float = 0.0,
) -> dict[str, float]:
    """Takes one optimizer step on the lists' weighted comparisons, averaged over the lists."""

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        scores = completion_scores(base, batch, role="reward")  # [N], list by list
        pairs = PairTensors.of([examples[i] for i in indices], [comparisons[i] for i in indices], scores.device)
        per_pair = ranking_loss(
            scores, pairs.better, pairs.worse, weight=pairs.weight, tie=pairs.tie, margin=pairs.margin
        )
        correct, counted = ranking_accuracy(scores, pairs.better, pairs.worse, pairs.tie)
        metrics.add("accuracy", correct.float(), counted)
        metrics.add("margin", scores[pairs.better] - scores[pairs.worse], counted)
        metrics.add("mean_reward", scores)
        centering = centering_coefficient * centering_loss(scores).sum() / sum(len(e.completions) for e in examples)
        return per_pair.sum() / len(examples) + centering

    return {**update.step((examples, loss)), "num_tokens": float(num_counted(examples))}


def evaluate(base: OneBase, examples: Sequence[Example], budget: TokenBudget) -> dict[str, Any]:
    """Measures on held-out lists the share of comparisons in the right order with its interval over lists, the scores'
    moments, and their correlation with answer length."""
    if not examples:
        return {"accuracy": float("nan"), "score_mean": None, "score_std": None}
    scores = per_completion(base, examples, lambda batch: completion_scores(base, batch, role="reward"), budget=budget)
    per_list = [right for right in map(list_accuracy, examples, scores) if not math.isnan(right)]
    everything = torch.cat(scores)
    lengths = torch.tensor([float(len(ids)) for example in examples for ids in example.completions])
    interval = bootstrap_mean(per_list) if per_list else None
    return {
        "accuracy": interval.mean if interval else float("nan"),
        "accuracy_interval": [round(interval.low, 3), round(interval.high, 3)] if interval else None,
        "score_mean": require_finite(float(everything.mean()), "the mean score of held-out answers"),
        "score_std": require_finite(
            float(everything.std(unbiased=False).clamp(min=1e-6)), "the deviation of the scores of held-out answers"
        ),
        "length_correlation": float(torch.corrcoef(torch.stack([everything, lengths]))[0, 1].nan_to_num()),
    }


def list_accuracy(example: Example, scores: Tensor) -> float:
    """The share of a list's comparisons that its answers' scores `[K]` put in the right order; NaN if all are tied."""
    assert example.grades is not None
    pairs = [pair for pair in ranking_pairs(example.grades, None, torch.Generator()) if not pair.tie]
    return sum(float(scores[pair.better] > scores[pair.worse]) for pair in pairs) / len(pairs) if pairs else math.nan


def add_reward(base: OneBase, config: RewardConfig) -> None:
    """Adds the reward role: on a saved role's adapter, on a new one, or on the whole base."""
    if config.start_from is not None:
        load_start(base, "start", config.start_from, config.lora, kinds=("policy", "reward"), trains=False)
        base.add_role("reward", copy_of="start", head=True, trains=True)
        base.remove_role("start")
    elif config.lora.r == 0:
        check_classifier(base.model, base.tokenizer)
        base.add_role("reward", head=True)
        base.train_base("reward")
    else:
        base.add_role("reward", adapter=new_lora(base, config.lora), head=True, trains=True)
    base.scalar_role("reward").pooling = config.ranking.pooling


def read_examples(config: RewardConfig, chat: ChatFormat, context: int) -> tuple[Sequence[Example], list[Example]]:
    """Reads and encodes training and held-out lists; labelled texts are paired, and scored answers ranked, first.

    Raises:
        DataError: a row ranks nothing.
    """
    limits = limits_of(config.data, context)
    cache = open_cache(chat, limits, "completion")
    if is_streamed(config.data, ranks=True):
        encode = Encoder(chat, cache=cache)
        return streamed(config.data, lambda row, cuts: _compared(encode(_ranked_alone(row), cuts)), limits, cache=cache)
    (train, left), (held_out, left_too) = map(rank_scored, read_rows(config.data, config.seed))
    if line := unranked_line(left + left_too):
        say(line)
    pairs = [pair_labelled(rows, seed=config.seed) for rows in (train, held_out)]
    if unpaired := [
        len(rows) - 2 * len(made)
        for rows, made in zip((train, held_out), pairs, strict=True)
        if made and made[0] is not rows[0]
    ]:
        say(f"labelled texts are paired better against worse; {sum(unpaired)} of the more frequent label are left over")
    train, held_out = pairs
    for row in [*train, *held_out]:
        _ranked(row)
    sides = []
    for rows in (train, held_out):
        lists = encode_rows(rows, chat, limits, cache=cache) if rows else []
        kept, dropped = drop_equal_completions(lists, max_share=config.data.max_dropped_share)
        if dropped:
            say(dropped_line(dropped))
        sides.append(kept)
    if not sides[0]:
        raise DataError("no rows are left to train on; look at data.train and the limits on lengths")
    return sides[0], sides[1]


def _ranked(row: Row) -> Row:
    if row.grades is None or len(row.answers) < 2:
        raise DataError(
            f"{row.place}: nothing is compared in this row; a reward role learns from chosen and rejected answers, "
            "ranked lists, or texts labelled 0 and 1"
        )
    return row


def _ranked_alone(row: Row) -> Row:
    check_compares(row)
    return _ranked(row)


def _compared(example: Example | None) -> Example | None:
    """The example without equal completions; None if nothing is left to compare."""
    kept, _ = drop_equal_completions([example] if example else [], max_share=1.0)
    return kept[0] if kept else None


def plan(config: RewardConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    if config.lora.r == 0:
        check_classifier(base.model, base.tokenizer)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context)
    order = order_of(config.data, train, config.seed)
    steps = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, steps)
    seen = train.sample() if isinstance(train, OnDemand) else train
    drawn = [draw_comparisons(e, max_pairs=config.ranking.max_pairs, seed=0, visit=(0, 0)) for e in seen]
    comparisons = round(sum(map(len, drawn)) / len(seen) * len(train))
    return "\n".join(
        [
            *base.lines,
            *describe_steps(train, held_out, steps=steps, minibatch=config.batch.minibatch),
            *order.lines(),
            *first_lines(train[0], chat, scored=config.ranking.pooling),
            f"comparisons {comparisons} an epoch, at most {config.ranking.max_pairs} of a list",
            f"saves       {config.output_dir}/{'reward' if config.lora.r else 'model'}",
        ]
    )
