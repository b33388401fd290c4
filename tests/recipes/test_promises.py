"""What the toolkit promises: frozen stays frozen, layouts and seeds are exact, and a recipe can be read."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import onebase
from onebase.config.language import PretrainConfig, SFTConfig
from onebase.config.preferences import RewardConfig
from onebase.config.rollouts import PPOConfig
from onebase.models.base import OneBase
from onebase.models.roles import ScalarRole
from onebase.recipes import ppo, pretrain, reward, sft
from tests.recipes.conftest import (
    SENTENCES,
    Options,
    answered_rows,
    common,
    file_bytes,
    load,
    metric_rows,
    pair_rows,
    small_ppo,
    write_rows,
)
from tests.recipes.ppo_parts import Trained


def four_roles(sft_role: Path, reward_role: Path) -> Options:
    return {
        "start_from": str(sft_role),
        "reward.role": str(reward_role),
        "reward.callable": None,
        "ppo.critic_start": "reward",
    }


def state_of(loaded: OneBase, role: str) -> dict[str, Tensor]:
    found = loaded.roles[role]
    head = {"head": found.head.weight.detach().clone()} if isinstance(found, ScalarRole) else {}
    return loaded.adapter_weights(role) | head


def base_state(loaded: OneBase) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters() if "lora_" not in name}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_ppo_changes_the_policy_and_the_critic_and_nothing_else(
    critic: str, base: Path, sft_role: Path, reward_role: Path, prompts: Path, tmp_path: Path
) -> None:
    config = small_ppo(base, tmp_path / "run", prompts, four_roles(sft_role, reward_role), {"ppo.critic": critic})
    trainer = Trained(config)
    loaded = trainer.base
    frozen, before = base_state(loaded), {role: state_of(loaded, role) for role in loaded.roles}
    assert frozen and set(before) == {"policy", "reference", "reward", "critic"}
    for index in range(2):
        trainer.train_rollout(index)
    assert equal(base_state(loaded), frozen)
    assert equal(state_of(loaded, "reference"), before["reference"]) and equal(
        state_of(loaded, "reward"), before["reward"]
    )
    assert not equal(state_of(loaded, "policy"), before["policy"])
    assert not equal(state_of(loaded, "critic"), before["critic"])
    assert loaded.active is None


def test_a_run_leaves_the_files_of_what_it_started_from(
    base: Path, sft_role: Path, reward_role: Path, prompts: Path, tmp_path: Path
) -> None:
    folders = (base, sft_role, reward_role)
    before = [file_bytes(folder) for folder in folders]
    ppo.run(small_ppo(base, tmp_path / "run", prompts, four_roles(sft_role, reward_role)))
    assert [file_bytes(folder) for folder in folders] == before
    weights = "adapter_model.safetensors"
    assert (tmp_path / "run" / "policy" / weights).read_bytes() != (sft_role / weights).read_bytes()


@pytest.mark.parametrize("verb", ["sft", "reward"])
def test_both_layouts_take_the_same_steps(verb: str, base: Path, sft_role: Path, tmp_path: Path) -> None:
    cases: dict[str, tuple[Any, Any, list[Options]]] = {
        "sft": (sft, SFTConfig, answered_rows()),
        "reward": (reward, RewardConfig, pair_rows()),
    }
    recipe, model_class, rows = cases[verb]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    found = []
    for layout in ("tree", "separate"):
        more: Options = {"model.layout": layout, "start_from": str(sft_role), "max_steps": 3}
        recipe.run(load(model_class, common(base, tmp_path / layout, data), more))
        rows_of = [
            {name: value for name, value in row.items() if not name.startswith("perf/")}
            for row in metric_rows(tmp_path / layout)
        ]
        found.append(rows_of)
    for tree, separate in zip(*found, strict=True):
        assert tree == pytest.approx(separate, abs=1e-4)


def saved_bytes(run: Path) -> dict[str, bytes]:
    return {name: content for name, content in file_bytes(run).items() if name.endswith(".safetensors")}


def run_each(
    recipe: Any, model_class: Any, options: Callable[[Path, int], Options], folder: Path
) -> list[dict[str, bytes]]:
    results = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        recipe.run(load(model_class, options(folder / name, seed)))
        results.append(saved_bytes(folder / name))
    return results


def test_the_same_seed_gives_the_same_bytes(
    base: Path, sft_role: Path, reward_role: Path, prompts: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(SENTENCES))
    answered = write_rows(tmp_path / "sft.jsonl", answered_rows())
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    small_tiny: Options = {
        "tiny.vocab_size": 300,
        "tiny.hidden_size": 32,
        "tiny.num_layers": 2,
        "tiny.num_heads": 2,
        "tiny.max_length": 32,
    }

    def pretraining(folder: Path, seed: int) -> Options:
        return {"data.train": str(texts), "output_dir": str(folder), "max_steps": 2, "seed": seed, **small_tiny}

    def training(data: Path) -> Callable[[Path, int], Options]:
        return lambda folder, seed: common(base, folder, data) | {"max_steps": 2, "seed": seed}

    def playing(folder: Path, seed: int) -> Options:
        dumped = small_ppo(base, folder, prompts, four_roles(sft_role, reward_role), {"seed": seed}).model_dump()
        return {key: value for key, value in flat(dumped)}

    for recipe, model_class, options in (
        (pretrain, PretrainConfig, pretraining),
        (sft, SFTConfig, training(answered)),
        (reward, RewardConfig, training(pairs)),
        (ppo, PPOConfig, playing),
    ):
        first, again, other = run_each(recipe, model_class, options, tmp_path / recipe.__name__)
        assert first and first == again, recipe.__name__
        assert all(first[name] != other[name] for name in first), recipe.__name__


def flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return found


# ------------------------------------------------------------------------------------------------- calls to the loss

PACKAGE = str(Path(onebase.__file__).parent)


def calls_between(recipe: ModuleType, start: Callable[[], object], target: str) -> int:
    """How many of our own functions are entered on the way from the recipe's `run` to the function named `target`."""
    depths: list[int] = []

    def watch(frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or frame.f_code.co_name != target:
            return
        stack = []
        above: FrameType | None = frame
        while above is not None:
            if above.f_code.co_filename.startswith(PACKAGE):
                stack.append((above.f_code.co_name, above.f_code.co_filename))
            above = above.f_back
        names = [name for name, _ in stack]
        if "run" in names and "step" in names:
            depths.append(names.index("run"))

    sys.setprofile(watch)
    try:
        start()
    finally:
        sys.setprofile(None)
    assert depths, f"{target} was never called in a step of {recipe.__name__}"
    return max(depths)


@pytest.mark.parametrize(
    ("verb", "target", "most"),
    [
        ("sft", "token_logprobs", 5),  # train_step, Update.step, _accumulate, loss
        ("reward", "ranking_loss", 5),
        ("ppo", "clipped_policy_loss", 9),  # and before these train, train_rollout, update_on, train_minibatch
    ],
)
def test_the_way_from_a_verb_to_its_loss_gets_no_longer(
    verb: str, target: str, most: int, base: Path, prompts: Path, tmp_path: Path
) -> None:
    one_step: Options = {"max_steps": 1}
    answered = write_rows(tmp_path / "sft.jsonl", answered_rows(8))
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows(8))
    cases: dict[str, tuple[Any, Any]] = {
        "sft": (sft, load(SFTConfig, common(base, tmp_path / "run", answered), one_step)),
        "reward": (reward, load(RewardConfig, common(base, tmp_path / "run", pairs), one_step)),
        "ppo": (ppo, small_ppo(base, tmp_path / "run", prompts, one_step)),
    }
    recipe, config = cases[verb]
    assert calls_between(recipe, lambda: recipe.run(config), target) <= most
