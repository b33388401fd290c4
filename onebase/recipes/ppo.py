"""Proximal policy optimization with four roles on one base.

    policy      samples K completions of every prompt, and trains
    reference   what the policy started from, frozen
    reward      scores each completion at its last token (or any other source of scores)
    critic      values V(s_t) before every token, and trains

A rollout, from top to bottom of `train_rollout` (Ziegler et al. 2019; Ouyang et al. 2022, section 3.5):

    1  sample completions, score them, measure log-probs, reference log-probs and values        collect_rollout
    2  reward per token: -beta KL_t, and the score on the last token                            estimate_advantages
    3  advantages and returns by GAE, advantages whitened over the rollout
    4  for each PPO epoch, each minibatch: clipped policy loss + c clipped value loss           update_on
       (+ entropy bonus, KL in the loss, PTX), one optimizer step; stop early on KL

Deviations from the papers: the score may be shifted, scaled, clipped and penalised before it is given; `1` measures the
log-probs of the policy again in the forward pass that trains it, so that the ratio of the first minibatch is 1, but for
rounding.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.config.rollouts import PPOConfig
from onebase.data.batches import minibatch_indices, mixed_seed
from onebase.evaluation.held_out import HeldOut, evaluate_role, improvement
from onebase.evaluation.tables import print_comparison, write_samples
from onebase.models.forward import head_logprobs, logprobs_and_entropy, source_states, token_values
from onebase.models.passes import num_counted
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
from onebase.recipes.setup.ppo import Trainer, num_rollouts, plan, set_up
from onebase.recipes.setup.shared import best_by, open_run
from onebase.records import Example, TreeBatch
from onebase.reporting.recorder import FlightRecorder
from onebase.rollouts.collect import Rollout, collect_rollout
from onebase.runs.progress import say
from onebase.sampling.local import Sampling, sample_seeds
from onebase.training.averages import Averages, require_finite
from onebase.training.checkpoint import TrainedWeights, inputs_of
from onebase.training.memory import peak_memory_mb

__all__ = ["plan", "run"]


@dataclass(slots=True)
class Targets:
    """What the update aims at, one tensor `[m]` per prompt: the tokens of its K completions."""

    advantages: list[Tensor]
    returns: list[Tensor]


def run(config: PPOConfig) -> dict[str, Any]:
    """Trains, prints the policy beside its reference on held-out prompts; returns the summary."""
    summary, before, after = train(config)
    print_comparison([before, after], names=["before", "after"])
    return summary


def train(config: PPOConfig) -> tuple[dict[str, Any], HeldOut, HeldOut]:
    """Trains and saves `policy/` and `critic/`; returns the summary, and the held-out prompts before and after."""
    run = open_run(config)
    trainer, held_out = set_up(config, run)
    base, total = trainer.base, num_rollouts(config, trainer.prompts)
    say(
        f"ppo: {len(trainer.prompts)} prompts, {len(held_out)} held out, {total} rollouts of "
        f"{config.ppo.rollout_prompts} x {config.generation.samples_per_prompt} completions, layout {base.layout}, "
        f"microbatches of {trainer.update.token_budget} tokens"
    )

    def save(folder: Path) -> None:
        for role in ("policy", "critic"):
            save_role(base, role, folder / role, kind=role, chat=trainer.chat)

    before = evaluate(trainer, held_out, role="reference")
    with run.loop(
        "ppo",
        total,
        save=save,
        weights=TrainedWeights(base, "policy", "critic"),
        update=trainer.update,
        parts={"kl": trainer.kl, "moments": trainer.moments, "trainer": trainer},
        inputs=inputs_of(base, trainer.prompts, held_out, trainer.ptx),
        best=best_by("eval/judge" if trainer.judges else "eval/score", config.evaluation),
    ) as loop:
        recorder = FlightRecorder(run.folder, lang=config.lang, start=before.metrics(), done=loop.done)
        if not loop.done:
            loop.keep_best(before.metrics())  # where training only harms, the start is what to go back to
        for index in loop:
            if trainer.over_kl_budget:  # it ended here before, and was stopped
                break
            metrics = train_rollout(trainer, index)
            every = config.evaluation.every_steps
            if every and (index + 1) % every == 0 and index + 1 < total:
                metrics |= evaluate(trainer, held_out, role="policy").metrics()
            found = [] if config.on_finding == "off" else recorder.look(index + 1, metrics)
            loop.end_step(metrics, shown=["objective/scores", "objective/kl"])
            if found and config.on_finding == "pause":
                loop.pause("\n".join(finding.line(config.lang) for finding in found))
            if "train/over_kl_budget" in metrics:
                say(
                    f"ppo: stopped at rollout {index + 1}: KL {metrics['objective/kl']:.2f} nats per completion is over"
                    f" ppo.kl_budget = {config.ppo.kl_budget:g}; the policy is the one before, within it"
                )
                break
        loop.end_steps()
        after = evaluate(trainer, held_out, role="policy")
        budget = config.ppo.kl_budget
        while budget is not None and not (kl := after.row()["kl"].mean) <= budget and trainer.within_kl_budget:
            say(f"ppo: held-out KL {kl:.2f} is over ppo.kl_budget = {budget:g}; back to an earlier policy")
            base.set_adapter_weights("policy", trainer.within_kl_budget.pop())
            after = evaluate(trainer, held_out, role="policy")
        loop.keep_best(after.metrics())
    require_finite(after.row()["kl"].mean, "the policy's KL on held-out prompts")
    save(run.folder)
    write_samples(run.folder / "samples.jsonl", [before, after])
    rise = improvement(before, after)
    summary = {
        "verb": "ppo",
        "rollouts": loop.done,
        "score_before": before.row()["score"].mean,
        "score_after": after.row()["score"].mean,
        "score_rise": [rise.mean, rise.low, rise.high],
        "kl": after.row()["kl"].mean,
        "kl_budget": config.ppo.kl_budget,
        "ended": after.ended,
        "data": {"train": len(trainer.prompts), "held_out": len(held_out)},
        "peak_memory_mb": round(peak_memory_mb(base.device)),
    }
    run.finish(summary)
    say(f"ppo: saved {run.folder / 'policy'} and {run.folder / 'critic'}")
    return summary, before, after


def train_rollout(trainer: Trainer, index: int) -> dict[str, float]:
    """One rollout and the updates on it; returns the metrics."""
    config = trainer.config
    chosen = minibatch_indices(
        index, num_examples=len(trainer.prompts), size=config.ppo.rollout_prompts, seed=config.seed
    )
    rollout = collect_rollout(
        trainer.base,
        trainer.chat,
        [trainer.prompts[i] for i in chosen],
        trainer.reward_source,
        sampling=rollout_sampling(trainer, index),
        seeds=sample_seeds(
            config.seed,
            num_prompts=len(chosen),
            samples_per_prompt=config.generation.samples_per_prompt,
            stream=f"rollout-{index}",
        ),
        samples_per_prompt=config.generation.samples_per_prompt,
        token_budget=trainer.update.token_budget,
        critic="critic",
    )
    targets, metrics = estimate_advantages(rollout, trainer)
    if config.ppo.kl_budget is not None:
        if not metrics["objective/kl"] <= config.ppo.kl_budget:  # NaN is over it too
            trainer.over_kl_budget = True
            if trainer.within_kl_budget:
                trainer.base.set_adapter_weights("policy", trainer.within_kl_budget.pop())
            return {**metrics, "train/over_kl_budget": 1.0}
        trainer.keep_policy()
    started = time.monotonic()
    metrics |= update_on(rollout, targets, trainer, index)
    metrics["perf/update_seconds"] = time.monotonic() - started
    if index >= config.ppo.critic_warmup_rollouts:  # before, the policy stands still and its KL says nothing
        trainer.kl.update(metrics["objective/kl"], len(rollout.samples))
    return metrics


def estimate_advantages(rollout: Rollout, trainer: Trainer) -> tuple[Targets, dict[str, float]]:
    """Scores to rewards per token, to advantages and returns; and what there is to know of the rollout."""
    ppo, index, count = trainer.config.ppo, rollout.completion_index, len(rollout.samples)
    logprobs, reference_logprobs = torch.cat(rollout.logprobs), torch.cat(rollout.reference_logprobs)
    scores = shape_scores(rollout, trainer)  # [N]
    kl, mask = pad_completions(kl_estimate(logprobs, reference_logprobs, ppo.kl_estimator), index, count)  # [N, C]
    values, _ = pad_completions(torch.cat(rollout.values), index, count)
    coefficient = trainer.kl.coefficient if ppo.kl_placement == "reward" else 0.0
    rewards = kl_shaped_rewards(scores, kl, mask, coefficient)
    if ppo.whiten_rewards:
        rewards = scale_to_unit_variance(rewards, mask)
    advantages, returns = gae(rewards, values, mask, gamma=ppo.gamma, lam=ppo.lam)
    explained = explained_variance(values, returns, mask)
    if ppo.whiten_advantages:
        advantages = whiten(advantages, mask)

    # k1 summed over a completion is the unbiased estimate of its KL, whichever estimator shapes the rewards.
    sequence_kl = completion_sum(logprobs - reference_logprobs, index, count)
    lengths = torch.tensor(rollout.completion_lengths, dtype=torch.float32)
    together = torch.corrcoef(torch.stack([rollout.scores, lengths]))[0, 1] if count > 1 else torch.nan
    metrics = {
        "objective/kl": float(sequence_kl.mean()),
        "objective/kl_coef": trainer.kl.coefficient,
        "objective/entropy": float(torch.cat(rollout.entropy).mean()),
        "objective/scores": float(rollout.scores.mean()),
        "objective/scores_std": float(rollout.scores.std(unbiased=False)),
        "objective/non_score_reward": float((rewards.sum(1) - scores).mean()) if not ppo.whiten_rewards else 0.0,
        "objective/rlhf_reward": float((scores - trainer.kl.coefficient * sequence_kl).mean()),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/num_tokens": float(lengths.sum()),
        "completions/score_length_correlation": float(together),
        "completions/ended": sum(sample.ended for sample in rollout.samples) / count,
        "val/explained_variance": float(explained),
        "sampling/logp_difference": float((rollout.sampled_logprobs - logprobs).abs().mean()),
        **{f"perf/{name}_seconds": seconds for name, seconds in rollout.seconds.items()},
    }
    sizes = [len(part) for part in rollout.logprobs]
    split = [list(flatten_completions(padded, mask).split(sizes)) for padded in (advantages, returns)]
    return Targets(*split), metrics


def shape_scores(rollout: Rollout, trainer: Trainer) -> Tensor:
    """`[N]`: less the baseline, scaled by the running deviation, clipped, less the penalties, in this order."""
    ppo = trainer.config.ppo
    scores = rollout.scores - ppo.score_baseline
    if ppo.score_scaling == "running":
        trainer.moments.update(scores)
        scores = scores / trainer.moments.scale
    if ppo.score_clip is not None:
        scores = scores.clamp(-ppo.score_clip, ppo.score_clip)
    not_ended = torch.tensor([0.0 if sample.ended else 1.0 for sample in rollout.samples])
    lengths = torch.tensor(rollout.completion_lengths, dtype=torch.float32)
    return scores - ppo.missing_end_penalty * not_ended - ppo.length_penalty * lengths


def update_on(rollout: Rollout, targets: Targets, trainer: Trainer, index: int) -> dict[str, float]:
    """The PPO epochs over a rollout; metrics are means over their optimizer steps."""
    config, ppo = trainer.config, trainer.config.ppo
    steps: list[dict[str, float]] = []
    num_tokens = 0
    per_epoch = -(-len(rollout.examples) // ppo.minibatch_prompts)
    for step in range(ppo.num_ppo_epochs * per_epoch):
        chosen = minibatch_indices(
            step, num_examples=len(rollout.examples), size=ppo.minibatch_prompts, seed=config.seed * 1_000_003 + index
        )
        metrics = train_minibatch(rollout, targets, chosen, trainer, only_critic=index < ppo.critic_warmup_rollouts)
        steps.append(metrics)
        num_tokens += num_counted([rollout.examples[i] for i in chosen])
        if ppo.max_kl is not None and metrics.get("policy/approxkl", 0.0) > ppo.max_kl:
            break
    names = {name for metrics in steps for name in metrics}
    means = {name: sum(m.get(name, 0.0) for m in steps) / len(steps) for name in sorted(names)}
    return {**means, "train/optimizer_steps": float(len(steps)), "num_tokens": float(num_tokens)}


def train_minibatch(
    rollout: Rollout, targets: Targets, chosen: Sequence[int], trainer: Trainer, *, only_critic: bool
) -> dict[str, float]:
    """One optimizer step: the clipped policy loss and the clipped value loss, means over the minibatch's tokens."""
    config, base, ppo = trainer.config, trainer.base, trainer.config.ppo
    examples = [rollout.examples[i] for i in chosen]
    num_tokens = num_counted(examples)
    shared_trunk = ppo.critic == "head"

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Iterator[Tensor]:
        def of(per_prompt: list[Tensor]) -> Tensor:
            return torch.cat([per_prompt[chosen[i]] for i in indices]).to(base.device)

        def policy_loss(logprobs: Tensor, entropy: Tensor) -> Tensor:
            old_logprobs, advantages = of(rollout.logprobs), of(targets.advantages)
            clip = {"clip_low": ppo.clip_low, "clip_high": ppo.clip_high}
            per_token = clipped_policy_loss(logprobs, old_logprobs, advantages, **clip, dual_clip=ppo.dual_clip)
            metrics.add("loss/policy", per_token)
            for name, values in policy_statistics(logprobs, old_logprobs, advantages=advantages, **clip).items():
                metrics.add(name, values)
            if ppo.kl_placement == "loss":
                kl = kl_estimate(logprobs, of(rollout.reference_logprobs), ppo.kl_estimator)
                per_token = per_token + trainer.kl.coefficient * kl
            return (per_token - ppo.entropy_coefficient * entropy).sum() / num_tokens

        def value_loss(values: Tensor) -> Tensor:
            old_values, returns = of(rollout.values), of(targets.returns)
            per_token = clipped_value_loss(values, old_values, returns, clip_range=ppo.value_clip)
            metrics.add("loss/value", per_token)
            metrics.add("val/clipfrac", value_clipped(values, old_values, returns, clip_range=ppo.value_clip))
            return ppo.value_coefficient * per_token.sum() / num_tokens

        temperature, with_entropy = config.generation.temperature, ppo.entropy_coefficient > 0
        if shared_trunk:
            states = source_states(base, batch, role="policy")
            if only_critic:
                states = states.detach()  # the trunk is the policy's
            critic = value_loss(base.roles["critic"].head(states))  # type: ignore[misc]
            if only_critic:
                yield critic
                return
            actor = policy_loss(*head_logprobs(base, states, batch, temperature=temperature, with_entropy=with_entropy))
            yield actor + critic
            return
        if not only_critic:
            yield policy_loss(
                *logprobs_and_entropy(base, batch, role="policy", temperature=temperature, with_entropy=with_entropy)
            )
        yield value_loss(token_values(base, batch, role="critic"))

    parts = [(examples, loss)]
    if trainer.ptx and not only_critic:
        parts.append(ptx_part(trainer))
    trainer.updates_done += 1
    return trainer.update.step(*parts)


