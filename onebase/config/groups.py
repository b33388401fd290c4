"""Groups of keys that several verbs share. The docstring under a key is its help text.

Three words for sizes: a *rollout* is what PPO collects at once, a *minibatch* is one optimizer step, a *microbatch* is
what fits in memory and never changes the result.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator


class Group(BaseModel):
    """A group of keys. Immutable; an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,  # a folder may be called 2026
        protected_namespaces=(),  # people know `model` and `model_name_or_path`
    )


def _one_or_more(value: Any) -> Any:
    return value if isinstance(value, list | tuple) or value is None else [value]


def _whole_number(value: Any) -> Any:
    # Python takes True for 1 and "1_000" for 1000; in YAML neither is a number.
    if isinstance(value, bool | str | bytes) or (isinstance(value, float) and value % 1):
        raise ValueError("it should be a whole number")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool | str | bytes):
        raise ValueError("it should be a number")
    return value


def _path(value: str) -> str:
    if not value.strip():
        raise ValueError("it should be a path, but it is blank")
    if _CONTROL.search(value):
        raise ValueError("it should be a path, but it contains control characters")
    if len(value.encode()) > 4000 or any(len(part.encode()) > 255 for part in value.split("/")):
        raise ValueError("it should be a path, but it is longer than a file system allows")
    if re.match(r"\w[\w+.-]*://[^/]*:[^/]*@", value):  # a run keeps its configuration, and reports show it
        raise ValueError("it should name a database without a password; set PGPASSWORD, or write it into ~/.pgpass")
    return value


def _written(pattern: str, how: str) -> AfterValidator:
    """A check that the whole text matches `pattern`; its error says `how` to write it."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"it should be {how}")
        return value

    return AfterValidator(check)


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Int = Annotated[int, BeforeValidator(_whole_number), Field(lt=2**63)]
"""The type of every integer key: takes `1e3`, but neither `true` nor text."""
Float = Annotated[float, BeforeValidator(_number)]
"""The type of every other numeric key: takes neither `true` nor text."""
Said = Annotated[str, _written(r"(?s).*\S.*", "a text that is not blank")]
"""A text for the model to read."""
PathText = Annotated[str, AfterValidator(_path)]
"""A file or folder; for some keys also a hub name."""

Url = Annotated[
    str,
    _written(
        r"https?://([^\s/@?#:]+|\[[0-9a-fA-F:]+\])(:\d{1,5})?(/[^\s@?#]*)?",
        "a place such as http://127.0.0.1:8000, without a user, a key or a query; a key is named as an environment "
        "variable",
    ),
]
"""Where another program answers; no secret is in it, as configs and logs show it."""
Variable = Annotated[str, _written(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable, not its value")]
"""The name of an environment variable that holds a secret."""

Strings = Annotated[list[str], BeforeValidator(_one_or_more)]
"""A list of strings; a single string is a list of one."""
Paths = Annotated[list[PathText], BeforeValidator(_one_or_more)]
"""A list of files; a single file is a list of one."""

Columns = Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""What a row's keys are read as: the name that is read -> a key of the file, or a template of keys in braces."""

Trackers = Annotated[list[Literal["tensorboard", "trackio", "wandb"]], BeforeValidator(_one_or_more)]

FUNCTION = r"([\w.]+|.+\.py):[\w.]+"
"""How a key names a Python function."""

FunctionName = Annotated[str, _written(FUNCTION, "written module:function or path/to/file.py:function")]

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
    """Raises the problems, one line each; `load_config` puts the file name before every line."""
    if problems:
        raise ValueError("\n".join(problems))


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


class SourceGroup(Group):
    """One source of a mixture: a file, and how much of it is read."""

    path: PathText
    """The file."""
    weight: Positive | None = None
    """Its part among the sources; null = by its number of rows."""
    limit: Count | None = None
    """Read at most this many of its rows."""
    columns: Columns | None = None
    """Its keys to read, if they differ from those of data.columns."""


Sources = Annotated[list[PathText | SourceGroup], BeforeValidator(_one_or_more)]
"""A list of files, some with a weight; a single one is a list of one."""


