"""Counts the operations a stage's mathematics needs, which even a perfect implementation could not avoid.

A multiplication and an addition are two operations. Matrix products and attention on real tokens count; padding,
recomputation to save memory, norms, activations and the optimizer do not. Where an adapter trains, the base's weights
are frozen, so its backward pass computes no weight gradients and costs as much as its forward pass, not twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onebase.planning.architecture import Architecture
from onebase.planning.run import Adapter

INPUTS_ALONE = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn")
"""In the lowest layer that trains no gradient passes through these weights, as nothing below needs one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A base run as one of its roles."""

    base: Architecture
    adapter: Adapter | None = None
    in_full: bool = False
    """Whether the base's own weights train."""

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer, those in matrix products."""
        return sum(linear.inputs * linear.outputs for linear in self.base.linear)

    @property
    def trunk_parameters(self) -> int:
        """Parameters in matrix products, without the output layer."""
        return self.base.layers * self.layer_parameters

    @property
    def head_parameters(self) -> int:
        """Parameters of the output layer, also where it is the embedding."""
        return self.base.hidden * self.base.vocabulary

    @property
    def lora_parameters(self) -> int:
        return self.adapter.parameters(self.base) if self.adapter is not None else 0

    @property
    def trained_layers(self) -> int:
        """Decoder layers that a gradient passes through: from the top down to the lowest that trains."""
        return self.base.layers - (min(self.adapter.layers, default=0) if self.adapter is not None else 0)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The counts of prompts and completions that determine operations."""

    real: float = 0
    """Tokens of prompts, once each, and completions."""
    pairs: float = 0
    """Pairs of a token and one it attends to, itself included."""
    counted: float = 0
    """Tokens whose log-prob is needed."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.real + other.real, self.pairs + other.pairs, self.counted + other.counted)

    def __mul__(self, times: float) -> Tokens:
        return Tokens(self.real * times, self.pairs * times, self.counted * times)


def tokens_of(prompt: float, completions: Iterable[float]) -> Tokens:
    """Counts one tree from the lengths of its prompt and completions; all completion tokens count."""
    lengths = list(completions)
    pairs = prompt * (prompt + 1) / 2 + sum(c * prompt + c * (c + 1) / 2 for c in lengths)
    return Tokens(prompt + sum(lengths), pairs, sum(lengths))


def forward_operations(
    shape: Shape, tokens: Tokens, *, adapter: bool, output_layer: bool, layers: int | None = None
) -> float:
    """Counts a pass: 2 per parameter and token, 4 per token pair and query dimension (scores and mean).

    Args:
        layers: how many of the upper layers run, where the states below them are kept; None: all.
    """
    count = shape.base.layers if layers is None else layers
    parameters = count * shape.layer_parameters + (shape.lora_parameters if adapter else 0)
    attention = 4 * tokens.pairs * count * shape.base.heads * shape.base.head_size
    output = 2 * shape.head_parameters * tokens.counted if output_layer else 0
    return 2 * parameters * tokens.real + attention + output


def backward_operations(shape: Shape, tokens: Tokens, *, output_layer: bool) -> float:
    """Counts the gradients of inputs, and of the weights that train, from the top down to the lowest layer that trains.

    Attention has two products forward and four backward; what trains has one forward and two backward.
    """
    output = 2 * shape.head_parameters * tokens.counted if output_layer else 0
    attention = 8 * tokens.pairs * shape.trained_layers * shape.base.heads * shape.base.head_size
    below = sum(linear.inputs * linear.outputs for linear in shape.base.linear if linear.name in INPUTS_ALONE)
    parameters = shape.trained_layers * shape.layer_parameters
    if shape.in_full:  # the embedding below trains too, so gradients pass through every weight
        return 2 * 2 * parameters * tokens.real + attention + 2 * output
    return 2 * (parameters - below + 2 * shape.lora_parameters) * tokens.real + attention + output


def trained_operations(shape: Shape, tokens: Tokens, *, output_layer: bool, layers: int | None = None) -> float:
    """Counts a pass forward and backward; `layers` as in `forward_operations`."""
    forward = forward_operations(shape, tokens, adapter=True, output_layer=output_layer, layers=layers)
    return forward + backward_operations(shape, tokens, output_layer=output_layer)


def stage_operations(stage: str, shape: Shape, tokens: Tokens) -> float:
    """Counts a stage's optimizer steps over these tokens.

    `dpo` includes the reference's forward pass. Of `ppo` and `grpo` only the update counts, for `ppo` with a critic
    that has its own adapter; the scalar heads of reward and critic are negligible.

    Raises:
        ValueError: there is no such stage.
    """
    match stage:
        case "sft" | "ppo-head" | "grpo":
            return trained_operations(shape, tokens, output_layer=True)
        case "reward":
            return trained_operations(shape, tokens, output_layer=False)
        case "dpo":
            reference = forward_operations(shape, tokens, adapter=False, output_layer=True)
            return trained_operations(shape, tokens, output_layer=True) + reference
        case "ppo":
            return sum(trained_operations(shape, tokens, output_layer=output) for output in (True, False))
    raise ValueError(f"{stage!r} is not one of sft, reward, dpo, ppo, ppo-head, grpo")
