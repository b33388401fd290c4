"""Proximal policy optimization with four roles on one base.

    policy      samples K completions of every prompt, and trains
    reference   what the policy started from, frozen
    reward      scores each completion at its last token (or is another source of scores)
    critic      values V(s_t) before every token, and trains

One rollout (Ziegler et al. 2019; Ouyang et al. 2022, section 3.5), as in `train_rollout` from top to bottom:

    collect     sample completions, score them, measure log-probs, reference log-probs and values
    estimate    reward per token: -beta KL_t, and the score on the last token; advantages and returns by GAE,
                advantages whitened over the rollout
    update      for each PPO epoch, each minibatch: clipped policy loss + c clipped value loss
                (+ entropy bonus, KL in the loss, PTX), one optimizer step; stop early on KL

Deviations from the papers: the score may be shifted, scaled, clipped and penalised before it is used; `collect`
measures the policy's log-probs again with the forward pass that trains it, so that the first minibatch's ratio is 1
except for rounding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.config.ppo_groups import PPOGroup
from onebase.config.rollouts import PPOConfig
from onebase.data.batches import minibatch_indices, num_minibatches
from onebase.engines.forward import source_states, token_logprobs
from onebase.engines.output_layer import head_logprobs
from onebase.engines.passes import num_counted
from onebase.evaluation.held_out import HeldOut, evaluate_role, improvement, judged
from onebase.evaluation.tables import print_comparison, write_samples
from onebase.models.hardware import peak_memory_mb
from onebase.models.role_files import save_role
from onebase.objectives.advantages import explained_variance, gae
from onebase.objectives.kl import kl_estimate, kl_shaped_rewards
from onebase.objectives.masked import (
    completion_sum,
    flatten_completions,
    pad_completions,
    scale_to_unit_variance,
    whiten,
)
from onebase.objectives.policy import clipped_policy_loss, clipped_value_loss, policy_statistics, value_clipped
from onebase.recipes.setup.data import read_record
from onebase.recipes.setup.ppo import Setup, State, plan, set_up
from onebase.recipes.setup.rollouts import num_rollouts, rollout_sampling
from onebase.recipes.setup.shared import best_by, open_run
from onebase.records import Prompt, TreeBatch
from onebase.reporting.recorder import FlightRecorder
from onebase.rollouts.collect import Roles, Rollout, collect
from onebase.rollouts.delivery import correction
from onebase.rollouts.metrics import describe
from onebase.runs.progress import say
from onebase.sampling.sampler import Sampling
from onebase.seeds import rollout_seed, sample_seeds
from onebase.shown import number_of
from onebase.training.averages import Averages, require_finite
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.loop import Loop
from onebase.training.update import LossFunction, Part, Update
from onebase.transfer import to_device

__all__ = ["plan", "run"]


@dataclass(slots=True)
class Targets:
    """What the update compares with and aims at: one tensor `[m]` per prompt, over the tokens of its K completions."""

    logprobs: list[Tensor]
    """The sampling policy's."""
    reference_logprobs: list[Tensor]
    values: list[Tensor]
    advantages: list[Tensor]
    returns: list[Tensor]
    weights: list[Tensor] | None = None
    """How much a token's policy loss counts, if a server drew it."""


def run(config: PPOConfig) -> dict[str, Any]:
    """Trains, then prints the policy beside its reference on held-out prompts; returns the summary."""
    summary, before, after = train(config)
    print_comparison([before, after], names=["before", "after"])
    return summary


