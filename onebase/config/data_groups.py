"""Groups of keys that say which rows are read. The docstring under a key is its help text."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from onebase.config.values import (
    Columns,
    Count,
    Float,
    Group,
    Paths,
    PathText,
    Positive,
    Probability,
    Said,
    one_or_more,
)


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


Sources = Annotated[list[PathText | SourceGroup], BeforeValidator(one_or_more)]
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
