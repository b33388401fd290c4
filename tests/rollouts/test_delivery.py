"""Whether a server drew with the weights that are learned from, by the log-probs of its tokens."""

from __future__ import annotations

import pytest
import torch

from onebase.config.remedies import with_remedy
from onebase.engines.budget import TokenBudget
from onebase.errors import QualityError
from onebase.models.base import OneBase
from onebase.records import Prompt, ScoreRequest
from onebase.rollouts.collect import Measured, Roles, Rollout, measure, with_samples
from onebase.rollouts.delivery import Delivery, correction
from onebase.sampling.local import generate
from onebase.sampling.sampler import Sampling
from onebase.seeds import sample_seeds
from tests.tiny_models import add_adapter_role, disturb, tiny_base

BUDGET = TokenBudget(4096)
PROMPTS = [[1, 40, 50], [1, 60]]


def setting(*, every: int = 1) -> tuple[OneBase, Rollout, Delivery]:
    base = tiny_base("llama")
    add_adapter_role(base, "policy")
    seeds = sample_seeds(0, num_prompts=2, samples_per_prompt=3)
    samples = generate(
        base, PROMPTS, role="policy", sampling=Sampling(8, temperature=0.8), seeds=seeds, samples_per_prompt=3
    )
    examples = with_samples([Prompt(ids) for ids in PROMPTS], samples)
    delivery = Delivery(base, BUDGET, role="policy", where="vLLM at U", every=every)
    return base, Rollout(examples, samples, ScoreRequest(examples, [], [])), delivery


def test_tokens_of_the_policy_pass() -> None:
    base, rollout, delivery = setting()
    found = delivery.check(rollout, 0, temperature=0.8)
    assert found["sampling/probability_difference"] < 1e-5 and found["sampling/staleness"] == 0
    rollout.measured = measure(base, rollout.examples, Roles("policy"), temperature=0.8, budget=BUDGET)
    assert delivery.check(rollout, 0, temperature=0.8) == pytest.approx(found, abs=1e-6)


def test_tokens_of_another_policy_stop_the_run() -> None:
    base, rollout, delivery = setting()
    disturb(base, "policy", seed=4, size=0.2)
    with pytest.raises(QualityError, match=r"rollout 3: the log-probs of vLLM at U are not ours") as raised:
        delivery.check(rollout, 2, temperature=0.8)
    assert raised.value.exit_code == 5 and "see that vLLM at U serves the base of this run" in with_remedy(raised.value)


def test_log_probs_of_another_temperature_stop_the_run() -> None:
    _, rollout, delivery = setting()
    with pytest.raises(QualityError, match="not ours"):
        delivery.check(rollout, 0, temperature=0.4)


def test_log_probs_that_are_not_numbers_stop_the_run() -> None:
    _, rollout, delivery = setting()
    rollout.samples[0].logprobs[0] = float("nan")
    with pytest.raises(QualityError, match="probabilities differ by nan"):
        delivery.check(rollout, 0, temperature=0.8)


def test_a_difference_between_the_two_thresholds_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    base, rollout, delivery = setting()
    own = measure(base, rollout.examples, Roles("policy"), temperature=0.8, budget=BUDGET)
    for sample in rollout.samples:
        sample.logprobs = [-0.5] * len(sample.ids)
    shifted = [torch.full_like(of_prompt, -0.5).exp().add(0.007).log() for of_prompt in own.logprobs]
    rollout.measured = Measured(shifted, own.entropy, None, None)
    assert delivery.check(rollout, 0, temperature=0.8)["sampling/probability_difference"] == pytest.approx(0.007, 0.1)
    assert "warning: rollout 1: the log-probs of vLLM at U are not ours" in capsys.readouterr().err


def test_only_every_few_rollouts_are_compared_and_staleness_is_always_told() -> None:
    base, rollout, delivery = setting(every=3)
    disturb(base, "policy", seed=4, size=0.2)
    base.roles["policy"].version += 4
    assert delivery.check(rollout, 2, temperature=0.8) == {"sampling/staleness": 4.0}
    with pytest.raises(QualityError):
        delivery.check(rollout, 3, temperature=0.8)


def test_the_weights_of_tokens_are_the_ratio_up_to_a_cap() -> None:
    own = [torch.tensor([-1.0, -2.0]), torch.tensor([-0.5])]
    weights, metrics = correction(own, torch.tensor([-1.0, -4.0, -0.2]))
    assert [w.tolist() for w in weights] == [[1.0, 2.0], [pytest.approx(0.7408, abs=1e-4)]]
    assert metrics["sampling/weights_capped"] == pytest.approx(1 / 3)
    assert metrics["sampling/weight"] == pytest.approx((1 + 2 + 0.7408) / 3, abs=1e-4)
