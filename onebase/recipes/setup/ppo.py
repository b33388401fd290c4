"""Sets up PPO: the four roles on one base, the reward source, the prompts, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onebase.config.ppo_groups import GenerationGroup, OptionalRewardSourceGroup
from onebase.config.rollouts import PPOConfig
from onebase.data.batches import num_minibatches
from onebase.data.chat import ChatFormat
from onebase.data.formats import read_files
from onebase.data.prepare import dropped_line, encode_prompts, encode_rows
from onebase.data.selection import drop_unusable
from onebase.engines.budget import TokenBudget
from onebase.errors import DataError
from onebase.models.base import OneBase
from onebase.models.role_files import load_role
from onebase.objectives.kl import AdaptiveKL, FixedKL
from onebase.objectives.moments import RunningMoments
from onebase.processes import ALONE, Group
from onebase.recipes.setup.dry_run import planned_base
from onebase.recipes.setup.saved import warn_of_template
from onebase.recipes.setup.shared import (
    limits_of,
    load_start,
    make_update,
    new_lora,
    open_base,
    open_chat,
    read_rows,
    token_budget,
    warn_of_warmup,
)
from onebase.records import Example, Prompt, RewardSource
from onebase.rewards.functions import FunctionReward
from onebase.rewards.learned import ClassifierReward, RoleReward
from onebase.runs.progress import say
from onebase.sampling.local import LocalSampler, stop_ids
from onebase.sampling.sampler import Sampler, Sampling
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
    held_out: list[Prompt]
    ptx: list[Example]
    budget: TokenBudget


@dataclass(slots=True)
class State:
    """Everything that changes from rollout to rollout, besides the roles and their optimizer."""

    kl: FixedKL | AdaptiveKL
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self.kl.load_state_dict(state["kl"])
        self.moments.load_state_dict(state["moments"])
        self.updates_done = state["updates_done"]
        self.within_kl_budget = list(state["within_kl_budget"])
        self.over_kl_budget = state["over_kl_budget"]


def set_up(config: PPOConfig, run: Run) -> tuple[Setup, State, Update]:
    """Loads the base, puts the four roles on it, reads the prompts and makes the optimizer."""
    scorer, judge = open_functions(config, run.group)
    base = open_base(config.model, run.group)
    ppo, chat = config.ppo, open_chat(base.tokenizer, config.model)
    prompts, held_out, ptx = read_prompts(config, chat, base.context_length)
    check_columns([scorer, judge], [*prompts, *held_out])
    add_policy_and_reference(base, config)
    if config.reward.role is not None:
        load_role(base, "reward", config.reward.role, kinds=("reward",))
    if any(prompt.row and prompt.row.messages for prompt in prompts):
        for folder in filter(None, (config.start_from, config.reward.role)):
            warn_of_template(folder, chat)
    if ppo.kl_placement == "reward" and ppo.kl_estimator != "k1":
        say(f"ppo: {ppo.kl_estimator} in the reward does not lead to the optimum of score minus KL, as k1 does")
    add_critic(base, config)
    longest = longest_rollout_tree(base, config.generation, [*prompts, *held_out])
    budget = token_budget(base, config.batch, role="policy", longest=longest, before=run.token_budget)
    setup = Setup(
        config=config,
        base=base,
        chat=chat,
        sampler=LocalSampler(base, "policy"),
        sampling=sampling_of(base, chat, config.generation),
        reward=scorer or open_reward_source(config.reward, base, budget),
        judges={} if judge is None else {"judge": judge},
        prompts=prompts,
        held_out=held_out,
        ptx=ptx,
        budget=budget,
    )
    kl: FixedKL | AdaptiveKL = FixedKL(ppo.kl_coefficient)
    if ppo.kl_target is not None:
        kl = AdaptiveKL(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon)
    return setup, State(kl), make_optimizer(setup, repro_folder=run.folder / "refused")


def make_optimizer(setup: Setup, *, repro_folder: Path) -> Update:
    """Makes the optimizer over policy and critic."""
    config, base = setup.config, setup.base
    learning_rate, total = config.optimizer.learning_rate, num_updates(config, setup.prompts)
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


def sampling_of(base: OneBase, chat: ChatFormat, generation: GenerationGroup) -> Sampling:
    """The sampling settings, with the tokens that end a completion."""
    return Sampling(
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        stop_ids=stop_ids(base, [chat.end_token_id, *chat.single_tokens(generation.stop)]),
    )


def longest_rollout_tree(base: OneBase, generation: GenerationGroup, prompts: Sequence[Prompt]) -> int:
    """Padded tokens of the longest prompt with all its completions at maximum length."""
    prompt, count = max(len(p.ids) for p in prompts), generation.samples_per_prompt
    completion = generation.max_new_tokens
    return prompt + count * completion if base.layout == "tree" else count * (prompt + completion)


def add_policy_and_reference(base: OneBase, config: PPOConfig) -> None:
    """Adds the policy and the reference: a saved role and its frozen copy, or a new adapter, which starts as the base,
    and the base itself."""
    if config.start_from is not None:
        load_start(base, "policy", config.start_from, config.lora, kinds=("policy",), trains=True)
        base.add_role("reference", copy_of="policy")
        return
    base.add_role("policy", adapter=new_lora(base, config.lora), trains=True)
    base.add_role("reference")


def add_critic(base: OneBase, config: PPOConfig) -> None:
    """Adds the critic: an adapter copied from the reward role or the policy, or a head on the policy's trunk."""
    if config.ppo.critic == "head":
        base.share_adapter("critic", with_role="policy")
    else:
        start = config.ppo.critic_start
        if start == "auto":
            start = "reward" if config.reward.role is not None else "policy"
        base.add_role("critic", copy_of=start, head=True, trains=True)
        if config.reward.normalize == "held_out" and start == "reward":
            # Its values are in units of raw scores, but the returns are in standard deviations of them.
            with torch.no_grad():
                base.scalar_role("critic").head.weight.div_(base.scalar_role("reward").moments.std or 1.0)


