"""Preference optimisation without a reward model: DPO and its family, all in one forward pass.

    sigmoid, sigmoid_norm, robust, hinge, ipo    pairs, against the reference    objectives/preference.py
    step_dpo                                     the same, on steps              objectives/preference.py
    cpo, simpo, orpo                             pairs, without a reference      objectives/reference_free.py
    plackett_luce, rrhf                          ranked lists, one tree a list   objectives/ranked.py
    kto                                          single answers, good or bad     objectives/unpaired.py
    nll                                          the best answer, to mix in      objectives/preference.py

Every loss is a small function of the completions' summed log-probs; otherwise the losses differ only in the data they
read. Losses over pairs take all comparisons of a ranked list, weighted so that a list counts as much as a pair.
`step_dpo` is `sigmoid` on rows whose prompt ends in the shared correct steps and whose answers are the next step.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.config.groups import PreferenceGroup
from onebase.config.losses import LOSSES
from onebase.config.preferences import DPOConfig
from onebase.engines.budget import TokenBudget
from onebase.engines.passes import num_counted
from onebase.evaluation.answers import answers, write_answers
from onebase.models.base import OneBase
from onebase.models.hardware import peak_memory_mb
from onebase.models.role_files import save_role
from onebase.objectives.preference import implicit_rewards, mean_logprobs
from onebase.objectives.unpaired import kto_kl, kto_loss
from onebase.recipes.setup.data import order_of, read_record
from onebase.recipes.setup.dpo import add_policy_and_reference, loss_weights, plan, read_examples
from onebase.recipes.setup.reference_cache import computed_once
from onebase.recipes.setup.shared import (
    best_by,
    largest_example,
    make_update,
    num_steps,
    open_base,
    open_chat,
    open_run,
    token_budget,
    warn_of_warmup,
)
from onebase.records import Example, Prompt, TreeBatch
from onebase.reporting.intervals import bootstrap_mean
from onebase.runs.progress import say
from onebase.runs.record import read_metrics
from onebase.shown import number_of
from onebase.streaming.examples import Streamed
from onebase.streaming.minibatches import Minibatches
from onebase.training.averages import Averages, require_finite
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.comparisons import draw_comparisons
from onebase.training.lists import Lists, completion_logprobs, lay_lists, note_metrics, summed_logprobs
from onebase.training.loop import Loop
from onebase.training.plan import amount
from onebase.training.update import ParameterGroup, Update
from onebase.transfer import to_device

__all__ = ["plan", "run"]


def run(config: DPOConfig) -> dict[str, Any]:
    """Trains the policy, measures the implicit reward on held-out rows, and saves `policy/`; returns the summary."""
    run = open_run(config)
    base = open_base(config.model, run.group)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context_length)
    add_policy_and_reference(base, config)
    order = order_of(config.data, train, config.seed)
    total = num_steps(config.max_steps, config.optimizer, order.size, config.batch.minibatch)
    warn_of_warmup(config.optimizer, total)
    budget = token_budget(
        base, config.batch, role="policy", longest=largest_example(base, train, held_out), before=run.token_budget
    )
    update = make_update(
        base,
        [ParameterGroup(base.parameters("policy"), config.optimizer.learning_rate)],
        config.optimizer,
        total_steps=total,
        dropout=config.lora.dropout > 0,
        budget=budget,
        repro_folder=run.folder / "refused",
    )
    weights = loss_weights(config)
    cached = cached_reference(base, train, config, budget, run.folder)
    say(
        f"dpo: {' + '.join(f'{w:g} {name}' for name, w in weights.items())}; {amount(train)}, {len(held_out)} held "
        f"out, {number_of(total, 'step')}, layout {base.layout}"
    )

    def save(folder: Path) -> None:
        save_role(base, "policy", folder / "policy", kind="policy", chat=chat)

    beta = beta_of(config.preference, "sigmoid")
    answers_before = answers(base, chat, held_out, role="policy")
    with (
        Loop(
            run,
            "dpo",
            total,
            save=save,
            weights=TrainedWeights(base, "policy"),
            update=update,
            inputs=inputs_of(base, train, held_out),
            best=best_by("eval/accuracy", config.evaluation),
        ) as loop,
        Minibatches(train, order, config.batch.minibatch, total=total) as minibatches,
    ):
        for step in loop:
            examples = minibatches.examples(step)
            references = [cached[i] for i in minibatches.indices(step)] if cached is not None else None
            if "kto" in weights:
                metrics = kto_step(base, examples, references, update, config)
            else:
                metrics = preference_step(base, examples, references, update, config, visit=step)
            if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0:
                metrics["eval/accuracy"] = evaluate(base, held_out, update.budget, beta=beta)["accuracy"]
            loop.end_step(metrics | minibatches.speed(), shown=["loss", "rewards/accuracies", "rewards/margins"])
        loop.end_steps()
        after = evaluate(base, held_out, update.budget, beta=beta)
        loop.keep_best({"eval/accuracy": after["accuracy"]})
    save(run.folder)
    write_answers(run.folder / "samples.jsonl", answers_before, answers(base, chat, held_out, role="policy"))
    summary = {
        "verb": "dpo",
        "loss": weights,
        "steps": total,
        **{f"eval_{k}": v for k, v in after.items()},
        "data": read_record(order, train, held_out, total, config.batch.minibatch),
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    loop.finish(summary)
    warn_of_falling(run.folder, total)
    held = f"held-out implicit reward accuracy {after['accuracy']:.3f} {after['accuracy_interval']}; "
    say(f"dpo: {held if held_out else ''}saved {run.folder / 'policy'}")
    return summary


def cached_reference(
    base: OneBase, train: Sequence[Example], config: DPOConfig, budget: TokenBudget, folder: Path
) -> list[Tensor] | None:
    """The reference's log-probs of every row, one tensor `[K]` each; None if they are computed in every step, or if no
    loss reads them."""
    live = config.preference.reference == "live" or isinstance(train, Streamed)
    if live or not needs_reference(loss_weights(config)):
        return None
    return computed_once(
        base, train, lambda: completion_logprobs(base, train, role="reference", budget=budget), folder=folder
    )


def warn_of_falling(folder: Path, num_steps: int) -> None:
    """Warns if the log-probs of chosen and rejected answers fell together, DPO's known failure."""
    rows = read_metrics(folder / "metrics.jsonl")
    if sum(row.get("rewards/chosen", 0) < 0 and row.get("rewards/rejected", 0) < 0 for row in rows) > num_steps / 2:
        say(
            "warning: the log-probs of chosen and rejected answers both fell below the reference's in most steps; mix "
            "in nll (loss: sigmoid + 0.1 nll), or raise preference.beta"
        )


