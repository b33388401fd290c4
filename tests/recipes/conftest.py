"""A tiny base, data and roles for the recipes, and the options every run of a verb needs.

Options are dictionaries of dotted keys, laid one over the other, and go through the same reader as a command line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from pydantic import BaseModel

from onebase.config.files import load_config
from onebase.config.language import SFTConfig
from onebase.config.preferences import RewardConfig
from onebase.config.rft import RFTConfig
from onebase.config.rollouts import PPOConfig
from onebase.models.scratch import make_llama, train_tokenizer
from onebase.recipes import reward, sft
from onebase.recipes.setup.shared import open_run
from onebase.tools import runs
from onebase.training.run import Run

Options = dict[str, Any]
Config = TypeVar("Config", bound=BaseModel)

ANIMALS = ("cat", "dog", "bird", "fish", "horse", "mouse", "goat", "duck", "frog", "hen", "cow", "fox")
SENTENCES = [f"The {animal} is {word}. I like the {animal}." for animal in ANIMALS for word in ("good", "bad", "big")]
CONTEXT = 96


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here; a test that wants the pictures asks for the fixture `pictures`."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(runs, "leave_pictures", lambda folder: None)


@pytest.fixture
def pictures() -> None:
    """The runs of this test draw their curves."""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only slow models this small down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of two layers and its tokenizer, as a transformers folder."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def sft_role(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy role that an SFT run left."""
    folder = tmp_path_factory.mktemp("sft")
    rows = write_rows(folder / "sft.jsonl", answered_rows())
    more = {"lora.r": 4, "max_steps": 4, "optimizer.learning_rate": 5e-3}
    sft.run(load(SFTConfig, common(base, folder / "run", rows), more))
    return folder / "run" / "policy"


@pytest.fixture(scope="session")
def reward_role(base: Path, sft_role: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward role that likes `good` better than `bad`."""
    folder = tmp_path_factory.mktemp("reward")
    rows = write_rows(folder / "pairs.jsonl", pair_rows())
    more = {"start_from": str(sft_role), "max_steps": 10, "optimizer.learning_rate": 5e-3, "batch.minibatch": 8}
    reward.run(load(RewardConfig, common(base, folder / "run", rows), more))
    return folder / "run" / "reward"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A file of questions."""
    return write_rows(tmp_path / "prompts.jsonl", prompt_rows())


def make_base(folder: Path, *, seed: int = 0, hidden_size: int = 32, pad_is_end: bool = False) -> Path:
    tokenizer = train_tokenizer(SENTENCES, vocab_size=320)
    if pad_is_end:
        tokenizer.pad_token = tokenizer.eos_token
    model = make_llama(tokenizer, hidden_size=hidden_size, num_layers=2, num_heads=2, max_length=CONTEXT, seed=seed)
    with torch.no_grad():
        # Wide enough apart that a probability can become large while the embedding stays frozen.
        model.model.embed_tokens.weight.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def prompt_rows(count: int = 16) -> list[Options]:
    return [{"prompt": f"Is the {ANIMALS[i % 12]} number {i}?"} for i in range(count)]


def answered_rows(count: int = 24) -> list[Options]:
    return [
        {"prompt": f"Is the {ANIMALS[i % 12]} number {i}?", "completion": f"The {ANIMALS[i % 12]} is good."}
        for i in range(count)
    ]


def pair_rows(count: int = 30) -> list[Options]:
    return [
        {
            "prompt": f"Is the {ANIMALS[i % 12]} number {i}?",
            "chosen": f"The {ANIMALS[i % 12]} is good.",
            "rejected": f"The {ANIMALS[(i + 1) % 12]} is bad.",
        }
        for i in range(count)
    ]


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def common(base: Path, output: Path, data: Path) -> Options:
    """What every verb on a base needs."""
    return {
        "output_dir": str(output),
        "model.model_name_or_path": str(base),
        "model.dtype": "float32",
        "model.chat_template": "hh",
        "data.train": str(data),
        "data.eval_fraction": 0.2,
        "batch.microbatch_tokens": 2048,
    }


SMALL_PPO: Options = {
    "reward.callable": "tests.recipes.conftest:count_vowels",
    "ppo.critic_start": "policy",
    "ppo.rollout_prompts": 4,
    "ppo.minibatch_prompts": 2,
    "generation.max_new_tokens": 6,
    "generation.samples_per_prompt": 2,
    "optimizer.learning_rate": 2e-3,
    "max_steps": 2,
    "lora.r": 4,
}
"""Two rollouts of four prompts, scored by a function."""


def small_ppo(base: Path, output: Path, data: Path, *more: Options) -> PPOConfig:
    return load(PPOConfig, common(base, output, data), SMALL_PPO, *more)


SMALL_RFT: Options = {
    "reward.verifiers": "tests.recipes.conftest:count_vowels",
    "rft.rollout_prompts": 4,
    "rft.minibatch_prompts": 2,
    "rft.num_epochs": 2,
    "generation.max_new_tokens": 6,
    "generation.samples_per_prompt": 3,
    "generation.stop": list("abcdefghijklmnopqrstuvwxyz"),  # so that lengths differ
    "optimizer.learning_rate": 2e-3,
    "max_steps": 2,
    "lora.r": 4,
}
"""Two rollouts of four prompts, scored by a function."""


def small_rft(base: Path, output: Path, data: Path, *more: Options) -> RFTConfig:
    return load(RFTConfig, common(base, output, data), SMALL_RFT, *more)


def with_run(config: PPOConfig) -> tuple[PPOConfig, Run]:
    """What `ppo_setup.set_up` takes."""
    return config, open_run(config)


def count_vowels(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """A reward that varies."""
    return [sum(letter in "aeiou" for letter in text) / 4 for text in completions]


def words(*options: Options) -> list[str]:
    """Options as words of a command line; later ones win, None takes one out."""
    merged: Options = {}
    for part in options:
        merged |= part
    return [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in merged.items()
        if value is not None
    ]


def load(model_class: type[Config], *options: Options) -> Config:
    return load_config(model_class, None, words(*options))


def metric_rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def file_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    """What an unfinished atomic write would leave behind."""
    return [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".old"))]
