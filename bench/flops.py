"""Counts the operations a stage's mathematics needs, which even a perfect implementation could not avoid.

A multiplication and an addition are two operations. Matrix products and attention on real tokens count; padding,
recomputation to save memory, norms, activations and the optimizer do not. The base's weights are frozen, so its
backward pass computes no weight gradients and costs as much as its forward pass, not twice as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

INPUTS_ALONE = ("q_proj", "k_proj", "v_proj")
"""In the lowest adapted layer no gradient passes through these weights, as nothing below needs one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The matrix sizes of a Llama and its adapter."""

    hidden: int
    inner: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab: int
    rank: int = 0
    """LoRA rank; 0 means no adapter."""
    adapted: tuple[str, ...] = ()
    """Names of the linear layers with an adapter, in every layer of the model."""

    @classmethod
    def of(cls, config: Any, *, rank: int = 0, adapted: str | Sequence[str] = "all-linear") -> Shape:
        """Reads the sizes from a transformers configuration."""
        heads = config.num_attention_heads
        shape = cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            heads,
            getattr(config, "num_key_value_heads", None) or heads,
            getattr(config, "head_dim", None) or config.hidden_size // heads,
            config.vocab_size,
        )
        names = tuple(shape.linear) if adapted == "all-linear" else tuple(adapted)
        return replace(shape, rank=rank, adapted=names if rank else ())

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of each linear map in a layer."""
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        return {
            "q_proj": (self.hidden, queries),
            "k_proj": (self.hidden, keys),
            "v_proj": (self.hidden, keys),
            "o_proj": (queries, self.hidden),
            "gate_proj": (self.hidden, self.inner),
            "up_proj": (self.hidden, self.inner),
            "down_proj": (self.inner, self.hidden),
        }

    @property
    def trunk_parameters(self) -> int:
        """Parameters in matrix products, without the output layer."""
        return self.num_layers * sum(i * o for i, o in self.linear.values())

    @property
    def head_parameters(self) -> int:
        """Parameters of the output layer."""
        return self.hidden * self.vocab

    @property
    def lora_parameters(self) -> int:
        return self.num_layers * sum(self.rank * sum(self.linear[name]) for name in self.adapted)


@dataclass(frozen=True, slots=True)
class Tokens:
    """The counts of prompts and completions that determine operations."""

    real: int = 0
    """Tokens of prompts, once each, and completions."""
    pairs: int = 0
    """Pairs of a token and one it attends to, itself included."""
    counted: int = 0
    """Tokens whose log-prob is needed."""

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.real + other.real, self.pairs + other.pairs, self.counted + other.counted)


def tokens_of(prompt: int, completions: Iterable[int]) -> Tokens:
    """Counts one tree from the lengths of its prompt and completions; all completion tokens count."""
    lengths = list(completions)
    pairs = prompt * (prompt + 1) // 2 + sum(c * prompt + c * (c + 1) // 2 for c in lengths)
    return Tokens(prompt + sum(lengths), pairs, sum(lengths))


def forward_operations(shape: Shape, tokens: Tokens, *, adapter: bool, output_layer: bool) -> int:
    """Counts a pass: 2 per parameter and token, 4 per token pair and query dimension (scores and mean)."""
    parameters = shape.trunk_parameters + (shape.lora_parameters if adapter else 0)
    attention = 4 * tokens.pairs * shape.num_layers * shape.num_heads * shape.head_size
    output = 2 * shape.head_parameters * tokens.counted if output_layer else 0
    return 2 * parameters * tokens.real + attention + output


def backward_operations(shape: Shape, tokens: Tokens, *, output_layer: bool) -> int:
    """Counts the gradients of inputs and of the adapter's weights.

    Attention has two products forward and four backward; an adapter's matrices have one forward and two backward.
    """
    lowest = sum(i * o for name, (i, o) in shape.linear.items() if name in INPUTS_ALONE)
    parameters = shape.trunk_parameters - lowest + 2 * shape.lora_parameters
    attention = 8 * tokens.pairs * shape.num_layers * shape.num_heads * shape.head_size
    output = 2 * shape.head_parameters * tokens.counted if output_layer else 0
    return 2 * parameters * tokens.real + attention + output


def stage_operations(stage: str, shape: Shape, tokens: Tokens) -> int:
    """Counts a stage's optimizer steps over these tokens.

    `dpo` includes the reference's forward pass. Of `ppo` and `grpo` only the update counts, for `ppo` with a critic
    that has its own adapter; the scalar heads of reward and critic are negligible.
    """

    def trained(output_layer: bool) -> int:
        forward = forward_operations(shape, tokens, adapter=True, output_layer=output_layer)
        return forward + backward_operations(shape, tokens, output_layer=output_layer)

    match stage:
        case "sft" | "ppo-head" | "grpo":
            return trained(True)
        case "reward":
            return trained(False)
        case "dpo":
            return trained(True) + forward_operations(shape, tokens, adapter=False, output_layer=True)
        case "ppo":
            return trained(True) + trained(False)
    raise ValueError(f"{stage!r} is not one of sft, reward, dpo, ppo, ppo-head, grpo")
