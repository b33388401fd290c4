"""`onebase plan preferences`: how accurate a reward role becomes with how many rankings, by training it on subsets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch

from onebase.active_learning.ceiling import Ceiling
from onebase.active_learning.curve import FEWEST, FOLDS, SHARES, curve_through
from onebase.active_learning.heads import Floats
from onebase.active_learning.learning_curve import ANOTHER, Learned, ceiling_of, draw, points
from onebase.active_learning.next_round import rankings_in
from onebase.config.preferences import RewardConfig
from onebase.engines.budget import TokenBudget
from onebase.engines.forward import completion_scores
from onebase.engines.passes import per_completion
from onebase.errors import DataError
from onebase.labels.store import Store
from onebase.labels.urls import database_url, is_database
from onebase.models.base import OneBase
from onebase.processes import ALONE
from onebase.recipes.reward import add_reward, list_accuracy, read_examples, train_step
from onebase.recipes.setup.shared import largest_example, make_update, num_steps, open_base, open_chat, token_budget
from onebase.records import Example
from onebase.runs.progress import say
from onebase.shown import json_shown, number_of
from onebase.tools.tables import print_table
from onebase.training.comparisons import draw_comparisons
from onebase.training.threads import use_threads
from onebase.training.update import ParameterGroup

FEWEST_LISTS = round(FEWEST / SHARES[-3])
"""Training lists; with fewer there are not even three sizes on the curve."""


def run(config: RewardConfig, *, seeds: int, as_json: bool = False, plot: Path | None = None) -> Learned:
    """Trains the config's reward role on growing subsets of its data, and prints the curve of held-out accuracy.

    Every subset is drawn and trained on anew for every seed, with the config's own settings, and tested on the lists
    that `onebase reward` would hold out. No role is saved.

    Raises:
        DataError: there are too few lists to train on, or too few prompts to test on.
    """
    use_threads(config.threads)
    base = open_base(config.model, ALONE)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context_length)
    prompts = sorted({tuple(example.prompt_ids) for example in held_out})
    if len(train) < FEWEST_LISTS or len(prompts) < FOLDS:
        raise DataError(
            f"{number_of(len(train), 'list')} to train on and {number_of(len(prompts), 'prompt')} held out; a curve "
            f"needs {FEWEST_LISTS} and {FOLDS}; give more data, or set data.eval_fraction"
        )
    budget = token_budget(base, config.batch, role="policy", longest=largest_example(base, train, held_out))
    sizes = [round(share * len(train)) for share in SHARES if share * len(train) >= FEWEST]
    say(
        f"plan preferences: {len(sizes)} sizes x {number_of(seeds, 'seed')}, about "
        f"{sum(sizes) * seeds / len(train):.1f} times the work of `onebase reward`"
    )
    rights = numpy.full((len(sizes), seeds, len(prompts)), numpy.nan)
    for seed in range(seeds):
        order = numpy.random.default_rng((config.seed, seed)).permutation(len(train))
        for s, size in enumerate(sizes):
            chosen = [train[int(i)] for i in order[:size]]
            rights[s, seed] = accuracy_after(base, config, chosen, held_out, prompts, budget, seed=seed)
            say(f"plan preferences: seed {seed}, {size} lists: {100 * numpy.nanmean(rights[s, seed]):.1f} %")
    curve = curve_through(
        numpy.array(sizes, numpy.float64),
        rights,
        count=len(train),
        another=ANOTHER,
        generator=numpy.random.default_rng(config.seed),
    )
    found = Learned({}, ceiling(config), curve)
    if as_json:
        print(json_shown(found.as_json(), indent=2))
    else:
        report(found, seeds)
    if plot is not None:
        draw(found, plot)
    return found


def accuracy_after(
    base: OneBase,
    config: RewardConfig,
    train: Sequence[Example],
    held_out: Sequence[Example],
    prompts: Sequence[tuple[int, ...]],
    budget: TokenBudget,
    *,
    seed: int,
) -> Floats:
    """The accuracy on each held-out prompt of a role trained on these lists as `onebase reward` trains, `[P]`."""
    torch.manual_seed(config.seed + seed)
    add_reward(base, config)
    total = num_steps(config.max_steps, config.optimizer, len(train), config.batch.minibatch)
    update = make_update(
        base,
        [ParameterGroup(base.parameters("reward"), config.optimizer.learning_rate, role="reward")],
        config.optimizer,
        total_steps=total,
        dropout=config.lora.dropout > 0,
        budget=budget,
        repro_folder=None,
    )
    generator = numpy.random.default_rng((config.seed, seed, len(train)))
    order: list[int] = []
    for step in range(total):
        if not order:
            order = generator.permutation(len(train)).tolist()
        batch, order = order[: config.batch.minibatch], order[config.batch.minibatch :]
        examples = [train[i] for i in batch]
        drawn = [
            draw_comparisons(e, max_pairs=config.ranking.max_pairs, seed=config.seed + seed, visit=(step, i))
            for i, e in zip(batch, examples, strict=True)
        ]
        train_step(base, examples, drawn, update, config.ranking.centering_coefficient)
    scores = per_completion(base, held_out, lambda one: completion_scores(base, one, role="reward"), budget=budget)
    base.remove_role("reward")
    by_prompt: dict[tuple[int, ...], list[float]] = {prompt: [] for prompt in prompts}
    for example, own in zip(held_out, scores, strict=True):
        if not math.isnan(right := list_accuracy(example, own)):
            by_prompt[tuple(example.prompt_ids)].append(right)
    return numpy.array([float(numpy.mean(own)) if own else numpy.nan for own in by_prompt.values()])


def ceiling(config: RewardConfig) -> Ceiling | None:
    """How often people agree with each other, if the data are one database of their rankings."""
    files: Any = config.data.train
    if len(files) != 1 or not is_database(files[0]):
        return None
    store = Store.open(database_url(files[0]))
    try:
        snapshot = store.snapshot()
    finally:
        store.close()
    return ceiling_of(rankings_in(snapshot.tasks, snapshot.judgements))


def report(found: Learned, seeds: int) -> None:
    """Prints the curve and what it says."""
    curve = found.curve
    print_table(
        ["rankings", "held-out accuracy, %"], [[str(point.rankings), points(point.accuracy)] for point in curve.points]
    )
    print(f"accuracy on {number_of(curve.prompts, 'held-out prompt')}, the mean of {number_of(seeds, 'seed')}")
    if found.ceiling is None:
        print("human ceiling: unknown; it takes a database in which several people ranked the same tasks")
    else:
        print(
            f"human ceiling: people agree on {points(found.ceiling.agreement)} % of pairs; a perfect role could agree "
            f"with one of them on at most {points(found.ceiling.most)} %"
        )
    print(f"limit: {points(curve.limit)} % (accuracy = a - b n^-c, b {curve.gap:.2f}, c {curve.rate:.2f})")
    print(found.forecast)
    if curve.another > curve.rankings:
        print("warning: that more than doubles the rankings, beyond all that was measured")
    for point in curve.ahead:
        times = point.rankings // curve.rankings
        print(f"with {times} times as many about {points(point.accuracy)} %, if the law holds that far")
    print(("stop: " if found.verdict[0] else "go on: ") + found.verdict[1])
