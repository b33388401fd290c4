"""Preference optimisation without a reward model: DPO and its family, all on one forward pass.

    sigmoid, sigmoid_norm, robust, hinge, ipo    pairs, against the reference    objectives/preference.py
    step_dpo                                     the same, on steps              objectives/preference.py
    cpo, simpo, orpo                             pairs, without a reference      objectives/reference_free.py
    plackett_luce, rrhf                          ranked lists, one tree a list   objectives/ranked.py
    kto                                          single answers, good or bad     objectives/unpaired.py
    nll                                          the best answer, to mix in      objectives/preference.py

Every loss is a small function of the completions' summed log-probs; which data they read is the only other difference.
Losses over pairs take all comparisons of a ranked list, weighted so that a list counts as much as a pair. `step_dpo` is
`sigmoid` on rows whose prompt ends in the shared correct steps and whose answers are the next step: the tree's prompt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.config.preferences import DPOConfig
from onebase.data.batches import minibatch_indices
from onebase.data.prepare import with_completions
from onebase.evaluation.answers import answers, write_answers
from onebase.models.forward import token_logprobs
from onebase.models.one_base import OneBase
from onebase.models.passes import num_counted, per_example
from onebase.models.role_files import save_role
from onebase.objectives.masked import completion_sum
from onebase.objectives.preference import (
    hinge_loss,
    implicit_rewards,
    ipo_loss,
    mean_logprobs,
    nll_loss,
    robust_loss,
    sigmoid_loss,
    sigmoid_norm_loss,
)
from onebase.objectives.ranked import plackett_luce_loss, rrhf_loss
from onebase.objectives.reference_free import cpo_loss, orpo_loss, simpo_loss
from onebase.objectives.unpaired import kto_kl, kto_loss
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
)
from onebase.records import Example, TreeBatch
from onebase.reporting.intervals import bootstrap_mean
from onebase.runs.progress import say
from onebase.runs.record import read_metrics
from onebase.training.averages import Averages, require_finite
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.comparisons import PairTensors, draw_comparisons
from onebase.training.memory import peak_memory_mb
from onebase.training.update import ParameterGroup, Update

__all__ = ["plan", "run"]

DEFAULT_BETA = {"simpo": 2.0, "sigmoid_norm": 5.0}
REFERENCE_FREE = {"cpo", "simpo", "orpo", "rrhf", "nll"}


@dataclass(frozen=True, slots=True)
class Lists:
    """What the losses see of several lists, laid end to end: `[N]` each, and their comparisons."""

    logprobs: Tensor
    """Sums over the counted tokens, under the policy."""
    reference: Tensor
    """The same under the reference; zeros where no loss needs it."""
    lengths: Tensor
    grades: Tensor
    list_index: Tensor
    best: Tensor
    """bool, the first of the best answers of each list."""
    pairs: PairTensors


def run(config: DPOConfig) -> dict[str, Any]:
    """Trains, measures the implicit reward on held-out rows, and saves `policy/`; returns the summary."""
    run = open_run(config)
    base = open_base(config.model)
    chat = open_chat(base.tokenizer, config.model)
    train, held_out = read_examples(config, chat, base.context_length)
    add_policy_and_reference(base, config)
    total = num_steps(config.max_steps, config.optimizer, len(train), config.batch.minibatch)
    budget = token_budget(
        base, config.batch, role="policy", longest=largest_example(base, train, held_out), before=run.token_budget
    )
    update = make_update(
        base,
        [ParameterGroup(base.parameters("policy"), config.optimizer.learning_rate)],
        config.optimizer,
        total_steps=total,
        dropout=config.lora.dropout > 0,
        token_budget=budget,
        repro_folder=run.folder / "refused",
    )
    weights = loss_weights(config)
    cached = None
    if set(weights) - REFERENCE_FREE and config.preference.reference == "cached":
        cached = computed_once(
            base,
            train,
            lambda: completion_logprobs(base, train, role="reference", token_budget=budget),
            folder=run.folder,
        )
    say(
        f"dpo: {' + '.join(f'{w:g} {name}' for name, w in weights.items())}; {len(train)} rows, {len(held_out)} held "
        f"out, {total} steps, layout {base.layout}"
    )

    def save(folder: Path) -> None:
        save_role(base, "policy", folder / "policy", kind="policy", chat=chat)

    beta = beta_of(config, "sigmoid")
    answers_before = answers(base, chat, held_out, role="policy")
    with run.loop(
        "dpo",
        total,
        save=save,
        weights=TrainedWeights(base, "policy"),
        update=update,
        inputs=inputs_of(base, train, held_out),
        best=best_by("eval/accuracy", config.evaluation),
    ) as loop:
        for step in loop:
            chosen = minibatch_indices(step, num_examples=len(train), size=config.batch.minibatch, seed=config.seed)
            examples = [train[i] for i in chosen]
            references = [cached[i] for i in chosen] if cached is not None else None
            if "kto" in weights:
                metrics = kto_step(base, examples, references, update, config)
            else:
                metrics = preference_step(base, examples, references, update, config, visit=step)
            if config.evaluation.every_steps and (step + 1) % config.evaluation.every_steps == 0:
                metrics["eval/accuracy"] = evaluate(base, held_out, update.token_budget, beta=beta)["accuracy"]
            loop.end_step(metrics, shown=["loss", "rewards/accuracies", "rewards/margins"])
        loop.end_steps()
        after = evaluate(base, held_out, update.token_budget, beta=beta)
        loop.keep_best({"eval/accuracy": after["accuracy"]})
    save(run.folder)
    write_answers(run.folder / "samples.jsonl", answers_before, answers(base, chat, held_out, role="policy"))
    summary = {
        "verb": "dpo",
        "loss": weights,
        "steps": total,
        **{f"eval_{k}": v for k, v in after.items()},
        "data": {"train": len(train), "held_out": len(held_out)},
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    run.finish(summary)
    warn_of_falling(run.folder, total)
    held = f"held-out implicit reward accuracy {after['accuracy']:.3f} {after['accuracy_interval']}; "
    say(f"dpo: {held if held_out else ''}saved {run.folder / 'policy'}")
    return summary


def warn_of_falling(folder: Path, num_steps: int) -> None:
    """Warns where the log-probs of chosen and rejected answers fell together, DPO's known failure."""
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
    """One optimizer step on the mean over the rows of each row's weighted losses."""
    weights, group = loss_weights(config), config.preference
    comparisons = [
        draw_comparisons(example, max_pairs=group.max_pairs, seed=config.seed, visit=(visit, i))
        for i, example in enumerate(examples)
    ]
    if references is None and set(weights) - REFERENCE_FREE:
        references = completion_logprobs(base, examples, role="reference", token_budget=update.token_budget)

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Iterator[Tensor]:
        lists = lay_lists(
            base,
            batch,
            [examples[i] for i in indices],
            [comparisons[i] for i in indices],
            None if references is None else [references[i] for i in indices],
        )
        note_metrics(lists, metrics, beta_of(config, "sigmoid"), has_reference=references is not None)
        yield sum(
            (weight * list_loss(name, lists, config) for name, weight in weights.items()), start=torch.zeros(())
        ) / len(examples)

    return {**update.step((examples, loss)), "num_tokens": float(num_counted(examples))}


