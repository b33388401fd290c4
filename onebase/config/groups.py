"""The groups of keys that verbs share. The line under a key is its help text.

Three words for sizes: a *rollout* is what PPO collects at a time, a *minibatch* is one optimizer step, a *microbatch*
is what fits in memory and never changes the result.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


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


def _whole_number(value: Any) -> Any:
    # Python counts True as 1 and reads "1_000" as a number; YAML says that these are no numbers.
    if isinstance(value, bool | str | bytes) or (isinstance(value, float) and value % 1):
        raise ValueError("it should be a whole number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise ValueError("it should be a number")
    return value


def _path(value: str) -> str:
    if not value.strip():
        raise ValueError("it should be a path, and it is blank")
    if _CONTROL.search(value):
        raise ValueError("it should be a path, and it holds control characters")
    if len(value.encode()) > 4000 or any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError("it should be a path, and it is longer than a file system takes")
    return value


def _written(pattern: str, how: str) -> AfterValidator:
    """A check that all of a text matches, which says how it should be written."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"it should be {how}")
        return value

    return AfterValidator(check)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Int = Annotated[int, BeforeValidator(_whole_number), Field(lt=2**63)]
"""Every whole number among the keys: `true` and text are none; `1e3` is one."""
Float = Annotated[float, BeforeValidator(_number)]
"""Every other number among the keys: `true` and text are none."""
PathText = Annotated[str, AfterValidator(_path)]
"""A file or a folder; in places also a hub name."""

Strings = Annotated[list[str], BeforeValidator(_one_or_more)]
"""A list of strings; one string alone is a list of one."""
Paths = Annotated[list[PathText], BeforeValidator(_one_or_more)]
"""A list of files; one alone is a list of one."""

Trackers = Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(_one_or_more)]

FUNCTION = r"([\w.]+|.+\.py):[\w.]+"
"""How a Python function is named."""

DEVICES = r"auto|cpu|mps|(cuda|xpu|npu)(:\d{1,3})?"
Device = Annotated[str, _written(DEVICES, "auto, cpu, cuda or cuda:1")]
ModuleName = Annotated[str, _written(r"[^\s\x00-\x1f]+", "the name of a module, such as q_proj")]

Count = Annotated[Int, Field(ge=1)]
Whole = Annotated[Int, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, lt=1)]
NonNegative = Annotated[Float, Field(ge=0)]
Positive = Annotated[Float, Field(gt=0)]
Probability = Annotated[Float, Field(ge=0, le=1)]


def fail_on(problems: list[str]) -> None:
    """One line per problem; the reader puts the file name before each."""
    if problems:
        raise ValueError("\n".join(problems))


class OptionalModelGroup(Group):
    """The base model every role stands on."""

    model_name_or_path: PathText | None = None
    """Folder or hub name of the base model; null makes a new one from the `tiny` keys."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the frozen base; auto = bfloat16 where the hardware computes in it, else float32."""
    quantization: Literal["none", "nf4"] = "none"
    """nf4 keeps the frozen base in 4 bits (needs bitsandbytes)."""
    device: Device = "auto"
    """auto, cpu, cuda, cuda:1; auto = the first GPU, else cpu."""
    chat_template: str | None = None
    """A built-in name (plain, hh, chatml), a path to a Jinja file, or null for the tokenizer's own."""
    layout: Literal["auto", "tree", "separate"] = "auto"
    """tree = the prompt once for its K completions; separate = a row each; auto = tree where it is exact."""
    gradient_checkpointing: bool = False
    """true = the backward pass computes each layer again instead of keeping it: less memory, a third more time."""


class ModelGroup(OptionalModelGroup):
    """The base model every role stands on."""

    model_name_or_path: PathText
    """Folder or hub name of the base model."""


