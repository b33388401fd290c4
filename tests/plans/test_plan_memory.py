"""`onebase plan VERB`: what it prints, what it refuses, and that its changes make the run fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.main import main
from onebase.cli.planning import plan
from onebase.config.files import load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.errors import DoesNotFitError, ModelError
from onebase.planning.memory import peak_memory
from onebase.plans.plan_memory import plan_memory, refuse_if_too_large
from onebase.plans.planned_run import planned_run

SEVEN = "model.model_name_or_path=meta-llama/Llama-2-7b-hf"
ABSENT = "data.train=no/such/rows.jsonl"


def planned(verb: str, *words: str, hardware: str | None = "A100") -> tuple[Any, Any]:
    last = {word.partition("=")[0]: word for word in ("output_dir=out", SEVEN, ABSENT, *words)}
    config = load_config(VERB_CONFIGS[verb], None, list(last.values()))
    return config, planned_run(config, machine=hardware)


OF_VERB = {
    "ppo": ("reward.callable=a:b",),
    "rft": ("reward.callable=a:b",),
    "best-of": ("reward.callable=a:b",),
    "iterate": ("reward.callable=a:b",),
}


@pytest.mark.parametrize("verb", VERB_CONFIGS)
def test_every_verb_is_planned_without_weights_tokenizer_or_data(verb: str) -> None:
    config, run = planned(verb, *OF_VERB.get(verb, ()))
    assert run.verb == verb and not run.lengths.measured
    report = plan_memory(config, run, hardware="H200").report()
    assert sum(part["size"] for part in report["parts"]) == pytest.approx(report["peak_bytes"])
    assert report["peak_bytes"] > 2 * 6_738_415_616
    assert report["phases"][report["phase"]] == report["peak_bytes"]


@pytest.mark.parametrize(
    ("verb", "memory", "words"),
    [("ppo", 24e9, ("reward.callable=a:b",)), ("sft", 20e9, ("lora.layers=all",)), ("sft", 60e9, ("lora.r=0",)),
     ("pretrain", 100e9, ()), ("dpo", 19e9, ("batch.microbatch_tokens=8192", "data.max_completion_tokens=256"))],
)  # fmt: skip
def test_the_changes_make_a_run_fit_when_they_are_made(verb: str, memory: float, words: tuple[str, ...]) -> None:
    config, run = planned(verb, *words)
    found = plan_memory(config, run, memory=memory, hardware="A100")
    assert not found.fits and 1 <= len(found.changes) <= 3
    for change in found.changes:
        _, changed = planned(verb, *words, *change.words)
        assert peak_memory(changed, memory).size <= memory
        assert change.time > 0


def test_checkpointing_is_said_to_take_longer() -> None:
    config, run = planned("ppo", "reward.callable=a:b")
    changes = plan_memory(config, run, memory=24e9, hardware="A100").changes
    again = next(change for change in changes if change.words == ("model.gradient_checkpointing=true",))
    assert 1.1 < again.time < 1.4


def test_a_run_that_does_not_fit_ends_with_what_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    config, run = planned("ppo", "reward.callable=a:b")
    with pytest.raises(DoesNotFitError, match=r"ppo needs .* GB at its peak \(update\), and there are 24\.00 GB"):
        refuse_if_too_large(plan_memory(config, run, memory=24e9, hardware="A100"))
    assert "model.gradient_checkpointing=true" in capsys.readouterr().out


def test_where_no_change_helps_a_smaller_base_is_asked_for() -> None:
    config, run = planned("sft")
    with pytest.raises(DoesNotFitError, match="no change known here makes it fit, nor do three together"):
        refuse_if_too_large(plan_memory(config, run, memory=1e9, hardware="A100"))


def test_the_table_survives_a_pipe(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        f"output_dir: {tmp_path}/out\nmodel: {{model_name_or_path: qwen3-0.6b}}\ndata: {{train: no.jsonl}}\n"
    )
    plan(["sft", str(file), "--hardware", "A100"], exit_on_error=False, result_action="return_value")
    told = capsys.readouterr().out
    assert "base (bfloat16)" in told and "of 80.00 GB on one A100" in told and told.isascii()
    plan(["sft", str(file), "--hardware", "A100", "--json"], exit_on_error=False, result_action="return_value")
    report = json.loads(capsys.readouterr().out)
    assert report["memory"]["fits"] and report["memory"]["room_bytes"] == 80e9


def test_a_module_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="no linear layer is named 'qproj'; here: down_proj, gate_proj"):
        planned("sft", "lora.target_modules=qproj")


def test_the_exit_code_says_whether_a_run_fits(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["plan", "sft", f"output_dir={tmp_path}", SEVEN, ABSENT, "--hardware", "A100"]
    assert main([*words, "--memory", "80GB", "batch.microbatch_tokens=2048"]) == 0
    assert main([*words, "--memory", "8GiB"]) == 4
    said = capsys.readouterr()
    assert "there are 8.59 GB as given" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize("size", ["24", "0GB", "lots"])
def test_a_size_that_is_none_is_refused(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "sft", "output_dir=out", SEVEN, ABSENT, "--memory", size]) == 2
    assert "is not a size, such as 24GB, 80GiB or 512MB" in capsys.readouterr().err
