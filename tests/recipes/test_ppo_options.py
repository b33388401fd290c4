"""PPO: what each option changes, held to a small computation of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from onebase.engines.passes import lay_out
from onebase.errors import DataError
from onebase.recipes import ppo
from onebase.rollouts.collect import Rollout
from onebase.training.averages import Averages
from tests.recipes.conftest import (
    SENTENCES,
    Options,
    leftovers,
    metric_rows,
    prompt_rows,
    small_ppo,
    write_rows,
)
from tests.recipes.ppo_parts import Trained, measured, rescored, scores_of

OPTIONS: dict[str, Options] = {
    "critic head": {"ppo.critic": "head"},
    "k2 in the reward": {"ppo.kl_estimator": "k2"},
    "k3 in the reward": {"ppo.kl_estimator": "k3"},
    "k2 in the loss": {"ppo.kl_estimator": "k2", "ppo.kl_placement": "loss"},
    "k3 in the loss": {"ppo.kl_estimator": "k3", "ppo.kl_placement": "loss"},
    "adaptive kl": {"ppo.kl_target": 0.1, "ppo.kl_horizon": 50},
    "score clip": {"ppo.score_clip": 0.2},
    "score baseline": {"ppo.score_baseline": 1.0},
    "running scaling": {"ppo.score_scaling": "running"},
    "penalties": {"ppo.missing_end_penalty": 1.0, "ppo.length_penalty": 0.05},
    "entropy bonus": {"ppo.entropy_coefficient": 0.01},
    "entropy bonus with a critic head": {"ppo.entropy_coefficient": 0.01, "ppo.critic": "head"},
    "whitened rewards": {"ppo.whiten_rewards": True},
    "raw advantages": {"ppo.whiten_advantages": False},
    "narrow value clip": {"ppo.value_clip": 1e-3},
    "narrow clip below": {"ppo.clip_low": 1e-3},
    "narrow clip above": {"ppo.clip_high": 1e-3},
    "discount": {"ppo.gamma": 0.9, "ppo.lam": 0.5},
    "no kl": {"ppo.kl_coefficient": 0},
    "random length": {"generation.random_min_new_tokens": 1},
    "cold sampling": {"generation.temperature": 0.5},
    "stop strings": {"generation.stop": list("abcdefghijklmnopqrstuvwxyz")},
    "upper half": {"lora.layers": "upper-half"},
    "more epochs": {"ppo.num_ppo_epochs": 3},
    "learning rate of the critic": {"ppo.critic_learning_rate": 1e-2},
    "weight decay": {"optimizer.weight_decay": 0.5},
    "schedule": {"optimizer.schedule": "cosine"},
    "warm-up": {"optimizer.warmup_steps": 3},
}
"""Each one changes what is learnt."""
SAME: dict[str, Options] = {
    "separate layout": {"model.layout": "separate"},
    "measured microbatches": {"batch.microbatch_tokens": "auto"},
    "evaluation on the way": {"evaluation.every_steps": 1, "evaluation.samples_per_prompt": 2},
}
"""None of these changes what is learnt."""


def rows_of_a_run(more: Options, base: Path, prompts: Path, folder: Path) -> list[dict[str, float]]:
    summary = ppo.run(small_ppo(base, folder, prompts, more))
    rows = metric_rows(folder)
    assert summary["rollouts"] == len(rows) == 2 and not leftovers(folder)
    assert all(math.isfinite(row[key]) for row in rows for key in ("loss", "grad_norm", "objective/kl"))
    assert all("train/refused_steps" not in row for row in rows)
    assert {"policy", "critic", "samples.jsonl", "summary.json"} <= {p.name for p in folder.iterdir()}
    return rows


@pytest.fixture(scope="module")
def plain_rows(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The run without any option."""
    folder = tmp_path_factory.mktemp("plain")
    return rows_of_a_run({}, base, write_rows(folder / "p.jsonl", prompt_rows()), folder / "run")


def distance(rows: list[dict[str, float]], others: list[dict[str, float]]) -> float:
    """Between what two runs report of their second rollout, after one has been learnt from."""
    names = ("objective/kl", "loss/policy", "loss/value", "policy/approxkl", "objective/kl_coef")
    return max(abs(rows[1][name] - others[1][name]) for name in names)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_changes_what_is_learnt(
    name: str, plain_rows: list[dict[str, float]], base: Path, prompts: Path, tmp_path: Path
) -> None:
    rows = rows_of_a_run(OPTIONS[name], base, prompts, tmp_path / "run")
    assert distance(rows, plain_rows) > 1e-5