def preference_step(
    base: OneBase,
    examples: Sequence[Example],
    references: Sequence[Tensor] | None,
    update: Update,
    config: DPOConfig,
    *,
    visit: int,
) -> dict[str, float]:
    """Takes one optimizer step on the rows' weighted losses, averaged over the rows."""
    weights, group = loss_weights(config), config.preference
    comparisons = [
        draw_comparisons(example, max_pairs=group.max_pairs, seed=config.seed, visit=(visit, i))
        for i, example in enumerate(examples)
    ]
    if references is None and needs_reference(weights):
        references = completion_logprobs(base, examples, role="reference", budget=update.budget)

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        lists = lay_lists(
            base,
            batch,
            [examples[i] for i in indices],
            [comparisons[i] for i in indices],
            None if references is None else [references[i] for i in indices],
        )
        note_metrics(lists, metrics, beta_of(group, "sigmoid"), has_reference=references is not None)
        losses = [weight * list_loss(name, lists, group) for name, weight in weights.items()]
        return sum(losses, start=torch.zeros(())) / len(examples)

    return {**update.step((examples, loss)), "num_tokens": float(num_counted(examples))}


def list_loss(name: str, lists: Lists, group: PreferenceGroup) -> Tensor:
    """One loss summed over the lists: comparisons weighted 1/P, or one number per list."""
    loss, beta = LOSSES[name], beta_of(group, name)
    given: dict[str, Any] = {"beta": beta, "label_smoothing": group.label_smoothing, "gamma": group.gamma}
    match loss.over:
        case "pairs":
            given |= arguments_over_pairs(lists)
        case "lists":
            given |= arguments_over_lists(lists, beta)
        case "best":
            given |= {"logprobs": lists.logprobs[lists.best], "lengths": lists.lengths[lists.best]}
        case _:
            raise ValueError(f"{name!r} is not a loss over pairs or lists")
    function = loss.function()
    values = function(**{argument: given[argument] for argument in inspect.signature(function).parameters})
    if loss.over == "pairs":  # a tie does not say which of the two is better
        values = values * lists.pairs.weight * ~lists.pairs.tie
    return values.sum()


def arguments_over_pairs(lists: Lists) -> dict[str, Tensor]:
    """Arguments a loss over pairs may take, `[P]` each."""
    better, worse = lists.pairs.better, lists.pairs.worse
    return {
        "chosen": lists.logprobs[better],
        "rejected": lists.logprobs[worse],
        "reference_chosen": lists.reference[better],
        "reference_rejected": lists.reference[worse],
        "chosen_lengths": lists.lengths[better],
        "rejected_lengths": lists.lengths[worse],
    }


