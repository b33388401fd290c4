"""A base spread over processes: what each holds, the gradients of one step, full-parameter runs, and resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.cli.main import main
from onebase.config.language import SFTConfig
from onebase.config.rollouts import PPOConfig
from onebase.engines.budget import TokenBudget
from onebase.errors import ConfigError, DoesNotFitError, ModelError
from tests.distributed.ranks import Task, run_all
from tests.distributed.test_verbs import TOLERANCE, largest_difference, make_unpacked, measured
from tests.recipes.conftest import (
    SENTENCES,
    SMALL_PPO,
    Options,
    answered_rows,
    common,
    load,
    make_base,
    words,
    write_rows,
)

RESUMED = {1: 1, 2: 2, 3: 4, 4: 1}
"""Number of steps a run is extended to -> in how many processes, spread where there are several."""


def pretraining(folder: Path, texts: Path) -> Options:
    """Makes a small model and trains all of it."""
    return {
        "output_dir": str(folder),
        "data.train": str(texts),
        "tiny.vocab_size": 300,
        "tiny.hidden_size": 32,
        "tiny.num_layers": 2,
        "tiny.num_heads": 2,
        "tiny.max_length": 32,
        "batch.microbatch_tokens": 64,
        "batch.minibatch": 5,
        "max_steps": 2,
        "optimizer.learning_rate": 1e-3,
    }


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything below in one go."""
    folder = tmp_path_factory.mktemp("spread")
    base, llama = make_unpacked(folder / "base", width=64), make_base(folder / "llama")
    tasks = [Task("whole 1", 1, ["check", "gradients", str(base), "whole"])]
    tasks += [Task(f"spread {n}", n, ["check", "gradients", str(base), "shard"]) for n in (2, 4)]
    tasks += [Task("tied 1", 1, ["check", "gradients", str(llama), "whole"])]
    tasks += [Task("tied 2", 2, ["check", "gradients", str(llama), "shard"])]
    texts = folder / "texts.txt"
    texts.write_text("\n\n".join(SENTENCES))
    tasks += [
        Task(f"pretrain {n}", n, ["pretrain", *words(pretraining(folder / f"pretrain {n}", texts))]) for n in (1, 2, 4)
    ]
    rows = write_rows(folder / "rows.jsonl", answered_rows(14))
    more: Options = {
        "optimizer.learning_rate": 1e-3,
        "optimizer.schedule": "constant",
        "batch.minibatch": 5,
        "lora.r": 4,
    }
    more |= {"evaluation.every_steps": 1}
    whole = words(common(base, folder / "sft whole", rows), more, {"max_steps": max(RESUMED)})
    tasks.append(Task("sft whole", 1, ["sft", *whole]))
    for steps, count in RESUMED.items():
        asked: Options = {**more, "max_steps": steps, "model.shard": count > 1}
        tasks.append(Task(f"sft to {steps}", count, ["sft", *words(common(base, folder / "sft", rows), asked)]))
    run_all(tasks, folder)
    return folder


