"""Sets up reinforcement fine-tuning: the roles that are needed, the rewards, the prompts, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onebase.config.rft import RFTConfig
from onebase.data.chat import ChatFormat
from onebase.data.mixing import Order
from onebase.data.view import first_lines
from onebase.engines.budget import TokenBudget
from onebase.models.base import OneBase
from onebase.objectives.kl import AdaptivePenalty
from onebase.recipes.setup.data import order_of
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.reward import open_reward_source, open_rules
from onebase.recipes.setup.rollouts import (
    Drawing,
    add_critic,
    add_policy,
    load_reward_role,
    longest_rollout_tree,
    num_rollouts,
    open_drawing,
    read_prompts,
    sampling_of,
)
from onebase.recipes.setup.shared import make_update, open_base, open_chat, token_budget, warn_of_warmup
from onebase.records import Prompt, RewardSource
from onebase.rollouts.collect import Roles
from onebase.runs.progress import say
from onebase.sampling.sampler import Sampler, Sampling
from onebase.shown import number_of
from onebase.training.run import Run
from onebase.training.update import ParameterGroup, Update


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that stays the same from rollout to rollout."""

    config: RFTConfig
    base: OneBase
    chat: ChatFormat
    sampler: Sampler
    sampling: Sampling
    reward: RewardSource
    judges: Mapping[str, RewardSource]
    """Other sources that score the held-out completions, by name."""
    roles: Roles
    """Who measures a rollout: no reference without a KL penalty, no critic unless advantages come from one."""
    prompts: list[Prompt]
    order: Order
    """In which order the prompts are read."""
    held_out: list[Prompt]
    budget: TokenBudget
    drawing: Drawing = Drawing()
    """What belongs to drawing at a server."""
    record: Mapping[str, str] = field(default_factory=dict)
    """Which weights score, if a reward elsewhere does."""