def ptx_part(trainer: Trainer) -> tuple[list[Example], Any]:
    """The language-model loss on texts, so that the policy does not forget them (Ouyang et al. 2022, eq. 2)."""
    config = trainer.config
    chosen = minibatch_indices(
        trainer.updates_done, num_examples=len(trainer.ptx), size=config.ppo.minibatch_prompts, seed=config.seed
    )
    examples = [trainer.ptx[i] for i in chosen]
    num_tokens = num_counted(examples)

    def loss(batch: TreeBatch, indices: list[int], metrics: Averages) -> Iterator[Tensor]:
        logprobs, _ = logprobs_and_entropy(trainer.base, batch, role="policy", with_entropy=False)
        metrics.add("loss/ptx", -logprobs)
        yield -config.ppo.ptx_coefficient * logprobs.sum() / num_tokens

    return examples, loss


def rollout_sampling(trainer: Trainer, index: int) -> Sampling:
    """The sampling of this rollout, with its own length limit where that is random."""
    generation, sampling = trainer.config.generation, trainer.sampling
    if generation.random_min_new_tokens is None:
        return sampling
    generator = torch.Generator().manual_seed(mixed_seed("length", trainer.config.seed, index))
    limit = torch.randint(generation.random_min_new_tokens, generation.max_new_tokens + 1, (), generator=generator)
    return Sampling(
        max_new_tokens=int(limit),
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        stop_ids=sampling.stop_ids,
    )


def evaluate(trainer: Trainer, held_out: list[Example], *, role: str) -> HeldOut:
    """The role on the held-out prompts, always with the same random numbers."""
    config = trainer.config
    return evaluate_role(
        trainer.base,
        trainer.chat,
        held_out,
        trainer.reward_source,
        role=role,
        reference="reference",
        sampling=trainer.sampling,
        samples_per_prompt=config.evaluation.samples_per_prompt,
        seed=config.seed,
        token_budget=trainer.update.token_budget,
        judges=trainer.judges,
    )
