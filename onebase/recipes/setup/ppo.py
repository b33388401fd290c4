"""Sets up PPO: the four roles on one base, the reward source, the prompts, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from onebase.config.rollouts import PPOConfig
from onebase.data.chat import ChatFormat
from onebase.data.fit import require_end
from onebase.data.mixing import Order
from onebase.data.prepare import best_answer, dropped_line, encode_rows
from onebase.data.selection import drop_unusable
from onebase.data.view import first_lines
from onebase.engines.budget import TokenBudget
from onebase.models.base import OneBase
from onebase.objectives.kl import AdaptiveKL, FixedKL
from onebase.objectives.moments import RunningMoments
from onebase.reading.formats import read_files
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
    num_updates,
    open_drawing,
    read_prompts,
    sampling_of,
)
from onebase.recipes.setup.shared import limits_of, make_update, open_base, open_chat, token_budget, warn_of_warmup
from onebase.records import Example, Prompt, RewardSource
from onebase.runs.progress import say
from onebase.sampling.sampler import Sampler, Sampling
from onebase.shown import number_of
from onebase.training.run import Run
from onebase.training.update import ParameterGroup, Update


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that stays the same from rollout to rollout."""

    config: PPOConfig
    base: OneBase
    chat: ChatFormat
    sampler: Sampler
    sampling: Sampling
    reward: RewardSource
    judges: Mapping[str, RewardSource]
    """Other sources that score the held-out completions, by name."""
    prompts: list[Prompt]
    order: Order
    """In which order the prompts are read."""
    held_out: list[Prompt]
    ptx: list[Example]
    budget: TokenBudget
    drawing: Drawing = Drawing()
    """What belongs to drawing at a server."""
    record: Mapping[str, str] = field(default_factory=dict)
    """Which weights score, if a reward elsewhere does."""


