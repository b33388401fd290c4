"""Losses and gradients against those of TRL 1.16's own trainers, on the same model, adapter and rows, in float32.

`bench/parity/trl_losses.py` writes what is compared with, and says where TRL differs. What runs here is a step of the
recipe: its layout, microbatches, forward passes, losses, weights and backward pass, at a learning rate of 0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from bench.parity.model import LORA, formula_weights, rows, tiny_llama, tokenizer, unpaired_rows
from onebase.config.preferences import DPOConfig
from onebase.engines.budget import TokenBudget
from onebase.engines.opening import wrap_model
from onebase.models.base import OneBase
from onebase.objectives.preference import nll_loss
from onebase.recipes import dpo
from onebase.records import Example, Row
from onebase.training.lists import completion_logprobs
from onebase.training.update import ParameterGroup, Update
from tests.recipes.conftest import Options, load

GOLDEN = json.loads((Path(__file__).parents[2] / "bench" / "parity" / "golden.json").read_text(encoding="utf-8"))
PAIRED, UNPAIRED = GOLDEN["paired"], GOLDEN["unpaired"]

LOSSES = {
    "sigmoid": "sigmoid",
    "sigmoid_smoothed": "sigmoid",
    "sigmoid_norm": "sigmoid_norm",
    "sigmoid_sft": "sigmoid + 0.1 nll",
    "robust": "robust",
    "hinge": "hinge",
    "ipo": "ipo",
    "cpo": "cpo",
    "cpo_smoothed": "1 cpo",
    "simpo": "simpo",
    "orpo": "1 orpo",
    "kto": "kto",
    "kto_no_kl": "kto",
}
"""What each entry of TRL is here. `cpo` alone is with the NLL, `1 cpo` without; of ORPO, the odds-ratio term."""

TOKENS_WEIGHED = {"sigmoid_sft": ("sigmoid", 0.1), "cpo": ("1 cpo", 1.0)}
"""Where TRL adds an NLL over the tokens of the batch: the loss without it, and its weight."""

MEANS = sorted(set(PAIRED) - set(TOKENS_WEIGHED) - {"sigmoid_smoothed", "orpo"})
"""What is in TRL, too, the mean over the rows of each row's own loss."""


@pytest.fixture(scope="module", params=["tree", "separate"])
def base(request: pytest.FixtureRequest) -> OneBase:
    """The model of the parity runs, its adapter as the policy and the base as the reference."""
    base = wrap_model(tiny_llama(), tokenizer(), layout=request.param)
    base.add_role("policy", adapter=LoraConfig(**LORA), trains=True)
    base.set_adapter_weights("policy", formula_weights(base.adapter_weights("policy"), size=0.2))
    base.add_role("reference")
    return base


def pairs() -> list[Example]:
    return [Example(row["prompt"], [row["chosen"], row["rejected"]], grades=[1, 0]) for row in rows()]


def singles() -> list[Example]:
    return [
        Example(row["prompt"], [row["completion"]], row=Row((), columns={"label": row["label"]}))
        for row in unpaired_rows()
    ]


def close(expected: Any) -> Any:
    """Within 1e-5, relative above 1."""
    return pytest.approx(expected, rel=1e-5, abs=1e-5)


def close_norm(expected: float) -> Any:
    return pytest.approx(expected, rel=1e-4, abs=1e-6)


def new_update(base: OneBase) -> Update:
    """Changes no weight and clips nothing; a microbatch holds one row, two where they are short."""
    return Update(
        base,
        [ParameterGroup(base.parameters("policy"), 0.0)],
        weight_decay=0.0,
        schedule="constant",
        warmup_steps=0,
        total_steps=1,
        max_grad_norm=1e9,
        budget=TokenBudget(32),
    )


def config_of(name: str, loss: str) -> DPOConfig:
    """The configuration that is TRL's arguments of an entry."""
    arguments = (PAIRED | UNPAIRED)[name]["arguments"]
    options: Options = {"output_dir": "unused", "model.model_name_or_path": "unused", "data.train": "unused"}
    for ours, theirs in (
        ("beta", "beta"),
        ("label_smoothing", "label_smoothing"),
        ("gamma", "simpo_gamma"),
        ("desirable_weight", "desirable_weight"),
        ("undesirable_weight", "undesirable_weight"),
    ):
        if theirs in arguments and (name, ours) != ("orpo", "beta"):  # there it is the weight of a term
            options[f"preference.{ours}"] = arguments[theirs]
    return load(DPOConfig, options, {"loss": loss})


def step(base: OneBase, examples: Sequence[Example], name: str, loss: str | None = None) -> dict[str, float]:
    """What the recipe logs of one step."""
    config = config_of(name, loss or LOSSES[name])
    return dpo.preference_step(base, examples, None, new_update(base), config, visit=0)


