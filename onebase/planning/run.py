"""A run as it is planned: roles, sizes, how often each token is read. Time, memory and money are worked out from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onebase.planning.architecture import Architecture

Phase = Literal["generate", "score", "update"]


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter."""

    rank: int
    layers: tuple[int, ...]
    """The decoder layers it is on, from 0."""
    modules: tuple[str, ...] | None = None
    """Names of the linear layers it is on; None: all."""

    def parameters(self, architecture: Architecture) -> int:
        """Of this adapter on a base of these sizes."""
        return architecture.adapter_parameters(self.rank, self.modules, len(self.layers))


@dataclass(frozen=True, slots=True)
class PlannedRole:
    """A role that the run puts on the base."""

    name: str
    adapter: Adapter | None = None
    head: bool = False
    """Whether it has a scalar head."""
    trains: bool = False
    in_full: bool = False
    """Whether its training changes the base itself."""


@dataclass(frozen=True, slots=True)
class Span:
    """Mean and largest of a number of tokens or completions."""

    mean: float
    longest: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long the examples are, in tokens."""

    prompt: Span
    completion: Span
    tree: Span
    """Prompt and all completions of an example, end to end."""
    completions: Span
    """Completions of an example."""
    counted: float
    """Completion tokens of an example that are learned or measured, on average."""
    examples: int
    """Examples, or prompts, to train on."""
    held_out: int
    source: str
    """Where this comes from, in words."""
    measured: bool
    """Whether the data was read; else these are the limits that the configuration sets."""
    deviation: float = 0.0
    """Of the trees' lengths."""


@dataclass(frozen=True, slots=True)
class Pass:
    """What one role reads or writes in one phase, over the whole run."""

    phase: Phase
    role: str
    kind: Literal["prefill", "decode", "forward", "train"]
    """prefill: prompts before sampling; decode: one token at a time; forward: without gradient; train: with it."""
    tokens: float
    in_steps: bool = True
    """Whether it belongs to the steps; else it evaluates, or measures a reference before the first."""


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A verb's run as its configuration describes it."""

    verb: str
    architecture: Architecture
    dtype: Literal["float32", "bfloat16"]
    """Number format of the base."""
    quantization: Literal["none", "nf4"]
    device: Literal["cpu", "cuda"]
    layout: Literal["tree", "separate"]
    roles: tuple[PlannedRole, ...]
    lengths: Lengths
    minibatch: int
    """Examples of one optimizer step; for ppo and rft, prompts with all their completions."""
    microbatch_tokens: int | None
    """As configured; None: measured on the machine before the first step."""
    steps: int
    """Optimizer steps, all together."""
    passes: tuple[Pass, ...]
    rollouts: int = 0
    """Rollouts of ppo and rft; for best-of, parts of its prompts."""
    rollout_prompts: int = 0
    samples_per_prompt: int = 0
    max_new_tokens: int = 0
    epochs: int = 1
    """Passes over the data, or over each rollout."""
    checkpointing: bool = False
    dropout: bool = False
    """Whether adapters train with dropout, which PEFT applies."""
    evaluated: int = 0
    """Held-out prompts that are sampled at once, times samples for each."""
    starts_new: bool = False
    """Whether the base is made, not loaded."""
    elsewhere: bool = False
    """Whether a server draws the samples."""
    classifier: Architecture | None = None
    """A model of its own that scores (reward.model)."""
    processes: int = 1
    spread: bool = False
    """Whether the base is spread over the processes."""
    parts: tuple[PlannedRun, ...] = ()
    """For iterate: a round's runs, one after the other; its own fields are those of the sampling."""

    @property
    def trained(self) -> tuple[PlannedRole, ...]:
        """The roles that train."""
        return tuple(role for role in self.roles if role.trains)

    @property
    def in_full(self) -> bool:
        """Whether the base itself trains."""
        return any(role.in_full for role in self.roles)

    @property
    def packs(self) -> bool:
        """Whether the packed engine runs the roles, as `engines.engine.packs` decides."""
        return self.architecture.packs and not self.in_full and not (self.dropout and bool(self.trained))

    @property
    def trained_parameters(self) -> int:
        """Of all roles that train."""
        total = 0
        for role in self.trained:
            if role.in_full:
                total += self.architecture.parameters
            elif role.adapter is not None:
                total += role.adapter.parameters(self.architecture)
            total += self.architecture.hidden * role.head
        return total

    @property
    def samples(self) -> int:
        """Completions that the run samples to learn from."""
        if self.parts:
            return sum(part.samples for part in self.parts)
        if self.verb == "best-of":
            return self.lengths.examples * self.samples_per_prompt
        return self.rollouts * self.rollout_prompts * self.samples_per_prompt

    def tokens(self, *phases: Phase) -> float:
        """Tokens read or written in these phases (none named: in all), each pass counted."""
        return sum(each.tokens for each in self.passes if not phases or each.phase in phases)


