"""What crosses module boundaries: rows in words, examples in tokens, tree batches, rollouts.

Shape letters used everywhere:
    R rows of a batch      T columns of a row         V vocabulary       H hidden size
    N completions          C longest completion       M counted completion tokens, all completions laid end to end
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file, in words: a conversation so far, and K >= 0 answers to it."""

    messages: tuple[Message, ...]
    """The prompt. Empty for plain text, whose `answers` hold the text."""
    answers: tuple[str, ...] = ()
    grades: tuple[float, ...] | None = None
    """One number per answer, higher is better, equal is a tie; None where the row ranks nothing."""
    margin: float | None = None
    """How much better the first answer is, for the margin of the ranking loss."""
    prefix: str | None = None
    """What the turn of every answer begins with, which is part of the prompt: the answers are next steps behind it and
    none of them ends the turn (Step-DPO, Lai et al. 2024). Empty where they are first steps, None for whole answers."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, handed to reward callables."""
    place: str = ""
    """`file:row`, for messages."""
    ended: tuple[bool, ...] | None = None
    """One flag per answer: False where it stops in mid-sentence (a sample at its length limit) and so gets no end
    token. None: all of them ended."""

    notes: tuple[str, ...] = ()
    """What was read otherwise than it is written, in words; said once for all rows."""

    def only(self, chosen: Sequence[int]) -> Row:
        """The row with these of its answers, in this order, and their grades and endings."""
        return replace(
            self,
            answers=tuple(self.answers[k] for k in chosen),
            grades=None if self.grades is None else tuple(self.grades[k] for k in chosen),
            ended=None if self.ended is None else tuple(self.ended[k] for k in chosen),
        )


@dataclass(frozen=True, slots=True)
class LowerStates:
    """What the lowest layers make of some trees, kept because no adapter stands on these layers."""

    num_layers: int
    """How many layers that are."""
    states: Tensor
    """`[T, H]`, the tokens of the trees end to end, in the base's number format; no gradient."""

    def to(self, device: torch.device | str) -> LowerStates:
        return LowerStates(self.num_layers, self.states.to(device))


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and K >= 1 completions in tokens: what one tree is built from."""

    prompt_ids: Sequence[int]
    """At least one token: the first completion token is predicted from the last of these."""
    completions: Sequence[Sequence[int]]
    """K sequences of at least one token, the end token included where the completion ended."""
    counted: Sequence[Sequence[bool]] | None = None
    """Like `completions`; True on tokens that are predicted and counted. None: all of them."""
    grades: Sequence[float] | None = None
    margin: float | None = None
    row: Row | None = None
    lower: LowerStates | None = field(default=None, compare=False, repr=False)
    """Of this tree, where they have been computed."""

    def tokens(self, k: int) -> list[int]:
        """The prompt with its completion `k`."""
        return [*self.prompt_ids, *self.completions[k]]

    @property
    def num_tokens(self) -> int:
        """Tokens of the tree: the prompt once, and every completion."""
        return len(self.prompt_ids) + sum(map(len, self.completions))


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Trees laid in rows, and where each counted completion token is predicted from.

    Worked example, one tree with prompt `p0 p1 p2` and completions `a0 a1 a2`, `b0 b1`:

        input_ids     p0 p1 p2 a0 a1 a2 b0 b1
        position_ids   0  1  2  3  4  5  3  4
        tree           0  0  0  0  0  0  0  0      (-1 on padding)
        branch         0  0  0  1  1  1  2  2
        targets       a0 a1 a2 b0 b1
        source_column  2  3  4  2  6               `p2` predicts both `a0` and `b0`
        token_column   3  4  5  6  7
        completion_index 0 0 0 1 1
        last_column    5  7
    """

    input_ids: Tensor
    """`[R, T]` int64."""
    position_ids: Tensor
    """`[R, T]` int64."""
    tree: Tensor
    """`[R, T]` int64, which tree of the row; -1 on padding."""
    branch: Tensor
    """`[R, T]` int64, 0 on the prompt, 1..K on the completions."""
    targets: Tensor
    """`[M]` int64, the counted completion tokens."""
    source_row: Tensor
    """`[M]` int64."""
    source_column: Tensor
    """`[M]` int64: the hidden state at `[source_row, source_column]` predicts `targets`."""
    token_column: Tensor
    """`[M]` int64: where the counted token itself stands, in row `source_row`."""
    completion_index: Tensor
    """`[M]` int64 in 0..N-1, never decreasing."""
    last_row: Tensor
    """`[N]` int64."""
    last_column: Tensor
    """`[N]` int64: the last token of each completion, counted or not."""
    example_index: Tensor
    """`[N]` int64: which of the examples given each completion belongs to."""
    lower: LowerStates | None = None
    """Of all trees, where every example has them."""

    @property
    def num_completions(self) -> int:
        return self.last_row.numel()

    def to(self, device: torch.device | str) -> TreeBatch:
        there = {f.name: getattr(self, f.name) for f in fields(self)}
        return TreeBatch(**{name: value.to(device) for name, value in there.items() if value is not None})


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """What a reward source is given: K completions of each prompt, in tokens and in words.

    `prompts` and `completions` hold one entry per completion (a prompt is repeated K times), in the order of the
    examples and their completions; so do the lists in `columns`.
    """

    examples: Sequence[Example]
    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class RewardSource(Protocol):
    """Anything that scores completions: a reward role, a callable, another model."""

    name: str

    def score(self, request: ScoreRequest) -> Tensor:
        """Returns `[N]` float32 on CPU, one score per completion, higher is better."""
        ...
