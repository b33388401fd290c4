"""Sick runs of PPO, trained for real: the flight recorder says what is wrong, and what it advises heals them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from onebase.config.remedies import with_remedy
from onebase.config.rollouts import PPOConfig
from onebase.errors import ConfigError, RewardError, Stopped
from onebase.recipes import ppo
from onebase.recipes.setup import ppo as ppo_setup
from onebase.reporting.rules import findings
from tests.recipes import test_bandit
from tests.recipes.conftest import Options, file_bytes, load, metric_rows, small_ppo

letters = test_bandit.bandit
"""A model of ten letters, about equally likely at the start."""

RUN: Options = {
    "generation.max_new_tokens": 6,
    "ppo.kl_coefficient": 0.05,
    "optimizer.learning_rate": 3e-3,
    "generation.samples_per_prompt": 8,
    "ppo.rollout_prompts": 8,
    "ppo.minibatch_prompts": 4,
    "evaluation.prompts": 8,
}
"""A run that learns in twenty rollouts, and stays well."""
LENGTH: Options = {
    "generation.max_new_tokens": 14,
    "generation.samples_per_prompt": 4,
    "optimizer.learning_rate": 1e-2,
    "max_steps": 8,
}
ONE_LETTER: Options = {
    "generation.max_new_tokens": 4,
    "ppo.kl_coefficient": 0,
    "optimizer.learning_rate": 2e-2,
    "max_steps": 10,
}
FAR_FROM_0: Options = {"ppo.lam": 1, "max_steps": 16}
TRUNCATED: Options = {
    "generation.samples_per_prompt": 4,
    "optimizer.learning_rate": 5e-3,
    "ppo.kl_coefficient": 1,
    "max_steps": 9,
    "seed": 1,
}


def late_letters(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """The mean place in the alphabet, between 0 and 1, whatever the length."""
    return [sum(map("abcdefghij".index, text)) / (9 * len(text) or 1) for text in completions]


def late_letters_and_50(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [50 + score for score in late_letters(prompts, completions)]


def length(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [len(text) / 10 for text in completions]


def brevity(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [1 - len(text) / 14 for text in completions]


def letter_c(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [text.count("c") / 6 for text in completions]


def fails(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    raise ValueError("no judgement today")


Train = Callable[..., Path]


@pytest.fixture
def train(letters: Path, tmp_path: Path) -> Train:
    def run(reward: str, *more: Options, folder: str = "run") -> Path:
        wanted = test_bandit.options(letters, tmp_path / folder, "only_g")
        wanted |= RUN | {"reward.callable": f"tests.recipes.test_sick_runs:{reward}"}
        ppo.run(load(PPOConfig, wanted, *more))
        return tmp_path / folder

    return run


def found(folder: Path) -> list[str]:
    path = folder / "findings.jsonl"
    return [json.loads(line)["rule"] for line in path.read_text().splitlines()] if path.exists() else []


def said(capsys: pytest.CaptureFixture[str], mark: str = "warning: ") -> str:
    return "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith(mark))


@pytest.mark.parametrize("seed", [0, 1])
def test_a_healthy_run_is_silent(seed: int, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(
        "late_letters",
        {"seed": seed, "evaluation.every_steps": 4, "evaluation.judge": "tests.recipes.test_sick_runs:late_letters"},
    )
    rows = metric_rows(folder)
    scores = [row["objective/scores"] for row in rows]
    # A single rollout of 64 samples may dip.
    assert scores[0] < 0.6 and sum(scores[-4:]) / 4 > 0.9, "it has not learned"
    assert not (folder / "findings.jsonl").exists() and said(capsys) == ""
    assert [row["step"] for row in rows if "eval/judge" in row] == [4, 8, 12, 16]
    assert all(row["eval/judge"] == pytest.approx(row["eval/score"]) for row in rows if "eval/judge" in row)


def test_reward_hacking_through_length(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert "length" in found(train("length", LENGTH))
    assert "the reward may be paying for length alone; set ppo.length_penalty" in said(capsys)
    assert "length" not in found(train("length", LENGTH, {"ppo.length_penalty": 0.1}, folder="healed"))


def test_collapsed_entropy(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("letter_c", ONE_LETTER)
    assert "entropy" in found(folder) and "the entropy has collapsed from 2.1" in said(capsys)
    assert metric_rows(folder)[-1]["objective/entropy"] < 0.3
    milder: Options = {"optimizer.learning_rate": 5e-3, "ppo.kl_coefficient": 0.05}
    assert "entropy" not in found(train("letter_c", ONE_LETTER, milder, folder="healed"))


def test_a_negative_kl_from_a_truncated_sampler(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:  # no configuration gets a sampler like this
        own = ppo_setup.sampling_of
        patched.setattr(ppo_setup, "sampling_of", lambda *args: replace(own(*args), top_k=2))
        ppo.run(small_ppo(base, tmp_path / "run", prompts, TRUNCATED))
    assert "negative_kl" in found(tmp_path / "run")
    assert "the KL to the reference is negative" in said(capsys)
    ppo.run(small_ppo(base, tmp_path / "healed", prompts, TRUNCATED))
    assert "negative_kl" not in found(tmp_path / "healed")


def test_a_dead_critic(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert "critic" in found(train("late_letters_and_50", FAR_FROM_0, {"ppo.critic_learning_rate": 1e-8}))
    assert "the critic predicts nothing (explained variance 0.00 over 15 rollouts)" in said(capsys)
    assert "critic" not in found(train("late_letters_and_50", FAR_FROM_0, {"ppo.score_baseline": 50}, folder="healed"))


JUDGED: Options = LENGTH | {
    "evaluation.every_steps": 2,
    "max_steps": 10,
    "evaluation.judge": "tests.recipes.test_sick_runs:brevity",
}


def test_a_score_that_rises_while_the_judge_falls(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train("length", JUDGED)
    assert "judge" in found(folder) and "the policy is gaming the reward; return to the roles in best/" in said(capsys)
    rows = [row for row in metric_rows(folder) if "eval/judge" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    best = json.loads((folder / "best" / "best.json").read_text())
    assert best["step"] == 0  # he likes it short, as it was
    assert all(row["eval/judge"] < best["eval/judge"] for row in rows)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["score_after"] > 1.5 * summary["score_before"]


def test_a_pause_goes_back_to_the_best_and_can_go_on(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    whole = train("length", JUDGED, folder="whole")
    capsys.readouterr()
    pausing: Options = {"on_finding": "pause"}
    with pytest.raises(Stopped) as stop:
        train("length", JUDGED, pausing)
    run = whole.with_name("run")
    step = metric_rows(run)[-1]["step"]
    sentence = json.loads((run / "findings.jsonl").read_text().splitlines()[0])["en"]
    judged = json.loads((run / "best" / "best.json").read_text())["eval/judge"]
    assert stop.value.exit_code == 75
    assert with_remedy(stop.value).splitlines() == [
        f"rollout {step}: {sentence}",
        f"paused after step {step}: {run / 'critic'} and {run / 'policy'} are the best so far, from step 0 "
        f"(eval/judge {judged:.4g}); run the same command to resume from checkpoint-{step}",
    ]
    assert f"warning: rollout {step}: {sentence}" in said(capsys)
    assert not (run / "summary.json").exists() and (run / f"checkpoint-{step}" / "policy").is_dir()
    for role in ("policy", "critic"):
        assert file_bytes(run / role) == file_bytes(run / "best" / role)
        assert file_bytes(run / role) != file_bytes(run / f"checkpoint-{step}" / role)
    pauses = 1
    while not (run / "summary.json").exists():
        try:
            train("length", JUDGED, pausing)
        except Stopped:
            pauses += 1
    assert pauses == len({json.loads(line)["step"] for line in (run / "findings.jsonl").read_text().splitlines()})
    assert file_bytes(run / "policy") == file_bytes(whole / "policy")
    assert (run / "findings.jsonl").read_bytes() == (whole / "findings.jsonl").read_bytes()


def test_a_run_that_was_killed_says_the_rest(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    every: Options = {"checkpoint.every_steps": 4, "checkpoint.save_total_limit": 9, "max_steps": 12}
    whole = train("length", LENGTH, every, folder="whole")
    steps = [json.loads(line)["step"] for line in (whole / "findings.jsonl").read_text().splitlines()]
    assert min(steps) <= 8 and steps == sorted(steps) and len(steps) > 1
    for done, lang, mark in ((4, "zh", "警告："), (8, "en", "warning: ")):
        run = whole.with_name(f"killed-{done}")
        run.mkdir()
        shutil.copytree(whole / f"checkpoint-{done}", run / f"checkpoint-{done}")
        for name in ("metrics.jsonl", "findings.jsonl", "config.yaml"):
            shutil.copy(whole / name, run / name)
        capsys.readouterr()
        train("length", LENGTH, every, {"lang": lang}, folder=run.name)
        assert (run / "findings.jsonl").read_bytes() == (whole / "findings.jsonl").read_bytes()
        lines = said(capsys, f"{mark}rollout")
        assert len(lines.splitlines()) == sum(step > done for step in steps)
        assert lang == "en" or "奖励可能只是偏爱长回答；请设置 ppo.length_penalty" in lines


def test_off_is_silent_and_can_be_chosen_when_a_run_goes_on(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Stopped):
        train("length", JUDGED, {"on_finding": "pause"})
    capsys.readouterr()
    folder = train("length", JUDGED, {"on_finding": "off", "lang": "zh"})
    assert said(capsys) == said(capsys, "警告：") == "" and len(findings(metric_rows(folder))) > len(found(folder)) > 0


def test_a_judge_is_named_when_it_fails(train: Train) -> None:
    with pytest.raises(RewardError, match="^evaluation.judge tests.recipes.test_sick_runs:fails failed at .*today"):
        train("length", LENGTH, {"evaluation.judge": "tests.recipes.test_sick_runs:fails"})
    with pytest.raises(ConfigError, match="^evaluation.judge: 'tests.recipes.nothing:here' cannot be imported"):
        train("length", LENGTH, {"evaluation.judge": "tests.recipes.nothing:here"})
    with pytest.raises(ConfigError, match="'evaluation.judge' = judge.py: it should be written module:function"):
        train("length", LENGTH, {"evaluation.judge": "judge.py"})


def test_a_pause_needs_something_to_go_back_to(train: Train) -> None:
    with pytest.raises(ConfigError, match="'on_finding' = pause .*'evaluation.every_steps'"):
        train("length", LENGTH, {"on_finding": "pause"})
