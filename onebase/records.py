"""Records that cross module boundaries: rows in words, prompts and examples in tokens, trees and batches, scores.

Shape letters used everywhere:
    T tokens of a batch, its trees end to end          V vocabulary       H hidden size
    N completions          C longest completion        M counted completion tokens, all completions end to end
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from onebase.transfer import to_device


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that an assistant turn calls."""

    name: str
    arguments: str
    """An object as JSON text, so that calls can be compared and hashed."""
    id: str = ""
    """What the turn with the result names; empty if the file has none."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user`, `assistant`, or `tool` for what a called function returned."""
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    """What an assistant turn calls after its content."""
    name: str = ""
    """The function that a `tool` turn's result is from; empty if the file does not say."""
    call_id: str = ""
    """The call that a `tool` turn answers; empty if the file does not say."""

    @property
    def text(self) -> str:
        """The content and the calls as one text, for people and for verifiers; no template writes it."""
        calls = (
            f'{{"name": {json.dumps(c.name, ensure_ascii=False)}, "arguments": {c.arguments}}}' for c in self.tool_calls
        )
        return "\n".join((*filter(None, [self.content]), *calls))


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a data file, in words: a conversation and K >= 0 answers to it."""

    messages: tuple[Message, ...]
    """The prompt. Empty for plain text, whose `answers` hold the text."""
    answers: tuple[str, ...] = ()
    grades: tuple[float, ...] | None = None
    """One number per answer: higher is better, equal is a tie; None if the row ranks nothing."""
    margin: float | None = None
    """How much better the first answer is: the margin of the ranking loss."""
    prefix: str | None = None
    """The beginning of every answer's turn, which belongs to the prompt: the answers are the next steps after it, and
    none ends the turn (Step-DPO, Lai et al. 2024). Empty if they are first steps, None for whole answers."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, handed to reward callables."""
    place: str = ""
    """`file:row`, for messages."""
    ended: tuple[bool, ...] | None = None
    """One flag per answer: False if it stops in mid-sentence (a sample at its length limit) and so gets no end token.
    None: all ended."""

    notes: tuple[str, ...] = ()
    """What was read differently from how it is written, in words; printed once for all rows."""
    tools: tuple[str, ...] = ()
    """The functions the assistant may call, each defined as JSON text: `{"type": "function", "function": {..}}`."""
    calls: tuple[tuple[ToolCall, ...], ...] | None = None
    """What each answer calls after its text, which may be empty then; None if no answer calls anything."""
    layout: str = field(default="", compare=False)
    """How the file's rows were read: the name of their layout."""
    source: int = 0
    """Which source of a mixture it came from, counted from 0."""

    def answer(self, k: int) -> Message:
        """Answer `k` as the turn it would be."""
        return Message("assistant", self.answers[k], () if self.calls is None else self.calls[k])

    def only(self, chosen: Sequence[int]) -> Row:
        """The row with only these answers, in this order, and their grades and endings."""
        return replace(
            self,
            answers=tuple(self.answers[k] for k in chosen),
            grades=None if self.grades is None else tuple(self.grades[k] for k in chosen),
            ended=None if self.ended is None else tuple(self.ended[k] for k in chosen),
            calls=None if self.calls is None else tuple(self.calls[k] for k in chosen),
        )


@dataclass(frozen=True, slots=True)
class LowerStates:
    """The lowest layers' output for some trees, kept because no adapter stands on these layers."""

    num_layers: int
    """How many layers the states have passed."""
    states: Tensor
    """`[T, H]`, the trees' tokens end to end, in the base's number format; no gradient."""

    def to(self, device: torch.device | str) -> LowerStates:
        return LowerStates(self.num_layers, to_device(self.states, device))


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt in tokens, to sample completions for."""

    ids: Sequence[int]
    """At least one token."""
    row: Row | None = None

    def with_completions(self, completions: Sequence[Sequence[int]]) -> Example:
        """Joins this prompt and these completions into an example."""
        return Example(self.ids, list(completions), row=self.row)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and K >= 1 completions in tokens, from which one tree is built."""

    prompt_ids: Sequence[int]
    """At least one token: the last one predicts the first token of each completion."""
    completions: Sequence[Sequence[int]]
    """K sequences of at least one token, including the end token if the completion ended."""
    counted: Sequence[Sequence[bool]] | None = None
    """Shaped like `completions`; True on tokens that are predicted and counted. None: all are."""
    grades: Sequence[float] | None = None
    margin: float | None = None
    row: Row | None = None
    tree: Tree | None = field(default=None, compare=False, repr=False)
    """The example's tree, if it was laid out ahead for many passes (`data.tree.laid`)."""

    def tokens(self, k: int) -> list[int]:
        """The prompt followed by completion `k`."""
        return [*self.prompt_ids, *self.completions[k]]

    @property
    def num_tokens(self) -> int:
        """Tokens in the tree: the prompt once, plus every completion."""
        return len(self.prompt_ids) + sum(map(len, self.completions))

    @property
    def num_counted(self) -> int:
        """Completion tokens that are predicted and counted."""
        return sum(map(len, self.completions)) if self.counted is None else sum(map(sum, self.counted))