class ReplayGroup(Group):
    """General data mixed in against forgetting."""

    path: Paths = []
    """Files of general data; empty = none."""
    share: Annotated[Float, Field(gt=0, lt=1)] = 0.1
    """Their share of all training examples."""
    limit: Count | None = None
    """Read at most this many of their rows."""
    columns: Columns | None = None
    """Their keys to read, if they differ from those of data.columns."""

    @model_validator(mode="after")
    def _share_has_data(self) -> ReplayGroup:
        for key in ("share", "limit"):
            if not self.path and (value := getattr(self, key)) != ReplayGroup.model_fields[key].default:
                raise ValueError(
                    f"'data.replay.{key}' = {value} would change nothing without 'data.replay.path'; set it"
                )
        return self


class FilesGroup(Group):
    """The data files, and which rows of them are used."""

    train: Annotated[Sources, Field(min_length=1)]
    """Files, folders, patterns or Hub datasets, in any known format; one may be {path: .., weight: .., limit: ..}."""
    columns: Columns | None = None
    """Keys to read: {prompt: question, completion: "{options} {answer}"}; null = known by their usual names."""
    replay: ReplayGroup = ReplayGroup()
    eval: Paths = []
    """Files for evaluation; empty = hold out a part of `train`."""
    eval_fraction: Annotated[Float, Field(ge=0, le=0.9)] = 0.1
    """Share of `train` held out when `eval` is empty; chosen by content, so the same in every run."""
    limit: Count | None = None
    """Read at most this many rows of `train`."""
    max_dropped_share: Probability = 0.05
    """Stop if more than this share of the rows is unusable."""

    @property
    def files(self) -> list[str]:
        """Every file that is trained on."""
        return [source if isinstance(source, str) else source.path for source in self.train] + self.replay.path

    @model_validator(mode="after")
    def _weights_are_for_all(self) -> FilesGroup:
        weighed = [isinstance(source, SourceGroup) and source.weight is not None for source in self.train]
        if any(weighed) and not all(weighed):
            raise ValueError(
                "'data.train' gives some sources a weight and some none; give all of them one, or none: without, "
                "every row of every source counts once"
            )
        return self


class StreamedGroup(FilesGroup):
    """The data files, and which rows of them are used."""

    streaming: bool | Literal["auto"] = "auto"
    """true = read and tokenize rows as they are needed, not all before the first step; auto = if they have 32 MiB."""


class DataGroup(StreamedGroup):
    """The data files, and which rows of them are used."""

    system_prompt: Said | None = None
    """A system turn for conversations without one; null = none."""
    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    max_completion_tokens: Count | None = None
    """Longest completion, in tokens; longer ones are cut; null = what the model can hold."""
    truncate_prompt: Literal["left", "drop", "error"] = "left"
    """What to do with a prompt that is too long: cut its oldest turns, then its last; leave the row out; or stop."""


class SFTDataGroup(DataGroup):
    """The data files, and which rows of them are used."""

    train_on: Literal["completion", "assistant", "all"] = "completion"
    """Tokens that count in the loss: the last answer, every assistant turn, or all tokens."""


class SampleDataGroup(Group):
    """The prompts to sample from."""

    train: Annotated[Paths, Field(min_length=1)]
    """A file, folder, pattern or Hub dataset, or a list (JSON, JSONL, CSV, Parquet, Arrow, text; also compressed)."""
    columns: Columns | None = None
    """Keys to read: {prompt: question, completion: "{options} {answer}"}; null = known by their usual names."""
    limit: Count | None = None
    """Read at most this many rows."""
    max_dropped_share: Probability = 0.05
    """Stop if more than this share of the rows is unusable."""
    system_prompt: Said | None = None
    """A system turn for conversations without one; null = none."""
    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    truncate_prompt: Literal["left", "drop", "error"] = "left"
    """What to do with a prompt that is too long: cut its oldest turns, then its last; leave the row out; or stop."""
    opening_tokens: Count = 16
    """For plain text: the policy is given this many first tokens of each text to continue."""


class PromptDataGroup(FilesGroup):
    """The data files, and which rows of them are used."""

    system_prompt: Said | None = None
    """A system turn for conversations without one; null = none."""
    max_prompt_tokens: Count | None = None
    """Longest prompt, in tokens; null = what the model can hold."""
    truncate_prompt: Literal["left", "drop", "error"] = "left"
    """What to do with a prompt that is too long: cut its oldest turns, then its last; leave the row out; or stop."""

    opening_tokens: Count = 16
    """For plain text: the policy is given this many first tokens of each text to continue."""


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
