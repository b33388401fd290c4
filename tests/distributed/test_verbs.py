"""Every verb in 1, 2 and 4 processes, with the base replicated and spread: the same gradients, metrics and roles.

Where the engines are the same, a run in N processes has the same bytes whether each holds the whole base or a part of
it. Between numbers of processes sums are taken in another order: in float32 the adapters differ by less than a 20th
of one step, as AdamW divides a gradient by its own size and so magnifies rounding where it is nearly zero.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import MistralConfig, MistralForCausalLM

from onebase.models.scratch import train_tokenizer
from tests.distributed.ranks import Task, run_all
from tests.recipes.conftest import (
    SENTENCES,
    SMALL_PPO,
    SMALL_RFT,
    Options,
    answered_rows,
    common,
    file_bytes,
    metric_rows,
    pair_rows,
    prompt_rows,
    words,
    write_rows,
)

pytestmark = pytest.mark.slow
LEARNING_RATE = 1e-3
TOLERANCE = LEARNING_RATE / 20
WAYS = {
    "one": (1, False),
    "two": (2, False),
    "two spread": (2, True),
    "four": (4, False),
    "four spread": (4, True),
}
"""Number of processes, and whether the base is spread over them."""
VERBS = ("sft", "reward", "dpo", "ppo", "rft", "best-of", "iterate")


def make_unpacked(folder: Path, *, width: int = 32) -> Path:
    """A base that only transformers runs, in trees: whole or spread, it computes the same bytes."""
    tokenizer = train_tokenizer(SENTENCES, vocab_size=320)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=96,
        sliding_window=16,
        tie_word_embeddings=False,
        initializer_range=0.15,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unpacked(tmp_path_factory.mktemp("unpacked"))


def verbs(data: Path) -> dict[str, tuple[Path, Options]]:
    """Each verb's data and options: minibatches that four processes cannot share evenly."""
    rows = write_rows(data / "rows.jsonl", answered_rows(14))
    pairs = write_rows(data / "pairs.jsonl", pair_rows(14))
    prompts = write_rows(data / "prompts.jsonl", prompt_rows(8))
    learning: Options = {"max_steps": 2, "batch.minibatch": 5, "optimizer.learning_rate": LEARNING_RATE, "lora.r": 4}
    vowels: Options = {"reward.callable": "tests.recipes.conftest:count_vowels", "generation.max_new_tokens": 6}
    sampling: Options = {**vowels, "generation.samples_per_prompt": 3}
    fewer: Options = {"evaluation.every_steps": None}
    rate: Options = {"optimizer.learning_rate": LEARNING_RATE}
    return {
        "sft": (rows, {**learning, "batch.microbatch_tokens": 64}),
        "reward": (pairs, learning),
        "dpo": (pairs, learning),
        "ppo": (prompts, {**SMALL_PPO, "max_steps": 1, "ppo.num_ppo_epochs": 2, **fewer, **rate}),
        "rft": (prompts, {**SMALL_RFT, "max_steps": 1, **fewer, **rate}),
        "best-of": (prompts, {**sampling, "data.eval_fraction": None}),
        "iterate": (
            prompts,
            {**sampling, "rounds": 1, "prompts_per_round": 8, "optimizer.num_epochs": 1, "lora.r": 4}
            | {"batch.minibatch": 4, **rate, "data.eval_fraction": None},
        ),
    }


def adapters(run: Path) -> dict[str, torch.Tensor]:
    """Every role's tensors that a run left, checkpoints aside."""
    found = {}
    for file in sorted(run.glob("**/*.safetensors")):
        place = str(file.relative_to(run))
        if "checkpoint-" not in place and "reference-logprobs" not in place:
            found |= {f"{place}:{name}": tensor for name, tensor in load_file(file).items()}
    return found


def measured(run: Path) -> list[dict[str, float]]:
    """A run's metrics without what time and place decide."""
    return [
        {
            name: value
            for name, value in row.items()
            if not name.startswith("perf/") and "seconds" not in name and "memory" not in name
        }
        for row in metric_rows(run)
    ]


def written(run: Path) -> dict[str, bytes]:
    """The rows that a run drew and kept."""
    kept = ("best.jsonl", "pairs.jsonl")
    return {name: data for name, data in file_bytes(run).items() if name.endswith(kept)}


def largest_difference(one: Path, other: Path) -> float:
    a, b = adapters(one), adapters(other)
    assert set(a) == set(b)
    return max((float((a[name] - b[name]).abs().max()) for name in a), default=0.0)


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `<verb> <way>/` for each verb and way."""
    folder = tmp_path_factory.mktemp("verbs")
    tasks = []
    for verb, (data, options) in verbs(folder).items():
        for way, (count, spread) in WAYS.items():
            where: Options = {"model.shard": True} if spread else {}
            asked = words(common(base, folder / f"{verb} {way}", data), options, where)
            tasks.append(Task(f"{verb} {way}", count, [verb, *asked]))
    run_all(tasks, folder)
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_does_the_same_in_any_number_of_processes(runs: Path, verb: str) -> None:
    alone = runs / f"{verb} one"
    for way in list(WAYS)[1:]:
        run = runs / f"{verb} {way}"
        assert largest_difference(alone, run) < TOLERANCE, way
        assert written(run) == written(alone), way
        for before, now in zip(measured(alone), measured(run), strict=True):
            assert set(before) == set(now), way
            for name, value in before.items():
                assert now[name] == pytest.approx(value, rel=1e-3, abs=2e-4), (way, name)


@pytest.mark.parametrize("verb", VERBS)
def test_a_spread_base_changes_no_byte(runs: Path, verb: str) -> None:
    for count in ("two", "four"):
        whole, spread = runs / f"{verb} {count}", runs / f"{verb} {count} spread"
        assert largest_difference(whole, spread) == 0.0
        assert measured(whole) == measured(spread)
        assert written(whole) == written(spread)


def test_only_the_first_process_speaks(runs: Path) -> None:
    for log in runs.glob("* four spread-log"):
        assert all(
            (log / f"{stream}-{rank}").read_text() == "" for stream in ("stdout", "stderr") for rank in (1, 2, 3)
        )
        assert "the base is spread over 4 processes: each holds" in (log / "stderr-0").read_text()
