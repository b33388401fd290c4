"""Advantages, losses and gradients against those of TRL 1.16's GRPOTrainer and RLOOTrainer, on one rollout, in float32.

`bench/parity/trl_rl.py` writes what is compared with. What runs here is a rollout of the recipe (its measuring,
advantages, weights, losses and optimizer step, at a learning rate of 0), whose sampler returns the completions of
`bench/parity/rollout.py`.

Differences between TRL and onebase, and how the tests treat them:

- The KL in the loss: by default TRL multiplies k3 by the ratio (`use_bias_correction_kl`), onebase does not. On what
  was just sampled, TRL's product has the gradient of onebase's k2 (`kl_estimator: k2`), though another value. With the
  option off, TRL's KL is onebase's k3.
- `dapo` with several steps per rollout divides each step's loss by the rollout's tokens over the number of steps;
  onebase's `token` divides by the tokens of the step's own minibatch. With one step both are TRL's `bnpo`.
- `grpo`, `bnpo` and `dr_grpo` are means over a device batch in TRL, averaged over the accumulation steps; in onebase
  over the whole optimizer step. This shows only if microbatches hold different numbers of tokens or completions.
- `delta` bounds the ratio of both signs, `dual_clip` that of negative advantages only. They differ only where delta is
  below 1 + epsilon_high.
- `normalize_advantages` of RLOO (standardised over the rollout) is not in onebase; a test does it by hand.
- Where a whole completion's ratio is clipped, TRL counts clipped completions and onebase their tokens.
- TRL deals the completions of a rollout to its optimizer steps one by one, onebase keeps those of a prompt together.
- A completion that could not be scored has no part in its group in TRL, and its loss is the KL alone; in onebase its
  score is what the source gives failures. TRL can leave out truncated completions (`mask_truncated_completions`);
  onebase lowers their scores (`overlong_buffer`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor

from bench.parity.model import END, LORA, formula_weights, tiny_llama, tokenizer
from bench.parity.rollout import MAX_NEW_TOKENS, NUM_PER_PROMPT, SAMPLED, SCORES, TRAINED, completions, prompts
from onebase.config.rft import RFTConfig
from onebase.data.chat import chat_format
from onebase.engines.budget import TokenBudget
from onebase.engines.opening import wrap_model
from onebase.models.base import OneBase
from onebase.objectives.kl import AdaptivePenalty
from onebase.recipes import rft
from onebase.recipes.setup import rft_rollouts
from onebase.recipes.setup.data import order_of
from onebase.recipes.setup.rft import Setup, State, reference_of
from onebase.records import Prompt, ScoreRequest, Scores
from onebase.rollouts.collect import Roles, Rollout
from onebase.sampling.sampler import Sample, Sampling
from onebase.training.update import ParameterGroup, Update
from tests.recipes.conftest import Options, load

GOLDEN = json.loads((Path(__file__).parents[2] / "bench" / "parity" / "golden_rl.json").read_text(encoding="utf-8"))
ENTRIES: dict[str, Any] = GOLDEN["entries"]

CLIP: Options = {"rft.clip_low": 0.2, "rft.clip_high": 0.28}
KL: Options = {"rft.kl_coefficient": 0.3, "rft.kl_placement": "loss"}
KL_IN_REWARD: Options = {"rft.kl_coefficient": 0.3, "rft.kl_placement": "reward"}
OF_COMPLETIONS: Options = {"rft.normalizer": "completion"}
GRPO: Options = {"advantage": "group", **OF_COMPLETIONS, **CLIP}
GSPO: Options = {
    "advantage": "group",
    "rft.policy_loss": "gspo",
    **OF_COMPLETIONS,
    "rft.clip_low": 0.03,
    "rft.clip_high": 0.05,
}
RLOO: Options = {"advantage": "rloo", "rft.policy_loss": "sequence_clip", **OF_COMPLETIONS, **CLIP}

OURS: dict[str, Options] = {
    "grpo": {**GRPO, "rft.clip_high": 0.2},
    "grpo_fresh": {**GRPO, "rft.clip_high": 0.2},
    "grpo_batch": {**GRPO, "rft.deviation": "rollout"},
    "grpo_none": {**GRPO, "rft.deviation": "none"},
    "grpo_high": GRPO,
    "grpo_delta": {**GRPO, "rft.dual_clip": 1.5},
    "grpo_kl": {**GRPO, **KL},
    "bnpo": {**GRPO, "rft.normalizer": "token"},
    "dapo": {**GRPO, "rft.normalizer": "token"},
    "dr_grpo": {**GRPO, "rft.deviation": "none", "rft.normalizer": "constant"},
    "gspo": GSPO,
    "gspo_kl": {**GSPO, **KL},
    "gspo_tokens": {**GSPO, "rft.normalizer": "token"},
    "rloo": RLOO,
    "rloo_kl": {**RLOO, **KL_IN_REWARD},
}
"""The configuration that is TRL's entry, number for number."""


