"""Groups of keys that several verbs share. The docstring under a key is its help text.

Three words for sizes: a *rollout* is what PPO collects at once, a *minibatch* is one optimizer step, a *microbatch* is
what fits in memory and never changes the result.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from onebase.config.values import (
    Count,
    Device,
    Float,
    FunctionName,
    Group,
    Int,
    ModuleName,
    NonNegative,
    PathText,
    Positive,
    Share,
    Whole,
    fail_on,
)


class OptionalModelGroup(Group):
    """The base model that all roles share."""

    model_name_or_path: PathText | None = None
    """Folder or hub name of the base model; null = make a new one from the `tiny` keys."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen base; auto = bfloat16 if the hardware computes in it, else float32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4 keeps the frozen base in 4 bits (needs bitsandbytes)."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1; auto = the first GPU, else cpu."""
    chat_template: str | None = None
    """A shipped name (chatml, qwen, llama-3, hh, ...), a path to a Jinja file, or null for the tokenizer's own."""
    layout: Literal["auto", "tree", "separate"] = "auto"
    """tree = one copy of the prompt for its K completions; separate = a row each; auto = tree where it is exact."""
    gradient_checkpointing: bool = False
    """true = recompute each layer in the backward pass instead of keeping it: less memory, a third more time."""


class ModelGroup(OptionalModelGroup):
    """The base model that all roles share."""

    model_name_or_path: PathText
    """Folder or hub name of the base model."""
    shard: bool = False
    """true = spread the base over all processes' devices, for one that does not fit a single device; slower."""

    @model_validator(mode="after")
    def _shard_is_not_quantised(self) -> ModelGroup:
        if self.shard and self.quantization == "nf4":
            raise ValueError(
                "'model.shard' spreads a base of 16 or 32 bits, and 'model.quantization' = nf4 keeps a whole one on "
                "every device, in a quarter of the memory; leave one out"
            )
        return self


