"""What a planned run asks of a machine: passes, operations and bytes, by phase. Nothing here knows how fast one is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from onebase.engines.budget import MOST_TOKENS
from onebase.planning.operations import (
    Shape,
    Tokens,
    backward_operations,
    forward_operations,
    tokens_of,
)
from onebase.planning.run import Pass, PlannedRole, PlannedRun
from onebase.planning.weights import NUMBER_BYTES
from onebase.sampling.local import MOST_ROWS
from onebase.training.plan import NF4_BYTES_PER_WEIGHT

Kind = Literal["train", "train in full", "forward", "forward in full", "decode"]
"""What a machine has a rate for. "in full": transformers' own layers, where our loop over them cannot run."""
KINDS: tuple[Kind, ...] = ("train", "train in full", "forward", "forward in full", "decode")

HIDDEN_MOVED, INNER_MOVED, LOGITS_MOVED = 24, 8, 24
"""Numbers that a layer reads and writes around its matrix products for each token: vectors as wide as the hidden
state (two norms, two sums, queries, keys, values, rotation, attention) and as wide as the unit between; and the bytes
for a logit on its way to a log-prob."""
BACKWARD_MOVES = 2.0
"""Times as much again in the backward pass."""
DRAWN_BYTES = 60
"""Bytes moved for each entry of the vocabulary when a token is drawn: logits, log-probs, a distribution in float64."""
OPTIMIZER_BYTES = 40
"""Moved for each trained parameter in a step: AdamW reads four numbers of four bytes and writes three, clipping reads
the gradient twice and writes it once."""


@dataclass(frozen=True, slots=True)
class Work:
    """What some passes of one kind do."""

    passes: float = 0.0
    """Microbatches, or tokens decoded one after the other."""
    layers: float = 0.0
    """Decoder layers run, over all passes."""
    operations: float = 0.0
    moved: float = 0.0
    """Bytes between memory and cores: weights once for each pass, activations, keys and values."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.passes + other.passes,
            self.layers + other.layers,
            self.operations + other.operations,
            self.moved + other.moved,
        )

    def __mul__(self, times: float) -> Work:
        return Work(self.passes * times, self.layers * times, self.operations * times, self.moved * times)


@dataclass(frozen=True, slots=True)
class Item:
    """One entry of a run's work."""

    phase: Literal["generate", "score", "update", "evaluate"]
    kind: Kind
    work: Work
    in_steps: bool
    """Whether it belongs to the steps; else it comes before the first or after the last."""


def shape_of(run: PlannedRun, role: PlannedRole) -> Shape:
    """The base as this role runs it."""
    return Shape(run.architecture, role.adapter, role.in_full)


def forward_work(
    shape: Shape, tokens: Tokens, *, passes: float, number_bytes: float, output_layer: bool, weight_bytes: float
) -> Work:
    """A pass without gradient.

    moved = passes x weights + tokens x layers x (24 hidden + 8 inner) x bytes a number + counted x vocabulary x 24

    Args:
        weight_bytes: of one weight, as it is kept and read.
    """
    weights = shape.trunk_parameters + shape.lora_parameters + (shape.head_parameters if output_layer else 0)
    return Work(
        passes,
        passes * shape.base.layers,
        forward_operations(shape, tokens, adapter=True, output_layer=output_layer),
        passes * weights * weight_bytes + _activations(shape, tokens, number_bytes, output_layer),
    )


def _activations(shape: Shape, tokens: Tokens, number_bytes: float, output_layer: bool) -> float:
    of_layer = HIDDEN_MOVED * shape.base.hidden + INNER_MOVED * shape.base.intermediate
    logits = tokens.counted * shape.base.vocabulary * LOGITS_MOVED if output_layer else 0.0
    return tokens.real * shape.base.layers * of_layer * number_bytes + logits


def train_work(
    shape: Shape,
    tokens: Tokens,
    *,
    passes: float,
    number_bytes: float,
    output_layer: bool,
    weight_bytes: float,
    recomputes: bool = False,
) -> Work:
    """A pass forward and backward; with `recomputes` each layer runs forward once more."""
    forward = forward_work(
        shape,
        tokens,
        passes=passes,
        number_bytes=number_bytes,
        output_layer=output_layer,
        weight_bytes=weight_bytes,
    )
    trained = shape.trained_layers / shape.base.layers
    again = passes * shape.trunk_parameters * trained * weight_bytes
    activations = _activations(shape, tokens, number_bytes, output_layer)
    more = forward_operations(shape, tokens, adapter=True, output_layer=False) if recomputes else 0.0
    return Work(
        forward.passes,
        forward.layers + passes * (shape.base.layers if recomputes else 0),
        forward.operations + backward_operations(shape, tokens, output_layer=output_layer) + more,
        forward.moved + again + BACKWARD_MOVES * trained * activations,
    )


def decode_work(
    shape: Shape,
    *,
    rows: float,
    at_once: float,
    prompt: float,
    new_tokens: float,
    longest: float,
    number_bytes: float,
    weight_bytes: float,
) -> Work:
    """Completions drawn token by token; the first of each comes from the pass over its prompt.

    steps = rows / rows at once x (longest - 1)
    moved = steps x weights + tokens x (keys and values so far + 60 vocabulary)

    Args:
        rows: completions in all. at_once: decoded together.
        new_tokens: mean of a completion. longest: of those decoded together.
    """
    steps = rows / max(1.0, min(at_once, rows)) * max(0.0, longest - 1)
    drawn = rows * max(0.0, new_tokens - 1)
    pairs = drawn * (prompt + new_tokens / 2)
    kept = 2 * shape.base.layers * shape.base.kv_heads * shape.base.head_size * number_bytes
    weights = shape.trunk_parameters + shape.lora_parameters + shape.head_parameters
    return Work(
        steps,
        steps * shape.base.layers,
        forward_operations(shape, Tokens(drawn, pairs, drawn), adapter=True, output_layer=True),
        steps * weights * weight_bytes + pairs * kept + drawn * shape.base.vocabulary * DRAWN_BYTES,
    )