@pytest.mark.parametrize("name", SAME)
def test_what_should_change_nothing_changes_nothing(
    name: str, plain_rows: list[dict[str, float]], base: Path, prompts: Path, tmp_path: Path
) -> None:
    rows = rows_of_a_run(SAME[name], base, prompts, tmp_path / "run")
    assert distance(rows, plain_rows) < 1e-4


def test_one_sample_of_one_token_trains(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"generation.samples_per_prompt": 1, "generation.max_new_tokens": 1}
    rows = rows_of_a_run(more, base, prompts, tmp_path / "run")
    assert all(row["completions/num_tokens"] == 4 for row in rows)


# -------------------------------------------------------------------------------------------------------- the scores


def trainer_of(base: Path, prompts: Path, folder: Path, more: Options) -> Trained:
    return Trained(small_ppo(base, folder, prompts, more))


def test_scores_are_clipped_once_after_they_are_scaled(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"ppo.score_scaling": "running", "ppo.score_clip": 1.5, "ppo.score_baseline": 1.0}
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    rollout = trainer.rollout()
    rollout = rescored(rollout, torch.tensor([1.0, 3.0, 11.0, -9.0, 1.0, 1.0, 5.0, 1.0]))
    less = [0.0, 2.0, 10.0, -10.0, 0.0, 0.0, 4.0, 0.0]
    mean = sum(less) / 8
    deviation = math.sqrt(sum((score - mean) ** 2 for score in less) / 8)
    expected = [max(-1.5, min(1.5, score / deviation)) for score in less]
    assert trainer.shape_scores(rollout).tolist() == pytest.approx(expected, abs=1e-6)


def test_whitened_rewards_keep_their_mean(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {
        "ppo.whiten_rewards": True,
        "ppo.whiten_advantages": False,
        "ppo.kl_coefficient": 0,
        "ppo.gamma": 1,
        "ppo.lam": 1,
    }
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    rollout = trainer.rollout()
    rollout = rescored(rollout, scores_of(rollout) + 3)
    rewards = [
        [0.0] * (len(sample.ids) - 1) + [float(score)]
        for sample, score in zip(rollout.samples, scores_of(rollout), strict=True)
    ]
    every = [reward for row in rewards for reward in row]
    mean = sum(every) / len(every)
    deviation = math.sqrt(sum((reward - mean) ** 2 for reward in every) / len(every))
    scaled = [[(reward - mean) / deviation + mean for reward in row] for row in rewards]
    expected = [sum(row[t:]) for row in scaled for t in range(len(row))]
    targets = trainer.estimate(rollout)
    assert torch.cat(targets.returns).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("critic_start", ["reward", "policy"])
@pytest.mark.parametrize("normalize", ["none", "held_out"])
def test_a_reward_role_scores_and_starts_the_critic(
    critic_start: str, normalize: str, base: Path, sft_role: Path, reward_role: Path, prompts: Path, tmp_path: Path
) -> None:
    more: Options = {
        "start_from": str(sft_role),
        "reward.role": str(reward_role),
        "reward.callable": None,
        "ppo.critic_start": critic_start,
        "reward.normalize": normalize,
    }
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    loaded, rollout = trainer.base, trainer.rollout()
    reward = loaded.scalar_role("reward")
    assert reward.moments.measured and abs(reward.moments.std - 1) > 0.1
    mean, std = (reward.moments.mean, reward.moments.std) if normalize == "held_out" else (0.0, 1.0)
    rows = [(list(e.prompt_ids), list(ids)) for e in rollout.examples for ids in e.completions]
    scores, values = [], []
    for prompt, completion in rows:
        states = hidden_states(trainer, "reward", prompt + completion)
        scores.append((float(states[-1] @ reward.head.weight[0]) - mean) / std)
        values += (states[len(prompt) - 1 : -1] @ reward.head.weight[0] / std).tolist()
    assert scores_of(rollout).tolist() == pytest.approx(scores, abs=1e-4)
    if critic_start == "policy":  # without a head of its own the role begins with values of zero
        values = [0.0] * len(values)
    found = measured(rollout).values
    assert found is not None
    assert torch.cat(found).tolist() == pytest.approx(values, abs=1e-4)
    assert ppo.run(small_ppo(base, tmp_path / "whole", prompts, more))["rollouts"] == 2


def hidden_states(trainer: Trained, role: str, ids: list[int]) -> Tensor:
    with torch.no_grad(), trainer.base.role(role):
        return trainer.base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]


