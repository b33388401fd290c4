"""Reinforcement fine-tuning: the policy samples, rules check the answers, and what is right becomes likelier.

    policy      samples K completions of every prompt, and trains
    reference   what the policy started from, frozen; only with a KL penalty
    critic      values V(s_t) before every token, and trains; only with advantage `gae`

One rollout, as in `train_rollout` from top to bottom:

    draw        sample and score; with dynamic sampling, skip prompts whose completions all score the same and sample
                others in their place (DAPO, Yu et al. 2025, section 3.2); measure log-probs, KL and values; in
                `setup/rft_rollouts.py`
    estimate    scores, less what they lose for length and KL, become advantages:
                gae           with the critic (PPO; ReFT, Luong et al. 2024)
                group         minus the group's mean, over its deviation (GRPO, Shao et al. 2024)
                rloo          minus the mean of the group's others (Ahmadian et al. 2024)
                reinforce++   return of each token, whitened over the rollout (Hu et al. 2025)
    update      each epoch, each minibatch: one optimizer step on the policy loss, whose tokens count as the normalizer
                says, plus KL to the reference, entropy bonus and the critic's loss where these are asked for
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from onebase.config.rft import OF_WHOLE_COMPLETIONS, RFTConfig
from onebase.data.batches import minibatch_indices, num_minibatches
from onebase.engines.forward import source_states
from onebase.engines.output_layer import head_logprobs
from onebase.engines.passes import num_counted
from onebase.errors import RewardError
from onebase.evaluation.held_out import HeldOut, evaluate_role, improvement, judged
from onebase.evaluation.tables import print_comparison, write_samples
from onebase.models.hardware import peak_memory_mb
from onebase.models.role_files import save_role
from onebase.objectives.advantages import (
    explained_variance,
    gae,
    global_baseline_advantages,
    group_advantages,
    leave_one_out_advantages,
)
from onebase.objectives.kl import kl_estimate, kl_shaped_rewards
from onebase.objectives.lengths import overlong_penalty, token_weights
from onebase.objectives.masked import completion_sum, flatten_completions, pad_completions, whiten
from onebase.objectives.policy import (
    actor_critic_loss,
    clipped_policy_loss,
    clipped_value_loss,
    completion_log_ratio,
    penalised_policy_loss,
    policy_statistics,
    value_clipped,
)
from onebase.recipes.setup.data import read_record
from onebase.recipes.setup.rft import Setup, State, plan, set_up
from onebase.recipes.setup.rft_rollouts import draw, draw_ahead, one_step
from onebase.recipes.setup.rollouts import num_rollouts
from onebase.recipes.setup.shared import best_by, open_run
from onebase.records import TreeBatch
from onebase.reporting.recorder import FlightRecorder
from onebase.rollouts.collect import Roles, Rollout, measure
from onebase.rollouts.delivery import correction
from onebase.runs.progress import say
from onebase.seeds import rollout_seed
from onebase.shown import number_of
from onebase.training.averages import Averages
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
    advantages: list[Tensor]
    reference_logprobs: list[Tensor] | None
    values: list[Tensor] | None
    """The critic's, when the rollout was collected."""
    returns: list[Tensor] | None
    weights: list[Tensor] | None = None
    """How much a token's policy loss counts, if a server drew it."""


def run(config: RFTConfig) -> dict[str, Any]:
    """Trains, then prints the policy before and after on held-out prompts; returns the summary."""
    summary, before, after = train(config)
    print_comparison([before, after], names=["before", "after"])
    return summary