def work_of(run: PlannedRun) -> list[Item]:
    """A run's work, in the order of its passes; that of its parts, for one that has parts."""
    if run.parts:
        return [item for part in run.parts for item in work_of(part)]
    roles = {role.name: role for role in run.roles}
    found: list[Item] = []
    for each in run.passes:
        shape = shape_of(run, roles[each.role]) if each.role in roles else Shape(run.architecture)
        has_head = each.role in roles and roles[each.role].head
        work, kind = _work(run, each, shape, output_layer=not has_head)
        found.append(Item(phase_of(run, each), kind, work, each.in_steps))
    if trained := run.trained_parameters:
        kind = "train in full" if run.in_full else "train"
        moved = Work(moved=run.steps * trained * float(OPTIMIZER_BYTES))
        found.append(Item("update", kind, moved, in_steps=True))
    return found


def _work(run: PlannedRun, each: Pass, shape: Shape, *, output_layer: bool) -> tuple[Work, Kind]:
    lengths, number = run.lengths, NUMBER_BYTES[run.dtype]
    # NF4: every pass reads the 4 bits, writes the expanded weights and reads them again.
    weight = NF4_BYTES_PER_WEIGHT + 2 * number if run.quantization == "nf4" else number
    if each.kind == "decode":
        new, longest = max(1.0, lengths.completion.mean), float(lengths.completion.longest)
        together = run.rollout_prompts * run.samples_per_prompt if each.in_steps else run.evaluated
        if not run.rollouts:  # the greedy answers of the other verbs, whose length is not that of the data
            new = longest = max(1.0, float(run.max_new_tokens))
        rows = each.tokens / new
        work = decode_work(
            shape,
            rows=rows,
            at_once=min(together or rows, MOST_ROWS),
            prompt=lengths.prompt.mean,
            new_tokens=new,
            longest=max(new, longest),
            number_bytes=number,
            weight_bytes=weight,
        )
        return work, "decode"
    if each.kind == "prefill":
        count = each.tokens / max(1.0, lengths.prompt.mean)
        tokens = tokens_of(lengths.prompt.mean, []) * count
        tokens = replace(tokens, counted=count)
        passes = max(1.0, float(run.rollouts if each.in_steps else 2), each.tokens / MOST_TOKENS[run.device])
    else:
        tokens = tree_tokens(run) * (each.tokens / max(1e-9, lengths.tree.mean))
        passes = _microbatches(run, each)
        if not run.packs:
            tokens = tokens * padding(run)
    common = {"passes": passes, "number_bytes": number, "weight_bytes": weight}
    if each.kind == "train":
        work = train_work(shape, tokens, output_layer=output_layer, recomputes=run.checkpointing, **common)
        return work, "train" if run.packs else "train in full"
    return forward_work(shape, tokens, output_layer=output_layer, **common), (
        "forward" if run.packs else "forward in full"
    )


def tree_tokens(run: PlannedRun) -> Tokens:
    """The counts of one example of mean length; in the layout `separate` its prompt is read for every completion.

    Pairs grow with the square of a length, and the mean of squares is the square of the mean plus the variance.
    """
    lengths = run.lengths
    count, prompt, completion = lengths.completions.mean, lengths.prompt.mean, lengths.completion.mean
    if run.layout == "separate":
        tokens = tokens_of(prompt, [completion]) * count
    else:
        whole, rest = divmod(count, 1)
        tokens = tokens_of(prompt, [completion] * int(whole) + ([completion * rest] if rest > 1e-6 else []))
    spread = 1 + (lengths.deviation / max(1e-9, lengths.tree.mean)) ** 2
    return Tokens(tokens.real, tokens.pairs * spread, lengths.counted)


def padding(run: PlannedRun) -> float:
    """How many times its tokens a padded microbatch holds: its longest row over the mean.

    The largest of m normal lengths lies about sqrt(2 ln m) deviations above their mean.
    """
    lengths = run.lengths
    rows = max(1, run.minibatch)
    longest = lengths.tree.mean + lengths.deviation * math.sqrt(2 * math.log(rows))
    return max(1.0, min(longest, float(lengths.tree.longest)) / max(1e-9, lengths.tree.mean))


def _microbatches(run: PlannedRun, each: Pass) -> float:
    """How many microbatches a pass is split into, over the whole run."""
    budget = run.microbatch_tokens or MOST_TOKENS[run.device]
    tree = max(1e-9, run.lengths.tree.mean)
    trees = each.tokens / tree
    together = trees
    if each.in_steps:  # the others run over all held-out examples at once
        together = float(run.minibatch if each.kind == "train" or not run.rollouts else run.rollout_prompts)
    together = max(1.0, min(together, trees))
    fit = max(1.0, budget // tree)
    return trees / together * math.ceil(together / fit - 1e-9)


def phase_of(run: PlannedRun, each: Pass) -> Literal["generate", "score", "update", "evaluate"]:
    """The phase that a pass is counted in: its own, or `evaluate` where it belongs to no step.

    A reference's pass over the training examples before the first step is scoring all the same.
    """
    over_all = each.tokens >= 0.999 * run.lengths.examples * run.lengths.tree.mean
    cached = each.role == "reference" and not run.rollouts and over_all
    return each.phase if each.in_steps or cached else "evaluate"