def train(config: PPOConfig) -> tuple[dict[str, Any], HeldOut, HeldOut]:
    """Trains and saves `policy/` and `critic/`; returns the summary, and the held-out results before and after."""
    run = open_run(config)
    setup, state, update = set_up(config, run)
    base, total = setup.base, num_rollouts(config.max_steps, setup.order.size, config.ppo.rollout_prompts)
    say(
        f"ppo: {number_of(len(setup.prompts), 'prompt')}, {len(setup.held_out)} held out, "
        f"{number_of(total, 'rollout')} of {config.ppo.rollout_prompts} x "
        f"{number_of(config.generation.samples_per_prompt, 'completion')}, layout {base.layout}, "
        f"microbatches of {number_of(setup.budget.tokens, 'token')}"
    )

    def save(folder: Path) -> None:
        for role in ("policy", "critic"):
            save_role(base, role, folder / role, kind=role, chat=setup.chat)

    before = evaluate(setup, role="reference")
    with Loop(
        run,
        "ppo",
        total,
        save=save,
        weights=TrainedWeights(base, "policy", "critic"),
        update=update,
        state=state,
        inputs={**inputs_of(base, setup.prompts, setup.held_out, setup.ptx), **setup.record},
        best=best_by("eval/judge" if setup.judges else "eval/score", config.evaluation),
    ) as loop:
        recorder = FlightRecorder(
            run.folder, verb="ppo", lang=config.lang, start=before.metrics(), done=loop.done, group=run.group
        )
        if not loop.done:
            loop.keep_best(before.metrics())  # if training only harms, the start is the best to return to
        for index in loop:
            if state.over_kl_budget:  # resumed after the budget had already ended the rollouts
                break
            metrics = train_rollout(setup, state, update, index)
            every = config.evaluation.every_steps
            if every and (index + 1) % every == 0 and index + 1 < total:
                metrics = loop.measured(lambda: evaluate(setup, role="policy").metrics(), metrics)
            found = [] if config.on_finding == "off" else recorder.look(index + 1, metrics)
            loop.end_step(metrics, shown=["objective/scores", "objective/kl"])
            if found and config.on_finding == "pause":
                loop.pause("\n".join(finding.line(config.lang) for finding in found))
            if "train/over_kl_budget" in metrics:
                say(
                    f"ppo: stopped at rollout {index + 1}: KL {metrics['objective/kl']:.2f} nats per completion is over"
                    f" ppo.kl_budget = {config.ppo.kl_budget:g}; back to the last policy within the budget"
                )
                break
        setup.drawing.close()
        loop.end_steps()
        after = evaluate(setup, role="policy")
        budget = config.ppo.kl_budget
        while budget is not None and not (kl := after.row()["kl"].mean) <= budget and state.within_kl_budget:
            say(f"ppo: held-out KL {kl:.2f} is over ppo.kl_budget = {budget:g}; back to an earlier policy")
            base.set_adapter_weights("policy", state.within_kl_budget.pop())
            after = evaluate(setup, role="policy")
        loop.keep_best(after.metrics())
    require_finite(after.row()["kl"].mean, "the policy's KL on held-out prompts")
    save(run.folder)
    write_samples(run.folder / "samples.jsonl", [before, after], names=["reference", "policy"])
    rise = improvement(before, after)
    summary = {
        "verb": "ppo",
        "rollouts": loop.done,
        "score_before": before.row()["score"].mean,
        "score_after": after.row()["score"].mean,
        "score_rise": [rise.mean, rise.low, rise.high],
        **judged(before, after),
        "kl": after.row()["kl"].mean,
        "kl_budget": config.ppo.kl_budget,
        "ended": after.ended,
        **setup.record,
        "data": read_record(setup.order, setup.prompts, setup.held_out, loop.done, config.ppo.rollout_prompts),
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    loop.finish(summary)
    say(f"ppo: saved {run.folder / 'policy'} and {run.folder / 'critic'}")
    return summary, before, after


def train_rollout(setup: Setup, state: State, update: Update, index: int) -> dict[str, float]:
    """One rollout and the updates on it; returns the metrics."""
    config, base = setup.config, setup.base
    prompts, sampling, seeds = asked_for(setup, index)
    count = config.generation.samples_per_prompt
    rollout = collect(
        base,
        setup.chat,
        prompts,
        sampler=setup.sampler,
        sampling=sampling,
        seeds=seeds,
        samples_per_prompt=count,
        budget=setup.budget,
        reward=setup.reward,
        roles=Roles("policy", "reference", "critic"),
    )
    delivered = setup.drawing.proof(rollout, index, sampling)
    is_last = index + 1 >= num_rollouts(config.max_steps, setup.order.size, config.ppo.rollout_prompts)
    next_prompts, next_sampling, next_seeds = asked_for(setup, index + 1)
    setup.drawing.draw_ahead(None if is_last else next_prompts, next_sampling, next_seeds, count)
    targets, metrics = estimate(rollout, setup, state)
    metrics |= delivered
    if config.ppo.kl_budget is not None and not state.keep_within(config.ppo.kl_budget, metrics["objective/kl"], base):
        return {**metrics, "train/over_kl_budget": 1.0}
    started = time.monotonic()
    metrics |= update_on(rollout, targets, setup, state, update, index)
    metrics["perf/update_seconds"] = time.monotonic() - started
    if index >= config.ppo.critic_warmup_rollouts:  # during warm-up the policy does not move and its KL says nothing
        state.kl.update(metrics["objective/kl"], len(rollout.samples))
    return metrics


def asked_for(setup: Setup, index: int) -> tuple[list[Prompt], Sampling, list[int]]:
    """What a rollout is drawn from: its prompts, the sampling settings and one seed per completion."""
    config = setup.config
    chosen = setup.order.minibatch(index, config.ppo.rollout_prompts)
    count, stream = config.generation.samples_per_prompt, f"rollout-{index}"
    return (
        [setup.prompts[i] for i in chosen],
        rollout_sampling(setup.sampling, config.generation, config.seed, index),
        sample_seeds(config.seed, num_prompts=len(chosen), samples_per_prompt=count, stream=stream),
    )


def estimate(rollout: Rollout, setup: Setup, state: State) -> tuple[Targets, dict[str, float]]:
    """Turns scores into rewards per token, then advantages and returns; also returns the rollout's metrics."""
    ppo, measured, scored = setup.config.ppo, rollout.measured, rollout.scores
    assert measured is not None and measured.reference_logprobs is not None and measured.values is not None
    assert scored is not None
    index, count = rollout.completion_index, len(rollout.samples)
    logprobs, reference_logprobs = torch.cat(measured.logprobs), torch.cat(measured.reference_logprobs)
    scores = shape_scores(rollout, scored.total, ppo, state)  # [N]
    kl, mask = pad_completions(kl_estimate(logprobs, reference_logprobs, ppo.kl_estimator), index, count)  # [N, C]
    values, _ = pad_completions(torch.cat(measured.values), index, count)
    coefficient = state.kl.coefficient if ppo.kl_placement == "reward" else 0.0
    rewards = kl_shaped_rewards(scores, kl, mask, coefficient)
    if ppo.whiten_rewards:
        rewards = scale_to_unit_variance(rewards, mask)
    advantages, returns = gae(rewards, values, mask, gamma=ppo.gamma, lam=ppo.lam)
    explained = explained_variance(values, returns, mask)
    if ppo.whiten_advantages:
        advantages = whiten(advantages, mask)

    # k1 summed over a completion is an unbiased estimate of its KL, whichever estimator shapes the rewards.
    sequence_kl = completion_sum(logprobs - reference_logprobs, index, count)
    metrics = {
        "objective/kl": float(sequence_kl.mean()),
        "objective/kl_coef": state.kl.coefficient,
        "objective/entropy": float(torch.cat(measured.entropy).mean()),
        "objective/non_score_reward": float((rewards.sum(1) - scores).mean()) if not ppo.whiten_rewards else 0.0,
        "objective/rlhf_reward": float((scores - state.kl.coefficient * sequence_kl).mean()),
        "val/explained_variance": float(explained),
        "sampling/logp_difference": float((rollout.sampled_logprobs - logprobs).abs().mean()),
        **describe(rollout),
    }
    sizes = [len(of_prompt) for of_prompt in measured.logprobs]
    split = [list(flatten_completions(padded, mask).split(sizes)) for padded in (advantages, returns)]
    weights = None
    if setup.drawing.elsewhere:
        weights, corrected = correction(measured.logprobs, rollout.sampled_logprobs)
        metrics |= corrected
    advantages_of, returns_of = split
    targets = Targets(
        measured.logprobs, measured.reference_logprobs, measured.values, advantages_of, returns_of, weights
    )
    return targets, metrics


def shape_scores(rollout: Rollout, scores: Tensor, ppo: PPOGroup, state: State) -> Tensor:
    """Shapes the scores `[N]`: minus baseline, over running deviation, clipped, minus penalties, in this order."""
    scores = scores - ppo.score_baseline
    if ppo.score_scaling == "running":
        state.moments.update(scores)
        scores = scores / state.moments.scale
    if ppo.score_clip is not None:
        scores = scores.clamp(-ppo.score_clip, ppo.score_clip)
    not_ended = torch.tensor([0.0 if sample.ended else 1.0 for sample in rollout.samples])
    lengths = torch.tensor(rollout.completion_lengths, dtype=torch.float32)
    return scores - ppo.missing_end_penalty * not_ended - ppo.length_penalty * lengths


def update_on(
    rollout: Rollout, targets: Targets, setup: Setup, state: State, update: Update, index: int
) -> dict[str, float]:
    """Runs the PPO epochs over a rollout, one minibatch per optimizer step; metrics are means over these steps."""
    config, ppo, count = setup.config, setup.config.ppo, len(rollout.examples)
    only_critic = index < ppo.critic_warmup_rollouts
    steps: list[dict[str, float]] = []
    num_tokens = 0
    for step in range(ppo.num_ppo_epochs * num_minibatches(count, ppo.minibatch_prompts)):
        seed = rollout_seed(config.seed, index)
        chosen = minibatch_indices(step, num_examples=count, size=ppo.minibatch_prompts, seed=seed)
        examples = [rollout.examples[i] for i in chosen]
        policy_loss, value_loss = minibatch_losses(targets, chosen, setup, state, num_tokens=num_counted(examples))
        parts: list[Part] = [] if only_critic else [(examples, policy_loss)]
        if ppo.critic == "adapter" or only_critic:
            parts.append((examples, value_loss))
        if setup.ptx and not only_critic:
            parts.append(ptx_part(setup, state))
        steps.append(update.step(*parts))
        state.updates_done += 1
        num_tokens += num_counted(examples)
        if ppo.max_kl is not None and steps[-1].get("policy/approxkl", 0.0) > ppo.max_kl:
            break
    names = {name for metrics in steps for name in metrics}
    means = {name: sum(m.get(name, 0.0) for m in steps) / len(steps) for name in sorted(names)}
    return {**means, "train/optimizer_steps": float(len(steps)), "num_tokens": float(num_tokens)}


def minibatch_losses(
    targets: Targets, chosen: Sequence[int], setup: Setup, state: State, *, num_tokens: int
) -> tuple[LossFunction, LossFunction]:
    """The clipped policy loss and the clipped value loss of one minibatch, each a mean over its tokens.

    They run separately, so that only one role's activations are held at a time. If the critic is a head on the policy's
    trunk, the policy loss includes its loss, because both share one gradient there.
    """
    config, base, ppo = setup.config, setup.base, setup.config.ppo
    shared_trunk = ppo.critic == "head"

    def of(per_prompt: list[Tensor], indices: list[int]) -> Tensor:
        return to_device(torch.cat([per_prompt[chosen[i]] for i in indices]), base.device)

    def policy_loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        states = source_states(base, batch, role="policy")
        logprobs, entropy = head_logprobs(
            base, states, batch, temperature=config.generation.temperature, with_entropy=ppo.entropy_coefficient > 0
        )
        old_logprobs, advantages = of(targets.logprobs, indices), of(targets.advantages, indices)
        clip = {"clip_low": ppo.clip_low, "clip_high": ppo.clip_high}
        per_token = clipped_policy_loss(logprobs, old_logprobs, advantages, **clip, dual_clip=ppo.dual_clip)
        if targets.weights is not None:
            per_token = per_token * of(targets.weights, indices)
        metrics.add("loss/policy", per_token)
        for name, values in policy_statistics(logprobs, old_logprobs, advantages=advantages, **clip).items():
            metrics.add(name, values)
        if ppo.kl_placement == "loss":
            kl = kl_estimate(logprobs, of(targets.reference_logprobs, indices), ppo.kl_estimator)
            per_token = per_token + state.kl.coefficient * kl
        loss = (per_token - ppo.entropy_coefficient * entropy).sum() / num_tokens
        return value_loss(batch, indices, metrics, states) + loss if shared_trunk else loss

    def value_loss(batch: TreeBatch, indices: list[int], metrics: Averages, states: Tensor | None = None) -> Tensor:
        if states is None:
            states = source_states(base, batch, role="critic")
            if shared_trunk:
                states = states.detach()  # the trunk belongs to the policy
        values = base.scalar_role("critic").head(states)
        old_values, returns = of(targets.values, indices), of(targets.returns, indices)
        per_token = clipped_value_loss(values, old_values, returns, clip_range=ppo.value_clip)
        metrics.add("loss/value", per_token)
        metrics.add("val/clipfrac", value_clipped(values, old_values, returns, clip_range=ppo.value_clip))
        return ppo.value_coefficient * per_token.sum() / num_tokens

    return policy_loss, value_loss


def ptx_part(setup: Setup, state: State) -> Part:
    """The language-model loss on texts that the policy should not forget (Ouyang et al. 2022, eq. 2)."""
    ppo = setup.config.ppo
    chosen = minibatch_indices(
        state.updates_done, num_examples=len(setup.ptx), size=ppo.minibatch_prompts, seed=setup.config.seed
    )
    examples = [setup.ptx[i] for i in chosen]
    num_tokens = num_counted(examples)

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        logprobs = token_logprobs(setup.base, batch, role="policy")
        metrics.add("loss/ptx", -logprobs)
        return -ppo.ptx_coefficient * logprobs.sum() / num_tokens

    return examples, loss


def evaluate(setup: Setup, *, role: str) -> HeldOut:
    """Evaluates the role on the held-out prompts, always with the same random numbers."""
    return evaluate_role(
        setup.base,
        setup.chat,
        setup.held_out,
        setup.reward,
        role=role,
        reference="reference",
        sampling=setup.sampling,
        samples_per_prompt=setup.config.evaluation.samples_per_prompt,
        seed=setup.config.seed,
        budget=setup.budget,
        judges=setup.judges,
    )