def supervised_passes(
    role: str,
    lengths: Lengths,
    *,
    steps: int,
    minibatch: int,
    evaluations: int,
    reference: Literal["", "cached", "live"] = "",
    answered: int = 0,
    answer_tokens: int = 0,
) -> tuple[Pass, ...]:
    """The passes of sft, pretrain, reward and dpo.

    Args:
        evaluations: how often the held-out examples are read.
        reference: whether a reference's log-probs are measured: once for all examples, or in every step.
        answered: held-out prompts that are answered before and after. answer_tokens: at most for each.
    """
    tree = lengths.tree.mean
    trained = steps * min(minibatch, max(1, lengths.examples)) * tree
    found = [Pass("update", role, "train", trained)]
    if evaluations and lengths.held_out:
        found.append(Pass("score", role, "forward", evaluations * lengths.held_out * tree, in_steps=False))
    if reference:
        cached = reference == "cached"
        of_training = lengths.examples * tree if cached else trained
        found.append(Pass("score", "reference", "forward", of_training, in_steps=not cached))
        if evaluations and lengths.held_out:
            found.append(Pass("score", "reference", "forward", evaluations * lengths.held_out * tree, in_steps=False))
    if answered:
        found.append(Pass("generate", role, "prefill", 2 * answered * lengths.prompt.mean, in_steps=False))
        found.append(Pass("generate", role, "decode", 2 * answered * answer_tokens, in_steps=False))
    return tuple(found)


def rollout_passes(
    roles: Sequence[PlannedRole],
    lengths: Lengths,
    *,
    prompts: float,
    samples_per_prompt: int,
    epochs: int,
    elsewhere: bool,
    evaluated: float = 0.0,
    measures: bool = True,
    as_sampled: bool = False,
) -> tuple[Pass, ...]:
    """The passes of ppo, rft and best-of over `prompts` prompts.

    Each is sampled from one prefill; reward, policy, reference and critic read its tree once; policy and critic train
    on it `epochs` times.

    Args:
        evaluated: held-out prompts that are sampled and measured besides.
        measures: whether log-probs and values are measured (not in best-of).
        as_sampled: whether the policy's log-probs of a rollout are those it was sampled with.
    """
    trees, found = lengths.tree.mean, []
    for count, in_steps in ((prompts, True), (evaluated, False)):
        if not count:
            continue
        if not (elsewhere and in_steps):  # evaluations are always sampled here
            found.append(Pass("generate", "policy", "prefill", count * lengths.prompt.mean, in_steps))
            drawn = count * samples_per_prompt * lengths.completion.mean
            found.append(Pass("generate", "policy", "decode", drawn, in_steps))
        for role in roles:
            if as_sampled and in_steps and role.name == "policy":
                continue
            if (role.name == "reward" or measures) and (in_steps or role.name != "critic"):
                found.append(Pass("score", role.name, "forward", count * trees, in_steps))
    for role in roles:
        # A critic that is a head stands on the policy's own pass.
        if role.trains and not (role.name == "critic" and role.adapter is None):
            found.append(Pass("update", role.name, "train", epochs * prompts * trees))
    return tuple(found)
