"""Our side: the recipes' own steps on a base made in memory."""

from __future__ import annotations

from collections.abc import Callable

from transformers import PreTrainedModel

from bench.gpu.models import LOADS, byte_tokenizer, random_pairs
from onebase.config.files import load_config
from onebase.config.preferences import DPOConfig
from onebase.config.rollouts import PPOConfig
from onebase.data.chat import ChatFormat
from onebase.data.tree import laid
from onebase.engines.budget import TokenBudget, find_token_budget
from onebase.engines.engine import engine_of
from onebase.engines.opening import wrap_model
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.objectives.kl import FixedKL
from onebase.recipes import dpo, ppo, reward
from onebase.recipes.setup.data import order_of
from onebase.recipes.setup.ppo import Setup, State
from onebase.records import Example, Prompt
from onebase.rewards.learned import RoleReward
from onebase.sampling.local import LocalSampler, generate
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.training.comparisons import draw_comparisons
from onebase.training.language import language_step
from onebase.training.update import ParameterGroup, Update

RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-4
_PATHS = ["output_dir=unused", "model.model_name_or_path=unused", "data.train=unused"]


def open_base(model: PreTrainedModel) -> OneBase:
    """The model as a base with PPO's four roles."""
    base = wrap_model(model, byte_tokenizer(), fingerprint="random weights")
    adapter = lora_config(model, r=RANK, alpha=ALPHA)
    base.add_role("policy", adapter=adapter, trains=True)
    base.add_role("reference")
    base.add_role("reward", adapter=adapter, head=True, trains=True)
    base.add_role("critic", adapter=adapter, head=True, trains=True)
    return base


def engine_name(base: OneBase) -> str:
    """Which engine runs the policy, and whether with FlexAttention."""
    return f"{type(engine_of(base, 'policy')).__name__}{', flex' if base.flex else ''}"


def stages(base: OneBase, size: str) -> dict[str, Callable[[], int]]:
    """What to time, by name; each returns how many samples (tokens, for decoding) it went through."""
    load, pairs = LOADS[size], random_pairs(size)
    rows = laid([Example(pair.prompt, [pair.chosen, pair.rejected], grades=[1.0, 0.0]) for pair in pairs])
    budget = TokenBudget(find_token_budget(base, "policy", longest=max(row.num_tokens for row in rows)))
    singles = laid([Example(pair.prompt, [pair.chosen]) for pair in pairs])
    comparisons = [draw_comparisons(row, max_pairs=4, seed=0, visit=(0, i)) for i, row in enumerate(rows)]
    of_policy, of_reward = (update_of(base, budget, role) for role in ("policy", "reward"))
    config = load_config(DPOConfig, None, [*_PATHS, "loss=sigmoid"])

    def sft() -> int:
        language_step(base, singles, of_policy)
        return len(singles)

    def rank() -> int:
        reward.train_step(base, rows, comparisons, of_reward)
        return len(rows)

    def prefer() -> int:
        dpo.preference_step(base, rows, None, of_policy, config, visit=0)
        return len(rows)

    prompts = [pair.prompt for pair in random_pairs(size, count=load.prompts, seed=1)]
    setup, state = ppo_setup(base, budget, prompts, load.new_tokens)
    both = update_of(base, budget, "policy", "critic")

    def rollout() -> int:
        ppo.train_rollout(setup, state, both, 0)
        return len(prompts)

    def decode() -> int:
        seeds = sample_seeds(0, num_prompts=len(prompts), samples_per_prompt=1, stream="decode")
        sampling = Sampling(max_new_tokens=4 * load.new_tokens, stop_ids=())
        return sum(len(s.ids) for s in generate(base, prompts, role="policy", sampling=sampling, seeds=seeds))

    return {"sft": sft, "reward": rank, "dpo": prefer, "ppo": rollout, "decode": decode}


def ppo_setup(base: OneBase, budget: TokenBudget, prompts: list[list[int]], new_tokens: int) -> tuple[Setup, State]:
    count = len(prompts)
    keys = {
        "reward.role": "unused",
        "ppo.rollout_prompts": count,
        "ppo.minibatch_prompts": max(1, count // 4),
        "ppo.num_ppo_epochs": 1,
        "generation.samples_per_prompt": 1,
        "generation.max_new_tokens": new_tokens,
    }
    config = load_config(PPOConfig, None, [*_PATHS, *(f"{key}={value}" for key, value in keys.items())])
    all_prompts = [Prompt(ids) for ids in prompts]
    setup = Setup(
        config=config,
        base=base,
        chat=ChatFormat(base.tokenizer, None),
        sampler=LocalSampler(base, "policy"),
        sampling=Sampling(max_new_tokens=new_tokens, stop_ids=()),
        reward=RoleReward(base, "reward", budget=budget),
        judges={},
        prompts=all_prompts,
        order=order_of(config.data, all_prompts, config.seed),
        held_out=[],
        ptx=[],
        budget=budget,
    )
    return setup, State(FixedKL(0.05))


def update_of(base: OneBase, budget: TokenBudget, *roles: str) -> Update:
    return Update(
        base,
        [ParameterGroup(base.parameters(role), LEARNING_RATE, role) for role in roles],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        total_steps=100,
        max_grad_norm=1.0,
        budget=budget,
    )
