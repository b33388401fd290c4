"""Configs of the verbs that learn from preferences: reward, dpo."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Annotated

from pydantic import Field, model_validator

from onebase.config.data_groups import DataGroup
from onebase.config.groups import (
    BatchGroup,
    EpochsOptimizerGroup,
    EvaluationGroup,
    LoraGroup,
    ModelGroup,
    PreferenceGroup,
    RankingGroup,
    RewardOptimizerGroup,
)
from onebase.config.losses import LOSSES, readers_of
from onebase.config.run import VerbConfig, adapter_problems
from onebase.config.values import PathText, fail_on
from onebase.shown import shown


class RewardConfig(VerbConfig):
    """Train a reward role on preferences: pairs or ranked lists."""

    start_from: PathText | None = None
    """Folder of a policy or reward role to copy the adapter from; null = a new one on the base."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: DataGroup
    ranking: RankingGroup = RankingGroup()
    optimizer: RewardOptimizerGroup = RewardOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> RewardConfig:
        problems = adapter_problems(self.model, self.lora, self.start_from)
        if self.lora.r == 0 and self.ranking.pooling == "mean":
            problems.append(
                "'ranking.pooling' = mean cannot be saved with 'lora.r' = 0: a sequence classifier reads the last "
                "token; set lora.r >= 1, or pooling to last"
            )
        fail_on(problems)
        return self


def _loss_terms(loss: str) -> list[tuple[str, float]]:
    """The terms of a mixture as written: name and weight; an unreadable weight stays in the name."""
    terms = []
    for term in loss.split("+"):
        weight, _, name = term.strip().rpartition(" ")
        number = weight.strip().rstrip("*").strip()
        known = re.fullmatch(r"(\d+(\.\d*)?|\.\d+)(e-?\d+)?", number)
        terms.append((name if known or not number else term.strip(), float(number) if known else 1.0))
    return terms


def loss_problems(loss: str, preference: PreferenceGroup) -> list[str]:
    problems = []
    terms = _loss_terms(loss)
    names = [name for name, _ in terms]
    for name in dict.fromkeys(names):
        if name not in LOSSES:
            near = get_close_matches(name, LOSSES, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(LOSSES)}; mixed: a + 0.1 b"
            problems.append(f"'loss' = {shown(name, 60)} is unknown; {meant}")
        elif names.count(name) > 1:
            problems.append(f"'loss' = {shown(loss, 60)} names {name} twice; give it once, with one weight")
    if not all(0 < weight < float("inf") for _, weight in terms):
        problems.append(f"'loss' = {shown(loss, 60)}: every weight should be a finite number above 0")
    if "kto" in names and set(names) - {"kto"}:
        problems.append("'loss': kto learns from single answers and cannot be mixed with losses over pairs or lists")
    for key in PreferenceGroup.model_fields:
        value, able = getattr(preference, key), readers_of(key)
        if not problems and value != PreferenceGroup.model_fields[key].default and not set(able) & set(names):
            problems.append(
                f"'preference.{key}' = {value} would change nothing: 'loss' = {shown(loss, 60)} does not read it, "
                f"only {', '.join(able)} {'does' if len(able) == 1 else 'do'}; leave it out"
            )
    return problems


class DPOConfig(VerbConfig):
    """Train a policy on preferences directly: DPO and its family."""

    loss: Annotated[str, Field(description=f"{', '.join(LOSSES)}; or a mixture: a + 0.1 nll.")] = "sigmoid"
    start_from: PathText | None = None
    """Folder of the policy role to start from; null = a new role on the base."""
    reference_role: PathText | None = None
    """Folder of a policy role to use as reference, or base; null = a frozen copy of what the policy starts from."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: DataGroup
    preference: PreferenceGroup = PreferenceGroup()
    optimizer: EpochsOptimizerGroup = EpochsOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()

    def loss_weights(self) -> dict[str, float]:
        """The losses to add up, with their weights."""
        return dict(_loss_terms(self.loss))

    @model_validator(mode="after")
    def _keys_agree(self) -> DPOConfig:
        problems = loss_problems(self.loss, self.preference)
        if (
            self.reference_role is not None
            and not problems
            and not set(readers_of("reference")) & set(self.loss_weights())
        ):
            problems.append(
                f"'reference_role' = {shown(self.reference_role, 60)} would change nothing: 'loss' = {self.loss} needs "
                "no reference; leave it out"
            )
        if self.lora.r == 0:
            problems.append("'lora.r' = 0 would train the base, which is also the reference; set lora.r >= 1")
        fail_on(problems)
        return self
