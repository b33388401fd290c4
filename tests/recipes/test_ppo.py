"""PPO: every option in a short run, and one whole update against plain loops over separate rows."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification

from onebase.config.rollouts import PPOConfig
from onebase.errors import ConfigError, DataError, OnebaseError
from onebase.models.base import OneBase
from onebase.models.scratch import train_tokenizer
from onebase.objectives.moments import RunningMoments
from onebase.recipes import ppo
from onebase.recipes.setup.ppo import updates_of
from onebase.recipes.setup.rollouts import rollout_sampling
from onebase.rollouts.collect import Rollout, score_request
from tests.recipes.conftest import (
    ANIMALS,
    SENTENCES,
    Options,
    metric_rows,
    small_ppo,
    write_rows,
)
from tests.recipes.ppo_parts import Trained, measured, rescored, scores_of


def test_a_reward_of_length_gives_what_the_penalties_take(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {
        "ppo.score_baseline": 0.5,
        "ppo.score_clip": 0.3,
        "ppo.missing_end_penalty": 0.7,
        "ppo.length_penalty": 0.1,
        "generation.stop": list("abcdefghijklmnopqrstuvwxyz"),
    }
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, more))
    rollout = trainer.rollout()
    assert len({len(sample.ids) for sample in rollout.samples}) > 1
    shaped = trainer.shape_scores(rollout)
    for i, sample in enumerate(rollout.samples):
        score = (
            max(-0.3, min(0.3, float(scores_of(rollout)[i]) - 0.5)) - 0.7 * (not sample.ended) - 0.1 * len(sample.ids)
        )
        assert float(shaped[i]) == pytest.approx(score, abs=1e-6)


def test_running_scaling_divides_by_the_deviation_of_all_scores_so_far(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, {"ppo.score_scaling": "running"}))
    first, second = trainer.rollout(0), trainer.rollout(1)
    trainer.shape_scores(first)
    expected = scores_of(second) / torch.cat([scores_of(first), scores_of(second)]).std(unbiased=False)
    torch.testing.assert_close(trainer.shape_scores(second), expected)


def test_a_rollout_whose_scores_are_all_equal_is_not_scaled_also_after_a_resume(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, {"ppo.score_scaling": "running"}))
    equal, differing = trainer.rollout(0), trainer.rollout(1)
    equal = rescored(equal, torch.full_like(scores_of(equal), 0.1))
    assert torch.equal(trainer.shape_scores(equal), scores_of(equal))
    resumed = RunningMoments()
    resumed.load_state_dict(trainer.state.moments.state_dict())
    trainer.state.moments = resumed
    expected = scores_of(differing) / torch.cat([scores_of(equal), scores_of(differing)]).std(unbiased=False)
    torch.testing.assert_close(trainer.shape_scores(differing), expected)


def test_adaptive_kl_moves_the_coefficient(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"ppo.kl_target": 5.0, "ppo.kl_horizon": 16, "ppo.kl_coefficient": 0.1, "max_steps": 3}
    ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    coefficients = [row["objective/kl_coef"] for row in metric_rows(tmp_path / "run")]
    # Far below the target: every rollout of 8 completions takes 0.2 * 8 / 16.
    assert coefficients == pytest.approx([0.1, 0.09, 0.081], rel=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"ppo.kl_target": 1.0, "ppo.kl_coefficient": 0}, "'ppo.kl_target' .*'ppo.kl_coefficient' above 0"),
        ({"ppo.kl_target": 1.0, "ppo.kl_horizon": 1}, "'ppo.kl_horizon' = 1 .*8 completions"),
        ({"reward.normalize": "held_out"}, "'reward.normalize' = held_out needs 'reward.role'"),
        ({"generation.top_k": 20}, "'generation.top_k' = 20 .*different distribution.*leave them at 0 and 1"),
        ({"generation.top_p": 0.9}, "'generation.top_p' = 0.9 would sample from a different distribution"),
    ],
)
def test_settings_that_could_not_work_are_refused_before_the_run(
    more: Options, message: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_ppo(base, tmp_path / "run", prompts, more)


@pytest.mark.parametrize("critic", ["adapter", "head"])
def test_in_the_warm_up_the_critic_alone_trains(critic: str, base: Path, prompts: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n\n".join(SENTENCES))
    more: Options = {
        "ppo.critic": critic,
        "ppo.critic_warmup_rollouts": 2,
        "max_steps": 3,
        "ppo.ptx_data": [str(texts)],
        "ppo.ptx_coefficient": 0.5,
    }
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, more))

    def state(role: str) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in trainer.base.parameters(role)]

    policy, head = state("policy"), state("critic")
    for index in range(2):
        trainer.train_rollout(index)
    assert all(torch.equal(a, b) for a, b in zip(policy, state("policy"), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(head, state("critic"), strict=True))
    trainer.train_rollout(2)
    assert not all(torch.equal(a, b) for a, b in zip(policy, state("policy"), strict=True))


def test_the_kl_budget_ends_the_run(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"ppo.kl_budget": 0.2, "ppo.kl_coefficient": 0, "optimizer.learning_rate": 2e-2, "max_steps": 30}
    summary = ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    kl = [row["objective/kl"] for row in metric_rows(tmp_path / "run")]
    assert summary["rollouts"] == len(kl) < 30 and summary["kl_budget"] == 0.2
    assert kl[-1] > 0.2 and all(value <= 0.2 for value in kl[:-1])


def test_the_policy_that_is_saved_is_within_the_kl_budget(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"ppo.kl_budget": 1e-6, "ppo.kl_coefficient": 0, "optimizer.learning_rate": 2e-2, "max_steps": 1}
    summary = ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    assert summary["rollouts"] == 1 and summary["kl"] <= 1e-6
    weights = load_file(tmp_path / "run" / "policy" / "adapter_model.safetensors")
    moved = [tensor for name, tensor in weights.items() if "lora_B" in name]
    assert moved and not any(tensor.any() for tensor in moved)  # back to the start, where an adapter changes nothing


def test_a_kl_that_is_no_number_is_over_the_budget(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, {"ppo.kl_budget": 5.0}))
    estimate = ppo.estimate

    def without_a_kl(*args: Any) -> tuple[ppo.Targets, dict[str, float]]:
        targets, metrics = estimate(*args)
        return targets, metrics | {"objective/kl": math.nan}

    monkeypatch.setattr(ppo, "estimate", without_a_kl)
    metrics = trainer.train_rollout(0)
    assert metrics["train/over_kl_budget"] == 1.0 and "loss" not in metrics


def test_the_warm_up_of_the_critic_leaves_the_kl_coefficient(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {
        "ppo.kl_target": 5.0,
        "ppo.kl_horizon": 16,
        "ppo.kl_coefficient": 0.1,
        "max_steps": 4,
        "ppo.critic_warmup_rollouts": 2,
    }
    ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    coefficients = [row["objective/kl_coef"] for row in metric_rows(tmp_path / "run")]
    assert coefficients == pytest.approx([0.1, 0.1, 0.1, 0.09], rel=1e-5)


def test_the_critic_starts_from_the_reward_role_where_there_is_one(
    base: Path, sft_role: Path, reward_role: Path, prompts: Path, tmp_path: Path
) -> None:
    scored: Options = {"reward.callable": None, "reward.role": str(reward_role)}
    for more, start in ((scored, "reward"), ({}, "policy")):
        options: Options = {"start_from": str(sft_role), "ppo.critic_start": None} | more
        loaded = Trained(small_ppo(base, tmp_path / "run", prompts, options)).base
        critic, source = loaded.adapter_weights("critic"), loaded.adapter_weights(start)
        assert critic.keys() == source.keys() and all(torch.equal(critic[name], source[name]) for name in critic)
        if start == "reward":
            assert not all(
                torch.equal(critic[k], v) for k, v in loaded.adapter_weights("policy").items() if k in critic
            )


def test_random_lengths_stay_between_their_ends_and_differ(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"generation.random_min_new_tokens": 2, "generation.max_new_tokens": 9, "max_steps": 6}
    config = small_ppo(base, tmp_path / "run", prompts, more)
    trainer = Trained(config)
    setup = trainer.setup

    def drawn(index: int) -> int:
        generation, seed = setup.config.generation, setup.config.seed
        return rollout_sampling(setup.sampling, generation, seed, index).max_new_tokens

    limits = [drawn(index) for index in range(40)]
    assert set(limits) == set(range(2, 10))
    assert limits == [drawn(index) for index in range(40)]


def test_the_upper_half_alone_gets_adapters(base: Path, prompts: Path, tmp_path: Path) -> None:
    ppo.run(small_ppo(base, tmp_path / "run", prompts, {"lora.layers": "upper-half"}))
    for role in ("policy", "critic"):
        weights = load_file(tmp_path / "run" / role / "adapter_model.safetensors")
        assert all(".layers.1." in name for name in weights if "score" not in name)


def test_without_a_number_of_steps_every_prompt_is_read_once(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"max_steps": None, "generation.samples_per_prompt": 1, "generation.max_new_tokens": 1}
    assert ppo.run(small_ppo(base, tmp_path / "run", prompts, more))["rollouts"] == 4
    rows = metric_rows(tmp_path / "run")
    # 13 prompts: the last rollout has one, and one optimizer step an epoch.
    assert [row["train/optimizer_steps"] for row in rows] == [4, 4, 4, 2]
    assert all(row["loss"] is not None and "train/refused_steps" not in row for row in rows)


def test_the_schedule_counts_every_step_of_every_epoch(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"max_steps": 5, "ppo.num_ppo_epochs": 3, "ppo.rollout_prompts": 4, "ppo.minibatch_prompts": 2}
    # 13 prompts in rollouts of 4, 4, 4, 1 and again 4.
    config = small_ppo(base, tmp_path / "run", prompts, more)
    assert updates_of(config, 13) == 3 * (2 + 2 + 2 + 1 + 2)


def test_the_reference_is_what_the_policy_started_from(
    base: Path, sft_role: Path, prompts: Path, tmp_path: Path
) -> None:
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, {"start_from": str(sft_role)}))
    rollout = trainer.rollout()
    reference = measured(rollout).reference_logprobs
    assert reference is not None
    for own, other in zip(measured(rollout).logprobs, reference, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", [20261121, 2**31, 2**32 - 1])
def test_a_date_or_a_hash_will_do_as_seed(seed: int, base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"seed": seed, "max_steps": 1, "generation.random_min_new_tokens": 2}
    assert ppo.run(small_ppo(base, tmp_path / "run", prompts, more))["rollouts"] == 1


def test_without_held_out_prompts_the_message_names_the_key(base: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.eval_fraction"):
        ppo.run(small_ppo(base, tmp_path / "run", prompts, {"data.eval_fraction": 0}))


# ------------------------------------------------------------------------------------------------- reward sources


def test_a_function_is_given_the_columns_of_the_rows(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "p.jsonl", [{"prompt": f"Is it {a}?", "gold": a} for a in ANIMALS])
    more: Options = {"reward.callable": "tests.recipes.test_ppo:reward_by_column", "max_steps": 1}
    SEEN.clear()
    ppo.run(small_ppo(base, tmp_path / "run", rows, more))
    assert SEEN and all(f"Is it {gold}?" in prompt for prompt, gold in SEEN)


SEEN: list[tuple[str, str]] = []


def reward_by_column(prompts: list[str], completions: list[str], gold: list[str]) -> list[float]:
    SEEN.extend(zip(prompts, gold, strict=True))
    return [float(len(text)) for text in completions]


def reward_that_removes_the_run(prompts: list[str], completions: list[str], folder: list[str]) -> list[float]:
    shutil.rmtree(folder[0], ignore_errors=True)
    return [0.0] * len(prompts)


def test_a_run_whose_folder_is_removed_says_so(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"Is it {a}?", "folder": str(tmp_path / "run")} for a in ANIMALS]
    more: Options = {"reward.callable": "tests.recipes.test_ppo:reward_that_removes_the_run"}
    with pytest.raises(OnebaseError, match=r"run/metrics.jsonl: cannot be written .*keep the run.s folder in place"):
        ppo.run(small_ppo(base, tmp_path / "run", write_rows(tmp_path / "p.jsonl", rows), more))


@pytest.mark.parametrize("begin", [ppo.plan, ppo.run])
def test_functions_are_checked_by_the_plan_and_by_the_run(
    begin: Any, base: Path, prompts: Path, tmp_path: Path
) -> None:
    missing: Options = {"evaluation.judge": "tests.recipes.nothing:here"}
    with pytest.raises(ConfigError, match=r"evaluation.judge: .*No module named 'tests.recipes.nothing'"):
        begin(small_ppo(base, tmp_path / "run", prompts, missing))
    other: Options = {"reward.callable": "tests.recipes.test_ppo:reward_by_column"}
    with pytest.raises(ConfigError, match=r"reward.callable: .* cannot be called with prompts, completions: missing a"):
        begin(small_ppo(base, tmp_path / "run", prompts, other))


def test_a_classifier_scores_with_its_own_tokenizer(base: Path, prompts: Path, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["quite other words than the base has read"], vocab_size=280)
    folder = tmp_path / "classifier"
    sizes: Options = dict(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    classifier = LlamaForSequenceClassification(LlamaConfig(**sizes)).eval()
    classifier.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    more: Options = {"reward.callable": None, "reward.model": str(folder)}
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, more))
    rollout = trainer.rollout()
    request = ppo_request(trainer, rollout)
    for i, (prompt, completion) in enumerate(zip(request.prompts, request.completions, strict=True)):
        with torch.no_grad():
            expected = float(classifier(**tokenizer(prompt + completion, return_tensors="pt")).logits[0, 0])
        assert float(scores_of(rollout)[i]) == pytest.approx(expected, abs=1e-4)
    assert ppo.run(small_ppo(base, tmp_path / "run", prompts, more))["rollouts"] == 2


def ppo_request(trainer: Trained, rollout: Rollout) -> Any:
    return score_request(trainer.setup.chat, rollout.examples)


# ------------------------------------------------------------------------------------------------- layouts


def test_both_layouts_give_the_same_first_rollout(base: Path, sft_role: Path, prompts: Path, tmp_path: Path) -> None:
    rows = []
    for layout in ("tree", "separate"):
        more: Options = {
            "model.layout": layout,
            "start_from": str(sft_role),
            "max_steps": 1,
            "ppo.entropy_coefficient": 0.01,
        }
        ppo.run(small_ppo(base, tmp_path / layout, prompts, more))
        rows += metric_rows(tmp_path / layout)
    compared = [name for name in rows[0] if not name.startswith("perf/") and name != "sampling/logp_difference"]
    for name in compared:
        assert rows[1][name] == pytest.approx(rows[0][name], abs=1e-4), name


def test_microbatches_change_nothing(base: Path, sft_role: Path, prompts: Path, tmp_path: Path) -> None:
    rows = []
    for tokens in (48, 4096):
        more: Options = {"batch.microbatch_tokens": tokens, "start_from": str(sft_role), "max_steps": 1}
        ppo.run(small_ppo(base, tmp_path / str(tokens), prompts, more))
        rows += metric_rows(tmp_path / str(tokens))
    for name in (name for name in rows[0] if not name.startswith("perf/")):
        assert rows[1][name] == pytest.approx(rows[0][name], abs=1e-4), name


# --------------------------------------------------------------------------------------- one update, literally

REFERENCE_CASES: dict[str, Options] = {
    "kl in the reward": {"ppo.kl_coefficient": 0.3, "ppo.gamma": 0.95, "ppo.lam": 0.9, "ppo.missing_end_penalty": 0.2},
    "kl in the loss": {
        "ppo.kl_estimator": "k3",
        "ppo.kl_placement": "loss",
        "ppo.kl_coefficient": 0.2,
        "ppo.dual_clip": 1.01,
        "ppo.entropy_coefficient": 0.02,
        "ppo.clip_low": 0.02,
        "ppo.clip_high": 0.05,
        "ppo.value_clip": 0.01,
        "generation.temperature": 0.7,
    },
    "critic head": {"ppo.critic": "head", "ppo.whiten_advantages": False, "ppo.value_clip": None},
    "k2 in the reward": {
        "ppo.kl_estimator": "k2",
        "ppo.kl_coefficient": 0.3,
        "ppo.score_baseline": 0.5,
        "ppo.score_clip": 0.8,
        "ppo.score_scaling": "running",
        "ppo.length_penalty": 0.1,
        "ppo.critic_learning_rate": 1e-3,
    },
    "k3 in the reward, whitened": {
        "ppo.kl_estimator": "k3",
        "ppo.kl_coefficient": 0.3,
        "ppo.whiten_rewards": True,
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 2,
    },
    "k2 in the loss": {"ppo.kl_estimator": "k2", "ppo.kl_placement": "loss", "ppo.kl_coefficient": 0.4},
}


@pytest.mark.parametrize("name", REFERENCE_CASES)
def test_a_whole_update_is_what_plain_loops_give(
    name: str,
    base: Path,
    sft_role: Path,
    reward_role: Path,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    more: Options = {
        "start_from": str(sft_role),
        "reward.role": str(reward_role),
        "reward.callable": None,
        "ppo.critic_start": "reward",
        "generation.samples_per_prompt": 3,
        "ppo.value_coefficient": 0.5,
        "optimizer.max_grad_norm": 100.0,
    } | REFERENCE_CASES[name]
    config = small_ppo(base, tmp_path / "run", prompts, more)
    trainer = Trained(config)
    literal = Trained(config)
    disturb_policy(trainer.base)
    disturb_policy(literal.base)

    rollouts, chosen, found = watch_steps(trainer, monkeypatch)
    metrics = trainer.train_rollout(0)
    assert len(found) == 4
    if name == "kl in the loss":
        assert metrics["policy/clipfrac"] > 0 and metrics["val/clipfrac"] > 0, "the clips are not put to the test"
    update = LiteralUpdate(literal.base, config, rollouts[0])
    assert metrics["objective/kl"] == pytest.approx(update.mean_kl(), abs=1e-4)
    for step, (prompts_of_step, noted) in enumerate(zip(chosen, found, strict=True)):
        loss, norm = update.step(list(prompts_of_step))
        assert noted["loss"] == pytest.approx(loss, abs=1e-4), f"loss of step {step}"
        # Adam's first steps have the size of the learning rate whatever the gradient: rounding grows from there on.
        assert noted["grad_norm"] == pytest.approx(norm, rel=1e-4 if step == 0 else 1e-2), f"gradient of step {step}"


def watch_steps(
    trainer: Trained, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Rollout], list[Sequence[int]], list[dict[str, float]]]:
    """Filled as the trainer works: its rollouts, the prompts of every optimizer step, and what each step gave."""
    rollouts: list[Rollout] = []
    chosen: list[Sequence[int]] = []
    found: list[dict[str, float]] = []
    collect, losses, step = ppo.collect, ppo.minibatch_losses, trainer.update.step

    def watched_collect(*args: Any, **named: Any) -> Rollout:
        rollouts.append(collect(*args, **named))
        return rollouts[-1]

    def watched_losses(targets: Any, prompts: Sequence[int], *rest: Any, **named: Any) -> Any:
        chosen.append(prompts)
        return losses(targets, prompts, *rest, **named)

    def watched_step(*parts: Any) -> dict[str, float]:
        found.append(step(*parts))
        return found[-1]

    monkeypatch.setattr(ppo, "collect", watched_collect)
    monkeypatch.setattr(ppo, "minibatch_losses", watched_losses)
    monkeypatch.setattr(trainer.update, "step", watched_step)
    return rollouts, chosen, found


def disturb_policy(loaded: OneBase) -> None:
    """Moves the policy away from its reference, so that there is a KL."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in loaded.parameters("policy"):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