@pytest.fixture(autouse=True)
def measured_by_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the policy changes between sampling and its one step, so its log-probs have to be measured in between."""
    for module in (rft, rft_rollouts):
        monkeypatch.setattr(module, "one_step", lambda setup: False)


@pytest.fixture(scope="module", params=["tree", "separate"])
def base(request: pytest.FixtureRequest) -> OneBase:
    """The model of the parity runs, its adapter as the policy and the base as the reference."""
    base = wrap_model(tiny_llama(), tokenizer(), layout=request.param)
    base.add_role("policy", adapter=LoraConfig(**LORA), trains=True)
    base.add_role("reference")
    return base


class GivenCompletions:
    """A sampler that returns each prompt's own completions."""

    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, *, seeds: Sequence[int], samples_per_prompt: int = 1
    ) -> list[Sample]:
        return [
            Sample(i, ids, [0.0] * len(ids), ended=ids[-1] == END)
            for i, prompt in enumerate(prompts)
            for ids in completions()[place_of(prompt)]
        ]


class GivenScores:
    """A reward that returns each prompt's own scores."""

    name = "given"

    def score(self, request: ScoreRequest) -> Scores:
        return Scores(torch.tensor([score for e in request.examples for score in SCORES[place_of(e.prompt_ids)]]))


def place_of(prompt: Sequence[int]) -> int:
    return prompts().index(list(prompt))


@dataclass
class Trained:
    """A rollout of the recipe and the step on it."""

    rollout: Rollout
    targets: rft.Targets
    metrics: dict[str, float]
    gradients: dict[str, Tensor]

    @property
    def advantages(self) -> list[float]:
        """One per completion, in the order of `prompts()`; all tokens of a completion have the same."""
        found: dict[int, list[float]] = {}
        for example, of_tokens in zip(self.rollout.examples, self.targets.advantages, strict=True):
            of_completions = of_tokens.split([len(ids) for ids in example.completions])
            assert all(len(set(same.tolist())) == 1 for same in of_completions)
            found[place_of(example.prompt_ids)] = [float(same[0]) for same in of_completions]
        return [advantage for place in sorted(found) for advantage in found[place]]


def set_up(base: OneBase, options: Options, *, places: Sequence[int]) -> tuple[Setup, State, Update]:
    """What the recipe sets up, on these prompts alone."""
    config = load(
        RFTConfig,
        {
            "output_dir": "unused",
            "model.model_name_or_path": "unused",
            "data.train": "unused",
            "reward.callable": "tests.recipes.conftest:count_vowels",
            "generation.samples_per_prompt": NUM_PER_PROMPT,
            "generation.max_new_tokens": MAX_NEW_TOKENS,
            "rft.rollout_prompts": len(places),
            "rft.minibatch_prompts": len(places),
            "rft.num_epochs": 1,
        },
        options,
    )
    budget = TokenBudget(32)  # microbatches of one or two prompts
    given = [Prompt(prompts()[place]) for place in places]
    setup = Setup(
        config=config,
        base=base,
        chat=chat_format(base.tokenizer, "plain"),
        sampler=GivenCompletions(),
        sampling=Sampling(MAX_NEW_TOKENS, stop_ids=(END,)),
        reward=GivenScores(),
        judges={},
        roles=Roles("policy", reference_of(config)),
        prompts=given,
        order=order_of(config.data, given, config.seed),
        held_out=[],
        budget=budget,
    )
    update = Update(
        base,
        [ParameterGroup(base.parameters("policy"), 0.0)],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
        max_grad_norm=1e9,
        budget=budget,
    )
    return setup, State(AdaptivePenalty(1.0, 0.01)), update


def take(base: OneBase, size: float) -> None:
    """Gives the policy the weights of this size."""
    base.set_adapter_weights("policy", formula_weights(base.adapter_weights("policy"), size=size))


def train(
    base: OneBase,
    options: Options,
    *,
    fresh: bool = False,
    standardized: bool = False,
    places: Sequence[int] = range(4),
) -> Trained:
    """A rollout of the recipe by the policy that sampled, and its step by the one that trains.

    Args:
        fresh: whether the policy that trains is the one that sampled.
        standardized: whether advantages are standardised over the rollout, as only TRL can.
    """
    setup, state, update = set_up(base, options, places=places)
    take(base, TRAINED if fresh else SAMPLED)
    rollout, _ = rft.draw(setup, state, 0)
    targets, _ = rft.estimate(rollout, setup)
    if standardized:
        each = torch.tensor(Trained(rollout, targets, {}, {}).advantages)
        mean, deviation = each.mean(), each.std() + 1e-4
        targets = replace(targets, advantages=[(own - mean) / deviation for own in targets.advantages])
    take(base, TRAINED)
    metrics = rft.update_on(rollout, targets, setup, state, update, 0)
    share = 1 - update.optimizer.param_groups[0]["betas"][0]  # of the first gradient in Adam's first moment
    gradients = {
        name: update.optimizer.state[parameter]["exp_avg"] / share
        for name, parameter in base.model.named_parameters()
        if parameter in update.optimizer.state
    }
    return Trained(rollout, targets, metrics, gradients)


