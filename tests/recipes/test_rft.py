"""Reinforcement fine-tuning: what each option changes, and what no option may change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from onebase.config.files import load_config
from onebase.config.remedies import with_remedy
from onebase.config.rft import RFTConfig
from onebase.errors import ConfigError, DataError, RewardError
from onebase.models.base import OneBase
from onebase.recipes import rft
from onebase.recipes.setup import rft_rollouts
from onebase.recipes.setup.rft import set_up
from onebase.recipes.setup.shared import open_run
from onebase.records import Scores
from onebase.rollouts.collect import Rollout
from tests.recipes.conftest import (
    SMALL_RFT,
    Options,
    common,
    count_vowels,
    leftovers,
    load,
    metric_rows,
    prompt_rows,
    small_rft,
    write_rows,
)

OPTIONS: dict[str, Options] = {
    "gae": {"advantage": "gae"},
    "gae with a head": {"advantage": "gae", "rft.critic": "head"},
    "rloo": {"advantage": "rloo"},
    "reinforce++": {"advantage": "reinforce++"},
    "deviation of the rollout": {"rft.deviation": "rollout"},
    "no deviation": {"rft.deviation": "none"},
    "a mean over completions": {"rft.normalizer": "completion"},
    "a constant normaliser": {"rft.normalizer": "constant"},
    "gspo": {"rft.policy_loss": "gspo", "rft.clip_low": 1e-3, "rft.clip_high": 1e-3},
    "ratio of the completion": {"rft.policy_loss": "sequence_clip", "rft.clip_high": 1e-2},
    "kl penalty": {"rft.policy_loss": "kl_penalty", "rft.penalty_coefficient": 10},
    "narrow clip": {"rft.clip_low": 1e-3},
    "clip higher": {"rft.clip_high": 1e-3},
    "kl in the loss": {"rft.kl_coefficient": 1.0},
    "kl in the reward": {"rft.kl_coefficient": 1.0, "rft.kl_placement": "reward"},
    "entropy bonus": {"rft.entropy_coefficient": 0.1},
    "one epoch": {"rft.num_epochs": 1},
    "overlong": {"rft.overlong_buffer": 5},
    "cold sampling": {"generation.temperature": 0.5},
    "random length": {"generation.random_min_new_tokens": 1},
}
"""Each one changes what is learnt."""
SAME: dict[str, Options] = {
    "separate layout": {"model.layout": "separate"},
    "small microbatches": {"batch.microbatch_tokens": 64},
    "measured microbatches": {"batch.microbatch_tokens": "auto"},
    "evaluation on the way": {"evaluation.every_steps": 1, "evaluation.samples_per_prompt": 2},
    "a function as callable": {"reward.verifiers": None, "reward.callable": "tests.recipes.conftest:count_vowels"},
}
"""None of these changes what is learnt."""


def rows_of_a_run(more: Options, base: Path, prompts: Path, folder: Path) -> list[dict[str, float]]:
    summary = rft.run(small_rft(base, folder, prompts, more))
    rows = metric_rows(folder)
    assert summary["rollouts"] == len(rows) == 2 and not leftovers(folder)
    assert all(math.isfinite(row[key]) for row in rows for key in ("loss", "grad_norm", "objective/scores"))
    assert all("train/refused_steps" not in row for row in rows)
    saved = {"policy", "samples.jsonl", "summary.json"} | ({"critic"} if more.get("advantage") == "gae" else set())
    assert saved <= {path.name for path in folder.iterdir()}
    return rows


@pytest.fixture(scope="module")
def plain_rows(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The run without any option."""
    folder = tmp_path_factory.mktemp("plain")
    return rows_of_a_run({}, base, write_rows(folder / "p.jsonl", prompt_rows()), folder / "run")


def distance(rows: list[dict[str, float]], others: list[dict[str, float]]) -> float:
    """Between what two runs report of their second rollout, after one has been learnt from."""
    names = ("objective/scores", "objective/entropy", "loss/policy", "loss", "policy/approxkl", "grad_norm")
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