@dataclass(frozen=True, slots=True)
class Tree:
    """One example laid end to end, its prompt once. Fields as in `TreeBatch`, counted from the tree's first token."""

    input_ids: Tensor
    position_ids: Tensor
    branch: Tensor
    targets: Tensor
    source: Tensor
    token: Tensor
    completion_index: Tensor
    first: Tensor
    last: Tensor
    longest: int
    """Tokens in the prompt and the longest completion together."""
    lower: LowerStates | None = None
    """This tree's hidden states from the lowest layers, if precomputed."""


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """Trees laid end to end, and where each counted completion token is predicted from.

    Worked example, one tree with prompt `p0 p1 p2` and completions `a0 a1 a2`, `b0 b1`:

        input_ids     p0 p1 p2 a0 a1 a2 b0 b1
        position_ids   0  1  2  3  4  5  3  4
        tree           0  0  0  0  0  0  0  0
        branch         0  0  0  1  1  1  2  2
        targets       a0 a1 a2 b0 b1
        source         2  3  4  2  6               `p2` predicts both `a0` and `b0`
        token          3  4  5  6  7
        completion_index 0 0 0 1 1
        first          3  6
        last           5  7
    """

    input_ids: Tensor
    """`[T]` int64."""
    position_ids: Tensor
    """`[T]` int64."""
    tree: Tensor
    """`[T]` int64, the tree each token is in."""
    branch: Tensor
    """`[T]` int64, 0 on the prompt, 1..K on the completions."""
    targets: Tensor
    """`[M]` int64, the counted completion tokens."""
    source: Tensor
    """`[M]` int64: the place whose hidden state predicts the target."""
    token: Tensor
    """`[M]` int64: the counted token's own place."""
    completion_index: Tensor
    """`[M]` int64 in 0..N-1, never decreasing."""
    first: Tensor
    """`[N]` int64: the place of each completion's first token."""
    last: Tensor
    """`[N]` int64: the place of each completion's last token, counted or not."""
    tree_index: Tensor
    """`[N]` int64: the tree each completion belongs to."""
    start: Tensor
    """`[B]` int64: the place where each tree begins."""
    prompt_length: Tensor
    """`[B]` int64: tokens in each tree's prompt."""
    tree_lengths: tuple[int, ...]
    """Tokens in each tree. These three are plain numbers, so that laying out a batch never waits for its device."""
    branches: tuple[int, ...]
    """Completions in each tree."""
    longest: int
    """Tokens in the longest prompt and completion together."""
    lower: LowerStates | None = None
    """All trees' hidden states from the lowest layers, if precomputed for every tree."""

    @property
    def num_completions(self) -> int:
        return self.last.numel()

    def to(self, device: torch.device | str) -> TreeBatch:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        there: dict[str, Any] = {
            name: to_device(value, device) for name, value in given.items() if isinstance(value, Tensor)
        }
        return replace(self, **there, lower=None if self.lower is None else self.lower.to(device))


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A reward source's input: K completions of each prompt, in tokens and in words.

    `prompts` and `completions` hold one entry per completion (a prompt is repeated K times), in the order of the
    examples and their completions; so do the lists in `columns`.
    """

    examples: Sequence[Example]
    prompts: Sequence[str]
    completions: Sequence[str]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """A reward source's scores for N completions."""

    total: Tensor
    """`[N]` float32 on CPU, higher is better."""
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    """The total's components by name, each `[N]`; logged as `rewards/<name>/mean`. Empty for a single source."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Why a completion could not be judged, by its index; its total is then whatever the source gives failures."""
    right: Tensor | None = None
    """`[N]` bool: whether the answer is right by every verifier that decides; None if none decides."""
    answers: Sequence[str | None] | None = None
    """The answer found in each completion by the first verifier that decides; None if none decides."""
    notes: Mapping[int, str] = field(default_factory=dict)
    """Why a completion got its score, by its index, where its verifiers say so."""

    def only(self, chosen: Sequence[int]) -> Scores:
        """The scores of these completions, in this order."""
        return Scores(
            self.total[list(chosen)],
            {name: part[list(chosen)] for name, part in self.parts.items()},
            {new: self.failures[old] for new, old in enumerate(chosen) if old in self.failures},
            None if self.right is None else self.right[list(chosen)],
            None if self.answers is None else [self.answers[old] for old in chosen],
            {new: self.notes[old] for new, old in enumerate(chosen) if old in self.notes},
        )


class RewardSource(Protocol):
    """Anything that scores completions: a reward role, a callable, another model."""

    name: str

    def score(self, request: ScoreRequest) -> Scores:
        """Returns one score per completion."""
        ...