def close(expected: Any) -> Any:
    """Within 1e-5, relative above 1."""
    return pytest.approx(expected, rel=1e-5, abs=1e-5)


def assert_gradients_are(gradients: dict[str, Tensor], expected: dict[str, Any], *, times: float = 1.0) -> None:
    """Every weight's gradient is TRL's, within 2e-5 of the largest entry: in float32 each is within 1e-5 of float64."""
    reference = {part: torch.tensor(values) * times for part, values in expected.items()}
    largest = max(float(values.abs().max()) for values in reference.values())
    assert len(gradients) == len(reference) and largest > 0.05
    for part, values in reference.items():
        (own,) = (gradient for name, gradient in gradients.items() if part in name and ".policy." in name)
        assert float((own - values).abs().max()) < 2e-5 * largest, part


def of_tokens(per_completion: list[list[float]]) -> list[float]:
    return [x for completion in per_completion for x in completion]


def test_the_rollout_is_the_one_that_trl_was_given() -> None:
    assert GOLDEN["prompts"] == prompts() and GOLDEN["completions"] == completions()
    assert GOLDEN["scores"] == [list(scores) for scores in SCORES]


def test_log_probs_are_trl_s(base: OneBase) -> None:
    """Those of the policy that trains, of the one that sampled and of the reference."""
    for fresh, name in ((True, "logps"), (False, "old_logps")):
        trained = train(base, OURS["grpo_kl"], fresh=fresh)
        order = [place_of(example.prompt_ids) for example in trained.rollout.examples]
        assert trained.targets.reference_logprobs is not None
        for of_prompts, expected in (
            (trained.targets.logprobs, name),
            (trained.targets.reference_logprobs, "ref_logps"),
        ):
            in_order = [own for _, own in sorted(zip(order, of_prompts, strict=True), key=lambda pair: pair[0])]
            assert torch.cat(in_order).tolist() == close(of_tokens(GOLDEN[expected]))


@pytest.mark.parametrize("name", sorted(OURS))
def test_advantages_loss_and_gradients_are_trl_s(name: str, base: OneBase) -> None:
    trained, expected = train(base, OURS[name], fresh=name.endswith("fresh")), ENTRIES[name]
    assert trained.advantages == close(expected["advantages"])
    assert trained.metrics["loss"] == close(expected["loss"])
    assert_gradients_are(trained.gradients, expected["gradients"])


@pytest.mark.parametrize("name", [name for name in sorted(OURS) if OURS[name].get("rft.policy_loss") is None])
def test_as_many_tokens_are_clipped_as_in_trl(name: str, base: OneBase) -> None:
    measured = train(base, OURS[name], fresh=name.endswith("fresh")).metrics
    expected = ENTRIES[name]["clip_ratio/low_mean"] + ENTRIES[name]["clip_ratio/high_mean"]
    assert measured["policy/clipfrac"] == close(expected)
    assert (expected > 0.1) == (name != "grpo_fresh")


def test_trl_s_weighed_kl_is_another_loss(base: OneBase) -> None:
    """Its gradient is that of k2 on what was just sampled; after that it has no counterpart here."""
    k2 = {**OURS["grpo_kl"], "rft.kl_estimator": "k2", "rft.clip_high": 0.2}
    fresh, expected = train(base, k2, fresh=True), ENTRIES["grpo_kl_weighed_fresh"]
    assert_gradients_are(fresh.gradients, expected["gradients"])
    assert abs(fresh.metrics["loss"] - expected["loss"]) > 5e-3
    for estimator in ("k2", "k3"):
        moved = train(base, {**OURS["grpo_kl"], "rft.kl_estimator": estimator})
        assert abs(moved.metrics["loss"] - ENTRIES["grpo_kl_weighed"]["loss"]) > 5e-3


def test_a_step_of_several_divides_by_its_own_tokens(base: OneBase) -> None:
    """TRL divides the first of two steps by half of the rollout's tokens."""
    half, expected = train(base, OURS["dapo"], places=range(2)), ENTRIES["dapo_half"]
    lengths = [[len(ids) for ids in of_prompt] for of_prompt in completions()]
    own, mean = sum(map(sum, lengths[:2])), sum(map(sum, lengths)) / 2
    assert half.metrics["loss"] * own / mean == close(expected["loss"])
    assert own / mean > 1.05
    assert_gradients_are(half.gradients, expected["gradients"], times=mean / own)


def test_rloo_with_standardised_advantages_is_trl_s(base: OneBase) -> None:
    trained, expected = train(base, OURS["rloo_kl"], standardized=True), ENTRIES["rloo_normalized"]
    assert trained.advantages == close(expected["advantages"])
    assert trained.metrics["loss"] == close(expected["loss"])
    assert_gradients_are(trained.gradients, expected["gradients"])


def test_every_entry_is_compared() -> None:
    elsewhere = {"dapo_half", "grpo_kl_weighed", "grpo_kl_weighed_fresh", "rloo_normalized"}
    assert set(ENTRIES) == set(OURS) | elsewhere
