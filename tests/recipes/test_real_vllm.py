"""A real vLLM draws what is learned from: `ONEBASE_VLLM=/path/to/vllm pytest -m slow tests/recipes/test_real_vllm.py`.

Tried with vLLM 0.32 on a CPU, whose kernels want heads of 32 dimensions or more.
"""

from __future__ import annotations

import os
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from onebase.config.rollouts import IterateConfig, PPOConfig
from onebase.recipes import iterate, ppo
from onebase.sampling.command import Started
from onebase.sampling.vllm import VLLM
from tests.recipes.conftest import Options, load, metric_rows, write_rows
from tests.recipes.test_bandit import WORDS, bandit, distributions, options

__all__ = ["bandit"]
PROGRAM = os.environ.get("ONEBASE_VLLM")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="ONEBASE_VLLM does not name a vllm program"),
]


@pytest.fixture(scope="module")
def model(bandit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bandit's ten letters on a model that vLLM can run."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=128,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            initializer_range=0.08,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(bandit).save_pretrained(folder)
    (folder / "openings.jsonl").write_bytes((bandit / "openings.jsonl").read_bytes())
    return folder


def command(model: Path, dtype: str) -> tuple[str, str]:
    """The server's address and what starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(PROGRAM), "serve", str(model), "--port", str(port), "--enforce-eager", "--dtype", dtype]
    words += ["--enable-lora", "--max-lora-rank", "16", "--logprobs-mode", "processed_logprobs"]
    words += ["--max-model-len", "64"]
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return f"http://127.0.0.1:{port}", shlex.join(words)


@contextmanager
def served(model: Path, dtype: str, log: Path) -> Iterator[str]:
    url, words = command(model, dtype)
    allowed = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
    running = Started(words, answers=VLLM(url).answers, log=log, environment=allowed)
    try:
        yield url
    finally:
        running.stop()


def count_g(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [float(text.count("g")) for text in completions]


def share_of_g(model: Path, run: Path) -> tuple[float, float]:
    """The probability of the best token before and after."""
    reference, policy = distributions(model, run)
    return float(reference[WORDS.index("g")]), float(policy[WORDS.index("g")])


def test_ppo_learns_from_it_as_from_our_own_loop(model: Path, tmp_path: Path) -> None:
    url, words = command(model, "float32")
    more: Options = {"max_steps": 12, "generation.samples_per_prompt": 4, "generation.temperature": 0.9}
    elsewhere: Options = {"generation.engine": "vllm", "generation.url": url, "generation.start": words}
    shares = {}
    for name, engine in (("vllm", elsewhere), ("own", {})):
        ppo.run(load(PPOConfig, options(model, tmp_path / name, "only_g"), more, engine))
        before, shares[name] = share_of_g(model, tmp_path / name)
        print(f"{name}: {before:.3f} -> {shares[name]:.3f}")
    rows = metric_rows(tmp_path / "vllm")
    print(f"probabilities differ by {[row['sampling/probability_difference'] for row in rows]}")
    assert max(row["sampling/probability_difference"] for row in rows) < 1e-4
    assert min(shares.values()) > 0.6


def test_rounds_of_best_of_and_dpo_learn_from_it(model: Path, tmp_path: Path) -> None:
    asked: Options = {
        "output_dir": str(tmp_path / "run"),
        "model.model_name_or_path": str(model),
        "model.dtype": "float32",
        "model.chat_template": "hh",
        "data.train": str(write_rows(tmp_path / "asked.jsonl", [{"prompt": f"a {i}"} for i in range(64)])),
        "reward.callable": "tests.recipes.test_real_vllm:count_g",
        "generation.engine": "vllm",
        "generation.max_new_tokens": 1,
        "generation.samples_per_prompt": 8,
        "rounds": 2,
        "prompts_per_round": 32,
        "optimizer.learning_rate": 1e-3,
        "optimizer.num_epochs": 1,
        "batch.minibatch": 8,
        "lora.r": 4,
    }
    with served(model, "float32", tmp_path / "engine.log") as url:
        summary = iterate.run(load(IterateConfig, asked, {"generation.url": url}))
        assert VLLM(url).models() == [str(model)], "no adapter is left there"
    scores = summary["mean_scores"]
    print(f"mean score of the samples by round: {scores}")
    assert scores[1] > scores[0] + 0.1
    for number in (1, 2):
        rows = metric_rows(tmp_path / "run" / f"round-{number}" / "samples")
        print(f"round {number}: probabilities differ by {rows[-1]['sampling/probability_difference']:.2g}")
        assert rows and all(row["sampling/probability_difference"] < 1e-4 for row in rows)


@pytest.mark.parametrize("ahead", [0, 1])
def test_ppo_learns_in_bfloat16_within_what_rounding_leaves_apart(model: Path, tmp_path: Path, ahead: int) -> None:
    more: Options = {"max_steps": 12, "generation.samples_per_prompt": 4, "model.dtype": "bfloat16"}
    with served(model, "bfloat16", tmp_path / "engine.log") as url:
        elsewhere: Options = {"generation.engine": "vllm", "generation.url": url, "generation.ahead": ahead}
        ppo.run(load(PPOConfig, options(model, tmp_path / "run", "only_g"), more, elsewhere))
    before, after = share_of_g(model, tmp_path / "run")
    rows = metric_rows(tmp_path / "run")
    apart = [row["sampling/probability_difference"] for row in rows]
    print(f"{before:.3f} -> {after:.3f}; probabilities differ by {min(apart):.2g} to {max(apart):.2g}")
    assert before < 0.2 and after > 0.6
    assert 0 < max(apart) < 0.01
