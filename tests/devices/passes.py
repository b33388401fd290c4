"""Runs every recipe's step on a fake GPU, and prints what made the host wait: one JSON line per pass.

usage: python -m tests.devices.passes FOLDER    FOLDER holds what is compiled

Then the first pass again with each fault planted.

A process of its own, because PyTorch believes in the GPU from then on.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from onebase.config.files import load_config
from onebase.config.preferences import DPOConfig
from onebase.config.rollouts import PPOConfig
from onebase.data.chat import ChatFormat
from onebase.data.tree import laid
from onebase.engines.budget import TokenBudget
from onebase.engines.engine import engine_of
from onebase.models.adapters import lora_config
from onebase.models.base import OneBase
from onebase.models.roles import ScalarRole
from onebase.objectives.kl import FixedKL
from onebase.recipes import dpo, ppo, reward
from onebase.recipes.setup.data import order_of
from onebase.recipes.setup.ppo import Setup, State
from onebase.records import Example, Prompt, Row
from onebase.rewards.learned import RoleReward
from onebase.rollouts.collect import collect
from onebase.sampling.local import LocalSampler
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from onebase.training.comparisons import draw_comparisons
from onebase.training.language import language_step
from onebase.training.update import ParameterGroup, Update
from tests.devices.fake_cuda import fake_cuda, load_guard, move
from tests.tiny_models import _SPECIAL, ARCHITECTURES, random_ids, tiny_tokenizer

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "packed, flex": ("llama", {"packs": True, "flex": True}),
    "packed, grouped": ("qwen3", {"packs": True}),
    "transformers, flex": ("gemma2", {"flex": True}),
    "transformers, padded": ("neox", {}),
    "separate rows": ("bloom", {"layout": "separate"}),
}
LOSSES = ("sigmoid", "ipo", "simpo", "orpo", "rrhf", "plackett_luce", "kto")


def base_on(kind: str, *, full: bool = False, shared_critic: bool = False) -> OneBase:
    """A base of this kind with PPO's roles, on the fake GPU."""
    architecture, engine = BASES[kind]
    config_class, sizes = ARCHITECTURES[architecture]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_class(**(_SPECIAL | sizes))).to(torch.bfloat16).eval()
        base = OneBase(model, tiny_tokenizer(), fingerprint="none", **({"layout": "tree"} | engine))
        if full:
            base.add_role("policy")
            base.train_base("policy")
        else:
            adapter = lora_config(model, r=4, alpha=8)
            base.add_role("policy", adapter=adapter, trains=True)
            base.add_role("reference")
            base.add_role("reward", adapter=adapter, head=True, trains=True)
            if shared_critic:
                base.share_adapter("critic", with_role="policy")
            else:
                base.add_role("critic", adapter=adapter, head=True, trains=True)
    move(base.model)
    for role in base.roles.values():
        if isinstance(role, ScalarRole):
            move(role.head)
    base._apply(None)
    return base


def examples() -> list[Example]:
    """Trees of two or three graded completions."""
    return [
        Example(
            random_ids(9 + e, seed=e),
            [random_ids(5 + k, seed=10 * e + k) for k in range(2 + e % 2)],
            grades=[float(-k) for k in range(2 + e % 2)],
        )
        for e in range(4)
    ]


def update_of(base: OneBase, *roles: str) -> Update:
    groups = [ParameterGroup(base.parameters(role), 1e-3, role) for role in roles]
    return Update(
        base,
        groups,
        weight_decay=0.0,
        schedule="linear",
        warmup_steps=0,
        total_steps=10,
        max_grad_norm=1.0,
        budget=TokenBudget(50),  # several microbatches a step
    )


def sft(kind: str) -> None:
    base = base_on(kind)
    language_step(base, laid(examples()), update_of(base, "policy"))


def pretrain(kind: str) -> None:
    base = base_on(kind, full=True)
    language_step(base, laid(examples()), update_of(base, "policy"))


def reward_model(kind: str) -> None:
    base, rows = base_on(kind), laid(examples())
    pairs = [draw_comparisons(row, max_pairs=4, seed=0, visit=(0, i)) for i, row in enumerate(rows)]
    reward.train_step(base, rows, pairs, update_of(base, "reward"))


def preference(kind: str, loss: str) -> None:
    base = base_on(kind)
    words = ["output_dir=x", "model.model_name_or_path=x", "data.train=x", f"loss={loss}"]
    config = load_config(DPOConfig, None, words)
    update = update_of(base, "policy")
    if loss == "kto":
        singles = [
            Example(e.prompt_ids, e.completions[:1], row=Row((), columns={"label": i % 2 == 0}))
            for i, e in enumerate(examples())
        ]
        dpo.kto_step(base, laid(singles), None, update, config)
    else:
        dpo.preference_step(base, laid(examples()), None, update, config, visit=0)


