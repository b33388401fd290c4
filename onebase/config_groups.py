"""The groups of keys that verbs share. The line under a key is its help text.

Three words for sizes: a *rollout* is what PPO collects at a time, a *minibatch* is one optimizer step, a *microbatch*
is what fits in memory and never changes the result.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Group(BaseModel):
    """Keys that belong together. Immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # a folder may be called 2026
        protected_namespaces=(),  # `model` and `model_name_or_path` are names people know
    )


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) or value is None else [value]


Strings = Annotated[list[str], BeforeValidator(_one_or_more)]
"""A list of strings; one string alone is a list of one."""

Trackers = Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(_one_or_more)]

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


def fail_on(problems: list[str]) -> None:
    """One line per problem; the reader puts the file name before each."""
    if problems:
        raise ValueError("\n".join(problems))


class OptionalModelGroup(Group):
    """The base model every role stands on."""

    model_name_or_path: str | None = None
    """Folder or hub name of the base model; null makes a new one from the `tiny` keys."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen base; auto = bfloat16 where the hardware computes in it, else float32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4 keeps the frozen base in 4 bits (needs bitsandbytes)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1; auto = the first GPU, else cpu."""
    chat_template: str | None = None
    """A built-in name (plain, hh, chatml), a path to a Jinja file, or null for the tokenizer's own."""
    layout: Literal["auto", "tree", "separate"] = "auto"
    """tree = the prompt once for its K completions; separate = a row each; auto = tree where it is exact."""
    gradient_checkpointing: bool = False
    """true = the backward pass computes each layer again instead of keeping it: less memory, a third more time."""


class ModelGroup(OptionalModelGroup):
    """The base model every role stands on."""

    model_name_or_path: str
    """Folder or hub name of the base model."""