def arguments_over_lists(lists: Lists, beta: float) -> dict[str, Any]:
    """Arguments a loss over whole lists may take: `[N]` each, and the number of lists."""
    return {
        "rewards": implicit_rewards(lists.logprobs, lists.reference, beta=beta),
        "mean_logprobs": mean_logprobs(lists.logprobs, lists.lengths),
        "grades": lists.grades,
        "list_index": lists.list_index,
        "num_lists": len(lists.best),
    }


def kto_step(
    base: OneBase,
    examples: Sequence[Example],
    references: Sequence[Tensor] | None,
    update: Update,
    config: DPOConfig,
) -> dict[str, float]:
    """Takes one optimizer step on single answers; the KL is measured on answers to other prompts (Ethayarajh et al.
    2024)."""
    group, budget, beta = config.preference, update.budget, beta_of(config.preference, "kto")
    mismatched = [
        Prompt(example.prompt_ids).with_completions(others_completions(examples, i))
        for i, example in enumerate(examples)
    ]
    policy, reference = (
        torch.cat(completion_logprobs(base, mismatched, role=role, budget=budget)) for role in ("policy", "reference")
    )
    kl = to_device(kto_kl(policy, reference), base.device)
    owns = references or completion_logprobs(base, examples, role="reference", budget=budget)
    good = torch.tensor([bool(example.row and example.row.columns["label"]) for example in examples])

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        logprobs = summed_logprobs(base, batch, role="policy")
        own = to_device(torch.cat([owns[i] for i in indices]), base.device)
        desirable = to_device(good[indices], base.device)
        rewards = implicit_rewards(logprobs, own, beta=beta)
        for name, mask in (("chosen", desirable), ("rejected", ~desirable)):
            metrics.add(f"rewards/{name}", rewards, mask)
            metrics.add(f"logps/{name}", logprobs, mask)
        per_row = kto_loss(
            logprobs,
            own,
            desirable,
            kl,
            beta=beta,
            desirable_weight=group.desirable_weight,
            undesirable_weight=group.undesirable_weight,
        )
        return per_row.sum() / len(examples)

    return {**update.step((examples, loss)), "kl": float(kl), "num_tokens": float(num_counted(examples))}


def others_completions(examples: Sequence[Example], place: int) -> Sequence[Sequence[int]]:
    """The completions of the next example with a different prompt; neighbours may be both answers of one pair."""
    prompt = list(examples[place].prompt_ids)
    others = [*examples[place + 1 :], *examples[:place]]
    return next(
        (other.completions for other in others if list(other.prompt_ids) != prompt),
        others[0].completions if others else examples[place].completions,
    )


def evaluate(base: OneBase, examples: Sequence[Example], budget: TokenBudget, *, beta: float) -> dict[str, Any]:
    """Measures on held-out rows the share of comparisons the implicit reward orders correctly, and its mean margin.

    For single answers: how often a good one has a positive implicit reward, or a bad one a negative.
    """
    if not examples:
        return {"accuracy": math.nan, "accuracy_interval": None, "margin": math.nan}
    policy, reference = (
        completion_logprobs(base, examples, role=role, budget=budget) for role in ("policy", "reference")
    )
    accuracies, margins = [], []
    for example, own, other in zip(examples, policy, reference, strict=True):
        rewards = implicit_rewards(own, other, beta=beta)
        if example.grades is None:
            sign = 1 if example.row and example.row.columns["label"] else -1
            accuracies.append(float(sign * rewards[0] > 0))
            margins.append(float(sign * rewards[0]))
            continue
        pairs = [p for p in draw_comparisons(example, max_pairs=1 << 30, seed=0, visit=(0, 0)) if not p.tie]
        if pairs:
            differences = [float(rewards[p.better] - rewards[p.worse]) for p in pairs]
            accuracies.append(sum(d > 0 for d in differences) / len(pairs))
            margins.append(sum(differences) / len(pairs))
    interval = bootstrap_mean(accuracies)
    return {
        "accuracy": interval.mean,
        "accuracy_interval": [round(interval.low, 3), round(interval.high, 3)],
        "margin": require_finite(sum(margins) / len(margins), "the margin on held-out rows"),
    }


def needs_reference(weights: Iterable[str]) -> bool:
    """Whether any of these losses reads the reference."""
    return any("reference" in LOSSES[name].reads for name in weights)


def beta_of(group: PreferenceGroup, loss: str) -> float:
    """The configured beta, or the loss's usual one."""
    return group.beta or LOSSES[loss].beta