def test_an_actor_critic_step_is_a_clipped_step_on_the_sampling_policy(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    once: Options = {"rft.num_epochs": 1, "rft.minibatch_prompts": 4, "max_steps": 1}
    clipped, plain = (
        Parts(small_rft(base, tmp_path / kind, prompts, once, {"rft.policy_loss": kind})) for kind in ("clip", "a2c")
    )
    for parts in (clipped, plain):
        parts.train_rollout(0)
    assert largest_difference(clipped.policy(), plain.policy()) < 1e-5


# ------------------------------------------------------------------------------------------------- parts of a rollout


class Parts:
    """What `rft.train` sets up, and its steps one by one."""

    def __init__(self, config: RFTConfig) -> None:
        self.setup, self.state, self.update = set_up(config, open_run(config))

    @property
    def base(self) -> OneBase:
        return self.setup.base

    def policy(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.base.adapter_weights("policy").items()}

    def train_rollout(self, index: int) -> dict[str, float]:
        return rft.train_rollout(self.setup, self.state, self.update, index)

    def draw(self, index: int = 0) -> tuple[Rollout, dict[str, float]]:
        return rft.draw(self.setup, self.state, index)

    def learn_from(self, rollout: Rollout, index: int = 0) -> dict[str, float]:
        targets, _ = rft.estimate(rollout, self.setup)
        return rft.update_on(rollout, targets, self.setup, self.state, self.update, index)


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys() and found
    return max(float((found[name] - expected[name]).abs().max()) for name in found)


def with_scores(rollout: Rollout, scores: Sequence[float]) -> Rollout:
    return replace(rollout, scores=Scores(torch.tensor(list(scores))))


@pytest.mark.parametrize("advantage", ["group", "rloo"])
@pytest.mark.parametrize("policy_loss", ["clip", "gspo", "sequence_clip", "kl_penalty"])
def test_equal_scores_give_exactly_no_gradient(
    advantage: str, policy_loss: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    more: Options = {"advantage": advantage, "rft.policy_loss": policy_loss, "rft.num_epochs": 1}
    parts = Parts(small_rft(base, tmp_path / "run", prompts, more, {"rft.minibatch_prompts": 4}))
    rollout, _ = parts.draw()
    before = parts.policy()
    found = parts.learn_from(with_scores(rollout, [0.1] * 3 + [1 / 3] * 3 + [1.0] * 3 + [-7.3] * 3))
    if policy_loss == "kl_penalty":  # its KL is 0 up to the rounding between two batches
        assert found["grad_norm"] < 1e-6
        return
    assert found["grad_norm"] == 0.0
    assert largest_difference(parts.policy(), before) == 0.0


@pytest.mark.parametrize("normalizer", ["completion", "token", "constant"])
@pytest.mark.parametrize("advantage", ["gae", "group", "rloo", "reinforce++"])
def test_microbatches_change_no_step(
    advantage: str, normalizer: str, base: Path, prompts: Path, tmp_path: Path
) -> None:
    more: Options = {"advantage": advantage, "rft.normalizer": normalizer, "rft.minibatch_prompts": 4}
    stepped = []
    for tokens in (2048, 40):
        parts = Parts(small_rft(base, tmp_path / str(tokens), prompts, more, {"batch.microbatch_tokens": tokens}))
        rollout, _ = parts.draw()
        found = parts.learn_from(rollout)
        stepped.append((found["grad_norm"], found["loss"], parts.policy()))
    assert stepped[1][0] == pytest.approx(stepped[0][0], rel=1e-4)
    assert stepped[1][1] == pytest.approx(stepped[0][1], abs=1e-6)
    assert largest_difference(stepped[1][2], stepped[0][2]) < 1e-4  # of a step of 2e-3; Adam enlarges rounding


def test_one_step_on_a_rollout_needs_no_old_logprobs(
    base: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one step the policy is not measured again, and the step is the same."""
    once: Options = {"rft.num_epochs": 1, "rft.minibatch_prompts": 4, "rft.kl_coefficient": 0.1}
    passes: list[str] = []
    stepped = []
    for kind in ("as sampled", "measured"):
        parts = Parts(small_rft(base, tmp_path / kind, prompts, once))
        assert rft.one_step(parts.setup)
        with monkeypatch.context() as patch:
            if kind == "measured":
                for module in (rft, rft_rollouts):
                    patch.setattr(module, "one_step", lambda setup: False)
            rows = parts.train_rollout(0)
        stepped.append((rows["grad_norm"], rows["objective/kl"], parts.policy()))
        passes.append("sampling/logp_difference" if "sampling/logp_difference" in rows else "none")
    assert passes == ["none", "sampling/logp_difference"]
    assert stepped[1][:2] == pytest.approx(stepped[0][:2], rel=1e-3, abs=1e-5)
    assert largest_difference(stepped[1][2], stepped[0][2]) < 1e-4
    assert not rft.one_step(Parts(small_rft(base, tmp_path / "two", prompts, {"rft.num_epochs": 2})).setup)


def test_without_a_kl_penalty_no_reference_is_held_and_without_gae_no_critic(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    def roles(name: str, more: Options) -> set[str]:
        return set(Parts(small_rft(base, tmp_path / name, prompts, more)).base.roles)

    assert roles("plain", {}) == {"policy"}
    assert roles("kl", {"rft.kl_coefficient": 0.1}) == {"policy", "reference"}
    assert roles("gae", {"advantage": "gae"}) == {"policy", "critic"}
    parts = Parts(small_rft(base, tmp_path / "again", prompts))
    rollout, metrics = parts.draw()
    assert rollout.measured is not None and rollout.measured.reference_logprobs is None
    assert "objective/kl" not in rft.estimate(rollout, parts.setup)[1]
    assert "kl" not in rft.evaluate(parts.setup).row()


def test_kl_in_the_reward_lowers_the_advantage_of_what_moved_away(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"rft.kl_coefficient": 0.5, "rft.kl_placement": "reward", "advantage": "rloo"}
    parts = Parts(small_rft(base, tmp_path / "run", prompts, more))
    rollout, _ = parts.draw()
    measured = rollout.measured
    assert measured is not None and measured.reference_logprobs is not None and rollout.scores is not None
    moved = [tensor - 0.1 * torch.arange(len(tensor)) for tensor in measured.reference_logprobs]
    rollout = replace(rollout, measured=replace(measured, reference_logprobs=moved))
    targets, metrics = rft.estimate(rollout, parts.setup)
    k, scores, at = 3, rollout.scores.total, 0
    for p, example in enumerate(rollout.examples):
        differences = (measured.logprobs[p] - moved[p]).split([len(ids) for ids in example.completions])
        totals = [float(scores[p * k + i]) - 0.5 * float(differences[i].sum()) for i in range(k)]
        expected = [t - (sum(totals) - t) / (k - 1) for t in totals]
        found = [float(part[0]) for part in targets.advantages[p].split([len(ids) for ids in example.completions])]
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
        at += len(example.completions)
    assert metrics["objective/kl"] > 0


def test_what_comes_near_the_limit_loses_score(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"rft.overlong_buffer": 4, "rft.overlong_penalty": 2.0, "rft.deviation": "none"}
    parts = Parts(small_rft(base, tmp_path / "run", prompts, more))
    rollout, _ = parts.draw()
    targets, metrics = rft.estimate(with_scores(rollout, [1.0] * 12), parts.setup)
    lengths = torch.tensor(rollout.completion_lengths)
    lost = ((lengths - 2).clamp(0) / 4).view(4, 3)
    assert metrics["objective/overlong"] == pytest.approx(float(lost.mean()))
    expected = -2 * (lost - lost.mean(1, keepdim=True))
    found = torch.stack([part[0] for part in _per_completion(rollout, targets.advantages)]).view(4, 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def _per_completion(rollout: Rollout, per_prompt: Sequence[Tensor]) -> list[Tensor]:
    lengths = [[len(ids) for ids in example.completions] for example in rollout.examples]
    return [part for tensor, sizes in zip(per_prompt, lengths, strict=True) for part in tensor.split(sizes)]


def test_the_penalty_does_not_adapt_while_the_policy_stands_still(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {"advantage": "gae", "rft.policy_loss": "kl_penalty", "rft.critic_warmup_rollouts": 1}
    parts = Parts(small_rft(base, tmp_path / "run", prompts, more, {"rft.penalty_target": 1e-9}))
    before = parts.policy()
    assert "policy/penalty_coefficient" not in parts.train_rollout(0)
    assert parts.state.penalty.coefficient == 1.0 and largest_difference(parts.policy(), before) == 0
    found = parts.train_rollout(1)
    assert found["policy/kl_of_update"] > 1e-9 and parts.state.penalty.coefficient == 2.0
    assert largest_difference(parts.policy(), before) > 0


def test_whole_completions_count_alike_where_their_ratio_is_clipped() -> None:
    needed = ["output_dir=a", "model=b", "data.train=c", "reward.verifiers=numeric"]

    def weighting(*words: str) -> str:
        return load_config(RFTConfig, None, [*needed, *words]).rft.weighting

    assert weighting() == weighting("rft.policy_loss=kl_penalty") == "token"
    assert weighting("rft.policy_loss=gspo") == weighting("rft.policy_loss=sequence_clip") == "completion"
    assert weighting("rft.policy_loss=gspo", "rft.normalizer=token") == "token"


# --------------------------------------------------------------------------------------------------- dynamic sampling


def only_some_vary(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    """Constant for prompts with an even number: their groups teach nothing."""
    even = [int(prompt.rpartition(" ")[2].partition("?")[0]) % 2 == 0 for prompt in prompts]
    varied = count_vowels(prompts, completions)
    return [0.5 if constant else score for constant, score in zip(even, varied, strict=True)]


def all_the_same(prompts: list[str], completions: list[str], **columns: object) -> list[float]:
    return [0.5] * len(completions)


DYNAMIC: Options = {"rft.dynamic_sampling": True, "reward.verifiers": f"{__name__}:only_some_vary"}


def test_prompts_whose_completions_score_alike_are_replaced_and_counted(
    base: Path, prompts: Path, tmp_path: Path
) -> None:
    parts = Parts(small_rft(base, tmp_path / "run", prompts, DYNAMIC))
    rollout, metrics = parts.draw()
    assert rollout.scores is not None and rollout.measured is not None
    groups = rollout.scores.total.view(-1, 3)
    assert len(rollout.examples) == len(groups) == 4 and bool((groups != groups[:, :1]).any(1).all())
    sampled, refills = metrics["groups/sampled"], metrics["groups/refills"]
    assert sampled > 4 and refills >= 1 and parts.state.prompts_read == sampled and parts.state.refills == refills
    assert metrics["groups/kept"] == 4 and metrics["groups/without_variance"] == pytest.approx(1 - 4 / sampled)
    assert [sample.prompt for sample in rollout.samples] == [i // 3 for i in range(12)]
    for example, tensor in zip(rollout.examples, rollout.measured.logprobs, strict=True):
        assert len(tensor) == example.num_counted
    # The samples are those of the prompts they are beside.
    drawn = [sample.ids for sample in rollout.samples]
    assert drawn == [ids for example in rollout.examples for ids in example.completions]


def test_scores_are_logged_over_all_that_was_sampled(base: Path, prompts: Path, tmp_path: Path) -> None:
    parts = Parts(small_rft(base, tmp_path / "run", prompts, DYNAMIC))
    rollout, metrics = parts.draw()
    assert rollout.scores is not None
    kept, everything = float(rollout.scores.total.sum()), metrics["objective/scores"] * metrics["groups/sampled"] * 3
    assert everything == pytest.approx(kept + 0.5 * 3 * (metrics["groups/sampled"] - 4), rel=1e-4)


def test_single_completions_are_not_called_alike(base: Path, prompts: Path, tmp_path: Path) -> None:
    for count in (1, 2):
        one: Options = {"advantage": "reinforce++", "generation.samples_per_prompt": count}
        _, metrics = Parts(small_rft(base, tmp_path / f"run{count}", prompts, one)).draw()
        assert ("groups/without_variance" in metrics) == (count > 1)


def test_refills_end_and_a_rollout_without_variance_is_skipped(base: Path, prompts: Path, tmp_path: Path) -> None:
    more: Options = {**DYNAMIC, "reward.verifiers": f"{__name__}:all_the_same", "rft.max_refills": 2}
    folder = tmp_path / "run"
    with pytest.raises(
        RewardError, match="nothing was trained: in none of 2 rollouts did the completions of a prompt differ"
    ):
        rft.run(small_rft(base, folder, prompts, more))
    rows = metric_rows(folder)
    assert not (folder / "policy").exists()
    assert [row["train/skipped_rollouts"] for row in rows] == [1.0, 1.0] and all("loss" not in row for row in rows)
    assert [row["groups/refills"] for row in rows] == [2, 2] and [row["groups/sampled"] for row in rows] == [12, 12]


def test_every_prompt_is_read_once_an_epoch(base: Path, prompts: Path, tmp_path: Path) -> None:
    parts = Parts(small_rft(base, tmp_path / "run", prompts))
    count = len(parts.setup.prompts)
    for _ in range(3):
        found = rft_rollouts.next_prompts(parts.setup, parts.state, count)
        read = Counter(prompt.row.place for prompt in found if prompt.row)
        assert set(read.values()) == {1} and len(read) == count


# ------------------------------------------------------------------------------------------------------------ verifiers


def gold_rows(count: int = 16) -> list[Options]:
    return [{**row, "answer": f"It is {i}.\n#### {i}", "level": i % 2} for i, row in enumerate(prompt_rows(count))]


def test_the_share_of_right_answers_is_logged_and_kept(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "gold.jsonl", gold_rows())
    folder = tmp_path / "run"
    options = {"reward.verifiers": "[numeric, {name: length, most: 40, weight: 0.5, unit: characters}]"}
    summary = rft.run(load(RFTConfig, common(base, folder, rows), SMALL_RFT, options))
    assert summary["right_before"] == 0.0 and "right_after" in summary and summary["verifier_failures"] == 0
    for row in metric_rows(folder):
        assert {"rewards/right", "rewards/numeric/mean", "rewards/length/mean"} <= row.keys()
        parts = row["rewards/numeric/mean"] + 0.5 * row["rewards/length/mean"]
        assert row["objective/scores"] == pytest.approx(parts, abs=1e-5)


def test_rows_whose_gold_answer_is_not_accepted_stop_the_run_before_it_starts(base: Path, tmp_path: Path) -> None:
    broken = [*gold_rows(15), {"prompt": "Is the hen number 7?", "answer": "no number"}]
    config = load(
        RFTConfig,
        common(base, tmp_path / "run", write_rows(tmp_path / "g.jsonl", broken)),
        SMALL_RFT,
        {"reward.verifiers": "numeric"},
    )
    for start in (rft.run, rft.plan):
        with pytest.raises(DataError, match=r"numeric: 1 of 16 rows .*g\.jsonl:16"):
            start(config)


def test_code_runs_only_with_leave_given_on_the_command_line(base: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="verifier code runs programs that the model writes") as caught:
        rft.run(small_rft(base, tmp_path / "run", prompts, {"reward.verifiers": "code"}))
    assert "--allow-code-execution" in with_remedy(caught.value)