class LoraGroup(Group):
    """The adapter of a new role; a saved role that trains further keeps its own."""

    r: Whole = 16
    """Rank of the adapter matrices; 0 = full-parameter training, no adapter."""
    alpha: Positive = 32.0
    """The adapter's output is scaled by alpha / r."""
    dropout: Share = 0.0
    """Dropout on the adapter's input; in the tree layout a shared prompt is dropped once for its K completions."""
    target_modules: ModuleName | Annotated[list[ModuleName], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get an adapter; all-linear = every one but the output head."""
    layers: str | Annotated[list[Whole], Field(min_length=1)] = "all"
    """all, upper-half, upper-quarter, a range "8-15" (both ends count, from 0), or a list of numbers."""

    @field_validator("layers")
    @classmethod
    def _layers_are_known(cls, value: str | list[int]) -> str | list[int]:
        if isinstance(value, str) and value not in ("all", "upper-half", "upper-quarter"):
            ends = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", value)
            if ends is None or int(ends[1]) > int(ends[2] or ends[1]):
                raise ValueError("it should be all, upper-half, upper-quarter, a range like 8-15, or a list of numbers")
        return value


class FilesGroup(Group):
    """The files, and what of them is used."""

    train: Annotated[Paths, Field(min_length=1)]
    """One file or a list of files (.jsonl, .json, .txt; .gz too)."""
    eval: Paths = []
    """Files for evaluation; empty = a part of `train` is held out."""
    eval_fraction: Annotated[Float, Field(ge=0, le=0.9)] = 0.1
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
    truncate_prompt: Literal["left", "drop", "error"] = "left"
    """A prompt that is too long: cut its oldest turns and then tokens, leave the row out, or stop with its place."""


class SFTDataGroup(DataGroup):
    """The files, and what of them is used."""

    train_on: Literal["completion", "assistant", "all"] = "completion"
    """Tokens that count in the loss: the last answer, every assistant turn, or all of them."""


class SampleDataGroup(Group):
    """The prompts to sample from."""

    train: Annotated[Paths, Field(min_length=1)]
    """One file or a list of files (.jsonl, .json, .txt; .gz too)."""
    limit: Count | None = None
    """Read at most this many rows."""
    max_dropped_share: Probability = 0.05
    """Stop when more than this share of the rows cannot be used."""
    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    truncate_prompt: Literal["left", "drop", "error"] = "left"
    """A prompt that is too long: cut its oldest turns and then tokens, leave the row out, or stop with its place."""
    opening_tokens: Count = 16
    """Where the data is plain text: the policy continues the first tokens of each, this many."""


class PromptDataGroup(FilesGroup):
    """The files, and what of them is used."""

    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    truncate_prompt: Literal["left", "drop", "error"] = "left"
    """A prompt that is too long: cut its oldest turns and then tokens, leave the row out, or stop with its place."""

    opening_tokens: Count = 16
    """Where the data is plain text: the policy continues the first tokens of each, this many."""


class OptimizerGroup(Group):
    """AdamW and its schedule."""

    learning_rate: Positive = 1e-4
    """Learning rate at its peak."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay, on matrices alone."""
    warmup_steps: Whole = 0
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


class RewardOptimizerGroup(EpochsOptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 3e-4
    """Learning rate at its peak."""


class PPOOptimizerGroup(OptimizerGroup):
    """AdamW and its schedule."""

    learning_rate: Positive = 2e-4
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
    "sigmoid",
    "sigmoid_norm",
    "robust",
    "hinge",
    "ipo",
    "step_dpo",
    "cpo",
    "simpo",
    "orpo",
    "kto",
    "rrhf",
    "plackett_luce",
    "nll",
)
"""Names of preference losses, as the papers have them; nll is the language-model loss of the best answer."""

_AGAINST_REFERENCE = {"sigmoid", "sigmoid_norm", "robust", "hinge", "ipo", "step_dpo"}
_OVER_PAIRS = _AGAINST_REFERENCE | {"cpo", "simpo", "orpo"}
READ_BY = {
    "beta": _OVER_PAIRS - {"orpo"} | {"kto", "plackett_luce"},
    "label_smoothing": {"sigmoid", "sigmoid_norm", "robust", "cpo", "step_dpo"},
    "gamma": {"simpo"},
    "desirable_weight": {"kto"},
    "undesirable_weight": {"kto"},
    "max_pairs": _OVER_PAIRS,
    "reference": _AGAINST_REFERENCE | {"kto", "plackett_luce"},
}
"""The keys of `preference` that only some losses read, and which."""


class PreferenceGroup(Group):
    """Preference optimisation without a reward model."""

    beta: Positive | None = None
    """Pull to the reference, or inverse temperature; null = the loss's own (0.1; simpo 2; sigmoid_norm 5)."""
    label_smoothing: Annotated[Float, Field(ge=0, lt=0.5)] = 0.0
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

    tokenizer: PathText | None = None
    """Folder of a tokenizer to use in place of a new one, with its tokenizer.json, which may be gzipped."""
    vocab_size: Annotated[Int, Field(ge=260)] | None = None
    """Entries of a new vocabulary, the 256 bytes and the special tokens included; null = 1024."""
    hidden_size: Count = 128
    """Width of the hidden states."""
    num_layers: Count = 4
    """Transformer layers."""
    num_heads: Count = 4
    """Attention heads; divides hidden_size into even parts."""
    max_length: Annotated[Int, Field(ge=2)] = 256
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
    """What a stopped or killed run resumes from: give the same command again."""

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
    """A Python function, named as in reward.callable, that scores them too and is not trained on; best/ goes by it."""

    @field_validator("judge")
    @classmethod
    def _judge_is_a_function(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(FUNCTION, value):
            raise ValueError("it should be written module:function or path/to/file.py:function")
        return value