def found(ran: Path, name: str) -> tuple[list[torch.Tensor], dict[str, Any]]:
    log = ran / f"{name}-log"
    return torch.load(log / "gradients.pt"), json.loads((log / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(("alone", "spread"), [("whole 1", "spread 2"), ("whole 1", "spread 4"), ("tied 1", "tied 2")])
def test_gradients_and_samples_are_those_of_one_process(ran: Path, alone: str, spread: str) -> None:
    (expected, one), (gradients, several) = found(ran, alone), found(ran, spread)
    assert len(gradients) == len(expected) > 10
    for gradient, of_one in zip(gradients, expected, strict=True):
        assert float((gradient - of_one).abs().max()) < 1e-6
        assert float(of_one.abs().max()) > 1e-5
    assert several["samples"] == one["samples"] and all(one["samples"])
    assert several["loss"] == pytest.approx(one["loss"], abs=1e-6)
    assert not several["packs"]


@pytest.mark.slow
def test_each_process_holds_its_part_and_the_output_layer(ran: Path) -> None:
    for count in (2, 4):
        said = found(ran, f"spread {count}")[1]
        held, output = said["held"], said["output"]
        assert len(held) == count
        for own, whole in held:
            assert own == pytest.approx((whole - output) / count + output, rel=0.02), held
    one = found(ran, "whole 1")[1]["held"]
    assert one == [[one[0][1], one[0][1]]]


@pytest.mark.slow
def test_gathered_weights_are_not_counted_as_activations(ran: Path) -> None:
    assert found(ran, "spread 2")[1]["saved"] == pytest.approx(found(ran, "whole 1")[1]["saved"], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_pretraining_in_several_processes_shares_the_work(ran: Path, count: int) -> None:
    assert largest_difference(ran / "pretrain 1", ran / f"pretrain {count}") < TOLERANCE
    one, several = measured(ran / "pretrain 1"), measured(ran / f"pretrain {count}")
    for before, now in zip(one, several, strict=True):
        assert now["loss"] == pytest.approx(before["loss"], abs=1e-4)
        assert now["grad_norm"] == pytest.approx(before["grad_norm"], rel=1e-3)


@pytest.mark.slow
def test_a_run_goes_from_one_process_to_two_to_four_and_back(ran: Path) -> None:
    for steps, count in list(RESUMED.items())[1:]:
        said = (ran / f"sft to {steps}-log" / "stderr-0").read_text()
        assert f"found checkpoint-{steps - 1}" in said
        assert ("the base is spread over" in said) == (count > 1)
    assert largest_difference(ran / "sft whole", ran / "sft") < TOLERANCE
    whole, mixed = measured(ran / "sft whole"), measured(ran / "sft")
    assert [row["loss"] for row in mixed] == pytest.approx([row["loss"] for row in whole], abs=1e-5)
    assert len(mixed) == max(RESUMED)


def test_one_process_alone_does_not_spread(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(tmp_path / "base")
    rows = write_rows(tmp_path / "rows.jsonl", answered_rows(8))
    asked: Options = {"model.shard": True, "max_steps": 1, "lora.r": 4}
    assert main(["sft", *words(common(base, tmp_path / "run", rows), asked)]) == 0
    assert (
        "model.shard: one process alone holds the whole base; start several with --processes" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("kind", "asked", "message"),
    [
        (
            PPOConfig,
            {**SMALL_PPO, "model.quantization": "nf4"},
            "'model.quantization' = nf4 keeps a whole one on every",
        ),
        (SFTConfig, {"model.quantization": "nf4"}, "leave one out"),
        (SFTConfig, {"lora.r": 0}, "'model.shard' spreads a base that is frozen, and 'lora.r' = 0 trains all of it"),
    ],
)
def test_what_cannot_be_spread_is_refused(kind: Any, asked: Options, message: str) -> None:
    options: Options = {"output_dir": "r", "model.model_name_or_path": "b", "data.train": "d", "model.shard": True}
    with pytest.raises(ConfigError) as caught:
        load(kind, options, asked)
    assert message in str(caught.value) and caught.value.exit_code == 2


def test_out_of_memory_is_not_repeated_by_one_process_of_several() -> None:
    with pytest.raises(DoesNotFitError, match="where the base is spread over several processes none can repeat"):
        for attempt in TokenBudget(64).attempts(8, can_repeat=False):
            with attempt:
                raise torch.OutOfMemoryError


def test_a_model_without_a_list_of_layers_is_refused() -> None:
    from onebase.distributed.sharding import spread
    from onebase.processes import ALONE
    from tests.tiny_models import tiny_base

    model = tiny_base("llama").model
    model.config.num_hidden_layers = 7
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of 7 layers that could be spread"):
        spread(model, ALONE, torch.device("cpu"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"use_dora": True}, "has use_dora, which reads"),
        ({"init_lora_weights": "pissa"}, "has init_lora_weights = pissa"),
    ],
)
def test_an_adapter_that_reads_the_bases_weights_is_refused(setting: dict[str, Any], message: str) -> None:
    from peft import LoraConfig

    from tests.tiny_models import tiny_base

    base = tiny_base("llama")
    base.is_spread = True
    with pytest.raises(ModelError, match=message):
        base.add_role("policy", adapter=LoraConfig(r=4, target_modules=["q_proj"], **setting))
    assert base.roles == {}