@dataclass(slots=True)
class State:
    """Everything that changes from rollout to rollout, besides the roles and their optimizer."""

    kl: FixedKL | AdaptiveKL
    drawing: Drawing = Drawing()
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Running moments of the scores."""
    updates_done: int = 0
    within_kl_budget: list[dict[str, Tensor]] = field(default_factory=list)
    """The first policy adapter and the last few whose KL over a rollout was within `ppo.kl_budget`."""
    over_kl_budget: bool = False

    def keep_within(self, kl_budget: float, kl: float, base: OneBase) -> bool:
        """Keeps a copy of the policy if a rollout's KL is within the budget; else restores the last such copy and
        returns False."""
        if not kl <= kl_budget:  # NaN is over it too
            self.over_kl_budget = True
            if self.within_kl_budget:
                base.set_adapter_weights("policy", self.within_kl_budget.pop())
            return False
        self.within_kl_budget.append(base.adapter_weights("policy"))
        if len(self.within_kl_budget) > 5:
            del self.within_kl_budget[1]
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "kl": self.kl.state_dict(),
            "moments": self.moments.state_dict(),
            "updates_done": self.updates_done,
            "within_kl_budget": list(self.within_kl_budget),
            "over_kl_budget": self.over_kl_budget,
            "drawing": self.drawing.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self.kl.load_state_dict(state["kl"])
        self.moments.load_state_dict(state["moments"])
        self.updates_done = state["updates_done"]
        self.within_kl_budget = list(state["within_kl_budget"])
        self.over_kl_budget = state["over_kl_budget"]
        self.drawing.load_state_dict(state.get("drawing", {}))


def set_up(config: PPOConfig, run: Run) -> tuple[Setup, State, Update]:
    """Loads the base, puts the four roles on it, reads the prompts and makes the optimizer."""
    rules = open_rules(config.reward, run.group, judge=config.evaluation.judge)
    rules.meet()
    base = open_base(config.model, run.group)
    ppo, chat = config.ppo, open_chat(base.tokenizer, config.model)
    prompts, held_out, ptx = read_all(config, chat, base.context_length)
    rules.check(prompt.row for prompt in [*prompts, *held_out])
    add_policy(base, config.start_from, config.lora)
    load_reward_role(base, config.reward, config.start_from, prompts, chat)
    if ppo.kl_placement == "reward" and ppo.kl_estimator != "k1":
        say(f"ppo: {ppo.kl_estimator} in the reward does not lead to the optimum of score minus KL, as k1 does")
    add_critic(base, ppo.critic, ppo.critic_start, reward=config.reward)
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
        prompts=prompts,
        order=order_of(config.data, prompts, config.seed),
        held_out=held_out,
        ptx=ptx,
        budget=budget,
        drawing=drawing,
        record=rules.record,
    )
    kl: FixedKL | AdaptiveKL = FixedKL(ppo.kl_coefficient)
    if ppo.kl_target is not None:
        kl = AdaptiveKL(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon)
    return setup, State(kl, drawing), make_optimizer(setup, repro_folder=run.folder / "refused")


def make_optimizer(setup: Setup, *, repro_folder: Path) -> Update:
    """Makes the optimizer over policy and critic."""
    config, base = setup.config, setup.base
    learning_rate, total = config.optimizer.learning_rate, updates_of(config, setup.order.size)
    warn_of_warmup(config.optimizer, total)
    return make_update(
        base,
        [
            ParameterGroup(base.parameters("policy"), learning_rate),
            # A head on the policy's trunk trains the trunk too: the losses are summed and the gradient clipped as one.
            ParameterGroup(
                base.parameters("critic"),
                config.ppo.critic_learning_rate or learning_rate,
                role="policy" if config.ppo.critic == "head" else "critic",
            ),
        ],
        config.optimizer,
        total_steps=total,
        budget=setup.budget,
        repro_folder=repro_folder,
    )


def read_all(config: PPOConfig, chat: ChatFormat, context: int) -> tuple[list[Prompt], list[Prompt], list[Example]]:
    """Reads training prompts, held-out prompts and the texts for PTX."""
    prompts, held_out = read_prompts(config.data, config.evaluation, config.generation, chat, context, seed=config.seed)
    ppo = config.ppo
    if not ppo.ptx_data:
        return prompts, held_out, []
    rows, dropped = drop_unusable(
        read_files(ppo.ptx_data, columns=ppo.ptx_columns), max_share=config.data.max_dropped_share
    )
    if dropped:
        say(f"ppo.ptx_data: {dropped_line(dropped)}")
    ptx = encode_rows(map(best_answer, rows), chat, limits_of(config.data, context))
    # A text that is cut, as one of a book is, says nothing about where answers end.
    require_end([example for example in ptx if example.row is not None and example.row.messages], chat, say)
    return prompts, held_out, ptx


def updates_of(config: PPOConfig, num_prompts: int) -> int:
    """Optimizer steps in the run if no rollout stops early."""
    ppo = config.ppo
    return num_updates(
        num_rollouts(config.max_steps, num_prompts, ppo.rollout_prompts),
        num_prompts,
        rollout_prompts=ppo.rollout_prompts,
        minibatch_prompts=ppo.minibatch_prompts,
        num_epochs=ppo.num_ppo_epochs,
    )


def plan(config: PPOConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    prompts, held_out, ptx = read_all(config, chat, base.context)
    open_rules(config.reward, judge=config.evaluation.judge).check(prompt.row for prompt in [*prompts, *held_out])
    ppo, k = config.ppo, config.generation.samples_per_prompt
    lengths = sorted(len(p.ids) for p in prompts)
    order = order_of(config.data, prompts, config.seed)
    total = updates_of(config, order.size)
    warn_of_warmup(config.optimizer, total)
    steps = ppo.num_ppo_epochs * -(-ppo.rollout_prompts // ppo.minibatch_prompts)
    critic = "its own adapter" if ppo.critic == "adapter" else "a head on the policy's adapter"
    return "\n".join(
        [
            *base.lines,
            f"roles       policy, reference, reward ({config.reward.source}), critic ({critic})",
            f"data        {number_of(len(prompts), 'prompt')} (median "
            f"{number_of(lengths[len(lengths) // 2], 'token')}, longest {lengths[-1]}), "
            f"{len(held_out)} held out, {len(ptx)} PTX texts",
            *order.lines(),
            *first_lines(prompts[0], chat),
            f"rollouts    {num_rollouts(config.max_steps, order.size, ppo.rollout_prompts)} of "
            f"{number_of(ppo.rollout_prompts, 'prompt')} x {number_of(k, 'completion')} of at most "
            f"{number_of(config.generation.max_new_tokens, 'token')}",
            f"updates     {number_of(total, 'optimizer step')}, {steps} a rollout: {ppo.num_ppo_epochs} "
            f"epochs, minibatches of {number_of(ppo.minibatch_prompts, 'prompt')} "
            f"({number_of(ppo.minibatch_prompts * k, 'completion')})",
            f"saves       {config.output_dir}/policy and {config.output_dir}/critic",
        ]
    )
