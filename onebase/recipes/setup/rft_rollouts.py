"""Draws the rollouts of reinforcement fine-tuning: which prompts, with dynamic sampling, and one rollout ahead."""

from __future__ import annotations

from onebase.recipes.setup.rft import Setup, State
from onebase.recipes.setup.rollouts import num_rollouts, rollout_sampling
from onebase.records import Prompt
from onebase.rollouts.collect import Rollout, collect, measured
from onebase.rollouts.groups import differing_groups, distinct_share, joined, only_groups
from onebase.rollouts.metrics import describe
from onebase.seeds import sample_seeds


def draw(setup: Setup, state: State, index: int) -> tuple[Rollout, dict[str, float]]:
    """Collects one rollout and measures what is learned from; metrics are over all that was sampled.

    With dynamic sampling, groups whose completions all score the same are left out, and other prompts are sampled until
    the rollout is full or has been refilled `max_refills` times; it may then be smaller, or empty.
    """
    config, rft, count = setup.config, setup.config.rft, setup.config.generation.samples_per_prompt
    sampling = rollout_sampling(setup.sampling, config.generation, config.seed, index)
    delivered: dict[str, float] = {}
    drawn: list[Rollout] = []
    missing = rft.rollout_prompts
    while missing and len(drawn) <= (rft.max_refills if rft.dynamic_sampling else 0):
        stream = f"rollout-{index}" + (f"/refill-{len(drawn)}" if drawn else "")
        part = collect(
            setup.base,
            setup.chat,
            next_prompts(setup, state, missing),
            sampler=setup.sampler,
            sampling=sampling,
            seeds=sample_seeds(config.seed, num_prompts=missing, samples_per_prompt=count, stream=stream),
            samples_per_prompt=count,
            budget=setup.budget,
            reward=setup.reward,
        )
        if not drawn:
            delivered = setup.drawing.proof(part, index, sampling)
        drawn.append(part)
        assert part.scores is not None
        missing -= len(differing_groups(part.scores.total, count)) if rft.dynamic_sampling else missing
    rollout = joined(drawn)
    assert rollout.scores is not None
    differing = differing_groups(rollout.scores.total, count)
    state.refills += len(drawn) - 1
    state.failures += len(rollout.scores.failures)
    metrics = {
        **describe(rollout),
        **delivered,
        "completions/distinct": distinct_share(rollout.samples, count),
        **({"groups/without_variance": 1 - len(differing) / len(rollout.examples)} if count > 1 else {}),
    }
    if rft.dynamic_sampling:
        metrics |= {
            "groups/sampled": len(rollout.examples),
            "groups/kept": len(differing),
            "groups/refills": len(drawn) - 1,
        }
        rollout = only_groups(rollout, differing, count)
    if rollout.examples:
        # With one step on a rollout the ratio is 1 whatever the old log-probs, so the policy need not be asked again,
        # unless a server drew: its log-probs are not ours.
        once = one_step(setup) and not setup.drawing.elsewhere
        rollout = measured(setup.base, rollout, setup.roles, sampling=sampling, budget=setup.budget, as_sampled=once)
    return rollout, {**metrics, **{f"perf/{name}_seconds": seconds for name, seconds in rollout.seconds.items()}}


def draw_ahead(setup: Setup, state: State, index: int) -> None:
    """Begins rollout `index` while the one before is learned from, if rollouts are drawn ahead: its first prompts, as
    refills follow from scores."""
    config, rft = setup.config, setup.config.rft
    is_over = index >= num_rollouts(config.max_steps, setup.order.size, rft.rollout_prompts)
    count = config.generation.samples_per_prompt
    setup.drawing.draw_ahead(
        None if is_over else prompts_at(setup, state.prompts_read, rft.rollout_prompts),
        rollout_sampling(setup.sampling, config.generation, config.seed, index),
        sample_seeds(config.seed, num_prompts=rft.rollout_prompts, samples_per_prompt=count, stream=f"rollout-{index}"),
        count,
    )


def one_step(setup: Setup) -> bool:
    """Whether a rollout is learned from in one optimizer step, so that the policy is still the one that sampled."""
    return setup.config.rft.learns_in_one_step


def next_prompts(setup: Setup, state: State, count: int) -> list[Prompt]:
    """The next prompts of the endless shuffled list; every epoch has its own order."""
    found = prompts_at(setup, state.prompts_read, count)
    state.prompts_read += count
    return found


def prompts_at(setup: Setup, first: int, count: int) -> list[Prompt]:
    """These places of the endless list."""
    return [setup.prompts[setup.order.minibatch(place, 1)[0]] for place in range(first, first + count)]