@dataclass(slots=True)
class State:
    """Everything that changes from rollout to rollout, besides the roles and their optimizer."""

    penalty: AdaptivePenalty
    """The coefficient of policy_loss kl_penalty."""
    drawing: Drawing = Drawing()
    prompts_read: int = 0
    """Prompts sampled so far, refills included: the place in the endless shuffled list of prompts."""
    refills: int = 0
    skipped: int = 0
    """Rollouts without anything to learn from."""
    failures: int = 0
    """Completions that a verifier could not check."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "penalty": self.penalty.state_dict(),
            "prompts_read": self.prompts_read,
            "refills": self.refills,
            "skipped": self.skipped,
            "failures": self.failures,
            "drawing": self.drawing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self.penalty.load_state_dict(state["penalty"])
        self.prompts_read = state["prompts_read"]
        self.refills = state["refills"]
        self.skipped = state["skipped"]
        self.failures = state["failures"]
        self.drawing.load_state_dict(state.get("drawing", {}))


def set_up(config: RFTConfig, run: Run) -> tuple[Setup, State, Update]:
    """Loads the base, puts the roles on it, reads the prompts, checks the verifiers and makes the optimizer."""
    rules = open_rules(config.reward, run.group, judge=config.evaluation.judge)
    rules.meet()
    base = open_base(config.model, run.group)
    rft, chat = config.rft, open_chat(base.tokenizer, config.model)
    prompts, held_out = read_prompts(
        config.data, config.evaluation, config.generation, chat, base.context_length, seed=config.seed
    )
    rules.check(prompt.row for prompt in [*prompts, *held_out])
    add_policy(base, config.start_from, config.lora, reference=rft.kl_coefficient > 0)
    load_reward_role(base, config.reward, config.start_from, prompts, chat)
    if rft.kl_coefficient and rft.kl_placement == "reward" and rft.estimator != "k1":
        say(f"rft: {rft.estimator} in the reward does not lead to the optimum of score minus KL, as k1 does")
    if config.advantage == "gae":
        add_critic(base, rft.critic, rft.critic_start, reward=config.reward)
    longest = longest_rollout_tree(base, config.generation, [*prompts, *held_out])
    budget = token_budget(base, config.batch, role="policy", longest=longest, before=run.token_budget)
    sampler, drawing = open_drawing(base, config.generation, budget, run.folder)
    setup = Setup(
        config=config,
        base=base,
        chat=chat,
        sampler=sampler,
        sampling=sampling_of(base, chat, config.generation),
        reward=open_reward_source(config.reward, rules, base, budget),
        judges=rules.judges,
        roles=Roles("policy", reference_of(config), "critic" if config.advantage == "gae" else None),
        prompts=prompts,
        order=order_of(config.data, prompts, config.seed),
        held_out=held_out,
        budget=budget,
        drawing=drawing,
        record=rules.record,
    )
    penalty = AdaptivePenalty(rft.penalty_coefficient, rft.penalty_target)
    return setup, State(penalty, drawing), make_optimizer(setup, repro_folder=run.folder / "refused")


def reference_of(config: RFTConfig) -> str | None:
    """The role that KL is measured from; None without a KL penalty."""
    return "reference" if config.rft.kl_coefficient > 0 else None


def make_optimizer(setup: Setup, *, repro_folder: Path) -> Update:
    """Makes the optimizer over the policy, and the critic if there is one."""
    config, base = setup.config, setup.base
    total, learning_rate = updates_of(config, setup.order.size), config.optimizer.learning_rate
    warn_of_warmup(config.optimizer, total)
    groups = [ParameterGroup(base.parameters("policy"), learning_rate)]
    if config.advantage == "gae":
        # A head on the policy's trunk trains the trunk too: the losses are summed and the gradient clipped as one.
        role = "policy" if config.rft.critic == "head" else "critic"
        rate = config.rft.critic_learning_rate or learning_rate
        groups.append(ParameterGroup(base.parameters("critic"), rate, role=role))
    return make_update(
        base, groups, config.optimizer, total_steps=total, budget=setup.budget, repro_folder=repro_folder
    )


def updates_of(config: RFTConfig, num_prompts: int) -> int:
    """Optimizer steps in the run if every rollout is full."""
    rft = config.rft
    steps = rft.num_epochs * (rft.rollout_prompts // rft.minibatch_prompts)
    return steps * num_rollouts(config.max_steps, num_prompts, rft.rollout_prompts)


def plan(config: RFTConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    prompts, held_out = read_prompts(
        config.data, config.evaluation, config.generation, chat, base.context, seed=config.seed
    )
    open_rules(config.reward, judge=config.evaluation.judge).check(prompt.row for prompt in [*prompts, *held_out])
    rft, k = config.rft, config.generation.samples_per_prompt
    lengths = sorted(len(p.ids) for p in prompts)
    order = order_of(config.data, prompts, config.seed)
    total = updates_of(config, order.size)
    warn_of_warmup(config.optimizer, total)
    roles = ["policy"]
    if rft.kl_coefficient > 0:
        roles.append(f"reference (KL in the {rft.kl_placement})")
    if config.advantage == "gae":
        roles.append(
            "critic (its own adapter)" if rft.critic == "adapter" else "critic (a head on the policy's adapter)"
        )
    saved = [f"{config.output_dir}/policy"] + [f"{config.output_dir}/critic"] * (config.advantage == "gae")
    again = ""
    if rft.dynamic_sampling:
        again = (
            f"; prompts whose completions all score the same are replaced, at most "
            f"{number_of(rft.max_refills, 'time')} a rollout"
        )
    return "\n".join(
        [
            *base.lines,
            f"roles       {', '.join(roles)}",
            f"reward      {config.reward.source}",
            f"data        {number_of(len(prompts), 'prompt')} (median "
            f"{number_of(lengths[len(lengths) // 2], 'token')}, longest {lengths[-1]}), "
            f"{len(held_out)} held out",
            *order.lines(),
            *first_lines(prompts[0], chat),
            f"rollouts    {num_rollouts(config.max_steps, order.size, rft.rollout_prompts)} of "
            f"{number_of(rft.rollout_prompts, 'prompt')} x {number_of(k, 'completion')} of at most "
            f"{number_of(config.generation.max_new_tokens, 'token')}{again}",
            f"updates     {number_of(total, 'optimizer step')}: advantage {config.advantage}, policy loss "
            f"{rft.policy_loss}, "
            f"{number_of(rft.num_epochs, 'epoch')}, minibatches of {number_of(rft.minibatch_prompts, 'prompt')}",
            f"saves       {' and '.join(saved)}",
        ]
    )