# ------------------------------------------------------------------------------------------------- the texts of PTX


@pytest.fixture
def texts(tmp_path: Path) -> Options:
    (tmp_path / "texts.txt").write_text("\n\n".join(SENTENCES))
    return {"ppo.ptx_data": [str(tmp_path / "texts.txt")]}


@pytest.mark.parametrize("coefficient", [0.5, 2.0])
def test_ptx_adds_its_coefficient_times_the_loss_on_texts(
    coefficient: float, texts: Options, base: Path, prompts: Path, tmp_path: Path
) -> None:
    with_texts = trainer_of(base, prompts, tmp_path / "run", {**texts, "ppo.ptx_coefficient": coefficient})
    without = trainer_of(base, prompts, tmp_path / "other", {})
    examples, _ = ppo.ptx_part(with_texts.setup, with_texts.state)
    nll = torch.cat([negative_logprobs(with_texts, list(e.prompt_ids), list(e.completions[0])) for e in examples])
    found = []
    for trainer in (with_texts, without):
        rollout = trainer.rollout()
        targets = trainer.estimate(rollout)
        found.append(trainer.minibatch(rollout, targets, [0, 1]))
    assert found[0]["loss/ptx"] == pytest.approx(float(nll.mean()), abs=1e-4)
    assert found[0]["loss"] - found[1]["loss"] == pytest.approx(coefficient * float(nll.mean()), abs=1e-4)


def negative_logprobs(trainer: Trained, prompt: list[int], completion: list[int]) -> Tensor:
    with torch.no_grad(), trainer.base.role("policy"):
        table = trainer.base.model(torch.tensor([prompt + completion])).logits[0].log_softmax(-1)
    return torch.stack([-table[len(prompt) - 1 + t, token] for t, token in enumerate(completion)])