def open_functions(config: PPOConfig, group: Group = ALONE) -> tuple[FunctionReward | None, FunctionReward | None]:
    """Imports the reward function and the judge, if configured, before anything slow."""
    judge, timeout = config.evaluation.judge, config.reward.timeout
    return (
        open_function(config.reward, group),
        None if judge is None else FunctionReward(judge, timeout=timeout, key="evaluation.judge", group=group),
    )


def open_function(reward: OptionalRewardSourceGroup, group: Group = ALONE) -> FunctionReward | None:
    """Imports the reward function if one is configured."""
    return None if reward.callable is None else FunctionReward(reward.callable, timeout=reward.timeout, group=group)


def check_columns(functions: Sequence[FunctionReward | None], prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError unless every function can be called with the columns of the prompts' rows."""
    rows = [prompt.row.columns if prompt.row else {} for prompt in prompts]
    for function in functions:
        if function is not None:
            function.check_columns(rows)


def open_reward_source(reward: OptionalRewardSourceGroup, base: OneBase, budget: TokenBudget) -> RewardSource:
    """Opens the configured reward: the role, which is already on the base, or another model."""
    if reward.role is not None:
        return RoleReward(base, "reward", budget=budget, normalize=reward.normalize == "held_out")
    assert reward.model is not None
    return ClassifierReward(reward.model, device=base.device, group=base.group)


def read_prompts(config: PPOConfig, chat: ChatFormat, context: int) -> tuple[list[Prompt], list[Prompt], list[Example]]:
    """Reads training prompts, held-out prompts (at most `evaluation.prompts`) and the texts for PTX."""
    train, held_out = read_rows(config.data, config.seed)
    if not held_out:
        raise DataError(
            "ppo compares policy and reference on held-out prompts, and none are left; set data.eval, or "
            "data.eval_fraction above 0"
        )
    limits = limits_of(config.data, context)
    lengths = {"max_new_tokens": config.generation.max_new_tokens, "opening_tokens": config.data.opening_tokens}
    ptx: list[Example] = []
    if config.ppo.ptx_data:
        rows, dropped = drop_unusable(read_files(config.ppo.ptx_data), max_share=config.data.max_dropped_share)
        if dropped:
            say(f"ppo.ptx_data: {dropped_line(dropped)}")
        ptx = encode_rows(rows, chat, limits)
    return (
        encode_prompts(train, chat, limits, **lengths),
        encode_prompts(held_out[: config.evaluation.prompts], chat, limits, **lengths),
        ptx,
    )


def num_rollouts(config: PPOConfig, prompts: Sequence[Prompt]) -> int:
    """How many rollouts the run has: `max_steps`, or enough to read every prompt once."""
    return config.max_steps or -(-len(prompts) // config.ppo.rollout_prompts)


def num_updates(config: PPOConfig, prompts: Sequence[Prompt]) -> int:
    """Optimizer steps in the run if no rollout stops early; an epoch's last rollout may be smaller."""
    ppo, count = config.ppo, len(prompts)
    starts = range(0, count, ppo.rollout_prompts)
    sizes = [min(ppo.rollout_prompts, count - starts[i % len(starts)]) for i in range(num_rollouts(config, prompts))]
    return ppo.num_ppo_epochs * sum(num_minibatches(size, ppo.minibatch_prompts) for size in sizes)


def plan(config: PPOConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    prompts, held_out, ptx = read_prompts(config, chat, base.context)
    check_columns(open_functions(config), [*prompts, *held_out])
    ppo, k = config.ppo, config.generation.samples_per_prompt
    lengths = sorted(len(p.ids) for p in prompts)
    total = num_updates(config, prompts)
    warn_of_warmup(config.optimizer, total)
    steps = ppo.num_ppo_epochs * -(-ppo.rollout_prompts // ppo.minibatch_prompts)
    critic = "its own adapter" if ppo.critic == "adapter" else "a head on the policy's adapter"
    return "\n".join(
        [
            *base.lines,
            f"roles       policy, reference, reward ({config.reward.source}), critic ({critic})",
            f"data        {len(prompts)} prompts (median {lengths[len(lengths) // 2]} tokens, longest {lengths[-1]}), "
            f"{len(held_out)} held out, {len(ptx)} PTX texts",
            f"rollouts    {num_rollouts(config, prompts)} of {ppo.rollout_prompts} prompts x {k} completions of at "
            f"most {config.generation.max_new_tokens} tokens",
            f"updates     {total} optimizer steps, {steps} a rollout: {ppo.num_ppo_epochs} "
            f"epochs, minibatches of {ppo.minibatch_prompts} prompts ({ppo.minibatch_prompts * k} completions)",
            f"saves       {config.output_dir}/policy and {config.output_dir}/critic",
        ]
    )
