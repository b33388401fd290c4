"""Model cards: what is known from a run's record is in them, and what is not is said to be unknown."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load

from onebase.exporting.card import write_card
from onebase.exporting.source import find_source
from tests.tools.conftest import base, one_thread, reward_role, sft_role  # noqa: F401


def written(source_folder: Path, out: Path, *, form: str = "policy", model: Path | None = None) -> str:
    out.mkdir()
    source = find_source(str(source_folder), model=str(model) if model else None)
    write_card(out, source, form=form, dtype="float32", notes=["log-probs differ by 1e-7", ""])
    ModelCard.load(out / "README.md")  # reads the front matter
    return (out / "README.md").read_text()


def copied_run(role: Path, tmp_path: Path) -> Path:
    """A copy of the role's run, to change."""
    shutil.copytree(role.parent, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    return tmp_path / "run" / role.name


def test_a_card_has_base_data_method_results_and_checks_from_the_runs_record(
    sft_role: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = written(sft_role, tmp_path / "out")
    data = metadata_load(tmp_path / "out" / "README.md")
    assert data == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["onebase", "sft", "lora"],
    }
    card = json.loads((sft_role / "role.json").read_text())
    summary = json.loads((sft_role.parent / "summary.json").read_text())
    rows = sft_role.parent.parent / "sft.jsonl"
    for part in (
        "# run-policy\n\nA policy trained on answers (supervised fine-tuning) with onebase",
        f"fingerprint of its weights: `{card['base_fingerprint']}`",
        f"| `sft.jsonl` | train | `{hashlib.sha256(rows.read_bytes()).hexdigest()}` |",
        "- `lora.r`: 4\n",
        "- `optimizer.learning_rate`: 0.005",
        f"| held-out loss after (nats per token) | {summary['eval_loss_after']:.4g} |",
        "- log-probs differ by 1e-7\n",
        "Unknown: the base came with no licence that could be read here.",
    ):
        assert part in text, part
    assert str(sft_role.parent.parent) not in text  # where things were on this machine is nobody's business


def test_the_results_of_a_reward_role_have_their_intervals(
    reward_role: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    text = written(reward_role, tmp_path / "out", form="reward")
    summary = json.loads((reward_role.parent / "summary.json").read_text())
    low, high = summary["eval_accuracy_interval"]
    assert f"| held-out accuracy | {summary['eval_accuracy']:.3f} [{low:.3f}, {high:.3f}] (95 % interval) |" in text
    assert metadata_load(tmp_path / "out" / "README.md")["pipeline_tag"] == "text-classification"
    assert "AutoModelForSequenceClassification" in text


def test_what_is_not_recorded_is_said_to_be_unknown(sft_role: Path, tmp_path: Path) -> None:  # noqa: F811
    shutil.copytree(sft_role, tmp_path / "alone" / "policy")
    text = written(tmp_path / "alone" / "policy", tmp_path / "out")
    assert "Unknown: the record of the run that trained this is not beside it." in text
    assert "Unknown: no finished run is beside this role." in text
    assert "sft" not in metadata_load(tmp_path / "out" / "README.md")["tags"]


def test_results_of_a_run_are_not_those_of_its_checkpoints(sft_role: Path, tmp_path: Path) -> None:  # noqa: F811
    role = copied_run(sft_role, tmp_path)
    shutil.copytree(role, role.parent / "checkpoint-2" / "policy")
    text = written(role.parent / "checkpoint-2" / "policy", tmp_path / "out")
    assert "Unknown: this role is from a checkpoint, and the run's results are those of its end." in text
    assert "`optimizer.learning_rate`: 0.005" in text


def test_names_on_the_hub_are_in_the_front_matter_and_lost_files_are_said_to_be_lost(
    sft_role: Path,  # noqa: F811
    base: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    role = copied_run(sft_role, tmp_path)
    card = json.loads((role / "role.json").read_text())
    (role / "role.json").write_text(json.dumps(card | {"base": "Qwen/Qwen3-0.6B"}))
    config = yaml.safe_load((role.parent / "config.yaml").read_text())
    config["data"]["train"] = ["openai/gsm8k:main:train", str(tmp_path / "gone|`.jsonl")]
    (role.parent / "config.yaml").write_text(yaml.safe_dump(config))
    text = written(role, tmp_path / "out", form="adapter", model=base)
    data = metadata_load(tmp_path / "out" / "README.md")
    assert data["datasets"] == ["openai/gsm8k"] and data["library_name"] == "peft"
    assert "| `gone\\|'.jsonl` | train | not there any more when this was written |" in text


def test_a_licence_is_the_one_the_base_came_with_and_its_file_goes_along(
    sft_role: Path,  # noqa: F811
    base: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    shutil.copytree(base, tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    (tmp_path / "base" / "LICENSE").write_text("the terms")
    text = written(sft_role, tmp_path / "out", model=tmp_path / "base")
    assert metadata_load(tmp_path / "out" / "README.md")["license"] == "apache-2.0"
    assert "The base's card names `apache-2.0`. Its terms are beside this file: `LICENSE`." in text
    assert (tmp_path / "out" / "LICENSE").read_text() == "the terms"
    (tmp_path / "base" / "README.md").write_text("---\nlicense: [\n---\n")
    assert "The base's card names none. Its terms are" in written(
        sft_role, tmp_path / "second", model=tmp_path / "base"
    )


@pytest.mark.parametrize("text", ["[]", "{", "7"])
def test_an_adapters_configuration_that_cannot_be_read_is_refused(
    text: str,
    sft_role: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    role = copied_run(sft_role, tmp_path)
    (role / "adapter_config.json").write_text(text)
    with pytest.raises(Exception, match="adapter_config.json: (cannot be read|not an adapter's configuration)"):
        written(role, tmp_path / "out")