def test_ptx_reads_all_texts_before_it_reads_one_again(
    texts: Options, base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: Options = {**texts, "ppo.ptx_coefficient": 0.5, "ppo.minibatch_prompts": 4, "ppo.num_ppo_epochs": 1}
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    read: list[list[int]] = []
    part = ppo.ptx_part

    def watched(*args: Any) -> Any:
        examples, loss = part(*args)
        read.extend(list(example.completions[0]) for example in examples)
        return examples, loss

    monkeypatch.setattr(ppo, "ptx_part", watched)
    for index in range(len(trainer.ptx) // 4):
        trainer.train_rollout(index)
    assert len(trainer.ptx) == 36 and sorted(read) == sorted(list(e.completions[0]) for e in trainer.ptx)


def test_ptx_of_a_microbatch_is_divided_by_the_tokens_of_all(
    texts: Options, base: Path, prompts: Path, tmp_path: Path
) -> None:
    trainer = trainer_of(base, prompts, tmp_path / "run", {**texts, "ppo.ptx_coefficient": 0.5})
    examples, loss = ppo.ptx_part(trainer.setup, trainer.state)
    whole = loss(lay_out(trainer.base, examples), [0, 1], Averages())
    parts = sum(loss(lay_out(trainer.base, [examples[i]]), [i], Averages()) for i in (0, 1))
    assert float(whole.detach()) == pytest.approx(float(parts.detach()), abs=1e-6)


# ------------------------------------------------------------------------------------- learning rates, orders, numbers


def test_policy_and_critic_learn_at_their_own_rates(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"ppo.critic_learning_rate": 1e-2, "optimizer.learning_rate": 1e-4}
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    before = {role: [p.detach().clone() for p in trainer.base.parameters(role)] for role in ("policy", "critic")}
    rollout = trainer.rollout()
    targets = trainer.estimate(rollout)
    trainer.minibatch(rollout, targets, [0, 1])
    # The first step of Adam moves an entry by its learning rate, whatever the gradient.
    for role, rate in (("policy", 1e-4), ("critic", 1e-2)):
        moved = max(
            float((p.detach() - b).abs().max())
            for p, b in zip(trainer.base.parameters(role), before[role], strict=True)
        )
        assert moved == pytest.approx(rate, rel=0.05), role


@pytest.mark.parametrize(("max_kl", "steps"), [(0.02, 2), (0.03, 3), (0.05, 3), (None, 4)])
def test_the_epochs_end_behind_the_step_that_passes_max_kl(
    max_kl: float | None, steps: int, base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(base, prompts, tmp_path / "run", {"ppo.max_kl": max_kl})
    rollout = trainer.rollout()
    targets = trainer.estimate(rollout)
    distances = iter([0.01, 0.03, 0.06, 0.09])
    monkeypatch.setattr(trainer.update, "step", lambda *parts: {"policy/approxkl": next(distances)})
    assert trainer.update_on(rollout, targets)["train/optimizer_steps"] == steps


def test_every_rollout_draws_its_own_numbers_and_its_own_order(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(base, prompts, tmp_path / "run", {"ppo.minibatch_prompts": 1})
    seeds: list[list[int]] = []
    orders: list[list[int]] = []

    collect, losses = ppo.collect, ppo.minibatch_losses

    def collected_with(*args: Any, **named: Any) -> Rollout:
        seeds.append(list(named["seeds"]))
        orders.append([])
        return collect(*args, **named)

    def order_of(targets: Any, chosen: Sequence[int], *rest: Any, **named: Any) -> Any:
        orders[-1].extend(chosen)
        return losses(targets, chosen, *rest, **named)

    monkeypatch.setattr(ppo, "collect", collected_with)
    monkeypatch.setattr(ppo, "minibatch_losses", order_of)
    monkeypatch.setattr(trainer.update, "step", lambda *parts: {"loss": 0.0})
    for index in range(3):
        trainer.train_rollout(index)
    drawn = [seed for part in seeds for seed in part]
    assert len(drawn) == 24 and len(set(drawn)) == 24
    for order in orders:
        assert sorted(order[:4]) == sorted(order[4:]) == [0, 1, 2, 3]
    assert len({tuple(order) for order in orders}) == 3, "every rollout is read in the same order"
    assert any(order[:4] != order[4:] for order in orders), "every epoch is read in the same order"


def test_rollouts_of_a_policy_that_stands_still_differ(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"ppo.critic_warmup_rollouts": 2, "ppo.rollout_prompts": 4, "data.limit": 6}
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    assert len(trainer.setup.prompts) >= 4
    trainer.with_prompts(4)
    scores = []
    for index in range(2):
        scores.append(trainer.train_rollout(index)["objective/entropy"])
    assert scores[0] != pytest.approx(scores[1], abs=1e-6)


def test_ptx_reads_by_a_mapping_and_the_better_of_two_answers(base: Path, prompts: Path, tmp_path: Path) -> None:
    rows = [{"frage": "Is it?", "gut": f"It is {i}.", "schlecht": f"No {i}."} for i in range(4)]
    more: Options = {
        "ppo.ptx_data": str(write_rows(tmp_path / "d.jsonl", rows)),
        "ppo.ptx_columns": {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"},
        "ppo.ptx_coefficient": 0.5,
    }
    trainer = trainer_of(base, prompts, tmp_path / "run", more)
    answers = [example.row.answers for example in trainer.ptx if example.row]
    assert answers == [(f"It is {i}.",) for i in range(4)]


def test_ptx_of_conversations_that_never_end_is_refused_and_of_long_texts_is_not(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    long = "I like it, and so do all the others. " * 20
    for rows in ([{"text": long}], [{"prompt": "Is it?", "completion": long}]):
        data = write_rows(tmp_path / "d.jsonl", rows)
        more: Options = {"ppo.ptx_data": str(data), "ppo.ptx_coefficient": 0.5}
        if "text" in rows[0]:
            assert len(trainer_of(base, prompts, tmp_path / "run", more).ptx) == 1
            continue
        with pytest.raises(DataError, match="no answer's end token is learned.* of 1 answers, 1 are cut"):
            trainer_of(base, prompts, tmp_path / "other", more)
