"""A run that is made longer is the run that was that long from the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onebase.cli import modules
from onebase.cli.main import main
from onebase.config.language import SFTConfig
from onebase.config.rollouts import PPOConfig
from onebase.errors import ConfigError
from onebase.recipes import ppo, sft
from onebase.training.checkpoint import checkpoints
from tests.recipes.conftest import (
    SMALL_PPO,
    Options,
    answered_rows,
    common,
    file_bytes,
    load,
    metric_rows,
    prompt_rows,
    words,
    write_rows,
)

Capture = pytest.CaptureFixture[str]
LEARNING: Options = {
    "lora.r": 4,
    "lora.dropout": 0.1,
    "batch.minibatch": 4,
    "optimizer.learning_rate": 5e-3,
    "optimizer.warmup_steps": 2,
    "evaluation.every_steps": 2,
}


def sft_config(base: Path, folder: Path, steps: int, **more: object) -> SFTConfig:
    data = write_rows(folder.parent / "rows.jsonl", answered_rows())
    return load(SFTConfig, common(base, folder, data), LEARNING, {"max_steps": steps, **more})


def ppo_config(base: Path, folder: Path, steps: int, **more: object) -> PPOConfig:
    data = write_rows(folder.parent / "prompts.jsonl", prompt_rows())
    tuned: Options = {"ppo.kl_target": 0.5, "ppo.kl_horizon": 50, "ppo.critic_warmup_rollouts": 1}
    return load(PPOConfig, common(base, folder, data), SMALL_PPO, tuned, {"max_steps": steps, **more})


def roles(folder: Path) -> dict[str, bytes]:
    return {
        name: content
        for name, content in file_bytes(folder).items()
        if Path(name).parts[0] in ("policy", "critic", "model", "best")
    }


def clockless_rows(folder: Path) -> list[dict[str, float]]:
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in metric_rows(folder)]


def test_sft_in_two_goes_is_sft_in_one(base: Path, tmp_path: Path, capsys: Capture) -> None:
    sft.run(sft_config(base, tmp_path / "whole", 8))
    sft.run(sft_config(base, tmp_path / "run", 4))
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4"]
    first = roles(tmp_path / "run")
    capsys.readouterr()
    sft.run(sft_config(base, tmp_path / "run", 8))
    assert "run: found checkpoint-4, resuming after step 4" in capsys.readouterr().err
    assert roles(tmp_path / "run") == roles(tmp_path / "whole") != first
    assert clockless_rows(tmp_path / "run") == clockless_rows(tmp_path / "whole")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("run", "whole")]
    assert summaries[0]["eval_loss_after"] == summaries[1]["eval_loss_after"]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-8", "checkpoint-4"]


def test_ppo_in_two_goes_is_ppo_in_one(base: Path, tmp_path: Path) -> None:
    ppo.train(ppo_config(base, tmp_path / "whole", 5))
    ppo.train(ppo_config(base, tmp_path / "run", 2))
    ppo.train(ppo_config(base, tmp_path / "run", 5))
    assert roles(tmp_path / "run") == roles(tmp_path / "whole")
    assert clockless_rows(tmp_path / "run") == clockless_rows(tmp_path / "whole")
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_schedule_that_ended_is_stretched_and_said_so(
    base: Path, tmp_path: Path, capsys: Capture, schedule: str
) -> None:
    more: Options = {"optimizer.schedule": schedule}
    sft.run(sft_config(base, tmp_path / "whole", 8, **more))
    sft.run(sft_config(base, tmp_path / "run", 4, **more))
    capsys.readouterr()
    sft.run(sft_config(base, tmp_path / "run", 8, **more))
    said = (
        f"the {schedule} schedule now ends at step 8 and not 4: the first 4 steps keep the learning rates "
        "they had, the rest is recomputed"
    )
    assert said in capsys.readouterr().err.splitlines()
    rates = [[row["learning_rate"] for row in metric_rows(tmp_path / name)] for name in ("run", "whole")]
    assert rates[0][4:] == rates[1][4:] and rates[0][:4] != rates[1][:4] and rates[0][4] > 0


def test_more_epochs_make_a_finished_run_longer(base: Path, tmp_path: Path) -> None:
    few: Options = {"max_steps": None, "batch.minibatch": 8}
    sft.run(sft_config(base, tmp_path / "run", 0, **few, **{"optimizer.num_epochs": 1}))
    steps = len(metric_rows(tmp_path / "run"))
    sft.run(sft_config(base, tmp_path / "run", 0, **few, **{"optimizer.num_epochs": 2}))
    assert len(metric_rows(tmp_path / "run")) == 2 * steps


def test_no_more_steps_than_are_done_are_refused_and_nothing_is_touched(base: Path, tmp_path: Path) -> None:
    sft.run(sft_config(base, tmp_path / "run", 4))
    before = file_bytes(tmp_path / "run")
    for steps, more, message in (
        (4, {}, "holds a finished run$"),
        (3, {}, "holds a finished run$"),
        (4, {"optimizer.num_epochs": 9}, "holds a finished run of 4 steps, and no more are asked for$"),
        (8, {"seed": 1}, "holds a finished run$"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            sft.run(sft_config(base, tmp_path / "run", steps, **more))
        assert caught.value.remedy == ("no-more-steps" if "no more" in message else "finished-run")
    assert file_bytes(tmp_path / "run") == before


def test_resume_makes_a_finished_run_longer_where_more_is_asked_for(
    base: Path, tmp_path: Path, capsys: Capture
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", answered_rows())
    command = ["sft", *words(common(base, tmp_path / "run", data), LEARNING), "--resume"]
    (tmp_path / "run").mkdir()
    assert main([*command, "max_steps=2"]) == 0
    capsys.readouterr()
    assert main([*command, "max_steps=2"]) == 0
    assert "there is nothing left to do" in capsys.readouterr().err
    assert main([*command, "max_steps=3"]) == 0
    assert len(metric_rows(tmp_path / "run")) == 3


def test_a_run_of_the_whole_base_keeps_its_last_checkpoint_where_checkpoints_were_asked_for(
    base: Path, tmp_path: Path
) -> None:
    full: Options = {"lora.r": 0, "lora.dropout": 0}
    sft.run(sft_config(base, tmp_path / "small", 2, **full))
    assert not checkpoints(tmp_path / "small")
    with pytest.raises(ConfigError, match="without its last checkpoint, so it cannot be made longer"):
        sft.run(sft_config(base, tmp_path / "small", 4, **full))
    sft.run(sft_config(base, tmp_path / "kept", 2, **full, **{"checkpoint.every_steps": 9}))
    assert [path.name for path in checkpoints(tmp_path / "kept")] == ["checkpoint-2"]


def test_a_better_end_is_not_replaced_by_what_comes_behind_it(base: Path, tmp_path: Path) -> None:
    """The last evaluation of the shorter run is behind its last checkpoint."""
    sft.run(sft_config(base, tmp_path / "run", 3))
    best = tmp_path / "run" / "best"
    assert json.loads((best / "best.json").read_text())["step"] == 3
    kept = {**file_bytes(best)}
    note = json.loads((best / "best.json").read_text())
    (best / "best.json").write_text(json.dumps({**note, "eval/loss": 0.0}) + "\n")
    sft.run(sft_config(base, tmp_path / "run", 6))
    assert file_bytes(best)["policy/adapter_model.safetensors"] == kept["policy/adapter_model.safetensors"]


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["start_from=out/policy"]])
def test_the_folder_is_refused_before_torch_is_imported(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, more: list[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", answered_rows())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "policy").mkdir(parents=True)
    monkeypatch.setattr(modules, "load", lambda verb: pytest.fail("the recipe was imported"))
    assert main(["sft", *words(common(base, Path("out"), data)), *more]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert not list((tmp_path / "out" / "policy").iterdir())
