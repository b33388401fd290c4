"""Configs of the verbs that learn from texts and answers: pretrain, sft."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from onebase.config.data_groups import SFTDataGroup, StreamedGroup
from onebase.config.groups import (
    BatchGroup,
    EvaluationGroup,
    LoraGroup,
    ModelGroup,
    OptionalModelGroup,
    PretrainOptimizerGroup,
    SFTOptimizerGroup,
    TinyModelGroup,
)
from onebase.config.run import VerbConfig, adapter_problems
from onebase.config.values import Int, PathText, fail_on


class PretrainConfig(VerbConfig):
    """Train a language model on plain text, from scratch or further."""

    model: OptionalModelGroup = OptionalModelGroup()
    tiny: TinyModelGroup = TinyModelGroup()
    data: StreamedGroup
    optimizer: PretrainOptimizerGroup = PretrainOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()
    block_length: Annotated[Int, Field(ge=2)] | None = None
    """Tokens per training sequence; null = the longest the model holds, at most 1024."""

    @model_validator(mode="after")
    def _keys_agree(self) -> PretrainConfig:
        problems = []
        if self.model.quantization == "nf4":
            problems.append("'model.quantization' = nf4: pretraining changes every weight of the base; set it to none")
        if not self.model.model_name_or_path and (self.block_length or 0) > self.tiny.max_length:
            problems.append(f"'block_length' = {self.block_length} is above 'tiny.max_length' = {self.tiny.max_length}")
        if self.model.model_name_or_path:
            for key, field in TinyModelGroup.model_fields.items():
                if (value := getattr(self.tiny, key)) != field.default:
                    problems.append(
                        f"'tiny.{key}' = {value} is for a new model, but 'model.model_name_or_path' names an "
                        "existing one; leave one out"
                    )
        fail_on(problems)
        return self


class SFTConfig(VerbConfig):
    """Train a policy on answers written by people or models."""

    start_from: PathText | None = None
    """Folder of a policy role to train further; null = a new role on the base."""
    model: ModelGroup
    lora: LoraGroup = LoraGroup()
    data: SFTDataGroup
    optimizer: SFTOptimizerGroup = SFTOptimizerGroup()
    batch: BatchGroup = BatchGroup()
    evaluation: EvaluationGroup = EvaluationGroup()

    @model_validator(mode="after")
    def _keys_agree(self) -> SFTConfig:
        fail_on(adapter_problems(self.model, self.lora, self.start_from))
        return self
