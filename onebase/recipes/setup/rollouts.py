"""Set-up shared by the verbs that sample: the policy and its reference, the prompts, how completions are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from onebase.config.groups import LoraGroup, PromptDataGroup, PromptEvaluationGroup
from onebase.config.ppo_groups import GenerationGroup, RewardSourceGroup
from onebase.data.batches import num_minibatches
from onebase.data.chat import ChatFormat
from onebase.data.prepare import encode_prompts
from onebase.errors import DataError
from onebase.models.base import OneBase
from onebase.models.role_files import load_role
from onebase.recipes.setup.data import read_rows
from onebase.recipes.setup.saved import warn_of_template
from onebase.recipes.setup.shared import limits_of, load_start, new_lora
from onebase.records import Prompt
from onebase.sampling.local import stop_ids
from onebase.sampling.sampler import Sampling
from onebase.seeds import mixed_seed


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


def rollout_sampling(sampling: Sampling, generation: GenerationGroup, seed: int, index: int) -> Sampling:
    """The rollout's sampling settings, with its own length limit if that is random."""
    if generation.random_min_new_tokens is None:
        return sampling
    generator = torch.Generator().manual_seed(mixed_seed("length", seed, index))
    limit = torch.randint(generation.random_min_new_tokens, generation.max_new_tokens + 1, (), generator=generator)
    return replace(sampling, max_new_tokens=int(limit))


def add_policy(base: OneBase, start_from: str | None, lora: LoraGroup, *, reference: bool = True) -> None:
    """Adds the policy, and the reference if one is needed: a saved role and its frozen copy, or a new adapter, which
    starts as the base, and the base itself."""
    if start_from is not None:
        load_start(base, "policy", start_from, lora, kinds=("policy",), trains=True)
    else:
        base.add_role("policy", adapter=new_lora(base, lora), trains=True)
    if reference:
        base.add_role("reference", copy_of="policy" if start_from is not None else None)


def load_reward_role(
    base: OneBase, reward: RewardSourceGroup, start_from: str | None, prompts: Sequence[Prompt], chat: ChatFormat
) -> None:
    """Loads the reward role, if one is named; warns of saved roles that know another chat template."""
    if reward.role is not None:
        load_role(base, "reward", reward.role, kinds=("reward",))
    if any(prompt.row and prompt.row.messages for prompt in prompts):
        for folder in filter(None, (start_from, reward.role)):
            warn_of_template(folder, chat)


def add_critic(base: OneBase, kind: str, start: str, *, reward: RewardSourceGroup) -> None:
    """Adds the critic: an adapter copied from the reward role or the policy, or a head on the policy's trunk.

    Args:
        kind: `adapter` or `head`.
        start: `reward`, `policy`, or `auto`: the reward role if there is one.
    """
    if kind == "head":
        base.share_adapter("critic", with_role="policy")
        return
    if start == "auto":
        start = "reward" if reward.role is not None else "policy"
    base.add_role("critic", copy_of=start, head=True, trains=True)
    if reward.normalize == "held_out" and start == "reward":
        # Its values are in units of raw scores, but the returns are in standard deviations of them.
        with torch.no_grad():
            base.scalar_role("critic").head.weight.div_(base.scalar_role("reward").moments.std or 1.0)


def read_prompts(
    data: PromptDataGroup,
    evaluation: PromptEvaluationGroup,
    generation: GenerationGroup,
    chat: ChatFormat,
    context: int,
    *,
    seed: int,
) -> tuple[list[Prompt], list[Prompt]]:
    """Reads training prompts and held-out prompts, at most `evaluation.prompts`."""
    train, held_out = read_rows(data, seed)
    if not held_out:
        raise DataError(
            "the policy before and after is compared on held-out prompts, and none are left; set data.eval, or "
            "data.eval_fraction above 0"
        )
    limits = limits_of(data, context)
    lengths = {"max_new_tokens": generation.max_new_tokens, "opening_tokens": data.opening_tokens}
    return (
        encode_prompts(train, chat, limits, **lengths),
        encode_prompts(held_out[: evaluation.prompts], chat, limits, **lengths),
    )


def num_rollouts(max_steps: int | None, num_prompts: int, rollout_prompts: int) -> int:
    """How many rollouts a run has: `max_steps`, or enough to read every prompt once."""
    return max_steps or -(-num_prompts // rollout_prompts)


def num_updates(
    rollouts: int, num_prompts: int, *, rollout_prompts: int, minibatch_prompts: int, num_epochs: int
) -> int:
    """Optimizer steps in so many rollouts if none stops early; an epoch's last rollout may be smaller."""
    starts = range(0, num_prompts, rollout_prompts)
    sizes = [min(rollout_prompts, num_prompts - starts[i % len(starts)]) for i in range(rollouts)]
    return num_epochs * sum(num_minibatches(size, minibatch_prompts) for size in sizes)