class LoraGroup(Group):
    """The adapter of a new role; a role that goes on from a saved one keeps its adapter's."""

    r: Annotated[int, Field(ge=0)] = 16
    """Rank of the adapter matrices; 0 = full-parameter training, no adapter."""
    alpha: Positive = 32.0
    """The adapter's output is scaled by alpha / r."""
    dropout: Share = 0.0
    """Dropout on the adapter's input; in the tree layout a shared prompt is dropped once for its K completions."""
    target_modules: str | list[str] = "all-linear"
    """Names of the linear layers that get an adapter; all-linear = every one but the output head."""
    layers: str | list[Annotated[int, Field(ge=0)]] = "all"
    """all, upper-half, upper-quarter, a range "8-15" (both ends count, from 0), or a list of numbers."""

    @field_validator("layers")
    @classmethod
    def _layers_are_known(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value not in ("all", "upper-half", "upper-quarter"):
            ends = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
            if ends is None or int(ends[1]) > int(ends[2] or ends[1]):
                raise ValueError("it should be all, upper-half, upper-quarter, a range like 8-15, or a list of numbers")
        return value


class FilesGroup(Group):
    """The files, and what of them is used."""

    train: Annotated[Strings, Field(min_length=1)]
    """One file or a list of files (.jsonl, .json, .txt; .gz too)."""
    eval: Strings = []
    """Files for evaluation; empty = a part of `train` is held out."""
    eval_fraction: Share = 0.1
    """Part of `train` held out when `eval` is empty, by content, so it stays the same from run to run."""
    limit: Count | None = None
    """Read at most this many rows of `train`."""
    max_dropped_share: Probability = 0.05
    """Stop when more than this share of the rows cannot be used."""


class DataGroup(FilesGroup):
    """The files, and what of them is used."""

    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    max_completion_tokens: Count | None = None
    """Longest completion, in tokens; longer ones are cut; null = what the model can hold."""
    truncate_prompt: Literal["error", "left"] = "error"
    """A prompt that is too long: stop with its place, or cut its oldest tokens."""


class SFTDataGroup(DataGroup):
    """The files, and what of them is used."""

    train_on: Literal["completion", "assistant", "all"] = "completion"
    """Tokens that count in the loss: the last answer, every assistant turn, or all of them."""


class SampleDataGroup(Group):
    """The prompts to sample from."""

    train: Annotated[Strings, Field(min_length=1)]
    """One file or a list of files (.jsonl, .json, .txt; .gz too)."""
    limit: Count | None = None
    """Read at most this many rows."""
    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    truncate_prompt: Literal["error", "left"] = "error"
    """A prompt that is too long: stop with its place, or cut its oldest tokens."""
    opening_tokens: Count = 16
    """Where the data is plain text: the policy goes on from the first tokens of each, this many."""


class PromptDataGroup(FilesGroup):
    """The files, and what of them is used."""

    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    truncate_prompt: Literal["error", "left"] = "error"
    """A prompt that is too long: stop with its place, or cut its oldest tokens."""

    opening_tokens: Count = 16
    """Where the data is plain text: the policy goes on from the first tokens of each, this many."""


class OptimizerGroup(Group):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-4
    """Learning rate at its peak."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices alone."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the warm-up: stay, or fall to 0 at the last step."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this norm."""


class EpochsOptimizerGroup(OptimizerGroup):
    """AdamW and its schedule."""

    num_epochs: Count = 1
    """Times the training data is read."""


class PretrainOptimizerGroup(EpochsOptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-3
    """Learning rate at its peak."""


class SFTOptimizerGroup(EpochsOptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 2e-4
    """Learning rate at its peak."""


class PPOOptimizerGroup(OptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 5e-5
    """Learning rate of the policy at its peak."""


class MicrobatchGroup(Group):
    """What fits in memory."""

    microbatch_tokens: Count | Literal["auto"] = "auto"
    """Tokens in one forward pass; auto = found by trying. The result is the same, but for the draw of dropout."""


class BatchGroup(MicrobatchGroup):
    """The size of an optimizer step, and what fits in memory."""

    minibatch: Count = 16
    """Examples of one optimizer step."""


class RewardGroup(Group):
    """The reward model's loss."""

    max_pairs: Count = 10
    """Comparisons taken from one ranked list at a visit, at most; the C(K, 2) of 5 answers are 10."""
    pooling: Literal["last", "mean"] = "last"
    """The score is read at the completion's last token, or from the mean of its hidden states."""
    centering_coefficient: NonNegative = 0.0
    """Weight of the mean square of the scores, which keeps them near 0."""


LOSSES = (
    "sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "step_dpo", "cpo", "simpo", "orpo", "kto", "rrhf",
    "plackett_luce", "nll",
)  # fmt: skip
"""Names of preference losses, as the papers have them; nll is the language-model loss of the best answer."""


class PreferenceGroup(Group):
    """Preference optimisation without a reward model."""

    beta: Positive | None = None
    """Pull to the reference, or inverse temperature; null = the loss's own (0.1; simpo 2; sigmoid_norm 5)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of labels taken to be wrong, for sigmoid (conservative), sigmoid_norm, robust and cpo."""
    gamma: NonNegative = 1.0
    """Margin of simpo, in units of beta times nats per token."""
    desirable_weight: Positive = 1.0
    """Weight of good rows in kto."""
    undesirable_weight: Positive = 1.0
    """Weight of bad rows in kto."""
    max_pairs: Count = 10
    """Comparisons taken from one ranked list at a visit, at most, by losses over pairs."""
    reference: Literal["live", "cached"] = "cached"
    """Log-probs of the reference: in every step, or once before the first and kept in a file beside the run."""


class TinyModelGroup(Group):
    """A new model, made from scratch when model.model_name_or_path is null, and its tokenizer."""

    tokenizer: str | None = None
    """Folder of a tokenizer to use in place of a new one, with its tokenizer.json, which may be gzipped."""
    vocab_size: Annotated[int, Field(ge=260)] | None = None
    """Entries of a new vocabulary, the 256 bytes and the special tokens included; null = 1024."""
    hidden_size: Count = 128
    """Width of the hidden states."""
    num_layers: Count = 4
    """Transformer layers."""
    num_heads: Count = 4
    """Attention heads; divides hidden_size into even parts."""
    max_length: Count = 256
    """Longest sequence, in tokens."""

    @model_validator(mode="after")
    def _keys_agree(self) -> TinyModelGroup:
        problems = []
        if self.hidden_size % (2 * self.num_heads):  # rotary positions turn pairs of numbers
            problems.append(
                f"'tiny.hidden_size' = {self.hidden_size} is not a multiple of twice "
                f"'tiny.num_heads' = {self.num_heads}"
            )
        if self.tokenizer is not None and self.vocab_size is not None:
            problems.append("'tiny.vocab_size' is for a new tokenizer, 'tiny.tokenizer' has its own; leave one out")
        fail_on(problems)
        return self


class CheckpointGroup(Group):
    """What a run that was stopped or killed goes on from: give the same command again."""

    every_minutes: Positive | None = 10.0
    """Minutes between checkpoints; null = none by time."""
    every_steps: Count | None = None
    """Steps (in ppo: rollouts) between checkpoints; null = none by steps."""
    save_total_limit: Count = 2
    """Checkpoints that stay; older ones are removed."""


class EvaluationGroup(Group):
    """What is measured on held-out data."""

    every_steps: Count | None = None
    """Steps between evaluations, the best of which is kept in best/; null = at the start and the end."""


class PromptEvaluationGroup(EvaluationGroup):
    """What is measured on held-out data."""

    prompts: Count = 64
    """Held-out prompts used, at most."""
    samples_per_prompt: Count = 1
    """Completions sampled per held-out prompt, where the verb samples."""
    judge: str | None = None
    """A Python function, written module:function, that scores them too and is not trained on; best/ goes by it."""

    @field_validator("judge")
    @classmethod
    def _judge_is_a_function(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.]+:[\w.]+", value):
            raise ValueError("it should be written module:function")
        return value