def train(config: RFTConfig) -> tuple[dict[str, Any], HeldOut, HeldOut]:
    """Trains and saves `policy/`, and `critic/` if there is one; returns the summary, and the held-out results."""
    run = open_run(config)
    setup, state, update = set_up(config, run)
    base, trained = setup.base, trained_roles(setup)
    total = num_rollouts(config.max_steps, setup.order.size, config.rft.rollout_prompts)
    say(
        f"rft: {number_of(len(setup.prompts), 'prompt')}, {len(setup.held_out)} held out, "
        f"{number_of(total, 'rollout')} of "
        f"{config.rft.rollout_prompts} x {number_of(config.generation.samples_per_prompt, 'completion')}, advantage "
        f"{config.advantage}, layout {base.layout}, microbatches of {number_of(setup.budget.tokens, 'token')}"
    )

    def save(folder: Path) -> None:
        for role in trained:
            save_role(base, role, folder / role, kind=role, chat=setup.chat)

    before = evaluate(setup)
    with Loop(
        run,
        "rft",
        total,
        save=save,
        weights=TrainedWeights(base, *trained),
        update=update,
        state=state,
        inputs={**inputs_of(base, setup.prompts, setup.held_out), **setup.record},
        best=best_by(best_metric(setup, before), config.evaluation),
    ) as loop:
        recorder = FlightRecorder(
            run.folder, verb="rft", lang=config.lang, start=before.metrics(), done=loop.done, group=run.group
        )
        if not loop.done:
            loop.keep_best(before.metrics())  # if training only harms, the start is the best to return to
        for index in loop:
            metrics = train_rollout(setup, state, update, index)
            every = config.evaluation.every_steps
            if every and (index + 1) % every == 0 and index + 1 < total:
                metrics = loop.measured(lambda: evaluate(setup).metrics(), metrics)
            found = [] if config.on_finding == "off" else recorder.look(index + 1, metrics)
            loop.end_step(metrics, shown=["rewards/right" if "rewards/right" in metrics else "objective/scores"])
            if found and config.on_finding == "pause":
                loop.pause("\n".join(finding.line(config.lang) for finding in found))
        if loop.done == state.skipped:  # every rollout
            raise RewardError(
                f"nothing was trained: in none of {number_of(loop.done, 'rollout')} did the completions of a "
                "prompt differ in score"
                "; look at the reward and at what is sampled, or try other prompts or a higher generation.temperature"
            )
        setup.drawing.close()
        loop.end_steps()
        after = evaluate(setup)
        loop.keep_best(after.metrics())
    save(run.folder)
    write_samples(run.folder / "samples.jsonl", [before, after], names=["before", "after"])
    rise = improvement(before, after)
    summary = {
        "verb": "rft",
        "advantage": config.advantage,
        "rollouts": loop.done,
        "score_before": before.row()["score"].mean,
        "score_after": after.row()["score"].mean,
        "score_rise": [rise.mean, rise.low, rise.high],
        **({"right_before": before.row()["right"].mean} if "right" in before.judged else {}),
        **({"right_after": after.row()["right"].mean} if "right" in after.judged else {}),
        **judged(before, after),
        **({"kl": after.row()["kl"].mean} if after.kl else {}),
        "ended": after.ended,
        **setup.record,
        "prompts_read": state.prompts_read,
        "refills": state.refills,
        "skipped_rollouts": state.skipped,
        "verifier_failures": state.failures,
        "data": read_record(setup.order, setup.prompts, setup.held_out, state.prompts_read, 1),
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    loop.finish(summary)
    say(f"rft: saved {' and '.join(str(run.folder / role) for role in trained)}")
    return summary, before, after


def trained_roles(setup: Setup) -> list[Literal["policy", "critic"]]:
    """The roles that train and are saved."""
    return ["policy"] if setup.roles.critic is None else ["policy", "critic"]


def best_metric(setup: Setup, before: HeldOut) -> str:
    """The metric that says which policy is best: the judge's score, else the share of right answers, else the score."""
    if setup.judges:
        return "eval/judge"
    return "eval/right" if "right" in before.judged else "eval/score"


def train_rollout(setup: Setup, state: State, update: Update, index: int) -> dict[str, float]:
    """One rollout and the updates on it; returns the metrics."""
    rollout, metrics = draw(setup, state, index)
    draw_ahead(setup, state, index + 1)
    if not rollout.examples:
        state.skipped += 1
        return {**metrics, "train/skipped_rollouts": 1.0}
    targets, found = estimate(rollout, setup)
    metrics |= found
    started = time.monotonic()
    metrics |= update_on(rollout, targets, setup, state, update, index)
    rft = setup.config.rft
    if rft.policy_loss == "kl_penalty" and (setup.roles.critic is None or index >= rft.critic_warmup_rollouts):
        metrics |= adapt_penalty(rollout, targets, setup, state)
    metrics["perf/update_seconds"] = time.monotonic() - started
    return metrics


def estimate(rollout: Rollout, setup: Setup) -> tuple[Targets, dict[str, float]]:
    """Turns scores into advantages; also returns the rollout's metrics."""
    config, rft, found = setup.config, setup.config.rft, rollout.measured
    assert found is not None and rollout.scores is not None
    index, count = rollout.completion_index, len(rollout.samples)
    logprobs = torch.cat(found.logprobs)
    metrics = {"objective/entropy": float(torch.cat(found.entropy).mean())}
    if setup.drawing.elsewhere or not one_step(setup):
        metrics["sampling/logp_difference"] = float((rollout.sampled_logprobs - logprobs).abs().mean())
    scores = rollout.scores.total  # [N]
    if rft.overlong_buffer is not None:
        lengths, limit = torch.tensor(rollout.completion_lengths), config.generation.max_new_tokens
        lost = overlong_penalty(lengths, max_length=limit, buffer=rft.overlong_buffer)
        scores = scores - rft.overlong_penalty * lost
        metrics["objective/overlong"] = float(lost.mean())
    per_token_kl, beta = torch.zeros_like(logprobs), 0.0
    if found.reference_logprobs is not None:
        reference_logprobs = torch.cat(found.reference_logprobs)
        metrics["objective/kl"] = float(completion_sum(logprobs - reference_logprobs, index, count).mean())
        if rft.kl_placement == "reward":
            per_token_kl, beta = kl_estimate(logprobs, reference_logprobs, rft.estimator), rft.kl_coefficient
    kl, mask = pad_completions(per_token_kl, index, count)  # [N, C]
    rewards = kl_shaped_rewards(scores, kl, mask, beta)
    values = returns = None
    if found.values is not None:
        values, _ = pad_completions(torch.cat(found.values), index, count)
    k = config.generation.samples_per_prompt
    match config.advantage:
        case "gae":
            assert values is not None
            advantages, returns = gae(rewards, values, mask, gamma=rft.gamma, lam=rft.lam)
            metrics["val/explained_variance"] = float(explained_variance(values, returns, mask))
            if rft.whiten_advantages:
                advantages = whiten(advantages, mask)
        case "group":
            advantages = group_advantages(rewards.sum(1), k, deviation=rft.deviation)[:, None] * mask
        case "rloo":
            advantages = leave_one_out_advantages(rewards.sum(1), k)[:, None] * mask
        case "reinforce++":
            advantages = global_baseline_advantages(rewards, mask, gamma=rft.gamma)
    sizes = [len(of_prompt) for of_prompt in found.logprobs]

    def split(padded: Tensor | None) -> list[Tensor] | None:
        return None if padded is None else list(flatten_completions(padded, mask).split(sizes))

    of_prompts = split(advantages)
    assert of_prompts is not None
    weights = None
    if setup.drawing.elsewhere:
        weights, corrected = correction(found.logprobs, rollout.sampled_logprobs)
        metrics |= corrected
    targets = Targets(found.logprobs, of_prompts, found.reference_logprobs, found.values, split(returns), weights)
    return targets, metrics


def update_on(
    rollout: Rollout, targets: Targets, setup: Setup, state: State, update: Update, index: int
) -> dict[str, float]:
    """Runs the epochs over a rollout, one minibatch per optimizer step; metrics are means over these steps."""
    config, rft, count = setup.config, setup.config.rft, len(rollout.examples)
    has_critic = setup.roles.critic is not None
    only_critic = has_critic and index < rft.critic_warmup_rollouts
    steps: list[dict[str, float]] = []
    num_tokens = 0
    for step in range(rft.num_epochs * num_minibatches(count, rft.minibatch_prompts)):
        seed = rollout_seed(config.seed, index)
        chosen = minibatch_indices(step, num_examples=count, size=rft.minibatch_prompts, seed=seed)
        examples = [rollout.examples[i] for i in chosen]
        lengths = torch.tensor([len(ids) for example in examples for ids in example.completions])
        weights = token_weights(lengths, rft.weighting, max_length=config.generation.max_new_tokens)
        split = list(weights.split([example.num_counted for example in examples]))
        policy_loss, value_loss = minibatch_losses(targets, chosen, split, setup, state)
        parts: list[Part] = [] if only_critic else [(examples, policy_loss)]
        if has_critic and (rft.critic == "adapter" or only_critic):
            parts.append((examples, value_loss))
        steps.append(update.step(*parts))
        num_tokens += num_counted(examples)
    names = {name for metrics in steps for name in metrics}
    means = {name: sum(m.get(name, 0.0) for m in steps) / len(steps) for name in sorted(names)}
    return {**means, "train/optimizer_steps": float(len(steps)), "num_tokens": float(num_tokens)}


def minibatch_losses(
    targets: Targets, chosen: Sequence[int], weights: Sequence[Tensor], setup: Setup, state: State
) -> tuple[LossFunction, LossFunction]:
    """The policy loss and the value loss of one minibatch, each a sum over its tokens times their weights.

    They run separately, so that only one role's activations are held at a time. If the critic is a head on the policy's
    trunk, the policy loss includes its loss, because both share one gradient there.
    """
    config, base, rft = setup.config, setup.base, setup.config.rft
    shared_trunk = setup.roles.critic is not None and rft.critic == "head"

    def of(per_prompt: list[Tensor] | None, indices: list[int]) -> Tensor:
        assert per_prompt is not None
        return to_device(torch.cat([per_prompt[chosen[i]] for i in indices]), base.device)

    def weights_of(indices: list[int]) -> Tensor:
        return to_device(torch.cat([weights[i] for i in indices]), base.device)

    def policy_loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Tensor:
        states = source_states(base, batch, role="policy")
        logprobs, entropy = head_logprobs(
            base, states, batch, temperature=config.generation.temperature, with_entropy=rft.entropy_coefficient > 0
        )
        advantages = of(targets.advantages, indices)
        old_logprobs = logprobs.detach() if one_step(setup) else of(targets.logprobs, indices)
        per_token = surrogate(logprobs, old_logprobs, advantages, batch, setup, state, metrics)
        if targets.weights is not None:
            per_token = per_token * of(targets.weights, indices)
        if setup.roles.reference is not None and rft.kl_placement == "loss":
            kl = kl_estimate(logprobs, of(targets.reference_logprobs, indices), rft.estimator)
            per_token = per_token + rft.kl_coefficient * kl
        loss = ((per_token - rft.entropy_coefficient * entropy) * weights_of(indices)).sum()
        return value_loss(batch, indices, metrics, states) + loss if shared_trunk else loss

    def value_loss(batch: TreeBatch, indices: list[int], metrics: Averages, states: Tensor | None = None) -> Tensor:
        if states is None:
            states = source_states(base, batch, role="critic")
            if shared_trunk:
                states = states.detach()  # the trunk belongs to the policy
        values = base.scalar_role("critic").head(states)
        old_values, returns = of(targets.values, indices), of(targets.returns, indices)
        per_token = clipped_value_loss(values, old_values, returns, clip_range=rft.value_clip)
        metrics.add("loss/value", per_token)
        metrics.add("val/clipfrac", value_clipped(values, old_values, returns, clip_range=rft.value_clip))
        return rft.value_coefficient * (per_token * weights_of(indices)).sum()

    return policy_loss, value_loss


def surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    batch: TreeBatch,
    setup: Setup,
    state: State,
    metrics: Averages,
) -> Tensor:
    """The configured policy loss of each token `[M]`; notes its metrics."""
    rft, kind = setup.config.rft, setup.config.rft.policy_loss
    if kind in OF_WHOLE_COMPLETIONS:
        logprobs = completion_log_ratio(
            logprobs,
            old_logprobs,
            batch.completion_index,
            batch.num_completions,
            reduction="mean" if kind == "gspo" else "sum",
        )
        old_logprobs = torch.zeros_like(logprobs)
    clip = {"clip_low": rft.clip_low, "clip_high": rft.clip_high}
    if kind == "a2c":
        per_token = actor_critic_loss(logprobs, advantages)
    elif kind == "kl_penalty":
        coefficient = state.penalty.coefficient
        per_token = penalised_policy_loss(logprobs, old_logprobs, advantages, coefficient=coefficient)
    else:
        per_token = clipped_policy_loss(logprobs, old_logprobs, advantages, **clip, dual_clip=rft.dual_clip)
    metrics.add("loss/policy", per_token)
    for name, values in policy_statistics(logprobs, old_logprobs, advantages=advantages, **clip).items():
        if name != "policy/clipfrac" or kind not in ("a2c", "kl_penalty"):  # these two clip nothing
            metrics.add(name, values)
    return per_token


def adapt_penalty(rollout: Rollout, targets: Targets, setup: Setup, state: State) -> dict[str, float]:
    """Measures how far the updates moved the policy, KL(old || new), and adapts the penalty's coefficient to it."""
    temperature = setup.config.generation.temperature
    now = measure(setup.base, rollout.examples, Roles("policy"), temperature=temperature, budget=setup.budget)
    log_ratio = torch.cat(now.logprobs) - torch.cat(targets.logprobs)
    kl = float((torch.expm1(log_ratio) - log_ratio).mean())  # k3 with the roles exchanged: the tokens are the old ones
    state.penalty.update(kl)
    return {"policy/kl_of_update": kl, "policy/penalty_coefficient": state.penalty.coefficient}


def evaluate(setup: Setup) -> HeldOut:
    """Evaluates the policy on the held-out prompts, always with the same random numbers."""
    return evaluate_role(
        setup.base,
        setup.chat,
        setup.held_out,
        setup.reward,
        role="policy",
        reference=setup.roles.reference,
        sampling=setup.sampling,
        samples_per_prompt=setup.config.evaluation.samples_per_prompt,
        seed=setup.config.seed,
        budget=setup.budget,
        judges=setup.judges,
    )