def list_loss(name: str, lists: Lists, config: DPOConfig) -> Tensor:
    """The sum over the lists of one loss: comparisons weighted 1/P, or a number per list."""
    beta, smoothing, pairs = beta_of(config, name), config.preference.label_smoothing, lists.pairs
    if name == "nll":
        return nll_loss(lists.logprobs[lists.best], lists.lengths[lists.best]).sum()
    if name == "rrhf":
        means = mean_logprobs(lists.logprobs, lists.lengths)
        return rrhf_loss(means, lists.grades, lists.list_index, int(lists.list_index[-1]) + 1).sum()
    if name == "plackett_luce":
        rewards = implicit_rewards(lists.logprobs, lists.reference, beta=beta)
        return plackett_luce_loss(rewards, lists.grades, lists.list_index, int(lists.list_index[-1]) + 1).sum()
    both = [(values[pairs.better], values[pairs.worse]) for values in (lists.logprobs, lists.reference, lists.lengths)]
    (chosen, rejected), reference, lengths = both
    match name:
        case "sigmoid" | "step_dpo":
            per_pair = sigmoid_loss(chosen, rejected, *reference, beta=beta, label_smoothing=smoothing)
        case "sigmoid_norm":
            per_pair = sigmoid_norm_loss(chosen, rejected, *reference, *lengths, beta=beta, label_smoothing=smoothing)
        case "robust":
            per_pair = robust_loss(chosen, rejected, *reference, beta=beta, label_smoothing=smoothing)
        case "hinge":
            per_pair = hinge_loss(chosen, rejected, *reference, beta=beta)
        case "ipo":
            per_pair = ipo_loss(chosen, rejected, *reference, *lengths, beta=beta)
        case "cpo":
            per_pair = cpo_loss(chosen, rejected, beta=beta, label_smoothing=smoothing)
        case "simpo":
            per_pair = simpo_loss(chosen, rejected, *lengths, beta=beta, gamma=config.preference.gamma)
        case "orpo":
            per_pair = orpo_loss(chosen, rejected, *lengths)
        case _:
            raise ValueError(f"{name!r} is not a loss over pairs or lists")
    # A tie says nothing about which of two is better.
    return (per_pair * pairs.weight * ~pairs.tie).sum()