class LiteralUpdate:
    """PPO on a rollout with a loop over completions, a loop over tokens, and separate rows."""

    def __init__(self, loaded: OneBase, config: PPOConfig, rollout: Rollout) -> None:
        self.base, self.config = loaded, config
        self.rows = [
            (i, list(example.prompt_ids), list(ids))
            for i, example in enumerate(rollout.examples)
            for ids in example.completions
        ]
        ended = [sample.ended for sample in rollout.samples]
        with torch.no_grad():
            self.old = [self.logprobs("policy", p, c)[0] for _, p, c in self.rows]
            self.reference = [self.logprobs("reference", p, c)[0] for _, p, c in self.rows]
            self.old_values = [self.values(p, c) for _, p, c in self.rows]
            scores = [self.score(p, c) for _, p, c in self.rows]
        ppo = config.ppo
        scores = [score - ppo.score_baseline for score in scores]
        if ppo.score_scaling == "running":
            spread = deviation_of(scores)
            scores = [score / spread for score in scores]
        if ppo.score_clip is not None:
            scores = [max(-ppo.score_clip, min(ppo.score_clip, score)) for score in scores]
        rewards = []
        for n, score in enumerate(scores):
            length = len(self.old[n])
            row = [-self.beta_in_reward * float(self.kl(self.old[n][t], self.reference[n][t])) for t in range(length)]
            row[-1] += score - (0 if ended[n] else ppo.missing_end_penalty) - ppo.length_penalty * length
            rewards.append(row)
        if ppo.whiten_rewards:
            flat = [reward for row in rewards for reward in row]
            mean, spread = sum(flat) / len(flat), deviation_of(flat)
            rewards = [[(reward - mean) / spread + mean for reward in row] for row in rewards]
        self.advantages: list[list[float]] = []
        self.returns: list[list[float]] = []
        for n, row in enumerate(rewards):
            advantages = gae_as_a_double_sum(row, self.old_values[n].tolist(), ppo.gamma, ppo.lam)
            self.advantages.append(advantages)
            self.returns.append([a + float(v) for a, v in zip(advantages, self.old_values[n], strict=True)])
        if ppo.whiten_advantages:
            every = [a for row in self.advantages for a in row]
            mean, spread = sum(every) / len(every), deviation_of(every)
            self.advantages = [[(a - mean) / spread for a in row] for row in self.advantages]
        self.parameters: list[nn.Parameter] = [*loaded.parameters("policy"), *loaded.parameters("critic")]
        rate = config.optimizer.learning_rate
        self.rates = [rate, ppo.critic_learning_rate or rate]
        groups = [{"params": list(loaded.parameters(role))} for role in ("policy", "critic")]
        self.optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0, foreach=False)
        self.steps_done = 0

    @property
    def beta_in_reward(self) -> float:
        return self.config.ppo.kl_coefficient if self.config.ppo.kl_placement == "reward" else 0.0

    def kl(self, logprob: Tensor, reference: Tensor) -> Tensor:
        d = logprob - reference
        return {"k1": d, "k2": d * d / 2, "k3": torch.exp(-d) - 1 + d}[self.config.ppo.kl_estimator]

    def logprobs(self, role: str, prompt: list[int], completion: list[int]) -> tuple[Tensor, Tensor]:
        with self.base.role(role):
            logits = self.base.model(torch.tensor([prompt + completion])).logits[0] / self.config.generation.temperature
        table = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        chosen = torch.stack([table[t, token] for t, token in enumerate(completion)])
        return chosen, -(table.exp() * table).sum(-1)

    def states(self, role: str, ids: list[int]) -> Tensor:
        with self.base.role(role):
            return self.base.model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]

    def values(self, prompt: list[int], completion: list[int]) -> Tensor:
        head = self.base.scalar_role("critic").head
        return self.states("critic", prompt + completion)[len(prompt) - 1 : -1] @ head.weight[0]

    def score(self, prompt: list[int], completion: list[int]) -> float:
        head = self.base.scalar_role("reward").head
        return float(self.states("reward", prompt + completion)[-1] @ head.weight[0])

    def share_of_the_rate(self) -> float:
        """Of 8 steps: up in the warm-up, then down to 0."""
        optimizer, step = self.config.optimizer, self.steps_done
        if step < optimizer.warmup_steps:
            return (step + 1) / optimizer.warmup_steps
        done = (step - optimizer.warmup_steps) / (8 - optimizer.warmup_steps)
        return 1 - done if optimizer.schedule == "linear" else 1

    def mean_kl(self) -> float:
        sums = [float((a - b).sum()) for a, b in zip(self.old, self.reference, strict=True)]
        return sum(sums) / len(sums)

    def step(self, chosen: list[int]) -> tuple[float, float]:
        ppo = self.config.ppo
        terms = []
        for n, (i, prompt, completion) in enumerate(self.rows):
            if i not in chosen:
                continue
            logprobs, entropy = self.logprobs("policy", prompt, completion)
            values = self.values(prompt, completion)
            for t in range(len(completion)):
                advantage, old_value, target = self.advantages[n][t], self.old_values[n][t], self.returns[n][t]
                ratio = torch.exp(logprobs[t] - self.old[n][t])
                clipped = torch.clamp(ratio, 1 - ppo.clip_low, 1 + ppo.clip_high)
                objective = torch.minimum(ratio * advantage, clipped * advantage)
                if ppo.dual_clip is not None and advantage < 0:
                    objective = torch.maximum(objective, torch.tensor(ppo.dual_clip * advantage))
                error = (values[t] - target) ** 2
                if ppo.value_clip is not None:
                    near = old_value + torch.clamp(values[t] - old_value, -ppo.value_clip, ppo.value_clip)
                    error = torch.maximum(error, (near - target) ** 2)
                term = -objective + ppo.value_coefficient * error / 2 - ppo.entropy_coefficient * entropy[t]
                if ppo.kl_placement == "loss":
                    term = term + ppo.kl_coefficient * self.kl(logprobs[t], self.reference[n][t])
                terms.append(term)
        loss = torch.stack(terms).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters if p.grad is not None))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * self.share_of_the_rate()
        self.optimizer.step()
        self.steps_done += 1
        return float(loss.detach()), norm


