"""Three additions by somebody new to the code, and how little else they touch (docs/architecture.md has the lines)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from onebase.config.losses import LOSSES, Loss
from onebase.recipes import dpo, ppo
from onebase.sampling.sampler import Sample, Sampling
from tests.recipes.conftest import metric_rows, pair_rows, small_ppo, write_rows
from tests.recipes.ppo_parts import Trained
from tests.recipes.test_dpo import small_dpo


def squared_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, *, beta: float
) -> Tensor:
    """L = (1 - beta (chosen - reference_chosen - rejected + reference_rejected))^2"""
    return (1 - beta * (chosen - reference_chosen - rejected + reference_rejected)).square()


def test_a_loss_is_its_function_and_one_line_of_the_table(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_rows(tmp_path / "pairs.jsonl", pair_rows())
    module = ModuleType("onebase.objectives.squared")
    module.squared_loss = squared_loss  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(LOSSES, "squared", Loss("squared.squared_loss", "pairs", frozenset({"reference", "beta"})))
    summary = dpo.run(small_dpo(base, tmp_path / "run", pairs, {"loss": "squared + 0.1 nll", "max_steps": 2}))
    assert summary["loss"] == {"squared": 1.0, "nll": 0.1}
    dpo.run(small_dpo(base, tmp_path / "alone", pairs, {"loss": "squared", "max_steps": 1}))
    # Before the first step policy and reference are the same.
    assert metric_rows(tmp_path / "alone")[0]["loss"] == pytest.approx(1.0, abs=1e-5)


SOURCE = """
import torch
from onebase.records import Scores

class Vowels:
    name = "vowels"

    def score(self, request):
        vowels = torch.tensor([float(sum(text.count(v) for v in "aeiou")) for text in request.completions])
        return Scores(vowels / 10, {"vowels": vowels}, {0: "nothing to judge"})
"""


def test_a_reward_source_is_its_own_file(base: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "vowels.py").write_text(SOURCE)
    ppo.run(small_ppo(base, tmp_path / "run", prompts, {"reward.callable": f"{tmp_path}/vowels.py:Vowels"}))
    for row in metric_rows(tmp_path / "run"):
        assert row["rewards/vowels/mean"] == pytest.approx(10 * row["objective/scores"], abs=1e-5)
        assert row["rewards/failed"] == pytest.approx(1 / 4, abs=1)


class Canned:
    """A sampler that always answers the same."""

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int], samples_per_prompt: int = 1
    ) -> list[Sample]:
        return [
            Sample(prompt=p, ids=[40 + k, 41], logprobs=[-1.0, -1.0], ended=False)
            for p in range(len(prompts))
            for k in range(samples_per_prompt)
        ]


def test_a_sampler_takes_the_place_of_another(base: Path, prompts: Path, tmp_path: Path) -> None:
    trainer = Trained(small_ppo(base, tmp_path / "run", prompts, {"ppo.score_baseline": 1.0}))
    before = [parameter.detach().clone() for parameter in trainer.base.parameters("critic")]
    trainer.setup = replace(trainer.setup, sampler=Canned())
    metrics = trainer.train_rollout(0)
    assert metrics["completions/mean_length"] == 2 and metrics["sampling/logp_difference"] > 0
    after = trainer.base.parameters("critic")
    assert not all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