def proximal(kind: str, critic: str) -> None:
    base = base_on(kind, shared_critic=critic == "head")
    keys = {
        "output_dir": "x",
        "model.model_name_or_path": "x",
        "data.train": "x",
        "reward.role": "x",
        "ppo.rollout_prompts": 4,
        "ppo.minibatch_prompts": 2,
        "ppo.critic": critic,
        "ppo.entropy_coefficient": 0.01,
        "generation.samples_per_prompt": 2,
        "generation.max_new_tokens": 12,
    }
    config = load_config(PPOConfig, None, [f"{key}={value}" for key, value in keys.items()])
    prompts = [Prompt(random_ids(5 + p, seed=p)) for p in range(4)]
    update = update_of(base, "policy", "critic")
    setup = Setup(
        config=config,
        base=base,
        chat=ChatFormat(base.tokenizer, None),
        sampler=LocalSampler(base, "policy"),
        sampling=Sampling(max_new_tokens=12, stop_ids=(2,)),
        reward=RoleReward(base, "reward", budget=update.budget),
        judges={},
        prompts=prompts,
        order=order_of(config.data, prompts, config.seed),
        held_out=[],
        ptx=[],
        budget=update.budget,
    )
    ppo.train_rollout(setup, State(FixedKL(0.05)), update, 0)


def best_of(kind: str) -> None:
    base = base_on(kind)
    collect(
        base,
        ChatFormat(base.tokenizer, None),
        [Prompt(random_ids(5 + p, seed=p)) for p in range(4)],
        sampler=LocalSampler(base, "policy"),
        sampling=Sampling(max_new_tokens=12, stop_ids=(2,)),
        seeds=sample_seeds(0, num_prompts=4, samples_per_prompt=3, stream="best"),
        samples_per_prompt=3,
        budget=TokenBudget(200),
        reward=RoleReward(base, "reward", budget=TokenBudget(200)),
    )


def decode_step(kind: str) -> None:
    base = base_on(kind)
    with torch.no_grad(), base.role("policy"):
        decoding = engine_of(base, "policy").decode(max_slots=16, max_length=64)
        decoding.prefill([random_ids(n, seed=n) for n in (5, 9, 3)], 3)
        decoding.step(torch.zeros(9, dtype=torch.long, device="cuda"))
        decoding.keep([0, 4, 8])
        decoding.step(torch.zeros(3, dtype=torch.long, device="cuda"))


PASSES: dict[str, Callable[[str], None]] = {
    "sft": sft,
    "pretrain": pretrain,
    "reward": reward_model,
    **{f"dpo {loss}": lambda kind, loss=loss: preference(kind, loss) for loss in LOSSES},
    "ppo, critic adapter": lambda kind: proximal(kind, "adapter"),
    "ppo, critic head": lambda kind: proximal(kind, "head"),
    "best-of": best_of,
    "decode step": decode_step,
}


ON_ALL = ("sft", "pretrain", "reward", "dpo sigmoid", "ppo, critic adapter", "decode step")
PAIRS = [
    (base, name)
    for base in BASES
    for name in PASSES
    if base == "packed, flex" or name in ON_ALL or (base == "transformers, padded" and not name.startswith("dpo"))
]
"""What runs on what: every loss on one engine, since none knows which it is, and all that samples on two."""
FAULTS = ("left", "wait")


@contextmanager
def planted(fault: str) -> Iterator[None]:
    """Plants a fault: a state that goes through the CPU (`wait`), or one that stays there (`left`)."""
    from onebase.engines import packed

    states = packed.PackedEngine.states

    def through_the_cpu(*args: Any) -> Tensor:
        found = states(*args).cpu()
        return found.to("cuda") if fault == "wait" else found

    packed.PackedEngine.states = through_the_cpu  # type: ignore[method-assign]
    try:
        yield
    finally:
        packed.PackedEngine.states = states  # type: ignore[method-assign]


def main() -> None:
    warnings.filterwarnings("ignore")
    load_guard(Path(sys.argv[1]))
    for base, name, fault in [*((*pair, "") for pair in PAIRS), *((*PAIRS[0], fault) for fault in FAULTS)]:
        with fake_cuda(setattr) as mode, planted(fault) if fault else nullcontext():
            try:
                PASSES[name](base)
                problem = ""
            except Exception as error:  # whatever an operation says that does not fit its devices
                problem = f"{type(error).__name__}: {error}"
        found = {"base": base, "pass": name, "fault": fault, "error": problem, "waits": mode.waits}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
