"""Other tools' configs as ours: valid by our own classes, and every key of theirs accounted for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from transformers import TrainingArguments

from onebase.cli.main import main
from onebase.config.files import dump_config, load_config
from onebase.config.verbs import VERB_CONFIGS
from onebase.convert.report import Converted, convert
from onebase.errors import ConfigError

TRL_SFT = {"model_name_or_path": "m", "dataset_name": "d.jsonl", "packing": True, "use_peft": True, "output_dir": "o"}
FACTORY = {"model_name_or_path": "m", "stage": "sft", "dataset": "a,b", "output_dir": "o", "finetuning_type": "lora"}
AXOLOTL = {
    "base_model": "m",
    "datasets": [{"path": "d.jsonl", "type": "alpaca"}],
    "adapter": "lora",
    "lora_r": 8,
    "learning_rate": 2e-4,
    "output_dir": "o",
}


def converted(
    tmp_path: Path, tool: str, given: dict[str, Any], stage: str | None = None
) -> tuple[BaseModel, Converted]:
    """The config, read back from the file that the command writes, and what was noted."""
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(given), encoding="utf-8")
    found = convert(tool, path, stage=stage)
    ours = tmp_path / "ours.yaml"
    ours.write_text(found.yaml, encoding="utf-8")
    config = load_config(VERB_CONFIGS[found.verb], ours)
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config), encoding="utf-8")
    assert load_config(VERB_CONFIGS[found.verb], again) == config
    return config, found


def noted(found: Converted, what: str) -> dict[str, str]:
    return {key: note.why for note in found.notes for key in note.keys if note.what == what}


def value(config: BaseModel, dotted: str) -> Any:
    found: Any = config
    for name in dotted.split("."):
        found = getattr(found, name)
    return found


def test_an_sft_config_of_trl(tmp_path: Path) -> None:
    given = {
        **TRL_SFT,
        "learning_rate": "1e-4",  # as YAML 1.1 reads 1e-4
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 8,
        "num_train_epochs": 2,
        "max_length": 1000,
        "lora_r": 64,
        "lora_target_modules": ["q_proj", "v_proj"],
        "load_in_4bit": True,
        "assistant_only_loss": True,
        "warmup_ratio": 0.03,
        "eval_strategy": "steps",
        "eval_steps": 50,
        "report_to": ["wandb", "mlflow"],
        "deepspeed": "ds.json",
    }
    config, found = converted(tmp_path, "trl", given)
    expected = {
        "output_dir": "o",
        "optimizer.learning_rate": 1e-4,
        "optimizer.num_epochs": 2,
        "optimizer.schedule": "linear",
        "batch.minibatch": 32,
        "data.max_prompt_tokens": 500,
        "data.max_completion_tokens": 500,
        "data.train_on": "assistant",
        "data.train": ["d.jsonl"],
        "data.eval_fraction": 0.0,
        "lora.r": 64,
        "lora.alpha": 32.0,
        "lora.dropout": 0.05,
        "lora.target_modules": ["q_proj", "v_proj"],
        "model.quantization": "nf4",
        "evaluation.every_steps": 50,
        "report_to": ["wandb"],
    }
    assert found.verb == "sft"
    assert {key: value(config, key) for key in expected} == expected
    dropped = noted(found, "dropped")
    assert "spread over those of all processes with model.shard: true" in dropped["deepspeed"]
    assert "mlflow" in dropped["report_to"]
    assert "0.03 of the run" in dropped["warmup_ratio"] and "rows are not packed" in dropped["packing"]
    assert "max_length" in noted(found, "changed")


def test_without_an_adapter_sft_trains_the_whole_model_and_dpo_an_adapter(tmp_path: Path) -> None:
    config, _ = converted(tmp_path, "trl", {**TRL_SFT, "use_peft": False})
    assert value(config, "lora.r") == 0
    config, found = converted(tmp_path, "trl", {**TRL_SFT, "use_peft": False, "bf16": True}, "dpo")
    assert value(config, "lora.r") == 16 and "adapter" in noted(found, "changed")["use_peft"]
    assert value(config, "model.dtype") == "bfloat16"


@pytest.mark.parametrize(
    ("given", "loss"),
    [
        ({}, "sigmoid"),
        ({"loss_type": "ipo"}, "ipo"),
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}, "sigmoid + 0.5 nll"),
        ({"rpo_alpha": 0.2}, "sigmoid + 0.2 nll"),
        ({"loss_type": "nca_pair"}, "sigmoid"),
    ],
)
def test_the_losses_of_trl(tmp_path: Path, given: dict[str, Any], loss: str) -> None:
    base = {"model_name_or_path": "m", "dataset_name": "d", "use_peft": True, "beta": 0.2}
    config, found = converted(tmp_path, "trl", base | given, "dpo")
    assert value(config, "loss") == loss and value(config, "preference.beta") == 0.2
    assert ("loss_type" in noted(found, "changed")) == (given.get("loss_type") == "nca_pair")


def test_grpo_of_trl_in_prompts_and_not_completions(tmp_path: Path) -> None:
    given = {
        "model_name_or_path": "m",
        "dataset_name": "d",
        "use_peft": True,
        "num_generations": 8,
        "per_device_train_batch_size": 16,
        "gradient_accumulation_steps": 4,
        "steps_per_generation": 8,
        "num_iterations": 2,
        "max_steps": 100,
        "epsilon": 0.1,
        "epsilon_high": 0.3,
        "beta": 0.01,
        "scale_rewards": False,
        "loss_type": "dr_grpo",
        "importance_sampling_level": "sequence",
        "reward_funcs": ["accuracy_reward", "pkg.mod.fun"],
        "reward_weights": [1.0, 0.5],
        "max_completion_length": 128,
    }
    config, found = converted(tmp_path, "trl", given)
    expected = {
        "advantage": "group",
        "generation.samples_per_prompt": 8,
        "generation.max_new_tokens": 128,
        "rft.minibatch_prompts": 8,
        "rft.rollout_prompts": 16,
        "rft.num_epochs": 2,
        "max_steps": 25,  # a rollout has 2 x 2 optimizer steps
        "rft.clip_low": 0.1,
        "rft.clip_high": 0.3,
        "rft.kl_coefficient": 0.01,
        "rft.deviation": "none",
        "rft.normalizer": "constant",
        "rft.policy_loss": "gspo",
        "reward.gold": "solution",
        "optimizer.learning_rate": 1e-6,
    }
    assert {key: value(config, key) for key in expected} == expected
    assert [(v.name, v.weight) for v in value(config, "reward.verifiers")] == [("maths", 1.0), ("pkg.mod:fun", 0.5)]
    assert "noise to the probability ratios" in noted(found, "dropped")["lora.dropout"]


def test_rloo_and_kto_and_reward_of_trl(tmp_path: Path) -> None:
    base = {"model_name_or_path": "m", "dataset_name": "d", "use_peft": True}
    config, found = converted(tmp_path, "trl", {**base, "reward_funcs": ["a.b"], "normalize_advantages": True}, None)
    assert (found.verb, value(config, "advantage"), value(config, "rft.policy_loss")) == (
        "rft",
        "rloo",
        "sequence_clip",
    )
    assert (value(config, "rft.kl_coefficient"), value(config, "rft.kl_placement")) == (0.05, "reward")
    config, _ = converted(tmp_path, "trl", {**base, "desirable_weight": 2.0}, None)
    assert (value(config, "loss"), value(config, "preference.desirable_weight")) == ("kto", 2.0)
    config, found = converted(tmp_path, "trl", {**base, "center_rewards_coefficient": 0.01}, None)
    assert (found.verb, value(config, "ranking.centering_coefficient")) == ("reward", 0.01)


def test_a_trl_file_that_could_be_for_several_trainers_needs_the_stage(tmp_path: Path) -> None:
    base = {"model_name_or_path": "m", "dataset_name": "d"}
    with pytest.raises(ConfigError, match=r"theirs.yaml: .* does not say which trainer it is for; say so with --stage"):
        converted(tmp_path, "trl", base)
    with pytest.raises(ConfigError, match=r"could be for kto or sft"):
        converted(tmp_path, "trl", {**base, "packing": True, "desirable_weight": 1.0})


def test_llamafactory_reads_its_table_of_data_sets(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = {"a": {"file_name": "a.json"}, "b": {"hf_hub_url": "org/b"}}
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(table))
    given = {**FACTORY, "mix_strategy": "interleave_over", "interleave_probs": "0.3,0.7", "max_samples": 100}
    config, found = converted(tmp_path, "llamafactory", given)
    sources = [(source.path, source.weight, source.limit) for source in value(config, "data.train")]
    assert sources == [("data/a.json", 0.3, 100), ("org/b", 0.7, 100)]
    assert "on a hub" in noted(found, "changed")["dataset"]
    assert (value(config, "data.train_on"), value(config, "lora.r"), value(config, "lora.alpha")) == (
        "assistant",
        8,
        16.0,
    )


@pytest.mark.parametrize(
    ("more", "verb", "expected"),
    [
        ({"stage": "pt", "cutoff_len": 512}, "pretrain", {"block_length": 512}),
        ({"stage": "sft", "mask_history": True}, "sft", {"data.train_on": "completion"}),
        ({"stage": "rm"}, "reward", {"optimizer.learning_rate": 5e-5}),
        ({"stage": "dpo", "pref_loss": "orpo", "pref_beta": 0.2}, "dpo", {"loss": "nll + 0.2 orpo"}),
        (
            {"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.7},
            "dpo",
            {"loss": "simpo", "preference.gamma": 0.7, "preference.beta": 0.1},
        ),
        ({"stage": "dpo", "pref_ftx": 0.5}, "dpo", {"loss": "sigmoid + 0.5 nll"}),
        ({"stage": "kto", "kto_rejected_weight": 0.5}, "dpo", {"loss": "kto", "preference.undesirable_weight": 0.5}),
        (
            {"stage": "ppo", "reward_model": "rm", "ppo_epochs": 2, "top_p": 0.9, "gradient_accumulation_steps": 2},
            "ppo",
            {
                "reward.role": "rm",
                "ppo.num_ppo_epochs": 2,
                "ppo.kl_target": 6.0,
                "ppo.rollout_prompts": 16,
                "generation.samples_per_prompt": 1,
                "generation.top_p": 1.0,
            },
        ),
    ],
)
def test_the_stages_of_llamafactory(tmp_path: Path, more: dict[str, Any], verb: str, expected: dict[str, Any]) -> None:
    config, found = converted(tmp_path, "llamafactory", FACTORY | more)
    assert found.verb == verb
    assert {key: value(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("more", "verb", "expected"),
    [
        ({"adapter": "qlora"}, "sft", {"model.quantization": "nf4", "data.train_on": "completion"}),
        ({"datasets": [{"path": "d", "type": "chat_template"}]}, "sft", {"data.train_on": "assistant"}),
        ({"train_on_inputs": True, "micro_batch_size": 2}, "sft", {"data.train_on": "all", "batch.minibatch": 2}),
        (
            {"rl": "dpo", "rl_beta": 0.3, "val_set_size": 0.05},
            "dpo",
            {"preference.beta": 0.3, "data.eval_fraction": 0.05},
        ),
        ({"rl": "orpo", "orpo_alpha": 0.2}, "dpo", {"loss": "nll + 0.2 orpo"}),
        ({"rl": "kto", "kto_desirable_weight": 0.2}, "dpo", {"loss": "kto", "preference.desirable_weight": 0.2}),
        ({"reward_model": True, "adapter": None}, "reward", {"lora.r": 0}),
        (
            {"pretraining_dataset": [{"path": "t.txt"}], "adapter": None, "sequence_len": 256},
            "pretrain",
            {"data.train": ["t.txt"], "block_length": 256},
        ),
        (
            {"rl": "grpo", "trl": {"beta": 0.1, "num_generations": 4, "reward_funcs": ["r.f"]}, "micro_batch_size": 8},
            "rft",
            {"rft.kl_coefficient": 0.1, "rft.minibatch_prompts": 2},
        ),
    ],
)
def test_what_axolotl_trains(tmp_path: Path, more: dict[str, Any], verb: str, expected: dict[str, Any]) -> None:
    config, found = converted(tmp_path, "axolotl", AXOLOTL | more)
    assert found.verb == verb
    assert {key: value(config, key) for key in expected} == expected


FIELDS = [field for field in dataclasses.fields(TrainingArguments) if field.init]
GIVEN = {"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "num_train_epochs": 7.0, "save_strategy": "epoch"}
OF_TYPE = {"bool": True, "int": 3, "float": 0.25}


@pytest.mark.parametrize(("tool", "base"), [("trl", TRL_SFT), ("llamafactory", FACTORY)])
def test_no_key_of_transformers_is_lost(tmp_path: Path, tool: str, base: dict[str, Any]) -> None:
    """Each key changes our config, or is named among the notes."""
    plain, _ = converted(tmp_path, tool, base)
    lost = []
    for field in FIELDS:
        kind = next((name for name in OF_TYPE if str(field.type).startswith((name, f"<class '{name}'"))), "")
        given = GIVEN.get(field.name, OF_TYPE.get(kind, "steps"))
        try:
            config, found = converted(tmp_path, tool, {**base, field.name: given})
        except ConfigError as error:
            assert field.name in str(error), f"{field.name}: {error}"
            continue
        if config == plain and not any(field.name in key for note in found.notes for key in note.keys):
            lost.append(field.name)
    assert not lost


ODD: list[Any] = [3, -1, 1e30, True, "x", "a,b", [], [1], [None], {}, {"a": 1}, [{"a": 1}]]
KEYS = {
    "trl": ["learning_rate", "lr_scheduler_type", "max_steps", "report_to", "datasets", "loss_type", "loss_weights"]
    + ["reward_funcs", "reward_weights", "num_generations", "max_length", "lora_target_modules", "save_steps", "dtype"],
    "llamafactory": ["stage", "dataset", "dataset_dir", "interleave_probs", "max_samples", "lora_target", "cutoff_len"]
    + ["pref_loss", "warmup_ratio", "quantization_bit", "template", "val_size", "eval_dataset", "adapter_name_or_path"],
    "axolotl": [
        "datasets",
        "test_datasets",
        "rl",
        "trl",
        "adapter",
        "lora_target_modules",
        "sequence_len",
        "val_set_size",
    ]
    + ["micro_batch_size", "chat_template", "lr_scheduler", "num_epochs", "bf16", "pretraining_dataset"],
}


@pytest.mark.parametrize(("tool", "base"), [("trl", TRL_SFT), ("llamafactory", FACTORY), ("axolotl", AXOLOTL)])
@pytest.mark.parametrize("stage", ["sft", "other"])
def test_an_odd_value_gives_a_valid_config_or_one_error(
    tmp_path: Path, tool: str, base: dict[str, Any], stage: str
) -> None:
    more: dict[str, Any] = (
        {} if stage == "sft" else {"trl": {}, "llamafactory": {"stage": "ppo"}, "axolotl": {"rl": "grpo"}}[tool]
    )
    for key in KEYS[tool]:
        for odd in ODD:
            try:
                converted(
                    tmp_path, tool, {**base, **more, key: odd}, "grpo" if tool == "trl" and stage == "other" else None
                )
            except ConfigError as error:
                assert str(error).startswith("theirs.yaml: "), f"{key}: {odd}"


@pytest.mark.parametrize(("tool", "base"), [("trl", TRL_SFT), ("llamafactory", FACTORY), ("axolotl", AXOLOTL)])
def test_a_key_nobody_knows_is_named(tmp_path: Path, tool: str, base: dict[str, Any]) -> None:
    _, found = converted(tmp_path, tool, {**base, "frobnicate": 3, "also_off": False})
    assert "frobnicate" in noted(found, "unknown") and "also_off" in noted(found, "dropped")


@pytest.mark.parametrize(
    ("tool", "given", "message"),
    [
        ("trl", {"dataset_name": "d", "packing": True}, r"'model_name_or_path' is missing"),
        ("trl", {"model_name_or_path": "m", "packing": True}, r"'dataset_name' is missing"),
        ("trl", {**TRL_SFT, "learning_rate": "fast"}, r"'learning_rate' is 'fast', and should be a number"),
        ("trl", {**TRL_SFT, "datasets": ["x"]}, r"'datasets\[0\]' is 'x', and should be a mapping"),
        ("llamafactory", {**FACTORY, "stage": "mcts"}, r"'stage' is mcts; the stages are pt, sft"),
        ("llamafactory", {**FACTORY, "dataset": None}, r"'dataset' is missing"),
        ("axolotl", {**AXOLOTL, "rl": "ebft"}, r"'rl' is ebft; onebase reads dpo"),
        ("axolotl", {**AXOLOTL, "process_reward_model": True}, r"'process_reward_model' is true"),
        ("axolotl", {**AXOLOTL, "datasets": [{"type": "alpaca"}]}, r"'datasets\[0\]' has no path"),
        ("axolotl", {**AXOLOTL, "base_model": None}, r"'base_model' is missing"),
    ],
)
def test_what_only_a_person_can_add_is_an_error(tmp_path: Path, tool: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^theirs.yaml: .*" + message):
        converted(tmp_path, tool, given)


def test_the_command_writes_the_file_and_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs, ours = tmp_path / "theirs.yaml", tmp_path / "ours.yaml"
    theirs.write_text("base_model: m\ndatasets: [{path: d, type: alpaca}]\nlearning_rate: 1e-3\nbf16: no\nfsdp:\n")
    assert main(["config", "convert", str(theirs), "--from", "axolotl", "--output", str(ours)]) == 0
    said = capsys.readouterr()
    assert said.out == "" and f"run it with: onebase sft {ours} --dry-run" in said.err
    assert "dropped fsdp: off or empty in the file" in said.err
    assert load_config(VERB_CONFIGS["sft"], ours).model_dump()["optimizer"]["learning_rate"] == 1e-3
    assert ours.read_text().startswith("# onebase sft: converted from a config of axolotl\n")
    assert main(["config", "convert", str(theirs), "--from", "axolotl", "--output", str(ours)]) == 2
    assert "exists; choose another --output" in capsys.readouterr().err
    assert main(["config", "convert", str(tmp_path / "none.yaml"), "--from", "trl"]) == 2
    assert "no config file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "theirs.yaml: 'a' is given twice"),
        ("- a\n", "theirs.yaml: should hold 'key: value' lines"),
        ("a: [\n", "theirs.yaml: line 2"),
    ],
)
def test_a_file_that_is_no_config_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="theirs.yaml:") as error:
        convert("trl", path)
    assert str(error.value).startswith(message)