class LoraGroup(Group):
    """The adapter of a new role; a saved role keeps its own."""

    r: Whole = 16
    """Rank of the adapter matrices; 0 = full-parameter training, no adapter."""
    alpha: Positive = 32.0
    """The adapter's output is scaled by alpha / r."""
    dropout: Share = 0.0
    """Dropout on the adapter's input; in the tree layout a prompt's K completions share its draw."""
    target_modules: ModuleName | Annotated[list[ModuleName], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter; all-linear = all but the output head."""
    layers: str | Annotated[list[Whole], Field(min_length=1)] = "all"
    """Layers that get an adapter: all, upper-half, upper-quarter, a range "8-15" (inclusive, from 0), or a list."""

    @field_validator("layers")
    @classmethod
    def _layers_are_known(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value not in ("all", "upper-half", "upper-quarter"):
            ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", value)
            if ends is None or int(ends[1]) > int(ends[2] or ends[1]):
                raise ValueError("it should be all, upper-half, upper-quarter, a range like 8-15, or a list of numbers")
        return value


class OptimizerGroup(Group):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices only."""
    warmup_steps: Whole = 0
    """Optimizer steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay at the peak, or fall to 0 by the last step."""
    max_grad_norm: Positive = 1.0
    """Gradients above this norm are scaled down to it."""


class EpochsOptimizerGroup(OptimizerGroup):
    """AdamW and its schedule."""

    num_epochs: Count = 1
    """Passes over the training data."""


class PretrainOptimizerGroup(EpochsOptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-3
    """Peak learning rate."""


class SFTOptimizerGroup(EpochsOptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 2e-4
    """Peak learning rate."""


class RewardOptimizerGroup(EpochsOptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 3e-4
    """Peak learning rate."""


class PPOOptimizerGroup(OptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 2e-4
    """Peak learning rate of the policy."""


class MicrobatchGroup(Group):
    """How much fits in memory."""

    microbatch_tokens: Count | Literal["auto"] = "auto"
    """Tokens in one forward pass; auto = measured on this machine. Changes nothing but the random draws of dropout."""


class BatchGroup(MicrobatchGroup):
    """The size of an optimizer step, and how much fits in memory."""

    minibatch: Count = 16
    """Examples per optimizer step."""


class RankingGroup(Group):
    """How the reward role learns to rank answers."""

    max_pairs: Count = 10
    """At most this many comparisons each time a ranked list is read; 5 answers have C(5, 2) = 10."""
    pooling: Literal["last", "mean"] = "last"
    """Read the score from the hidden state of the completion's last token, or from the mean over its tokens."""
    centering_coefficient: NonNegative = 0.0
    """Weight of the mean squared score in the loss, which keeps scores near 0."""


class PreferenceGroup(Group):
    """Preference optimisation without a reward model."""

    beta: Positive | None = None
    """Pull towards the reference, or inverse temperature; null = the loss's own (0.1; simpo 2; sigmoid_norm 5)."""
    label_smoothing: Annotated[Float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels assumed to be wrong, for sigmoid (conservative), sigmoid_norm, robust and cpo."""
    gamma: NonNegative = 1.0
    """simpo's margin, in units of beta times nats per token."""
    desirable_weight: Positive = 1.0
    """Weight of desirable rows in kto."""
    undesirable_weight: Positive = 1.0
    """Weight of undesirable rows in kto."""
    max_pairs: Count = 10
    """For losses over pairs: at most this many comparisons each time a ranked list is read."""
    reference: Literal["live", "cached"] = "cached"
    """live = compute the reference's log-probs in every step; cached = once before the first, into a file."""


class TinyModelGroup(Group):
    """A new model and its tokenizer, made from scratch when model.model_name_or_path is null."""

    tokenizer: PathText | None = None
    """Folder of an existing tokenizer, whose tokenizer.json may be gzipped; null = train a new one."""
    vocab_size: Annotated[Int, Field(ge=260)] | None = None
    """Size of a new vocabulary, including the 256 bytes and the special tokens; null = 1024."""
    hidden_size: Count = 128
    """Width of the hidden states."""
    num_layers: Count = 4
    """Transformer layers."""
    num_heads: Count = 4
    """Attention heads; hidden_size must be a multiple of twice this."""
    max_length: Annotated[Int, Field(ge=2)] = 256
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _keys_agree(self) -> TinyModelGroup:
        problems = []
        if self.hidden_size % (2 * self.num_heads):  # rotary positions rotate pairs of dimensions
            problems.append(
                f"'tiny.hidden_size' = {self.hidden_size} is not a multiple of twice "
                f"'tiny.num_heads' = {self.num_heads}"
            )
        if self.tokenizer is not None and self.vocab_size is not None:
            problems.append("'tiny.vocab_size' is for a new tokenizer, but 'tiny.tokenizer' has its own; leave one out")
        fail_on(problems)
        return self


class CheckpointGroup(Group):
    """What a stopped or killed run resumes from when the same command is run again."""

    every_minutes: Positive | None = 10.0
    """Minutes between checkpoints; null = none by time."""
    every_steps: Count | None = None
    """Steps (in ppo and rft: rollouts) between checkpoints; null = none by steps."""
    save_total_limit: Count = 2
    """Checkpoints to keep; older ones are removed."""


class EvaluationGroup(Group):
    """Evaluation on held-out data."""

    every_steps: Count | None = None
    """Steps between evaluations; best/ keeps the best roles. null = evaluate at the start and the end only."""


class PromptEvaluationGroup(EvaluationGroup):
    """Evaluation on held-out data."""

    prompts: Count = 64
    """Use at most this many held-out prompts."""
    samples_per_prompt: Count = 1
    """Completions sampled per held-out prompt."""
    judge: FunctionName | None = None
    """A second scoring function, named as in reward.callable and never trained on; decides what best/ keeps."""
