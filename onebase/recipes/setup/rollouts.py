"""Set-up shared by the verbs that sample: the policy and its reference, the prompts, how completions are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from onebase.config.data_groups import PromptDataGroup
from onebase.config.groups import LoraGroup, PromptEvaluationGroup
from onebase.config.ppo_groups import GenerationGroup, RewardSourceGroup
from onebase.data.batches import num_minibatches
from onebase.data.chat import ChatFormat
from onebase.data.prepare import encode_prompts
from onebase.engines.budget import TokenBudget
from onebase.errors import DataError
from onebase.models.base import OneBase
from onebase.models.role_files import load_role
from onebase.recipes.setup.data import read_rows
from onebase.recipes.setup.reward import secret_of
from onebase.recipes.setup.saved import warn_of_template
from onebase.recipes.setup.shared import limits_of, load_start, new_lora
from onebase.records import Prompt
from onebase.rollouts.collect import Rollout
from onebase.rollouts.delivery import Delivery
from onebase.runs.progress import say
from onebase.sampling.ahead import DRAWS, Ahead
from onebase.sampling.command import Started
from onebase.sampling.local import LocalSampler, stop_ids
from onebase.sampling.published import PublishedSampler
from onebase.sampling.sampler import Sampler, Sampling
from onebase.sampling.vllm import VLLM
from onebase.seeds import mixed_seed


@dataclass(frozen=True, slots=True)
class Drawing:
    """What drawing at a server takes beside its sampler: proof that it draws as it should, and draws ahead of time.

    Without a server it is empty, and does nothing.
    """

    delivery: Delivery | None = None
    ahead: Ahead | None = None
    published: PublishedSampler | None = None
    started: Started | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether a server draws, so that a token's log-prob as it was drawn is not quite our own."""
        return self.delivery is not None

    def proof(self, rollout: Rollout, index: int, sampling: Sampling) -> dict[str, float]:
        """What is logged of the delivery; empty if this process draws. Raises QualityError as `Delivery.check`."""
        if self.delivery is None:
            return {}
        return self.delivery.check(rollout, index, temperature=sampling.temperature)

    def draw_ahead(
        self, prompts: Sequence[Prompt] | None, sampling: Sampling, seeds: Sequence[int], samples_per_prompt: int
    ) -> None:
        """Begins the next rollout with the policy as it is now, if rollouts are drawn ahead; None: there is no next."""
        if self.ahead is None:
            return
        self.ahead.renew()
        if prompts is not None:
            ids = [prompt.ids for prompt in prompts]
            self.ahead.begin(ids, sampling, seeds=seeds, samples_per_prompt=samples_per_prompt)

    def close(self) -> None:
        """Has the server forget the policy, and stops it if the run started it."""
        if self.ahead is not None:
            self.ahead.close()
        elif self.published is not None:
            self.published.close()
        if self.started is not None:
            self.started.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        part = self.ahead or self.published
        return {} if part is None else part.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resumes from `state_dict()`."""
        part = self.ahead or self.published
        if part is not None:
            part.load_state_dict(state)


def open_drawing(
    base: OneBase, generation: GenerationGroup, budget: TokenBudget, folder: Path
) -> tuple[Sampler, Drawing]:
    """Who draws the policy's rollouts, this process or a server, which is started if that is asked for.

    Args:
        folder: the run's.

    Raises:
        ConfigError: the server's command fails, or its key is not in the environment.
    """
    if generation.engine == "own":
        return LocalSampler(base, "policy"), Drawing()
    assert generation.url is not None, "the config checks this"
    key = secret_of(generation.url_key, "generation.url_key")
    server = VLLM(generation.url, key=key, seconds=generation.timeout)
    started = None
    if generation.start is not None and base.group.is_main:
        command = generation.start
        allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"} | ({"VLLM_API_KEY": key} if key else {})
        say(f"starting {command}; it writes to {folder / 'engine.log'}")
        started = Started(command, answers=server.answers, log=folder / "engine.log", environment=allowed)
    role = "policy"
    if generation.ahead:
        role = DRAWS
        base.add_role(DRAWS, copy_of="policy")
    published = PublishedSampler(base, role, server, folder / "published", budget=budget)
    delivery = Delivery(base, budget, role=role, where=server.where, every=generation.check_every)
    ahead = Ahead(published, "policy") if generation.ahead else None
    return ahead or published, Drawing(delivery, ahead, published, started)


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
