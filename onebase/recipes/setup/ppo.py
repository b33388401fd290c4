"""Setting up PPO: the four roles on one base, the reward source, the prompts, the optimizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from onebase.config.ppo_groups import GenerationGroup, OptionalRewardSourceGroup
from onebase.config.rollouts import PPOConfig
from onebase.data.batches import num_minibatches
from onebase.data.chat import ChatFormat
from onebase.data.formats import drop_unusable, read_files
from onebase.data.prepare import dropped_line, encode_prompts, encode_rows
from onebase.errors import DataError
from onebase.models.one_base import OneBase
from onebase.models.role_files import load_role
from onebase.objectives.kl import AdaptiveKL, FixedKL
from onebase.objectives.moments import RunningMoments
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
    say_warmup,
    token_budget,
)
from onebase.records import Example, RewardSource
from onebase.rewards.functions import FunctionReward
from onebase.rewards.learned import ClassifierReward, RoleReward
from onebase.runs.progress import say
from onebase.sampling.local import Sampling, stop_ids
from onebase.training.run import Run
from onebase.training.update import ParameterGroup, Update


@dataclass(slots=True)
class Trainer:
    """The parts of a PPO run that live from rollout to rollout."""

    config: PPOConfig
    base: OneBase
    chat: ChatFormat
    reward_source: RewardSource
    prompts: list[Example]
    ptx: list[Example]
    update: Update
    kl: FixedKL | AdaptiveKL
    moments: RunningMoments
    sampling: Sampling
    judges: dict[str, RewardSource]
    """What else scores the held-out completions, by name."""
    updates_done: int = 0
    within_kl_budget: list[dict[str, Tensor]] = field(default_factory=list)
    """The first policy adapter and the last few whose KL over a rollout was within `ppo.kl_budget`."""
    over_kl_budget: bool = False

    def keep_policy(self) -> None:
        """Remembers the policy as it is, to go back to."""
        self.within_kl_budget.append(self.base.adapter_weights("policy"))
        if len(self.within_kl_budget) > 5:
            del self.within_kl_budget[1]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, beside the parts that keep their own."""
        return {
            "updates_done": self.updates_done,
            "within_kl_budget": list(self.within_kl_budget),
            "over_kl_budget": self.over_kl_budget,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        self.updates_done = state["updates_done"]
        self.within_kl_budget = list(state["within_kl_budget"])
        self.over_kl_budget = state["over_kl_budget"]


def set_up(config: PPOConfig, run: Run) -> tuple[Trainer, list[Example]]:
    """Loads the base, puts the four roles on it, reads the prompts; returns the trainer and the held-out prompts."""
    scorer, judge = open_functions(config)
    base = open_base(config.model)
    ppo, chat = config.ppo, open_chat(base.tokenizer, config.model)
    prompts, held_out, ptx = read_prompts(config, chat, base.context_length)
    check_columns([scorer, judge], [*prompts, *held_out])
    add_policy_and_reference(base, config)
    if config.reward.role is not None:
        load_role(base, "reward", config.reward.role, kinds=("reward",))
    if any(prompt.row and prompt.row.messages for prompt in prompts):
        for folder in filter(None, (config.policy, config.reward.role)):
            warn_of_template(folder, chat)
    if ppo.kl_placement == "reward" and ppo.kl_estimator != "k1":
        say(f"ppo: {ppo.kl_estimator} in the reward does not lead to the optimum of score less KL, as k1 does")
    add_critic(base, config)
    longest = longest_rollout_tree(base, config.generation, [*prompts, *held_out])
    budget = token_budget(base, config.batch, role="policy", longest=longest, before=run.token_budget)
    learning_rate = config.optimizer.learning_rate
    update = make_update(
        base,
        [
            ParameterGroup(base.parameters("policy"), learning_rate),
            # A head on the policy's trunk trains it too: their losses are one sum, whose gradient is clipped as one.
            ParameterGroup(
                base.parameters("critic"),
                ppo.critic_learning_rate or learning_rate,
                role="policy" if ppo.critic == "head" else "critic",
            ),
        ],
        config.optimizer,
        total_steps=num_updates(config, prompts),
        token_budget=budget,
        repro_folder=run.folder / "refused",
    )
    sampling = sampling_of(base, chat, config.generation)
    kl = (
        FixedKL(ppo.kl_coefficient)
        if ppo.kl_target is None
        else AdaptiveKL(ppo.kl_coefficient, ppo.kl_target, ppo.kl_horizon)
    )
    source = scorer or open_reward_source(config.reward, base, budget)
    judges: dict[str, RewardSource] = {} if judge is None else {"judge": judge}
    return Trainer(config, base, chat, source, prompts, ptx, update, kl, RunningMoments(), sampling, judges), held_out


def sampling_of(base: OneBase, chat: ChatFormat, generation: GenerationGroup) -> Sampling:
    """How completions are drawn, and the tokens that end them."""
    return Sampling(
        max_new_tokens=generation.max_new_tokens,
        temperature=generation.temperature,
        top_k=generation.top_k,
        top_p=generation.top_p,
        stop_ids=stop_ids(base, [chat.end_token_id, *chat.single_tokens(generation.stop)]),
    )


def longest_rollout_tree(base: OneBase, generation: GenerationGroup, prompts: Sequence[Example]) -> int:
    """Padded tokens of the longest prompt with all its completions at their longest."""
    prompt, count = max(len(p.prompt_ids) for p in prompts), generation.samples_per_prompt
    completion = generation.max_new_tokens
    return prompt + count * completion if base.layout == "tree" else count * (prompt + completion)


def add_policy_and_reference(base: OneBase, config: PPOConfig) -> None:
    """The policy starts from a saved role, and its frozen copy is the reference; a new adapter starts as the base, and
    the base is the reference."""
    if config.policy is not None:
        load_start(base, "policy", config.policy, config.lora, kinds=("policy",), trains=True)
        base.add_role("reference", copy_of="policy")
        return
    base.add_role("policy", lora=new_lora(base, config.lora), trains=True)
    base.add_role("reference")


def add_critic(base: OneBase, config: PPOConfig) -> None:
    """The critic: an adapter copied from the reward role or the policy, or a head on the policy's trunk."""
    if config.ppo.critic == "head":
        base.share_adapter("critic", with_role="policy")
    else:
        start = config.ppo.critic_start
        if start == "auto":
            start = "reward" if config.reward.role is not None else "policy"
        critic = base.add_role("critic", copy_of=start, head=True, trains=True)
        if config.reward.normalize == "held_out" and start == "reward" and critic.head is not None:
            # Its values are in units of raw scores, the returns in deviations of them.
            with torch.no_grad():
                critic.head.weight.div_(base.roles["reward"].score_std or 1.0)


def open_functions(config: PPOConfig) -> tuple[FunctionReward | None, FunctionReward | None]:
    """Imports the reward function and the judge, where they are configured, before anything that takes long."""
    judge = config.evaluation.judge
    return (
        open_function(config.reward),
        None if judge is None else FunctionReward(judge, timeout=config.reward.timeout, key="evaluation.judge"),
    )


def open_function(reward: OptionalRewardSourceGroup) -> FunctionReward | None:
    """Imports the reward function, where one is configured."""
    return None if reward.callable is None else FunctionReward(reward.callable, timeout=reward.timeout)


def check_columns(functions: Sequence[FunctionReward | None], prompts: Sequence[Example]) -> None:
    """Raises ConfigError unless every function can be called with the columns of the prompts' rows."""
    rows = [prompt.row.columns if prompt.row else {} for prompt in prompts]
    for function in functions:
        if function is not None:
            function.check_columns(rows)


def open_reward_source(reward: OptionalRewardSourceGroup, base: OneBase, token_budget: int) -> RewardSource:
    """The reward role, which is on the base already, or another model, as configured."""
    if reward.role is not None:
        return RoleReward(base, "reward", token_budget=token_budget, normalize=reward.normalize == "held_out")
    assert reward.model is not None
    return ClassifierReward(reward.model, device=base.device)


def read_prompts(
    config: PPOConfig, chat: ChatFormat, context: int
) -> tuple[list[Example], list[Example], list[Example]]:
    """Training prompts, held-out prompts (at most `evaluation.prompts`), and the texts for PTX."""
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


def num_rollouts(config: PPOConfig, prompts: Sequence[Example]) -> int:
    """`max_steps`, or as many rollouts as read every prompt once."""
    return config.max_steps or -(-len(prompts) // config.ppo.rollout_prompts)


def num_updates(config: PPOConfig, prompts: Sequence[Example]) -> int:
    """Optimizer steps of the run, if no rollout stops early; the last rollout of an epoch may be smaller."""
    ppo, count = config.ppo, len(prompts)
    starts = range(0, count, ppo.rollout_prompts)
    sizes = [min(ppo.rollout_prompts, count - starts[i % len(starts)]) for i in range(num_rollouts(config, prompts))]
    steps = ppo.num_ppo_epochs * sum(num_minibatches(size, ppo.minibatch_prompts) for size in sizes)
    say_warmup(config.optimizer, steps)
    return steps


def plan(config: PPOConfig) -> str:
    """What `run` would do, in words; reads the data and the model's configuration, not its weights."""
    base = planned_base(config)
    chat = open_chat(base.tokenizer, config.model)
    prompts, held_out, ptx = read_prompts(config, chat, base.context)
    check_columns(open_functions(config), [*prompts, *held_out])
    ppo, k = config.ppo, config.generation.samples_per_prompt
    lengths = sorted(len(p.prompt_ids) for p in prompts)
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
            f"updates     {num_updates(config, prompts)} optimizer steps, {steps} a rollout: {ppo.num_ppo_epochs} "
            f"epochs, minibatches of {ppo.minibatch_prompts} prompts ({ppo.minibatch_prompts * k} completions)",
            f"saves       {config.output_dir}/policy and {config.output_dir}/critic",
        ]
    )