def kto_step(
    base: OneBase,
    examples: Sequence[Example],
    references: Sequence[Tensor] | None,
    update: Update,
    config: DPOConfig,
) -> dict[str, float]:
    """One optimizer step on single answers; the KL is that of answers to other prompts (Ethayarajh et al. 2024)."""
    group, budget, beta = config.preference, update.token_budget, beta_of(config, "kto")
    mismatched = [with_completions(example, others_completions(examples, i)) for i, example in enumerate(examples)]
    policy, reference = (
        torch.cat(completion_logprobs(base, mismatched, role=role, token_budget=budget))
        for role in ("policy", "reference")
    )
    kl = kto_kl(policy, reference).to(base.device)
    owns = references or completion_logprobs(base, examples, role="reference", token_budget=budget)
    good = torch.tensor([bool(example.row and example.row.columns["label"]) for example in examples])

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Iterator[Tensor]:
        logprobs = summed_logprobs(base, batch, role="policy")
        own = torch.cat([owns[i] for i in indices]).to(base.device)
        desirable = good[indices].to(base.device)
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
        yield per_row.sum() / len(examples)

    return {**update.step((examples, loss)), "kl": float(kl), "num_tokens": float(num_counted(examples))}


def others_completions(examples: Sequence[Example], place: int) -> Sequence[Sequence[int]]:
    """The completions of the next example with another prompt: both answers of a pair may stand side by side."""
    prompt = list(examples[place].prompt_ids)
    others = [*examples[place + 1 :], *examples[:place]]
    return next(
        (other.completions for other in others if list(other.prompt_ids) != prompt),
        others[0].completions if others else examples[place].completions,
    )


def lay_lists(
    base: OneBase,
    batch: TreeBatch,
    examples: Sequence[Example],
    comparisons: Sequence[Sequence[Any]],
    references: Sequence[Tensor] | None,
) -> Lists:
    """The policy's log-probs of a microbatch and all that the losses compare them with."""
    logprobs = summed_logprobs(base, batch, role="policy")
    device, count = logprobs.device, batch.num_completions
    lengths = torch.bincount(batch.completion_index, minlength=count)
    sizes = [len(example.completions) for example in examples]
    best = [k == list(e.grades or ()).index(max(e.grades or ())) for e in examples for k in range(len(e.completions))]
    return Lists(
        logprobs=logprobs,
        reference=torch.cat(list(references)).to(device) if references is not None else torch.zeros_like(logprobs),
        lengths=lengths,
        grades=torch.tensor([grade for e in examples for grade in e.grades or ()], device=device),
        list_index=torch.arange(len(sizes), device=device).repeat_interleave(torch.tensor(sizes, device=device)),
        best=torch.tensor(best, device=device),
        pairs=PairTensors.of(examples, comparisons, device),
    )


def note_metrics(lists: Lists, metrics: Averages, beta: float, *, has_reference: bool) -> None:
    """The metrics of the field, chosen and rejected apart: both falling is DPO's known failure."""
    pairs, counted = lists.pairs, ~lists.pairs.tie
    metrics.add("logps/chosen", lists.logprobs[pairs.better], counted)
    metrics.add("logps/rejected", lists.logprobs[pairs.worse], counted)
    rewards = implicit_rewards(lists.logprobs.detach(), lists.reference, beta=beta)
    if not has_reference:
        rewards = beta * mean_logprobs(lists.logprobs.detach(), lists.lengths)
    chosen, rejected = rewards[pairs.better], rewards[pairs.worse]
    metrics.add("rewards/margins", chosen - rejected, counted)
    metrics.add("rewards/accuracies", (chosen > rejected).float(), counted)
    if has_reference:
        metrics.add("rewards/chosen", chosen, counted)
        metrics.add("rewards/rejected", rejected, counted)


def summed_logprobs(base: OneBase, batch: TreeBatch, *, role: str) -> Tensor:
    """log p of each completion given its prompt, over its counted tokens: `[N]`."""
    return completion_sum(token_logprobs(base, batch, role=role), batch.completion_index, batch.num_completions)


def completion_logprobs(base: OneBase, examples: Sequence[Example], *, role: str, token_budget: int) -> list[Tensor]:
    """`summed_logprobs` of any number of examples without gradient: a tensor `[K]` each."""
    return per_example(
        base,
        examples,
        lambda batch: summed_logprobs(base, batch, role=role),
        token_budget=token_budget,
        per_completion=True,
    )


def evaluate(base: OneBase, examples: Sequence[Example], token_budget: int, *, beta: float) -> dict[str, Any]:
    """On held-out rows: the share of comparisons that the implicit reward orders rightly, and its mean margin.

    For single answers: how often a good one has a positive implicit reward and a bad one a negative.
    """
    if not examples:
        return {"accuracy": math.nan, "accuracy_interval": None, "margin": math.nan}
    policy, reference = (
        completion_logprobs(base, examples, role=role, token_budget=token_budget) for role in ("policy", "reference")
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


def beta_of(config: DPOConfig, loss: str) -> float:
    """The configured beta, or the one usual for this loss."""
    return config.preference.beta or DEFAULT_BETA.get(loss, 0.1)