def nll_over_tokens(base: OneBase, examples: Sequence[Example]) -> float:
    """TRL's mean over the tokens of the first completions, from the means over each."""
    logprobs = torch.stack([k[0] for k in completion_logprobs(base, examples, role="policy", budget=TokenBudget(32))])
    lengths = torch.tensor([len(example.completions[0]) for example in examples])
    return float((nll_loss(logprobs, lengths) * lengths).sum() / lengths.sum())


def test_log_probs_are_trl_s(base: OneBase) -> None:
    """Under the policy those of DPOTrainer and CPOTrainer, which have a forward pass each, and under the reference."""
    policy, reference = (
        torch.stack(completion_logprobs(base, pairs(), role=role, budget=TokenBudget(32))).T.tolist()
        for role in ("policy", "reference")
    )
    for k, side in enumerate(("chosen", "rejected")):
        assert reference[k] == close(GOLDEN["reference_logps"][side])
        for name in ("sigmoid", "cpo"):
            assert policy[k] == close([row[f"logps/{side}"] for row in PAIRED[name]["each_row"]])


@pytest.mark.parametrize("name", sorted(set(PAIRED) - {"orpo"}))
def test_each_row_has_trl_s_loss_and_gradient(name: str, base: OneBase) -> None:
    for example, expected in zip(pairs(), PAIRED[name]["each_row"], strict=True):
        measured = step(base, [example], name)
        assert measured["loss"] == close(expected["loss"])
        assert measured["grad_norm"] == close_norm(expected["grad_norm"])


@pytest.mark.parametrize("name", MEANS)
def test_all_rows_have_trl_s_loss_gradient_and_metrics(name: str, base: OneBase) -> None:
    measured, expected = step(base, pairs(), name), PAIRED[name]["all_rows"]
    assert measured["loss"] == close(expected["loss"])
    assert measured["grad_norm"] == close_norm(expected["grad_norm"])
    if PAIRED[name]["trainer"] == "DPOTrainer":
        for metric in ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"):
            assert measured[metric] == close(expected[metric])


@pytest.mark.parametrize("name", sorted(TOKENS_WEIGHED))
def test_all_rows_with_an_nll_have_trl_s_loss_when_tokens_are_weighed_alike(name: str, base: OneBase) -> None:
    loss, weight = TOKENS_WEIGHED[name]
    without = step(base, pairs(), name, loss)["loss"]
    expected = PAIRED[name]["all_rows"]["loss"]
    assert without + weight * nll_over_tokens(base, pairs()) == close(expected)
    assert abs(step(base, pairs(), name)["loss"] - expected) > 1e-3, "a mean over completions is another number"


def test_orpo_has_trl_s_odds_and_loss(base: OneBase) -> None:
    weight = PAIRED["orpo"]["arguments"]["beta"]
    whole = [Example(e.prompt_ids[:1], [[*e.prompt_ids[1:], *e.completions[0]]]) for e in pairs()]
    for i, expected in enumerate([*PAIRED["orpo"]["each_row"], PAIRED["orpo"]["all_rows"]]):
        chosen = slice(i, i + 1) if i < len(whole) else slice(None)
        odds_ratio = step(base, pairs()[chosen], "orpo")["loss"]
        assert odds_ratio == close(-expected["log_odds_ratio"])
        nll = nll_over_tokens(base, whole[chosen])
        assert nll == close(expected["nll_loss"])
        assert nll + weight * odds_ratio == close(expected["loss"])
        if i < len(whole):  # L = -log sigmoid(d), solved for d
            assert -math.log(math.expm1(odds_ratio)) == close(expected["log_odds_chosen"])


@pytest.mark.parametrize("name", sorted(UNPAIRED))
def test_kto_has_trl_s_loss_kl_and_gradient(name: str, base: OneBase) -> None:
    # TRL puts the completion of the row before behind each prompt, onebase that of the row after.
    examples = [singles()[i] for i in reversed(UNPAIRED[name]["rows"])]
    measured = dpo.kto_step(base, examples, None, new_update(base), config_of(name, LOSSES[name]))
    expected = UNPAIRED[name]["all_rows"]
    for metric in ("loss", "kl", "logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"):
        assert measured[metric] == close(expected[metric])
    assert measured["grad_norm"] == close_norm(expected["grad_norm"])
    assert (measured["kl"] > 1) == (name == "kto")


def test_the_optimizer_sees_trl_s_gradient(base: OneBase) -> None:
    update = new_update(base)
    dpo.preference_step(base, pairs(), None, update, config_of("sigmoid", "sigmoid"), visit=0)
    named = dict(base.model.named_parameters())
    share = 1 - update.optimizer.param_groups[0]["betas"][0]  # of the first gradient in Adam's first moment
    for part, expected in PAIRED["sigmoid"]["gradients"].items():
        parameter = next(p for name, p in named.items() if part in name and ".policy." in name)
        gradient, reference = update.optimizer.state[parameter]["exp_avg"] / share, torch.tensor(expected)
        assert (gradient - reference).norm() < 1e-4 * reference.norm()