def deviation_of(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))


def gae_as_a_double_sum(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l})."""
    later = [*values[1:], 0.0]
    deltas = [r + gamma * after - now for r, now, after in zip(rewards, values, later, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_the_plan_trains_nothing(base: Path, prompts: Path, tmp_path: Path) -> None:
    text = ppo.plan(small_ppo(base, tmp_path / "run", prompts))
    assert "2 of 4 prompts x 2 completions of at most 6 tokens" in text and "8 optimizer steps, 4 a rollout" in text
    assert not (tmp_path / "run").exists()


def test_samples_and_the_table_are_readable(
    base: Path, prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ppo.run(small_ppo(base, tmp_path / "run", prompts))
    out = capsys.readouterr().out
    assert "before" in out and "after" in out and "paired bootstrap" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert lines and set(lines[0]) == {"prompt", "reference", "policy"}


@pytest.mark.parametrize("budget", [0.05, 0.5])
def test_the_saved_policy_is_within_its_kl_budget_however_fast_it_moves(
    budget: float, base: Path, prompts: Path, tmp_path: Path
) -> None:
    more: Options = {"ppo.kl_budget": budget, "ppo.kl_coefficient": 0, "optimizer.learning_rate": 1e-2, "max_steps": 12}
    summary = ppo.run(small_ppo(base, tmp_path / "run", prompts, more))
    assert summary["kl"] <= budget and summary["rollouts"] < 12
